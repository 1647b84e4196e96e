/**
 * Putting right what a receiver left behind whose process died: the rules of docs/reference/handshake.md for the point
 * that its note says. Up to RESTORED the copy goes; from YOURS on the guest is to run here.
 *
 * A note may lag behind: a guest that was handed over is run also if that cannot be noted. But a domain is built paused,
 * by xl too (`xl restore -p`), and let go after YOURS alone. One that is not paused therefore has arrived, whatever its
 * note says and whether or not it has shut down since: its source must not run an old copy.
 */
import { Errno } from '../abi/errno.js';
import { debug } from '../debug.js';
import { HypercallError } from '../errors.js';
import type { DomainInfo, Host } from '../host/host.js';
import type { MigrationNote } from '../toolstack/notes.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import { INCOMING, overridden } from './naming.js';
import { Note } from '../toolstack/note.js';
import { SyncPoint } from './session.js';
import { readInfo } from './whereabouts.js';

/** What a receiver's note came to. */
export interface Settled {
  /** `arrived`: the guest runs here, or did. `absent`: nothing is here, and never will be. */
  readonly standing: 'arrived' | 'absent';
  readonly domid: number | undefined;
  /** A domain that was left here was destroyed. */
  readonly destroyed: boolean;
  /** A guest that stood here was let go. */
  readonly started: boolean;
}

/**
 * Brings a receiver's note, whose owner is no more, to its end.
 *
 * @param note Claimed by the caller. Removed if nothing is here any more; kept, given up, if the guest arrived: its sender
 *   may yet ask for it
 * @throws HypercallError and the toolstack's errors; the note is given up then, to be tried again
 */
export async function settleReceiver(
  host: Host,
  toolstack: Toolstack,
  note: MigrationNote,
): Promise<Settled> {
  const { notes } = toolstack;
  const taken = notes === undefined ? undefined : Note.taken(notes, note);
  try {
    const domid = await domainOf(toolstack, note);
    const info = domid === undefined ? undefined : await lookAt(host, domid);
    const ran = info !== undefined && !info.paused;
    if (note.point < SyncPoint.YOURS && !ran) {
      const destroyed = domid !== undefined && info !== undefined;
      if (destroyed) await toolstack.destroy(domid);
      await taken?.close();
      return { standing: 'absent', domid, destroyed, started: false };
    }
    const started = domid !== undefined && info !== undefined && (await letRun(toolstack, note, domid, info));
    await taken?.abandon({ point: SyncPoint.RUNNING, domid });
    return { standing: 'arrived', domid, destroyed: false, started };
  } catch (error) {
    await taken?.abandon();
    throw error;
  }
}

/** The guest may have run already, and been shut down since: it is not to be run again then, nor by anybody else. */
async function letRun(
  toolstack: Toolstack,
  note: MigrationNote,
  domid: number,
  info: DomainInfo,
): Promise<boolean> {
  const started = note.point < SyncPoint.RUNNING && !note.paused && info.paused;
  if (started) await toolstack.unpause(domid);
  const name = await toolstack.nameOf?.(domid);
  if (name?.endsWith(INCOMING) === true) {
    try {
      await toolstack.rename?.(domid, name.slice(0, -INCOMING.length));
    } catch (error) {
      // It runs, under whatever name.
      debug('domain %d keeps the name %s: %O', domid, name, error);
    }
  }
  return started;
}

/** By its number, or by the name that it was to be built under. */
async function domainOf(toolstack: Toolstack, note: MigrationNote): Promise<number | undefined> {
  if (note.domid !== undefined) return note.domid;
  if (note.point < SyncPoint.READY || note.name === undefined) return undefined;
  const name = note.name.endsWith(INCOMING) ? note.name : note.name + INCOMING;
  return toolstack.findByName?.(name);
}

/** The toolstack to put guests right with that another process has built. */
export function recoveryToolstack(own: Toolstack): Toolstack {
  return overridden(own, {
    unpause: (domid) => own.unpauseLeftBehind?.(domid) ?? own.unpause(domid),
  });
}

/** Undefined if there is no such domain, or it is on its way out. */
export async function lookAt(host: Host, domid: number): Promise<DomainInfo | undefined> {
  try {
    const info = await readInfo(host, domid);
    return info.dying ? undefined : info;
  } catch (error) {
    if (error instanceof HypercallError && error.errno === Errno.ESRCH) return undefined;
    throw error;
  }
}
