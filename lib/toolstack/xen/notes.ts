/**
 * `NoteStore` of a Xen host: nodes `/tool/xen-migration/notes/<id>_<role>` in xenstore, one JSON text each. xenstore
 * lives exactly as long as the guests do, and only privileged domains can read what it has there.
 */
import * as fs from 'node:fs';
import { TransportError } from '../../errors.js';
import {
  decodeNote,
  encodeNote,
  noteKey,
  type MigrationNote,
  type NoteRole,
  type NoteStore,
} from '../notes.js';
import type { XenstoreClient } from '../xenstore/index.js';
import type { XenstoreNodes } from '../xenstore/nodes.js';

const ROOT = '/tool/xen-migration/notes';
/** Notes of migrations that arrived and were never released stay; a host does not keep more of them than this. */
const MOST_NOTES = 1000;
const BOOT_ID = '/proc/sys/kernel/random/boot_id';
/** Field of /proc/PID/stat behind the command's name: clock ticks from boot to the start of the process. */
const START_TIME = 19;

export class XenNotes implements NoteStore {
  /** `PID.START`: a pid is used again, the two together are not before the next boot. */
  readonly self: string;
  readonly #store: () => Promise<XenstoreClient>;
  readonly #proc: string;

  /** @param proc Where the kernel shows processes; for tests */
  constructor(store: () => Promise<XenstoreClient>, proc = '/proc') {
    this.#store = store;
    this.#proc = proc;
    this.self = `${process.pid}.${startTimeOf(proc, String(process.pid)) ?? '0'}`;
  }

  async incarnation(): Promise<string> {
    try {
      return fs.readFileSync(BOOT_ID, 'utf8').trim();
    } catch (cause) {
      throw new TransportError(`${BOOT_ID} cannot be read`, { cause });
    }
  }

  async isAlive(owner: string): Promise<boolean> {
    const [pid = '', start] = owner.split('.');
    return /^[1-9]\d*$/.test(pid) && start !== undefined && startTimeOf(this.#proc, pid) === start;
  }

  async list(): Promise<readonly MigrationNote[]> {
    const store = await this.#store();
    const notes: MigrationNote[] = [];
    for (const name of await store.list(ROOT)) {
      const note = await readNote(store, name);
      if (note !== undefined) notes.push(note);
    }
    return notes.sort((a, b) => a.since - b.since);
  }

  async read(role: NoteRole, id: string): Promise<MigrationNote | undefined> {
    return readNote(await this.#store(), noteKey(role, id));
  }

  async create(note: MigrationNote): Promise<boolean> {
    const store = await this.#store();
    const path = `${ROOT}/${noteKey(note.role, note.id)}`;
    const created = await store.transaction(async (tx) => {
      if ((await tx.read(path)) !== undefined) return false;
      await tx.write(path, encodeNote(note));
      return true;
    });
    if (created && note.role === 'receiver') await this.#prune();
    return created;
  }

  async write(note: MigrationNote): Promise<void> {
    const store = await this.#store();
    await store.write(`${ROOT}/${noteKey(note.role, note.id)}`, encodeNote(note));
  }

  async claim(note: MigrationNote): Promise<MigrationNote | undefined> {
    const store = await this.#store();
    const key = noteKey(note.role, note.id);
    return store.transaction(async (tx) => {
      const present = await readNote(tx, key);
      if (present?.owner !== note.owner) return undefined;
      const mine = { ...present, owner: this.self };
      await tx.write(`${ROOT}/${key}`, encodeNote(mine));
      return mine;
    });
  }

  async remove(role: NoteRole, id: string): Promise<void> {
    const store = await this.#store();
    await store.remove(`${ROOT}/${noteKey(role, id)}`);
  }

  /** Forgets the oldest of the guests that arrived, if there are too many. */
  async #prune(): Promise<void> {
    const arrived = (await this.list()).filter(({ owner, role }) => role === 'receiver' && owner === '');
    for (const { role, id } of arrived.slice(0, Math.max(0, arrived.length - MOST_NOTES))) {
      await this.remove(role, id);
    }
  }
}

async function readNote(nodes: XenstoreNodes, name: string): Promise<MigrationNote | undefined> {
  if (!/^[0-9a-f-]{36}_[a-z]{4,8}$/.test(name)) return undefined;
  const text = await nodes.read(`${ROOT}/${name}`);
  const note = text === undefined ? undefined : decodeNote(text);
  return note !== undefined && noteKey(note.role, note.id) === name ? note : undefined;
}

/** Ticks since boot; undefined if there is no such process, or it is dead and not yet reaped. */
function startTimeOf(proc: string, pid: string): string | undefined {
  let stat: string;
  try {
    stat = fs.readFileSync(`${proc}/${pid}/stat`, 'utf8');
  } catch {
    return undefined;
  }
  // The name may have spaces and brackets in it.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[START_TIME];
}
