/** Putting right what dead processes left of saves and migrations on this host. */
import type { Duplex } from 'node:stream';
import { debug } from '../debug.js';
import { errorMessage, throwIfAborted, type GuestWhereabouts } from '../errors.js';
import type { DomainInfo, Host } from '../host/host.js';
import { isSuspended } from '../save/suspend.js';
import { noteKey, type MigrationNote, type NoteStore } from '../toolstack/notes.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import { askAgain } from './ask.js';
import { sleep } from '../save/throttle.js';
import { INCOMING, MIGRATED_AWAY } from './naming.js';
import { Note } from '../toolstack/note.js';
import { SyncPoint } from './session.js';
import { lookAt, recoveryToolstack, settleReceiver } from './settle.js';
import { whereaboutsOf } from './whereabouts.js';

/** Options of `recover`. */
export interface RecoverOptions {
  readonly signal?: AbortSignal | undefined;
  /**
   * Connects to where the note of a sender says that its guest went, to ask what became of it. `peer` is what the
   * migration had as `reconnectTo`; undefined if it had nothing.
   */
  readonly reconnect?:
    ((peer: string | undefined, id: string, signal: AbortSignal) => Promise<Duplex>) | undefined;
  /** How long each destination is asked, ms. Default 30 000. */
  readonly resolveMs?: number | undefined;
  /**
   * How long a guest that runs is watched, ms: its process may have died between the request to suspend and the guest's
   * doing so. Default 2000.
   */
  readonly watchMs?: number | undefined;
  /**
   * Asked about a guest of which the destination cannot say whether it has it. `source`: it goes on here; say so only if it
   * certainly does not run there. `destination`: the copy here is destroyed. Default: it stays `unresolved`.
   */
  readonly decide?: ((finding: RecoveryFinding) => 'source' | 'destination' | undefined) | undefined;
  /** Look only, and say what would be done. Nobody is asked. Default false. */
  readonly dryRun?: boolean | undefined;
  /** Default: the host's. */
  readonly toolstack?: Toolstack | undefined;
}

/**
 * What became of one finding.
 *
 * - `resumed`: the guest goes on here, or is paused as it was; log-dirty is off
 * - `destroyed`: the copy here is gone; of a source's, because the guest is at the destination
 * - `started`: the guest was handed over to this host, and runs here now
 * - `nothing`: there was nothing left to do; the note is gone
 * - `unresolved`: nobody can say which side has the guest; its copy here stays suspended
 * - `busy`: a process is at it
 * - `stranger`: nobody's note speaks of it; nothing was done
 * - `failed`: `error` says why; try again
 */
export type RecoveryOutcome =
  'resumed' | 'destroyed' | 'started' | 'nothing' | 'unresolved' | 'busy' | 'stranger' | 'failed';

/** One thing that was found, and what was done about it. */
export interface RecoveryFinding {
  /** Of whose note; undefined for a domain without one that looks half-migrated. */
  readonly role: MigrationNote['role'] | undefined;
  /** The migration's id. */
  readonly id: string | undefined;
  readonly domid: number | undefined;
  readonly name: string | undefined;
  readonly outcome: RecoveryOutcome;
  /** What it was and what was done, for people. */
  readonly message: string;
  readonly guest: GuestWhereabouts;
  readonly error?: unknown;
}

const RESOLVE_MS = 30_000;
const WATCH_MS = 2000;
const WATCH_STEP_MS = 250;

/**
 * Finds what killed processes left behind on this host, and puts it right: guests with log-dirty on or suspended by a save
 * or migration go on, half-built domains are destroyed, a guest that was handed over to this host is run, and the
 * destination is asked about a guest that was handed over from here. What a living process is at is left alone. It may be
 * called at any time, also by several at once, and again.
 *
 * Rejects only if the notes cannot be read, with XenstoreError, or with the signal's reason; each finding has its own
 * error otherwise. A host without notes has no findings.
 */
export async function recover(host: Host, options: RecoverOptions = {}): Promise<RecoveryFinding[]> {
  const toolstack = recoveryToolstack(options.toolstack ?? host.toolstack);
  const { notes } = toolstack;
  if (notes === undefined) return [];
  const recovery = new Recovery(host, toolstack, notes, options);
  const findings: RecoveryFinding[] = [];
  for (const note of await notes.list()) {
    throwIfAborted(options.signal, 'recover');
    const finding = await recovery.take(note);
    if (finding !== undefined) findings.push(finding);
  }
  return [...findings, ...(await recovery.strangers(findings))];
}

class Recovery {
  readonly #host: Host;
  readonly #toolstack: Toolstack;
  readonly #notes: NoteStore;
  readonly #options: RecoverOptions;

  constructor(host: Host, toolstack: Toolstack, notes: NoteStore, options: RecoverOptions) {
    this.#host = host;
    this.#toolstack = toolstack;
    this.#notes = notes;
    this.#options = options;
  }

  /** One note. Undefined if there is nothing to be said of it. */
  async take(note: MigrationNote): Promise<RecoveryFinding | undefined> {
    // A guest that arrived, of which its sender has not said that it knows: the note is the answer if it asks.
    if (note.role === 'receiver' && note.point >= SyncPoint.RUNNING) return undefined;
    const what = describe(note);
    try {
      if (await this.#notes.isAlive(note.owner)) {
        return await this.#finding(
          note,
          'busy',
          `${what} is under way (process ${note.owner.split('.')[0] ?? ''})`,
        );
      }
      if (this.#options.dryRun === true)
        return await this.#finding(note, 'nothing', `${what} was left behind: ${intention(note)}`);
      const mine = await this.#notes.claim(note);
      if (mine === undefined)
        return await this.#finding(note, 'busy', `${what} is being put right by another process`);
      debug('recover: %o', mine);
      return note.role === 'sender' || note.role === 'save'
        ? await this.#source(mine, what)
        : await this.#destination(mine, what);
    } catch (error) {
      const message = `${what} could not be put right: ${errorMessage(error)}`;
      return { ...(await this.#finding(note, 'failed', message)), error };
    }
  }

  async #destination(note: MigrationNote, what: string): Promise<RecoveryFinding> {
    const { standing, domid, destroyed, started } = await settleReceiver(this.#host, this.#toolstack, note);
    if (standing === 'arrived') {
      const of = { ...note, domid, point: SyncPoint.RUNNING };
      const text = started ? 'had been handed over, and runs here now' : 'had arrived';
      return this.#finding(of, started ? 'started' : 'nothing', `${what} ${text}`);
    }
    const of = { ...note, domid };
    const text = destroyed ? `its half-built domain ${domid} is gone` : 'it had built nothing';
    return this.#finding(of, destroyed ? 'destroyed' : 'nothing', `${what} was cut short: ${text}`);
  }

  async #source(note: MigrationNote, what: string): Promise<RecoveryFinding> {
    const taken = Note.taken(this.#notes, note);
    const { domid } = note;
    try {
      const info = domid === undefined ? undefined : await lookAt(this.#host, domid);
      if (domid === undefined || info === undefined) {
        await taken.close();
        return await this.#finding(note, 'nothing', `${what}: the domain is gone`);
      }
      if (note.role === 'sender' && note.point >= SyncPoint.YOURS) {
        return await this.#handedOver(note, taken, domid, what);
      }
      return await this.#takeBack(note, taken, domid, what);
    } catch (error) {
      await taken.abandon();
      throw error;
    }
  }

  /** The destination was told to run the guest: only its word decides. */
  async #handedOver(note: MigrationNote, taken: Note, domid: number, what: string): Promise<RecoveryFinding> {
    const { reconnect, resolveMs = RESOLVE_MS, signal } = this.#options;
    if (note.point < SyncPoint.RUNNING) {
      const answer =
        reconnect === undefined
          ? { failure: undefined }
          : await askAgain(
              (s) => reconnect(note.peer, note.id, s),
              note.id,
              note.peerHost,
              resolveMs,
              signal,
            );
      if (!('failure' in answer)) {
        if (answer.standing === 'absent') return this.#takeBack(note, taken, domid, what);
      } else {
        const { failure } = answer;
        const message = unresolved(note, what, domid, failure);
        const finding = { ...(await this.#finding(note, 'unresolved', message)), error: failure };
        const decision = this.#options.decide?.(finding);
        if (decision === 'source') return this.#takeBack(note, taken, domid, what);
        if (decision === undefined) {
          await taken.abandon();
          return finding;
        }
      }
    }
    await taken.advance({ point: SyncPoint.RUNNING });
    await this.#toolstack.destroy(domid);
    await taken.close();
    return this.#finding(
      note,
      'destroyed',
      `${what} had succeeded: its old copy here, domain ${domid}, is gone`,
    );
  }

  /** The guest goes on here, under its own name, with log-dirty off. */
  async #takeBack(note: MigrationNote, taken: Note, domid: number, what: string): Promise<RecoveryFinding> {
    const toolstack = this.#toolstack;
    // So that nobody believes it handed over any more, whatever happens next.
    await taken.advance({ point: SyncPoint.READY });
    const domain = await this.#host.openDomain(domid);
    try {
      await domain.disableLogDirty();
    } finally {
      await domain.close();
    }
    await toolstack.setDeviceModelLogDirty(domid, false);
    const resumed = await this.#asBefore(note, domid);
    const name = await toolstack.nameOf?.(domid);
    if (name?.endsWith(MIGRATED_AWAY) === true)
      await toolstack.rename?.(domid, name.slice(0, -MIGRATED_AWAY.length));
    await taken.close();
    const stood = resumed ? 'its guest stood still and ' : 'its guest ';
    const does = note.paused
      ? 'is here, paused as before'
      : resumed
        ? 'goes on here'
        : 'goes on here as before';
    const text = stood + does;
    return this.#finding(note, 'resumed', `${what} was cut short: ${text}`);
  }

  /** Resumes a guest that was suspended since, and pauses one that was let run for that. True if it was resumed. */
  async #asBefore(note: MigrationNote, domid: number): Promise<boolean> {
    let info = note.suspended ? await lookAt(this.#host, domid) : await this.#watch(domid);
    if (info !== undefined && note.paused && !info.paused && (isSuspended(info) || !info.shutdown)) {
      // Before it is resumed: it is not to run.
      await this.#toolstack.pause(domid);
      info = await lookAt(this.#host, domid);
    }
    if (note.suspended || info === undefined || !isSuspended(info)) return false;
    await this.#toolstack.resume(domid);
    return true;
  }

  /** The guest as it is once it has suspended, or long enough has not: it may have been asked to. */
  async #watch(domid: number): Promise<DomainInfo | undefined> {
    const { watchMs = WATCH_MS, signal } = this.#options;
    for (let left = watchMs; ; left -= WATCH_STEP_MS) {
      const info = await lookAt(this.#host, domid);
      // One that is paused does nothing.
      if (info === undefined || info.shutdown || info.paused || left <= 0) return info;
      await sleep(Math.min(left, WATCH_STEP_MS), signal);
      throwIfAborted(signal, 'recover', domid);
    }
  }

  /** Domains that are named like half of a migration, and of which no note speaks: xl's, or older than the notes. */
  async strangers(known: readonly RecoveryFinding[]): Promise<RecoveryFinding[]> {
    const toolstack = this.#toolstack;
    const ours = new Set((await this.#notes.list()).map(({ domid }) => domid));
    for (const { domid } of known) ours.add(domid);
    const found: RecoveryFinding[] = [];
    for (const { domid, dying } of await this.#host.listDomains()) {
      if (dying || ours.has(domid)) continue;
      const name = await toolstack.nameOf?.(domid);
      const text =
        name?.endsWith(INCOMING) === true
          ? 'if no xl migrate-receive or xl restore is at it, destroy it'
          : name?.endsWith(MIGRATED_AWAY) === true
            ? 'if no xl migrate is at it, and the guest runs at its destination, destroy it; never resume it then'
            : undefined;
      if (text === undefined) continue;
      const guest = await whereaboutsOf(this.#host, domid);
      const message = `domain ${domid}, ${name ?? ''}, is not ours: ${text}`;
      found.push({ role: undefined, id: undefined, domid, name, outcome: 'stranger', message, guest });
    }
    return found;
  }

  async #finding(
    note: Pick<MigrationNote, 'role' | 'id' | 'domid' | 'name' | 'point'>,
    outcome: RecoveryOutcome,
    message: string,
  ): Promise<RecoveryFinding> {
    const { role, id, domid, name } = note;
    return { role, id, domid, name, outcome, message, guest: await this.#guest(note, outcome) };
  }

  async #guest(
    { role, domid, point }: Pick<MigrationNote, 'role' | 'domid' | 'point'>,
    outcome: RecoveryOutcome,
  ): Promise<GuestWhereabouts> {
    if (outcome === 'unresolved') return { host: 'unknown', state: 'unknown' };
    const source = role === 'sender' || role === 'save';
    if (outcome === 'destroyed') return { host: source ? 'destination' : 'source', state: 'unknown' };
    if (domid === undefined) return { host: 'none', state: 'unknown' };
    const place = await whereaboutsOf(this.#host, domid);
    if (source || place.host !== 'source') return place;
    return { host: point >= SyncPoint.YOURS ? 'destination' : 'source', state: place.state };
  }
}

const NAMES: Readonly<Record<MigrationNote['role'], string>> = {
  save: 'a save',
  sender: 'a migration from here',
  receiver: 'a migration to here',
};

function describe({ role, id, name, domid }: MigrationNote): string {
  const who = name === undefined ? (domid === undefined ? '' : ` of domain ${domid}`) : ` of ${name}`;
  return `${NAMES[role]}${who} (${noteKey(role, id)})`;
}

/** What `recover` would do. */
function intention({ role, point }: MigrationNote): string {
  if (role === 'sender' && point >= SyncPoint.RUNNING) return 'its old copy is to be destroyed';
  if (role === 'sender' && point >= SyncPoint.YOURS) return 'its destination has to be asked';
  if (role === 'sender' || role === 'save') return 'its guest is to go on here';
  return point >= SyncPoint.YOURS ? 'its guest is to run here' : 'its half-built domain is to be destroyed';
}

function unresolved(note: MigrationNote, what: string, domid: number, failure: unknown): string {
  const why = failure === undefined ? 'nobody was given to ask' : errorMessage(failure);
  const where = note.peer === undefined ? 'its destination' : `its destination, ${note.peer},`;
  return (
    `${what}: ${where} was told to run the guest and cannot be asked whether it does (${why}). ` +
    `The copy here, domain ${domid}, stays suspended. If the guest is at the destination: xl destroy ${domid}; ` +
    `if it certainly is not: xen-migrate recover --resume ${note.id}`
  );
}
