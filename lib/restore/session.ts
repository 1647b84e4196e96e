/**
 * One restore from its first byte to the running guest: xl's header, libxl's records, the libxc stream in them, and the
 * domain that they are put into.
 *
 *     source → reader ─┬→ xl, libxl, headers: here ─→ toolstack
 *                      ├→ libxc records: Receiver ─→ RestoreOps ─→ Domain
 *                      └→ after the first checkpoint: Checkpoints, until the next one is complete
 */
import { PAGE_SIZE } from '../abi/pages.js';
import { debug } from '../debug.js';
import { PeerError, StreamFormatError, TransportError, UsageError, withCleanupError } from '../errors.js';
import type { Domain, DomainInfo, Host } from '../host/host.js';
import { type JobControl, now } from '../job.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { DomainHeaderEvent, ImageHeaderEvent, RecordEvent, StreamEvent } from '../stream/events.js';
import {
  DomainType,
  isOptionalRecord,
  LibxcRecord,
  PAGE_DATA_ENTRY_SIZE,
} from '../stream/libxc/constants.js';
import { LibxcReader } from '../stream/libxc/reader.js';
import { LibxlRecord } from '../stream/libxl/constants.js';
import { StreamReader } from '../stream/stream-reader.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import type { ByteSource } from '../transport/types.js';
import { Checkpoints } from './checkpoints.js';
import { DeviceModelStash } from './device-model.js';
import type { RestoreOps, RingFrames } from './ops.js';
import { PageWriter } from './pages.js';
import { maxAreas, Populator } from './populate.js';
import { Receiver } from './receiver.js';
import type { RestoreOptions, RestoreResult } from './types.js';
import { X86HvmRestore } from './x86-hvm.js';
import { X86PvRestore } from './x86-pv.js';

/**
 * Areas of 128 MiB over which a guest's memory may lie beyond what it needs (populate.ts). An area costs 4 KiB for an
 * HVM guest and about 300 KiB for a PV guest, whose pfns lie closer together.
 */
const SPARE_AREAS = { hvm: 16384, pv: 1024 } as const;

/** What a checkpoint may hold beyond all pages of the guest: holes in its memory, device model, vcpus. */
const CHECKPOINT_STATE_MAX = 1024 * 1024 * 1024;

/** ms of work without a look at timers and signals. */
const SLICE = 50;

/** Events that cost nearly nothing after which the clock is looked at. */
const EVENTS_UNBREATHED = 64;

/** What stands once the domain header is there. */
interface Build {
  readonly domain: Domain;
  readonly info: DomainInfo;
  readonly guestType: 'pv' | 'hvm';
  readonly ops: RestoreOps;
  readonly populator: Populator;
  readonly pages: PageWriter;
  readonly receiver: Receiver;
}

export class RestoreSession {
  readonly #control: JobControl;
  readonly #host: Host;
  readonly #source: ByteSource;
  readonly #options: RestoreOptions;
  readonly #toolstack: Toolstack;
  readonly #reader: StreamReader | LibxcReader;
  readonly #deviceModel = new DeviceModelStash();
  readonly #started = now();
  #slice = now();
  #unbreathed = 0;
  #config: string | undefined;
  #imageHeader: ImageHeaderEvent | undefined;
  #domainHeader: DomainHeaderEvent | undefined;
  #build: Build | undefined;
  // Opened, and to be closed or cleaned up; created, and to be destroyed if the restore fails.
  #domain: Domain | undefined;
  #ops: RestoreOps | undefined;
  #created: number | undefined;
  #rings: RingFrames | undefined;
  #checkpoints: Checkpoints | undefined;
  #ignoreDeviceModel = false;
  #failedOver = false;

  constructor(control: JobControl, host: Host, source: ByteSource, options: RestoreOptions) {
    this.#control = control;
    this.#host = host;
    this.#source = source;
    this.#options = options;
    this.#toolstack = options.toolstack ?? host.toolstack;
    // Bare streams have a thousand records without pages to read: not one layer more than need be.
    this.#reader =
      options.format === 'libxc' ? new LibxcReader() : new StreamReader({ format: options.format });
  }

  /** The whole of it. Whatever fails: nothing stays mapped, and a domain that was made here is destroyed. */
  async run(): Promise<RestoreResult> {
    try {
      await this.#readStream();
      return await this.#finish();
    } catch (error) {
      await this.#giveUp(error);
      throw error;
    }
  }

  async #readStream(): Promise<void> {
    const reader = this.#reader;
    while (!reader.done) {
      const bytes = this.#takeBytes() ?? (await this.#readInPlace());
      if (bytes === undefined) {
        if (await this.#more()) continue;
        return;
      }
      const at = reader.position;
      const event = reader.feed(bytes);
      const checkpoints = this.#checkpoints;
      if (checkpoints !== undefined && this.#rings === undefined) {
        const kept = checkpoints.append(bytes, at);
        if (kept !== undefined) await kept;
        if (event !== undefined) await this.#checkpointed(checkpoints, event);
      } else if (event !== undefined) {
        const work = this.#handle(event);
        if (work !== undefined) {
          await work;
          await this.#breathe();
        } else if (++this.#unbreathed === EVENTS_UNBREATHED) await this.#breathe();
      }
    }
    if (this.#build === undefined) {
      throw new StreamFormatError(StreamErrorCode.MISSING, 'there is no libxc stream in this libxl stream', {
        offset: reader.position,
        record: 'LIBXC_CONTEXT',
      });
    }
  }

  /** What is here, or can be had without waiting for it. Contents of pages have better ways, if they are long. */
  #takeBytes(): Uint8Array | undefined {
    const source = this.#source;
    const { want } = this.#reader;
    const bytes = source.take(want);
    if (bytes !== undefined || source.fetch === undefined) return bytes;
    return source.fetch(this.#reader.ahead) ? source.take(want) : undefined;
  }

  /**
   * Lets the source read page contents straight to where they belong, if it can and if they do not wait for a
   * checkpoint to be complete. Undefined if not, or at the end of the stream.
   */
  async #readInPlace(): Promise<Uint8Array | undefined> {
    if (this.#source.readInto === undefined || this.#checkpoints !== undefined) return undefined;
    const place = this.#build?.pages.place(this.#reader.want);
    if (place === undefined) return undefined;
    const reading = this.#source.readInto(place, this.#control.signal);
    if (reading === undefined) return undefined;
    this.#note();
    this.#slice = now();
    const n = await reading;
    this.#control.throwIfCancelled();
    if (n === place.length) return place;
    return n === 0 ? undefined : place.subarray(0, n);
  }

  /** Waits for bytes. False if there will be none and the guest goes on from its last checkpoint. */
  async #more(): Promise<boolean> {
    this.#note();
    let truncated: unknown;
    try {
      this.#slice = now();
      if (await this.#source.wait(this.#reader.ahead, this.#control.signal)) return true;
      this.#reader.end();
    } catch (error) {
      truncated = error;
    }
    this.#control.throwIfCancelled();
    const cutOff =
      truncated instanceof TransportError ||
      truncated instanceof PeerError ||
      (truncated instanceof StreamFormatError && truncated.code === StreamErrorCode.TRUNCATED);
    const complete = this.#checkpoints?.complete ?? 0;
    if (!cutOff || complete === 0 || this.#rings !== undefined) throw truncated;
    if (this.#options.onTruncatedCheckpoint !== 'failover') throw offerFailover(truncated, complete);
    debug('restore: %o; failing over to checkpoint %d', truncated, complete);
    this.#failedOver = true;
    await this.#completeGuest(this.#reader.position);
    return false;
  }

  #handle(event: StreamEvent): Promise<void> | undefined {
    switch (event.kind) {
      case 'xl-header':
        this.#config = event.header.config;
        return undefined;
      case 'libxl-header':
        return undefined;
      case 'image-header':
        this.#imageHeader = event;
        return undefined;
      case 'domain-header':
        this.#domainHeader = event;
        return this.#openDomain(event, this.#imageHeader as ImageHeaderEvent);
      case 'record':
        if (event.layer === 'libxl') return this.#libxlRecord(event);
        if (event.type === LibxcRecord.END) return this.#completeGuest(event.offset);
        if (event.type === LibxcRecord.CHECKPOINT) {
          this.#beginCheckpoints();
          return undefined;
        }
        break;
      default:
        break;
    }
    return (this.#build as Build).receiver.handle(event);
  }

  async #openDomain(header: DomainHeaderEvent, image: ImageHeaderEvent): Promise<void> {
    const control = this.#control;
    const toolstack = this.#toolstack;
    const { signal } = control;
    let { domid } = this.#options;
    if (domid === undefined) {
      const config = this.#options.config ?? this.#config;
      if (config === undefined) {
        throw new UsageError(
          'the stream has no configuration to build a domain from: give a domid or a config',
        );
      }
      domid = await toolstack.createDomain(config, { signal });
      this.#created = domid;
    }
    control.domid = domid;
    control.throwIfCancelled();
    const domain = (this.#domain = await this.#host.openDomain(domid));
    const info = await domain.info();
    this.#checkTarget(header, info);
    const wiring = this.#options.wiring ?? (await toolstack.backendWiring(domid));
    const guestType = info.hvm ? 'hvm' : 'pv';
    const areas = maxAreas(info.maxPages, SPARE_AREAS[guestType]);
    const populator = new Populator(domain, areas, {
      setGfns: (pfns, gfns, count) => ops.setGfns(pfns, gfns, count),
      setGfnRun: (pfn, gfn, count) => ops.setGfnRun(pfn, gfn, count),
    });
    const context = { domain, info, wiring, populator };
    const ops: RestoreOps = info.hvm
      ? new X86HvmRestore(context)
      : new X86PvRestore(context, () => this.#host.mapMachineToPhys());
    this.#ops = ops;
    await ops.setup();
    const pages = new PageWriter(domain, ops, populator);
    const imageVersion = image.header.version;
    const receiver = new Receiver({ control, domain, ops, pages, toolstack, imageVersion });
    this.#build = { domain, info, guestType, ops, populator, pages, receiver };
  }

  #checkTarget({ header, offset }: DomainHeaderEvent, info: DomainInfo): void {
    const hvm = header.type === DomainType.X86_HVM;
    if (hvm !== info.hvm) {
      const kind = (isHvm: boolean): string => (isHvm ? 'HVM (or PVH)' : 'PV');
      const reason = `an x86 ${kind(hvm)} guest cannot be restored into domain ${info.domid}, which is ${kind(info.hvm)}`;
      const where = { offset, record: 'domain header', path: 'type' };
      throw new StreamFormatError(StreamErrorCode.GUEST_TYPE, reason, where);
    }
    // A domain that runs, or is on its way out, is not one that somebody made for this restore.
    if (info.dying || info.shutdown || !info.paused) {
      throw new UsageError(`domain ${info.domid} is not a new, paused domain: it cannot be restored into`);
    }
  }

  async #libxlRecord(record: RecordEvent): Promise<void> {
    const { type, name, offset } = record;
    switch (type) {
      case LibxlRecord.END:
      case LibxlRecord.LIBXC_CONTEXT:
      case LibxlRecord.CHECKPOINT_END:
        return;
      case LibxlRecord.EMULATOR_XENSTORE_DATA:
      case LibxlRecord.EMULATOR_CONTEXT:
        if (this.#build?.guestType !== 'hvm') {
          const code = this.#build === undefined ? StreamErrorCode.ORDER : StreamErrorCode.TYPE;
          const reason =
            this.#build === undefined ? 'before LIBXC_CONTEXT' : 'a PV guest has no device model';
          throw new StreamFormatError(code, reason, { offset, record: name });
        }
        if (!this.#ignoreDeviceModel) this.#deviceModel.add(record);
        return;
    }
    if (isOptionalRecord(type)) return;
    const reason =
      type === LibxlRecord.CHECKPOINT_STATE ? 'only COLO has it' : 'unknown, and must not be skipped';
    throw new StreamFormatError(StreamErrorCode.TYPE, reason, { offset, record: name });
  }

  /** The first CHECKPOINT: what came before it has been applied, what comes now waits for the next one. */
  #beginCheckpoints(): void {
    const { info } = this.#build as Build;
    this.#checkpoints = new Checkpoints(
      {
        bare: this.#reader instanceof LibxcReader || this.#reader.format === 'libxc',
        image: this.#imageHeader as ImageHeaderEvent,
        domain: this.#domainHeader as DomainHeaderEvent,
        position: this.#reader.position,
      },
      {
        limit: 2 * info.maxPages * (PAGE_SIZE + PAGE_DATA_ENTRY_SIZE) + CHECKPOINT_STATE_MAX,
        directory: this.#options.spoolDirectory,
      },
    );
  }

  async #checkpointed(checkpoints: Checkpoints, event: StreamEvent): Promise<void> {
    switch (checkpoints.decide(event)) {
      case 'apply':
        await checkpoints.apply((applied) => this.#handle(applied)?.then(() => this.#breathe()));
        break;
      case 'drop':
        // What came since the last CHECKPOINT is part of none: the guest stays as it was there, its devices too.
        this.#ignoreDeviceModel = await checkpoints.drop();
        await this.#completeGuest(event.offset);
        break;
      case undefined:
        break;
    }
    await this.#breathe();
  }

  async #completeGuest(offset: number): Promise<void> {
    const { receiver } = this.#build as Build;
    this.#rings = await receiver.complete(offset);
  }

  /** Memory and state are in place: the toolstack gets the domain, and the guest runs if it shall. */
  async #finish(): Promise<RestoreResult> {
    const control = this.#control;
    const { domain, guestType, ops, pages, populator, receiver } = this.#build as Build;
    const { storeGfn, consoleGfn } = this.#rings as RingFrames;
    const { domid } = domain;
    const toolstack = this.#toolstack;
    this.#note();
    if (this.#options.refuseTrailing === true && !this.#failedOver) await this.#checkEnd();
    control.enter('complete');
    pages.release();
    await this.#checkpoints?.close();
    this.#ops = undefined;
    await ops.cleanup();
    this.#domain = undefined;
    await domain.close();
    control.throwIfCancelled();
    const { state } = this.#deviceModel;
    if (state !== undefined) await toolstack.loadDeviceModelState(domid, state);
    await toolstack.finishRestore(domid, { storeGfn, consoleGfn });
    control.throwIfCancelled();
    // From here on nothing may fail: the guest runs.
    if (this.#options.run !== false) await toolstack.unpause(domid);
    return {
      domid,
      guestType,
      bytes: this.#reader.position,
      pages: pages.pages,
      populated: { pages: populator.pages, superpages: populator.superpages },
      checkpoints: this.#checkpoints?.complete ?? 0,
      failedOver: this.#failedOver,
      missing: receiver.missing,
      storeGfn,
      consoleGfn,
      verifyMismatches: pages.mismatches,
      config: this.#config,
      elapsed: now() - this.#started,
    };
  }

  async #checkEnd(): Promise<void> {
    if (this.#source.take(1) === undefined && !(await this.#source.wait(1, this.#control.signal))) return;
    const where = { offset: this.#reader.position };
    throw new StreamFormatError(StreamErrorCode.TRAILING, 'bytes after the end of the stream', where);
  }

  /** Undoes what there is, in the opposite order. A domain that the caller made stays, paused, with nothing that could run. */
  async #giveUp(error: unknown): Promise<void> {
    const attempt = async (step: () => Promise<unknown> | undefined): Promise<void> => {
      try {
        await step();
      } catch (later) {
        withCleanupError(error, later);
      }
    };
    await attempt(async () => this.#build?.pages.release());
    await attempt(() => this.#checkpoints?.close());
    await attempt(() => this.#ops?.cleanup());
    await attempt(() => this.#domain?.close());
    const created = this.#created;
    if (created !== undefined) await attempt(() => this.#toolstack.destroy(created));
  }

  #note(): void {
    const position = this.#reader.position;
    this.#control.note({ transferred: position, pages: this.#build?.pages.pages ?? 0 });
  }

  /** Lets others run now and then, where a source always has bytes, and looks at the signal. */
  async #breathe(): Promise<void> {
    this.#unbreathed = 0;
    this.#control.throwIfCancelled();
    if (now() - this.#slice < SLICE) return;
    this.#note();
    await new Promise<void>((resolve) => {
      setImmediate(resolve);
    });
    this.#slice = now();
    this.#control.throwIfCancelled();
  }
}

/** The error of a checkpointed stream that is cut off, telling of the way out. */
function offerFailover(error: unknown, complete: number): unknown {
  if (!(error instanceof StreamFormatError)) return error;
  const { code, reason, offset, record, path } = error;
  const hint = `after ${complete} complete ${complete === 1 ? 'checkpoint' : 'checkpoints'}; onTruncatedCheckpoint: 'failover' (at a shell: --failover) goes on from the last`;
  return new StreamFormatError(code, `${reason}, ${hint}`, { offset, record, path }, { cause: error });
}
