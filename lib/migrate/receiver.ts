/**
 * The destination's end of a migration. Reads from top to bottom like docs/reference/handshake.md; the numbers are
 * those of the synchronisation points.
 */
import {
  PeerError,
  StreamFormatError,
  TimeoutError,
  withCleanupError,
  XenMigrationError,
  type GuestWhereabouts,
} from '../errors.js';
import { debug } from '../debug.js';
import type { Host } from '../host/host.js';
import type { JobControl } from '../job.js';
import type { runRestore } from '../restore/restore.js';
import type { RestoreOptions, RestoreResult } from '../restore/types.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import { compressionsHere, decompressSource } from '../transport/compress.js';
import { SOFTWARE } from '../version.js';
import { answerQuery, type Answer } from './answer.js';
import { frameName, FrameType, protocolError, reasonOf, type MigrationOffer } from './frames.js';
import { fullTimeouts, msText, startTimer, StreamSource, withLimit, type FullTimeouts } from './limits.js';
import { incomingToolstack, nameIn, overridden } from './naming.js';
import { Note } from '../toolstack/note.js';
import { openReceiverWire } from './open-wire.js';
import { Session, SyncPoint } from './session.js';
import type { ReceiveOptions, ReceiveResult } from './types.js';
import { asOurs } from './whereabouts.js';
import { recoveryToolstack } from './settle.js';
import { peerFailure, type MigrationWire } from './wire.js';

const SENDER = 'the sender';

/** How a job ends that only answered a question. */
export const ONLY_ASKED = 'ERR_XEN_ONLY_ASKED';

/** Receives a guest. The control's job must be of operation `receive`; `restore` is `runRestore`, or in tests what stands for it. */
export async function runReceive(
  control: JobControl,
  host: Host,
  options: ReceiveOptions,
  restore: typeof runRestore,
): Promise<ReceiveResult> {
  return new Receiver(control, host, options, restore).run();
}

class Receiver {
  readonly #control: JobControl;
  readonly #host: Host;
  readonly #options: ReceiveOptions;
  readonly #restore: typeof runRestore;
  readonly #toolstack: Toolstack;
  readonly #timeouts: FullTimeouts;
  readonly #session = new Session('receiver');
  readonly #wire: MigrationWire;
  #note: Note | undefined;
  /** The guest's own name, under which it is to run. */
  #name: string | undefined;
  #nameTaken: string | undefined;
  #compression: string | undefined;
  /** The last frame was sent; the connection ends in good manners. */
  #farewell = false;

  constructor(control: JobControl, host: Host, options: ReceiveOptions, restore: typeof runRestore) {
    this.#control = control;
    this.#host = host;
    this.#options = options;
    this.#restore = restore;
    this.#toolstack = options.toolstack ?? host.toolstack;
    this.#timeouts = fullTimeouts('receiver', options.timeouts);
    this.#wire = openReceiverWire(options.from, options.protocol);
  }

  async run(): Promise<ReceiveResult> {
    const { totalMs } = this.#timeouts;
    const total = startTimer(totalMs, () =>
      this.#abort(new TimeoutError('total', totalMs, `the migration was not done within ${msText(totalMs)}`)),
    );
    try {
      const offer = await this.#agree();
      const restored = await this.#readStream(offer);
      await this.#yours(restored);
      const state = await this.#start(restored.domid, offer);
      const sourceReleased = await this.#released(restored.domid, state);
      const { id } = offer;
      return { ...restored, id, offer, state, sourceReleased, nameTaken: this.#nameTaken };
    } catch (error) {
      throw await this.#failed(error);
    } finally {
      clearTimeout(total);
      if (this.#farewell) await this.#wire.close();
      else this.#wire.destroy(new PeerError('ERR_XEN_PEER_LOST', 'the migration is over'));
    }
  }

  /** 1 HELLO, 2 READY. */
  async #agree(): Promise<MigrationOffer> {
    const { signal } = this.#control;
    const { connectMs, helloMs } = this.#timeouts;
    const wire = this.#wire;
    await withLimit('connect', connectMs, `${SENDER} could not be connected`, signal, (s) =>
      wire.connected(s),
    );
    const what = `${SENDER} did not say what it wants`;
    const frame = await withLimit('hello', helloMs, what, signal, (s) => wire.receive(s));
    if (frame.type === FrameType.QUERY) throw await this.#answer(frame.id);
    if (frame.type !== FrameType.HELLO) {
      throw protocolError(`${SENDER} sent ${frameName(frame.type)} where HELLO was due`);
    }
    const offer = this.#options.paused === true ? { ...frame.offer, paused: true } : frame.offer;
    this.#session.id = offer.id;
    this.#session.pass(SyncPoint.HELLO);
    debug('offered: %o', offer);
    await withLimit('hello', helloMs, 'the `accept` of this side did not decide', signal, async (s) => {
      try {
        await this.#options.accept?.(offer, s);
      } catch (cause) {
        if (XenMigrationError.is(cause)) throw cause;
        const text = cause instanceof Error ? cause.message : String(cause);
        throw new XenMigrationError('ERR_XEN_NOT_ACCEPTED', text, { cause });
      }
    });
    await this.#openNote(offer);
    const host = await this.#toolstack.notes?.incarnation();
    const mine = this.#options.compression ?? compressionsHere();
    this.#compression = offer.compression.find((name) => mine.includes(name));
    const { version } = wire;
    const compression = this.#compression;
    await withLimit('hello', helloMs, `${SENDER} did not take READY`, signal, () =>
      wire.send({ type: FrameType.READY, id: offer.id, version, software: SOFTWARE, compression, host }),
    );
    this.#session.pass(SyncPoint.READY);
    return offer;
  }

  /** Not a migration, but the question what became of one. Returns the error that ends this job. */
  async #answer(id: string): Promise<XenMigrationError> {
    const toolstack = recoveryToolstack(this.#toolstack);
    const answer: Answer = await answerQuery(this.#host, toolstack, id);
    const host = await this.#toolstack.notes?.incarnation();
    this.#farewell = await this.#wire.trySend({ type: FrameType.STATUS, id, host, ...answer });
    return new XenMigrationError(ONLY_ASKED, `asked for migration ${id}: ${answer.standing}`);
  }

  /** From here on the migration is known here by its id: one that is sent again must not become a second guest. */
  async #openNote(offer: MigrationOffer): Promise<void> {
    this.#note = await Note.open(this.#toolstack.notes, 'receiver', {
      id: offer.id,
      domid: undefined,
      name: offer.name,
      point: SyncPoint.HELLO,
      paused: offer.paused,
      suspended: false,
      peer: undefined,
      peerHost: undefined,
    });
  }

  /** 3: everything up to libxl's END, into a new domain that stays paused. */
  async #readStream(offer: MigrationOffer): Promise<RestoreResult> {
    const restoreOptions = restoreOptionsOf(this.#options);
    const { setupMs, stallMs } = this.#timeouts;
    const stream = new StreamSource(this.#wire.source, stallMs, () =>
      this.#abort(new TimeoutError('stall', stallMs, `${SENDER} has sent nothing for ${msText(stallMs)}`)),
    );
    const setup = startTimer(setupMs, () => {
      if (this.#control.phase === 'setup' || this.#control.phase === 'static-data') {
        this.#abort(new TimeoutError('setup', setupMs, `no memory came within ${msText(setupMs)} of READY`));
      }
    });
    const own = incomingToolstack(this.#toolstack, (name) => (this.#name = name));
    const toolstack = this.#noting(own, offer);
    const unpacked =
      this.#compression === undefined ? undefined : decompressSource(stream, this.#compression);
    try {
      const restored = await this.#restore(this.#control, this.#host, unpacked ?? stream, {
        ...restoreOptions,
        toolstack,
      });
      await unpacked?.finish(this.#control.signal);
      this.#control.domid = restored.domid;
      this.#session.pass(SyncPoint.STREAM_END);
      return { ...restored, bytes: stream.position };
    } catch (cause) {
      // A stream from a connection does not just end: whoever sent it went away.
      if (!(cause instanceof StreamFormatError) || cause.code !== StreamErrorCode.TRUNCATED) throw cause;
      const error = new PeerError(
        'ERR_XEN_PEER_LOST',
        `${SENDER} closed the connection after ${stream.position} bytes of the stream`,
        { cause },
      );
      for (const later of cause.cleanupErrors) withCleanupError(error, later);
      throw error;
    } finally {
      clearTimeout(setup);
      await unpacked?.close();
      await stream.close();
    }
  }

  /** The toolstack, but that the note knows the domain as soon as there is one. */
  #noting(own: Toolstack, offer: MigrationOffer): Toolstack {
    const createDomain: Toolstack['createDomain'] = async (config, options) => {
      // The name is enough to find a domain whose number could not be noted any more.
      await this.#note?.advance({ point: SyncPoint.READY, name: nameIn(config) ?? offer.name });
      const domid = await own.createDomain(config, options);
      await this.#note?.tryAdvance({ domid });
      return domid;
    };
    return overridden(own, { createDomain });
  }

  /** 4 RESTORED, 5 YOURS. */
  async #yours({ domid, bytes }: RestoreResult): Promise<void> {
    const { signal } = this.#control;
    const { switchoverMs } = this.#timeouts;
    this.#control.enter('handshake');
    const what = `${SENDER} did not hand the guest over`;
    const frame = await withLimit('switchover', switchoverMs, what, signal, async (s) => {
      await this.#wire.send({ type: FrameType.RESTORED, domid, bytes });
      this.#session.pass(SyncPoint.RESTORED);
      return this.#wire.receive(s);
    });
    if (frame.type === FrameType.FAILED) throw peerFailure(SENDER, 'gave up', frame.reason);
    if (frame.type !== FrameType.YOURS) {
      throw protocolError(`${SENDER} sent ${frameName(frame.type)} where YOURS was due`);
    }
    if (frame.id !== this.#session.id) throw protocolError(`${SENDER} handed over another migration`);
    this.#session.pass(SyncPoint.YOURS);
    await this.#note?.tryAdvance({ point: SyncPoint.YOURS, domid });
  }

  /** The sender has let go: whatever becomes of the connection, the guest runs here if it can. */
  async #start(domid: number, offer: MigrationOffer): Promise<'running' | 'paused'> {
    const state = offer.paused ? 'paused' : 'running';
    if (!offer.paused) await this.#toolstack.unpause(domid);
    this.#session.pass(SyncPoint.RUNNING);
    return state;
  }

  /** Its own name, which the sender has let go of. Never rejects: the guest runs, under whatever name. */
  async #giveName(domid: number): Promise<void> {
    const name = this.#name;
    if (name === undefined) return;
    try {
      await this.#toolstack.rename?.(domid, name);
    } catch (error) {
      debug('domain %d cannot be renamed to %s: %O', domid, name, error);
      this.#nameTaken = name;
    }
  }

  /** 6 RUNNING is told, and 7 RELEASED heard, if it comes. The guest runs: a failure here is none of the migration. */
  async #released(domid: number, state: 'running' | 'paused'): Promise<boolean> {
    let released = false;
    // Before anything that takes time: the sender waits.
    const telling = this.#tellRunning(domid, state);
    telling.catch(() => undefined);
    // In this order: whoever finds a note of an earlier point gives the guest its name, too.
    await this.#giveName(domid);
    await this.#note?.tryAdvance({ point: SyncPoint.RUNNING });
    try {
      const what = `${SENDER} did not say that its copy is gone`;
      const frame = await withLimit('release', this.#timeouts.releaseMs, what, undefined, async (s) => {
        await telling;
        return this.#wire.receive(s);
      });
      released = frame.type === FrameType.RELEASED;
      if (released) this.#session.pass(SyncPoint.RELEASED);
    } catch (error) {
      debug('no RELEASED: %O', error);
    }
    // A sender that has not released its copy may yet ask for this one.
    if (released) await this.#note?.close();
    else await this.#note?.abandon();
    return released;
  }

  #tellRunning(domid: number, state: 'running' | 'paused'): Promise<void> {
    return this.#wire.send({ type: FrameType.RUNNING, domid, state });
  }

  /** Takes the copy away and tells the sender. Returns the error to throw. */
  async #failed(failure: unknown): Promise<unknown> {
    const error = asOurs(failure);
    error.phase ??= this.#control.phase;
    if (error.code === ONLY_ASKED) {
      error.guest = { host: 'none', state: 'unknown' };
      return error;
    }
    this.#control.enter('cleanup');
    const { committed } = this.#session;
    // Before the commit point nothing here ever ran, nor will it: the sender need not wait for the clean-up to know.
    if (!committed) this.#farewell = await this.#tell(error, true);
    const destroyed = await this.#destroy(error);
    if (destroyed) await this.#note?.close();
    else await this.#note?.abandon();
    if (committed) this.#farewell = await this.#tell(error, destroyed);
    error.guest ??= this.#whereabouts(destroyed);
    return error;
  }

  /** Where the guest is, as far as can be told from here once our copy is gone. */
  #whereabouts(destroyed: boolean): GuestWhereabouts {
    const { committed, point } = this.#session;
    if (committed && !destroyed) return { host: 'unknown', state: 'unknown' };
    // Who never said HELLO never offered a guest.
    if (point < SyncPoint.HELLO) return { host: 'none', state: 'unknown' };
    return { host: 'source', state: point >= SyncPoint.RESTORED ? 'suspended' : 'unknown' };
  }

  async #tell(error: XenMigrationError, gone: boolean): Promise<boolean> {
    if (!this.#wire.greeted) return false;
    const reason = reasonOf(error);
    return this.#session.point < SyncPoint.READY
      ? this.#wire.trySend({ type: FrameType.REFUSED, reason })
      : this.#wire.trySend({ type: FrameType.FAILED, reason, gone });
  }

  /** Destroys the domain, if one was made. False if that failed: then nobody knows what it does. */
  async #destroy(error: XenMigrationError): Promise<boolean> {
    const { domid } = this.#control.status;
    if (domid === undefined) return true;
    try {
      await this.#toolstack.destroy(domid);
      return true;
    } catch (later) {
      withCleanupError(error, later);
      return false;
    }
  }

  #abort(reason: unknown): void {
    if (!this.#session.committed) this.#control.cancel(reason);
  }
}

/** What is the restore's of a receiver's options. */
function restoreOptionsOf(options: ReceiveOptions): RestoreOptions {
  const {
    from: _from,
    accept: _accept,
    timeouts: _timeouts,
    protocol: _protocol,
    compression: _compression,
    builder: _builder,
    ...rest
  } = options;
  return { ...rest, format: 'xl', run: false, refuseTrailing: false };
}
