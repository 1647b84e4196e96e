/**
 * The source's end of a migration. Reads from top to bottom like docs/reference/handshake.md; the numbers are those of
 * the synchronisation points.
 */
import { randomUUID } from 'node:crypto';
import { PAGE_SIZE } from '../abi/pages.js';
import {
  GuestError,
  PeerError,
  TimeoutError,
  withCleanupError,
  XenMigrationError,
  type GuestWhereabouts,
} from '../errors.js';
import type { DomainInfo, Host } from '../host/host.js';
import { now, type JobControl } from '../job.js';
import { SaveErrorCode } from '../save/codes.js';
import type { runSave } from '../save/save.js';
import type { SaveSteering } from '../save/steering.js';
import type { SaveResult } from '../save/types.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import { SOFTWARE } from '../version.js';
import {
  commonVersion,
  frameName,
  FrameType,
  PROTOCOL_VERSIONS,
  protocolError,
  reasonOf,
  versionsText,
  type Frame,
  type MigrationOffer,
} from './frames.js';
import { fullTimeouts, msText, startTimer, StreamSink, withLimit, type FullTimeouts } from './limits.js';
import { Session, SyncPoint } from './session.js';
import type { MigrateOptions, MigrateResult } from './types.js';
import { asOurs, readInfo, whereaboutsOf } from './whereabouts.js';
import { peerFailure, Wire } from './wire.js';

const RECEIVER = 'the receiver';

/** ms to wait for the receiver's own account of a failure that showed here as a broken connection. */
const ACCOUNT = 1000;

/** Sends a guest. The control's job must be of operation `migrate`; `save` is `runSave`, or in tests what stands for it. */
export async function runMigrate(
  control: JobControl,
  host: Host,
  options: MigrateOptions,
  steering: SaveSteering,
  save: typeof runSave,
): Promise<MigrateResult> {
  return new Sender(control, host, options, steering, save).run();
}

class Sender {
  readonly #control: JobControl;
  readonly #host: Host;
  readonly #options: MigrateOptions;
  readonly #steering: SaveSteering;
  readonly #save: typeof runSave;
  readonly #toolstack: Toolstack;
  readonly #timeouts: FullTimeouts;
  readonly #session = new Session('sender');
  readonly #wire: Wire;
  #info: DomainInfo | undefined;
  /** What the receiver says next. Always being waited for after READY, so that its failure is heard at once. */
  #answer: Promise<Frame> | undefined;
  /** Set while the stream is under way: how to cut it. */
  #stream: StreamSink | undefined;
  #streamBytes = 0;
  /** The stream is through: the guest is suspended by us. */
  #saved: SaveResult | undefined;
  /** The last frame was sent; the connection ends in good manners. */
  #farewell = false;
  /** The receiver, told to run the guest, has said that it has none and never will. */
  #handedBack = false;

  constructor(
    control: JobControl,
    host: Host,
    options: MigrateOptions,
    steering: SaveSteering,
    save: typeof runSave,
  ) {
    this.#control = control;
    this.#host = host;
    this.#options = options;
    this.#steering = steering;
    this.#save = save;
    this.#toolstack = options.toolstack ?? host.toolstack;
    this.#timeouts = fullTimeouts('sender', options.timeouts);
    this.#wire = new Wire(options.peer, RECEIVER);
  }

  async run(): Promise<MigrateResult> {
    const { totalMs } = this.#timeouts;
    const total = startTimer(totalMs, () =>
      this.#abort(new TimeoutError('total', totalMs, `the migration was not done within ${msText(totalMs)}`)),
    );
    this.#control.signal.addEventListener('abort', this.#onAbort, { once: true });
    try {
      const software = await this.#agree();
      const saved = await this.#sendStream();
      await this.#restored();
      const running = await this.#handOver();
      const handedOverAt = now();
      await this.#release(running.state);
      return {
        ...saved,
        id: this.#session.id,
        peerDomid: running.domid,
        peerState: running.state,
        peerSoftware: software,
        downtime: {
          ...saved.downtime,
          handover: handedOverAt - (this.#session.passedAt[SyncPoint.STREAM_END] as number),
          total: handedOverAt - saved.suspendRequestedAt,
        },
      };
    } catch (error) {
      throw await this.#failed(error);
    } finally {
      clearTimeout(total);
      this.#control.signal.removeEventListener('abort', this.#onAbort);
      if (this.#farewell) await this.#wire.close();
      else this.#wire.destroy(new PeerError('ERR_XEN_PEER_LOST', 'the migration is over'));
    }
  }

  /** 1 HELLO, 2 READY. Returns the receiver's software. */
  async #agree(): Promise<string> {
    const { signal } = this.#control;
    const { connectMs, helloMs } = this.#timeouts;
    const wire = this.#wire;
    this.#info = await readInfo(this.#host, this.#options.domid);
    const offer = await this.#offer(this.#info);
    this.#session.id = offer.id;
    await withLimit('connect', connectMs, `${RECEIVER} could not be connected`, signal, (s) =>
      wire.connected(s),
    );
    return withLimit('hello', helloMs, `${RECEIVER} did not answer the greeting`, signal, async (s) => {
      await wire.send({ type: FrameType.HELLO, offer });
      this.#session.pass(SyncPoint.HELLO);
      const peer = await wire.receivePreamble(s);
      const version = commonVersion(peer);
      if (version === undefined) {
        throw protocolError(
          `${RECEIVER} speaks version ${versionsText(peer)} of the protocol, this side ${versionsText(PROTOCOL_VERSIONS)}`,
        );
      }
      const frame = await wire.receive(s);
      if (frame.type !== FrameType.READY) throw this.#unexpected(frame, 'READY');
      if (frame.id !== offer.id || frame.version !== version) {
        throw protocolError(`${RECEIVER} answered to another greeting than ours`);
      }
      this.#session.pass(SyncPoint.READY);
      return frame.software;
    });
  }

  async #offer(info: DomainInfo): Promise<MigrationOffer> {
    const { domid, config } = this.#options;
    return {
      id: this.#options.id ?? randomUUID(),
      software: SOFTWARE,
      name: nameIn(config ?? (await this.#toolstack.domainConfig(domid))),
      hvm: info.hvm,
      memory: info.maxPages * PAGE_SIZE,
      paused: info.paused,
    };
  }

  /** 3: everything up to libxl's END, with the guest suspended and left so. */
  async #sendStream(): Promise<SaveResult> {
    const { peer: _peer, id: _id, timeouts: _timeouts, ...saveOptions } = this.#options;
    const { setupMs, stallMs } = this.#timeouts;
    const stream = new StreamSink(this.#wire.sink, stallMs, () =>
      this.#abort(new TimeoutError('stall', stallMs, `${RECEIVER} has taken nothing for ${msText(stallMs)}`)),
    );
    const setup = startTimer(setupMs, () => {
      if (this.#control.phase === 'setup' || this.#control.phase === 'static-data') {
        this.#abort(
          new TimeoutError('setup', setupMs, `no memory was sent within ${msText(setupMs)} of READY`),
        );
      }
    });
    this.#stream = stream;
    this.#listen();
    try {
      this.#control.throwIfCancelled();
      const saved = await this.#save(
        this.#control,
        this.#host,
        stream,
        { ...saveOptions, format: 'xl', afterwards: 'suspended' },
        this.#steering,
      );
      this.#saved = saved;
      await stream.end();
      this.#streamBytes = stream.bytesWritten;
      this.#session.pass(SyncPoint.STREAM_END);
      return saved;
    } finally {
      clearTimeout(setup);
      stream.stop();
      this.#stream = undefined;
    }
  }

  /** Waits for the receiver's next word; anything but RESTORED while the stream is under way cuts it. */
  #listen(): void {
    this.#answer = this.#wire.receive();
    this.#answer.then(
      (frame) => {
        // RESTORED may come a moment before our own end of the save has returned.
        if (this.#stream !== undefined && frame.type !== FrameType.RESTORED) {
          this.#abort(this.#unexpected(frame, 'RESTORED'));
        }
      },
      (error: unknown) => {
        if (this.#stream !== undefined) this.#abort(error);
      },
    );
  }

  /** 4 RESTORED. */
  async #restored(): Promise<void> {
    this.#control.enter('handshake');
    const { switchoverMs } = this.#timeouts;
    const what = `${RECEIVER} did not confirm that it has the guest`;
    const frame = await withLimit('switchover', switchoverMs, what, this.#control.signal, () =>
      this.#heard(),
    );
    if (frame.type !== FrameType.RESTORED) throw this.#unexpected(frame, 'RESTORED');
    if (frame.bytes !== this.#streamBytes) {
      throw protocolError(
        `${RECEIVER} says that the stream had ${frame.bytes} bytes, but ${this.#streamBytes} were sent`,
      );
    }
    this.#session.pass(SyncPoint.RESTORED);
  }

  /** 5 YOURS, 6 RUNNING. From the first byte of YOURS on, nothing but the receiver's word brings the guest back. */
  async #handOver(): Promise<Extract<Frame, { type: typeof FrameType.RUNNING }>> {
    this.#control.throwIfCancelled();
    if (this.#wire.lost) throw new PeerError('ERR_XEN_PEER_LOST', `${RECEIVER} closed the connection`);
    this.#session.pass(SyncPoint.YOURS);
    this.#answer = this.#wire.receive();
    // If YOURS itself cannot be sent, nobody waits for the answer any more.
    this.#answer.catch(() => undefined);
    const { switchoverMs } = this.#timeouts;
    const what = `${RECEIVER} did not confirm that the guest runs`;
    const frame = await withLimit('switchover', switchoverMs, what, undefined, () => {
      const sending = this.#wire.send({ type: FrameType.YOURS, id: this.#session.id });
      // The receiver may have given up, and said so, before YOURS got through.
      return Promise.race([this.#heard(), sending.then(() => this.#heard())]);
    });
    if (frame.type === FrameType.RUNNING) {
      this.#session.pass(SyncPoint.RUNNING);
      return frame;
    }
    this.#handedBack = frame.type === FrameType.FAILED && frame.gone;
    throw this.#unexpected(frame, 'RUNNING');
  }

  /** 7 RELEASED: our copy goes, and the receiver is told. */
  async #release(state: 'running' | 'paused'): Promise<void> {
    this.#control.enter('cleanup');
    const { domid } = this.#options;
    try {
      await this.#toolstack.destroy(domid);
    } catch (cause) {
      throw new GuestError(
        SaveErrorCode.NOT_DESTROYED,
        `the guest was migrated, but its old copy here (domain ${domid}, suspended) could not be destroyed; destroy it by hand, never resume it`,
        { cause, phase: 'cleanup', domid, guest: { host: 'destination', state } },
      );
    }
    this.#farewell = await this.#wire.trySend({ type: FrameType.RELEASED });
    this.#session.pass(SyncPoint.RELEASED);
  }

  /** Puts things right after a failure, by the rule of the point that was passed last. Returns the error to throw. */
  async #failed(failure: unknown): Promise<unknown> {
    const error = asOurs(await this.#account(failure));
    error.phase ??= this.#control.phase;
    const { rule, committed } = this.#session;
    if (rule === 'destination') return error;
    if (rule === 'keep-suspended' && !this.#handedBack) return this.#unknown(error);

    this.#control.enter('cleanup');
    const { domid } = this.#options;
    let place: GuestWhereabouts | undefined;
    // A failed save has put the guest right itself; a complete one has left it suspended for us.
    if (this.#saved !== undefined && this.#info?.shutdown === false) {
      try {
        await this.#toolstack.resume(domid);
      } catch (later) {
        withCleanupError(error, later);
        place = { host: 'source', state: 'suspended' };
      }
    }
    // Inside the stream there is no room for a frame: there, the receiver sees the connection end.
    if (this.#saved !== undefined && !committed) {
      this.#farewell = await this.#wire.trySend({
        type: FrameType.FAILED,
        reason: reasonOf(error),
        gone: false,
      });
    }
    error.guest ??= place ?? (await whereaboutsOf(this.#host, domid));
    return error;
  }

  /** The receiver's own reason, if it gave one, is worth more than the broken connection that it caused. */
  async #account(failure: unknown): Promise<unknown> {
    const broken = XenMigrationError.is(failure) && /^ERR_XEN_(PEER_LOST|TRANSPORT)$/.test(failure.code);
    if (!broken || this.#answer === undefined || this.#session.committed) return failure;
    const answer = this.#answer;
    try {
      const frame = await withLimit('farewell', ACCOUNT, '', undefined, () => answer);
      return frame.type === FrameType.FAILED ? this.#unexpected(frame, '') : failure;
    } catch {
      return failure;
    }
  }

  #unknown(cause: XenMigrationError): PeerError {
    const { domid } = this.#options;
    const { id } = this.#session;
    return new PeerError(
      'ERR_XEN_HANDOVER_UNKNOWN',
      `${RECEIVER} was told to run the guest and its answer did not come (${cause.message}), so it is not known which side has it. ` +
        `The copy here, domain ${domid}, was left suspended. Look at the destination for migration ${id}: ` +
        `if the guest is there, destroy domain ${domid} here; if it is not, resume domain ${domid}`,
      { cause, phase: 'handshake', domid, guest: { host: 'unknown', state: 'unknown' } },
    );
  }

  /** The error for a frame that ends the migration, or that should not come now. */
  #unexpected(frame: Frame, wanted: string): PeerError {
    if (frame.type === FrameType.REFUSED) return peerFailure(RECEIVER, 'refused', frame.reason);
    if (frame.type === FrameType.FAILED) return peerFailure(RECEIVER, 'failed', frame.reason);
    return protocolError(`${RECEIVER} sent ${frameName(frame.type)} where ${wanted} was due`);
  }

  #heard(): Promise<Frame> {
    return this.#answer as Promise<Frame>;
  }

  #abort(reason: unknown): void {
    if (!this.#session.committed) this.#control.cancel(reason);
  }

  readonly #onAbort = (): void => {
    this.#stream?.abort(this.#control.signal.reason);
  };
}

/** The guest's name in a libxl_domain_config, if it can be found. It is for people to read: nothing depends on it. */
function nameIn(config: string): string | undefined {
  try {
    const parsed = JSON.parse(config) as { c_info?: { name?: unknown } } | null;
    const name = parsed?.c_info?.name;
    return typeof name === 'string' ? name.slice(0, 256) : undefined;
  } catch {
    return undefined;
  }
}
