/**
 * The source's end of a migration. Reads from top to bottom like docs/reference/handshake.md; the numbers are those of
 * the synchronisation points.
 */
import { randomUUID } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { PAGE_SIZE } from '../abi/pages.js';
import { debug } from '../debug.js';
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
import type { SaveOptions, SaveResult } from '../save/types.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import { compressSink } from '../transport/compress.js';
import { SOFTWARE } from '../version.js';
import { askAgain } from './ask.js';
import { FrameType, protocolError, reasonOf, type Frame, type MigrationOffer } from './frames.js';
import { fullTimeouts, msText, startTimer, StreamSink, withLimit, type FullTimeouts } from './limits.js';
import { MIGRATED_AWAY, nameIn } from './naming.js';
import { Note, refuseOpenMatter } from '../toolstack/note.js';
import { openSenderWire } from './open-wire.js';
import { accountOf, pausedToXl, RECEIVER, unexpectedFrame, unknownHandover } from './sender-errors.js';
import { Session, SyncPoint } from './session.js';
import type { MigrateOptions, MigrateResult } from './types.js';
import { asOurs, readInfo, whereaboutsOf } from './whereabouts.js';
import { connected, type MigrationWire } from './wire.js';

/** The options of a migration whose connection is there. */
export type SenderOptions = Omit<MigrateOptions, 'peer'> & { readonly peer: Duplex };

/** Sends a guest. The control's job must be of operation `migrate`; `save` is `runSave`, or in tests what stands for it. */
export async function runMigrate(
  control: JobControl,
  host: Host,
  options: SenderOptions,
  steering: SaveSteering,
  save: typeof runSave,
): Promise<MigrateResult> {
  return new Sender(control, host, options, steering, save).run();
}

/** What is known of the guest at the destination. */
interface Running {
  readonly domid: number | undefined;
  readonly state: 'running' | 'paused';
}

class Sender {
  readonly #control: JobControl;
  readonly #host: Host;
  readonly #options: SenderOptions;
  readonly #steering: SaveSteering;
  readonly #save: typeof runSave;
  readonly #toolstack: Toolstack;
  readonly #timeouts: FullTimeouts;
  readonly #session = new Session('sender');
  #wire: MigrationWire | undefined;
  #note: Note | undefined;
  /** The guest's own name, if it was taken from it. */
  #renamedFrom: string | undefined;
  #compression: string | undefined;
  /** `NoteStore.incarnation` of the receiver's host. */
  #peerHost: string | undefined;
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
    options: SenderOptions,
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
    // Until there is a wire, whose it is: it must not end the process.
    options.peer.on('error', () => undefined);
  }

  async run(): Promise<MigrateResult> {
    const { totalMs } = this.#timeouts;
    const total = startTimer(totalMs, () =>
      this.#abort(new TimeoutError('total', totalMs, `the migration was not done within ${msText(totalMs)}`)),
    );
    this.#control.signal.addEventListener('abort', this.#onAbort, { once: true });
    try {
      const offer = await this.#offer();
      const wire = await this.#connect();
      const software = await this.#agree(wire, offer);
      await this.#openNote(offer);
      const saved = await this.#sendStream(wire);
      await this.#restored();
      await this.#letGo();
      const running = await this.#handOver(wire);
      const handedOverAt = now();
      await this.#release(wire, running.state);
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
      const wire = this.#wire;
      if (wire === undefined) this.#options.peer.destroy();
      else if (this.#farewell) await wire.close();
      else wire.destroy(new PeerError('ERR_XEN_PEER_LOST', 'the migration is over'));
    }
  }

  async #offer(): Promise<MigrationOffer> {
    const { domid, config, compression, id } = this.#options;
    this.#info = await readInfo(this.#host, domid);
    await refuseOpenMatter(this.#toolstack.notes, domid);
    const { hvm, maxPages, paused } = this.#info;
    const name = nameIn(config ?? (await this.#toolstack.domainConfig(domid)));
    this.#session.id = id ?? randomUUID();
    return {
      id: this.#session.id,
      software: SOFTWARE,
      name,
      hvm,
      memory: maxPages * PAGE_SIZE,
      paused,
      compression: compression ?? [],
    };
  }

  /** The connection, and the protocol that the receiver at its end speaks. */
  async #connect(): Promise<MigrationWire> {
    const { signal } = this.#control;
    const { connectMs, helloMs } = this.#timeouts;
    const { peer, protocol, peerLeavesPaused } = this.#options;
    await withLimit('connect', connectMs, `${RECEIVER} could not be connected`, signal, (s) =>
      connected(peer, RECEIVER, s),
    );
    const what = `${RECEIVER} did not greet`;
    const wire = await withLimit('hello', helloMs, what, signal, (s) =>
      openSenderWire(peer, protocol, peerLeavesPaused, s),
    );
    this.#wire = wire;
    if (wire.protocol === 'xl' && this.#info?.paused === true && peerLeavesPaused !== true) {
      throw pausedToXl(this.#options.domid);
    }
    return wire;
  }

  /** 1 HELLO, 2 READY. Returns the receiver's software. */
  async #agree(wire: MigrationWire, offer: MigrationOffer): Promise<string> {
    const { signal } = this.#control;
    const what = `${RECEIVER} did not answer the greeting`;
    return withLimit('hello', this.#timeouts.helloMs, what, signal, async (s) => {
      await wire.send({ type: FrameType.HELLO, offer });
      this.#session.pass(SyncPoint.HELLO);
      const frame = await wire.receive(s);
      if (frame.type !== FrameType.READY) throw unexpectedFrame(frame, 'READY');
      if (frame.id !== offer.id || frame.version !== wire.version) {
        throw protocolError(`${RECEIVER} answered to another greeting than ours`);
      }
      const { compression } = frame;
      if (compression !== undefined && !offer.compression.includes(compression)) {
        throw protocolError(`${RECEIVER} chose a compression that was not offered: ${compression}`);
      }
      this.#compression = compression;
      this.#peerHost = frame.host;
      this.#session.pass(SyncPoint.READY);
      return frame.software;
    });
  }

  /** Before anything is done to the guest: whoever finds this process dead knows what to put right. */
  async #openNote(offer: MigrationOffer): Promise<void> {
    const { domid, reconnectTo } = this.#options;
    this.#note = await Note.open(this.#toolstack.notes, 'sender', {
      id: offer.id,
      domid,
      name: offer.name,
      point: SyncPoint.READY,
      paused: offer.paused,
      suspended: this.#info?.shutdown === true,
      // xl cannot be asked.
      peer: this.#wire?.protocol === 'xl' ? undefined : reconnectTo,
      peerHost: this.#peerHost,
    });
  }

  /** 3: everything up to libxl's END, with the guest suspended and left so. */
  async #sendStream(wire: MigrationWire): Promise<SaveResult> {
    const saveOptions = saveOptionsOf(this.#options);
    const { setupMs, stallMs } = this.#timeouts;
    const stream = new StreamSink(wire.sink, stallMs, () =>
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
    this.#listen(wire);
    try {
      this.#control.throwIfCancelled();
      const saved = await this.#save(
        this.#control,
        this.#host,
        this.#compression === undefined ? stream : compressSink(stream, this.#compression),
        saveOptions,
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
  #listen(wire: MigrationWire): void {
    this.#answer = wire.receive();
    this.#answer.then(
      (frame) => {
        // RESTORED may come a moment before our own end of the save has returned.
        if (this.#stream !== undefined && frame.type !== FrameType.RESTORED) {
          this.#abort(unexpectedFrame(frame, 'RESTORED'));
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
    if (frame.type !== FrameType.RESTORED) throw unexpectedFrame(frame, 'RESTORED');
    if (frame.bytes !== undefined && frame.bytes !== this.#streamBytes) {
      throw protocolError(
        `${RECEIVER} says that the stream had ${frame.bytes} bytes, but ${this.#streamBytes} were sent`,
      );
    }
    this.#session.pass(SyncPoint.RESTORED);
  }

  /** The guest's name is free for the other copy, and the note says that this one is not to be resumed unasked. */
  async #letGo(): Promise<void> {
    const { domid } = this.#options;
    const toolstack = this.#toolstack;
    const name = toolstack.rename === undefined ? undefined : await toolstack.nameOf?.(domid);
    if (name !== undefined) {
      this.#renamedFrom = name;
      await toolstack.rename?.(domid, name + MIGRATED_AWAY);
    }
    this.#control.throwIfCancelled();
    if (this.#wire?.lost === true)
      throw new PeerError('ERR_XEN_PEER_LOST', `${RECEIVER} closed the connection`);
    await this.#note?.advance({ point: SyncPoint.YOURS });
    this.#control.throwIfCancelled();
  }

  /** 5 YOURS, 6 RUNNING. From the first byte of YOURS on, nothing but the receiver's word brings the guest back. */
  async #handOver(wire: MigrationWire): Promise<Running> {
    this.#session.pass(SyncPoint.YOURS);
    this.#answer = wire.receive();
    // If YOURS itself cannot be sent, nobody waits for the answer any more.
    this.#answer.catch(() => undefined);
    const { switchoverMs } = this.#timeouts;
    const what = `${RECEIVER} did not confirm that the guest runs`;
    let frame: Frame;
    try {
      frame = await withLimit('switchover', switchoverMs, what, undefined, () => {
        const sending = wire.send({ type: FrameType.YOURS, id: this.#session.id });
        // The receiver may have given up, and said so, before YOURS got through.
        return Promise.race([this.#heard(), sending.then(() => this.#heard())]);
      });
      if (frame.type !== FrameType.RUNNING) {
        this.#handedBack = frame.type === FrameType.FAILED && frame.gone;
        throw unexpectedFrame(frame, 'RUNNING');
      }
    } catch (error) {
      if (this.#handedBack) throw error;
      frame = await this.#resolve(error);
    }
    this.#session.pass(SyncPoint.RUNNING);
    return { domid: frame.domid, state: frame.state ?? 'running' };
  }

  /** The answer to YOURS did not come: it is asked for over other connections, if there can be any. Throws `error` if in vain. */
  async #resolve(error: unknown): Promise<Extract<Frame, { type: typeof FrameType.STATUS }>> {
    const { reconnect } = this.#options;
    // xl has no answer to give.
    if (reconnect === undefined || this.#wire?.protocol === 'xl') throw error;
    const standing = await askAgain(reconnect, this.#session.id, this.#peerHost, this.#timeouts.resolveMs);
    debug('migration %s: asked again: %o', this.#session.id, standing);
    if ('failure' in standing) {
      throw withCleanupError(asOurs(error), standing.failure);
    }
    if (standing.standing === 'arrived') return standing;
    this.#handedBack = true;
    throw error;
  }

  /** 7 RELEASED: our copy goes, and the receiver is told. */
  async #release(wire: MigrationWire, state: 'running' | 'paused'): Promise<void> {
    this.#control.enter('cleanup');
    const { domid } = this.#options;
    await this.#note?.tryAdvance({ point: SyncPoint.RUNNING });
    try {
      await this.#toolstack.destroy(domid);
    } catch (cause) {
      throw new GuestError(
        SaveErrorCode.NOT_DESTROYED,
        `the guest was migrated, but its old copy here (domain ${domid}, suspended) could not be destroyed; destroy it by hand, never resume it`,
        { cause, phase: 'cleanup', domid, guest: { host: 'destination', state } },
      );
    }
    await this.#note?.close();
    this.#farewell = await wire.trySend({ type: FrameType.RELEASED });
    this.#session.pass(SyncPoint.RELEASED);
  }

  /** Puts things right after a failure, by the rule of the point that was passed last. Returns the error to throw. */
  async #failed(failure: unknown): Promise<unknown> {
    const account = this.#session.committed ? undefined : this.#answer;
    const error = asOurs(await accountOf(failure, account));
    error.phase ??= this.#control.phase;
    const { rule, committed } = this.#session;
    if (rule === 'destination') {
      await this.#note?.abandon();
      return error;
    }
    if (rule === 'keep-suspended' && !this.#handedBack) {
      await this.#note?.abandon();
      return unknownHandover(error, {
        domid: this.#options.domid,
        id: this.#session.id,
        askable: this.#wire?.protocol !== 'xl',
        noted: this.#toolstack.notes !== undefined,
      });
    }

    this.#control.enter('cleanup');
    const place = await this.#takeBack(error);
    // Inside the stream there is no room for a frame: there, the receiver sees the connection end.
    if (this.#saved !== undefined && !committed && this.#wire !== undefined) {
      this.#farewell = await this.#wire.trySend({
        type: FrameType.FAILED,
        reason: reasonOf(error),
        gone: false,
      });
    }
    error.guest ??= place ?? (await whereaboutsOf(this.#host, this.#options.domid));
    if (error.guest.state === 'suspended' && this.#info?.shutdown === false)
      await this.#note?.abandon({ point: SyncPoint.READY });
    else await this.#note?.close();
    return error;
  }

  /** The guest goes on here, under its own name. Says where it is if that did not work. */
  async #takeBack(error: XenMigrationError): Promise<GuestWhereabouts | undefined> {
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
    if (this.#renamedFrom !== undefined) {
      try {
        await this.#toolstack.rename?.(domid, this.#renamedFrom);
      } catch (later) {
        withCleanupError(error, later);
      }
    }
    return place;
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

/** What is the save's of a migration's options. */
function saveOptionsOf(options: SenderOptions): SaveOptions {
  const {
    peer: _peer,
    id: _id,
    timeouts: _timeouts,
    protocol: _protocol,
    peerLeavesPaused: _peerLeavesPaused,
    compression: _compression,
    reconnect: _reconnect,
    reconnectTo: _reconnectTo,
    ...rest
  } = options;
  return { ...rest, format: 'xl', afterwards: 'suspended' };
}
