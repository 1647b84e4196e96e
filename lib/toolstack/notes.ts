/**
 * The port `NoteStore`: what a host remembers of migrations that are under way, so that they can be put right if the
 * process that was at it dies. Notes outlive processes, not the host: after a reboot no guest is left to be put right.
 */

/** What a process was doing to a guest. */
export type NoteRole = 'save' | 'sender' | 'receiver';

/** One operation on one guest, at one of its ends. */
export interface MigrationNote {
  readonly role: NoteRole;
  /** The migration's id; of a save a UUID of its own. With the role it names the note. */
  readonly id: string;
  /** Who is at it, as `NoteStore.self` says; empty once nobody is, and the matter is still open. */
  readonly owner: string;
  /** Undefined as long as the domain is not there, or not known. */
  readonly domid: number | undefined;
  /** The guest's name, if it has one, without any ending. */
  readonly name: string | undefined;
  /** The synchronisation point that was passed last (`SyncPoint`); 2 for a save under way. */
  readonly point: number;
  /** The guest was paused, or is to be, when all is over. */
  readonly paused: boolean;
  /** The guest was suspended before anything was done to it, and is to stay so. */
  readonly suspended: boolean;
  /** Where the other end can be asked, as the caller said it. */
  readonly peer: string | undefined;
  /** `NoteStore.incarnation` of the other end. */
  readonly peerHost: string | undefined;
  /** ms since 1970 when it began. */
  readonly since: number;
}

/** Where a host keeps its notes. Rejects with errors of this library. */
export interface NoteStore {
  /** Names this process as an owner of notes. No two processes of a host ever have the same. */
  readonly self: string;

  /** Names this host from one boot to the next: whoever answers with the same still knows what it knew. */
  incarnation(): Promise<string>;

  /** True if the owner still runs. False for the empty one. */
  isAlive(owner: string): Promise<boolean>;

  /** All notes, oldest first. What cannot be read as a note is left out. */
  list(): Promise<readonly MigrationNote[]>;

  read(role: NoteRole, id: string): Promise<MigrationNote | undefined>;

  /** Writes a note if there is none of its role and id. False if there is one. */
  create(note: MigrationNote): Promise<boolean>;

  /** Writes a note, or replaces it. */
  write(note: MigrationNote): Promise<void>;

  /** Makes the caller its owner, if it still is the one that was expected: of several who try, one gets it. */
  claim(note: MigrationNote): Promise<MigrationNote | undefined>;

  /** No-op if there is none. */
  remove(role: NoteRole, id: string): Promise<void>;
}

/** Most bytes of a note as text. */
export const NOTE_MAX = 2048;

/** A note as text: JSON, of one line. */
export function encodeNote(note: MigrationNote): string {
  return JSON.stringify(note);
}

const ROLES: readonly unknown[] = ['save', 'sender', 'receiver'];

/** Reads a note. Undefined if the text is none: xenstore is written by others, too. */
export function decodeNote(text: string): MigrationNote | undefined {
  if (text.length > NOTE_MAX) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== 'object' || value === null) return undefined;
  const { role, id, owner, domid, name, point, paused, suspended, peer, peerHost, since } = value as Record<
    string,
    unknown
  >;
  const optionalText = (text: unknown): text is string | undefined =>
    text === undefined || typeof text === 'string';
  if (!ROLES.includes(role) || typeof id !== 'string' || !isNoteId(id) || typeof owner !== 'string')
    return undefined;
  if (!(domid === undefined || isCount(domid)) || !isCount(point) || !isCount(since)) return undefined;
  if (typeof paused !== 'boolean' || typeof suspended !== 'boolean') return undefined;
  if (!optionalText(name) || !optionalText(peer) || !optionalText(peerHost)) return undefined;
  return {
    role: role as NoteRole,
    id,
    owner,
    domid,
    name,
    point,
    paused,
    suspended,
    peer,
    peerHost,
    since,
  };
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** True for a UUID in lower case, which is how migrations are named. */
export function isNoteId(text: string): boolean {
  return UUID.test(text);
}

/** Names the note among its host's. */
export function noteKey(role: NoteRole, id: string): string {
  return `${id}_${role}`;
}
