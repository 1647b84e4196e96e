/**
 * A restore by stock `xl restore`, with this package's save helper under it: for guests with devices, which libxl's tools
 * alone can build.
 *
 *     source → reader (checks every byte) → pipe → xl → libxl → save helper → domain
 *
 * The reader knows where the stream ends, so that not a byte beyond it is taken; and nothing gets to libxl, which
 * believes every length, that the formats do not allow.
 */
import { HvmParam } from '../../abi/hvm.js';
import { debug } from '../../debug.js';
import { StreamFormatError, UsageError } from '../../errors.js';
import { now, type JobControl } from '../../job.js';
import type { RestoreOptions, RestoreResult } from '../../restore/types.js';
import { StreamErrorCode } from '../../stream/codes.js';
import type { RecordEvent, StreamEvent } from '../../stream/events.js';
import { DomainType, LibxcRecord } from '../../stream/libxc/constants.js';
import { decodeHvmParams } from '../../stream/libxc/hvm.js';
import type { XlReader } from '../../stream/xl/reader.js';
import { withLimit } from '../limits.js';
import type { ByteSource } from '../../transport/types.js';
import type { XlBuild } from './build.js';

const FINISH_MS = 120_000;

/** What a restore by xl works with. */
export interface XlRestoreParts {
  readonly control: JobControl;
  readonly source: ByteSource;
  readonly options: RestoreOptions;
  /** Has read xl's header. */
  readonly reader: XlReader;
  /** The configuration in that header. */
  readonly config: string | undefined;
  /** Has been given its own. */
  readonly build: XlBuild;
  /** ms from the stream's last byte until xl has set up all devices. */
  readonly finishMs?: number | undefined;
}

/**
 * Feeds what follows xl's header to xl, and resolves when the domain is complete, and paused. Rejects with what failed;
 * xl is still to be ended then.
 */
export class XlRestore {
  readonly #parts: XlRestoreParts;
  readonly #started = now();
  /** Aborted by the job's signal and by xl's end: whatever waits for the source or for the pipe stops. */
  readonly #stop = new AbortController();
  #guestType: 'pv' | 'hvm' = 'hvm';
  #pages = 0;
  #cpuid = false;
  #msr = false;
  #storeGfn = 0;
  #consoleGfn = 0;

  constructor(parts: XlRestoreParts) {
    this.#parts = parts;
  }

  async run(): Promise<RestoreResult> {
    const { control, build } = this.#parts;
    const { signal } = control;
    const stop = (reason: unknown): void => {
      this.#stop.abort(reason);
      build.child.sink.abort(reason);
    };
    const onAbort = (): void => stop(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      control.throwIfCancelled();
      void build.child.exited.then((exitCode) => this.#stop.abort(build.child.failure(exitCode)));
      await this.#feed();
      await this.#finish();
      return this.#result();
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  /** The stream as it comes: a piece is taken when the one before it is in the pipe. */
  async #feed(): Promise<void> {
    const { control, reader, options, source } = this.#parts;
    while (!reader.done) {
      const bytes = await this.#take();
      const event = reader.feed(bytes);
      if (event !== undefined) this.#note(event);
      await this.#write(bytes);
      control.note({ transferred: reader.position, pages: this.#pages });
    }
    if (options.refuseTrailing === true && (await source.wait(1, control.signal))) {
      const offset = reader.position;
      throw new StreamFormatError(StreamErrorCode.TRAILING, 'bytes after the end of the stream', { offset });
    }
  }

  async #take(): Promise<Uint8Array> {
    const { reader, source } = this.#parts;
    for (;;) {
      const bytes = source.take(reader.want);
      if (bytes !== undefined) return bytes;
      // An end is too early here, and the reader says so.
      if (!(await source.wait(reader.want, this.#stop.signal))) reader.end();
    }
  }

  async #write(bytes: Uint8Array): Promise<void> {
    const { control, build } = this.#parts;
    try {
      await build.child.sink.write([bytes]);
    } catch (error) {
      if (control.signal.aborted) throw error;
      // The pipe breaks because xl has ended, or is about to.
      throw build.child.failure(await build.child.giveUp(error));
    }
  }

  /** xl sets up devices and ends, with a daemon left behind. */
  async #finish(): Promise<void> {
    const { control, build, finishMs = FINISH_MS } = this.#parts;
    const { child } = build;
    control.enter('complete');
    // Whether xl got all of it is told by its exit code.
    child.sink.end().catch((error: unknown) => debug('%s: closing its pipe: %O', child.command, error));
    const what = `${child.command} had the whole stream and did not end`;
    const exitCode = await withLimit('complete', finishMs, what, control.signal, () => child.exited);
    if (exitCode !== 0) throw child.failure(exitCode);
  }

  #note(event: StreamEvent): void {
    const { control } = this.#parts;
    if (event.kind === 'domain-header') {
      this.#guestType = event.header.type === DomainType.X86_PV ? 'pv' : 'hvm';
    } else if (event.kind === 'page-data') {
      if (control.phase !== 'memory') control.enter('memory');
      this.#pages += event.dataPages;
    } else if (event.kind === 'record' && event.layer === 'libxc') {
      this.#noteRecord(event);
    }
  }

  #noteRecord(record: RecordEvent): void {
    switch (record.type) {
      case LibxcRecord.X86_CPUID_POLICY:
        this.#cpuid = true;
        break;
      case LibxcRecord.X86_MSR_POLICY:
        this.#msr = true;
        break;
      case LibxcRecord.HVM_PARAMS:
        for (const { index, value } of decodeHvmParams(record.body, record).entries) {
          if (index === HvmParam.STORE_PFN) this.#storeGfn = Number(value);
          if (index === HvmParam.CONSOLE_PFN) this.#consoleGfn = Number(value);
        }
        break;
      case LibxcRecord.CHECKPOINT:
        throw new UsageError('`xl restore` takes no checkpointed streams (Remus, COLO)');
    }
  }

  #result(): RestoreResult {
    const { build, config, reader } = this.#parts;
    return {
      domid: build.domid,
      guestType: this.#guestType,
      bytes: reader.position,
      pages: this.#pages,
      populated: { pages: 0, superpages: 0 },
      checkpoints: 0,
      failedOver: false,
      missing: { cpuid: !this.#cpuid, msr: !this.#msr },
      storeGfn: this.#storeGfn,
      consoleGfn: this.#consoleGfn,
      verifyMismatches: { count: 0, pfns: [] },
      config,
      elapsed: now() - this.#started,
    };
  }
}
