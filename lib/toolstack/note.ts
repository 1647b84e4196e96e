/** The note of one operation: written as it goes on, so that it can be put right if this process dies. */
import { debug } from '../debug.js';
import { UsageError, XenMigrationError } from '../errors.js';
import type { MigrationNote, NoteRole, NoteStore } from './notes.js';

/** What is known of an operation when it begins. */
export type NoteStart = Omit<MigrationNote, 'role' | 'owner' | 'since'>;

/** A note, or nothing where the host keeps none. Owned by whoever opened it, who must `close` or `abandon` it. */
export class Note {
  readonly #store: NoteStore | undefined;
  #note: MigrationNote | undefined;

  private constructor(store: NoteStore | undefined) {
    this.#store = store;
  }

  /**
   * Writes the first note. Rejects if it cannot be written, with ERR_XEN_MIGRATION_KNOWN if there is one: nothing was
   * done to the guest yet.
   */
  static async open(store: NoteStore | undefined, role: NoteRole, start: NoteStart): Promise<Note> {
    const note = new Note(store);
    if (store === undefined) return note;
    const first = { ...start, role, owner: store.self, since: Date.now() };
    if (!(await store.create(first))) {
      throw new XenMigrationError(
        'ERR_XEN_MIGRATION_KNOWN',
        `migration ${start.id} is known here: it was begun before, and its ${role} is at it or left it open (xen-migrate recover)`,
      );
    }
    note.#note = first;
    return note;
  }

  /** One that exists and is ours. */
  static taken(store: NoteStore, present: MigrationNote): Note {
    const note = new Note(store);
    note.#note = present;
    return note;
  }

  /** Writes what has changed. Rejects if it cannot be written. */
  async advance(changes: Partial<NoteStart>): Promise<void> {
    if (this.#note !== undefined) await this.#write({ ...this.#note, ...changes });
  }

  /** As `advance`, for when the guest must go on whether it is noted or not. */
  async tryAdvance(changes: Partial<NoteStart>): Promise<void> {
    await this.advance(changes).catch((error: unknown) => debug('a note could not be written: %O', error));
  }

  /** Nobody is at it any more, and it is not over: `recover` may take it. Never rejects. */
  async abandon(changes: Partial<NoteStart> = {}): Promise<void> {
    if (this.#note === undefined) return;
    await this.#write({ ...this.#note, ...changes, owner: '' }).catch((error: unknown) => {
      debug('a note could not be given up: %O', error);
    });
  }

  /** It is over. Never rejects: a note that stays is looked at by `recover`, which finds nothing to do. */
  async close(): Promise<void> {
    const note = this.#note;
    this.#note = undefined;
    if (note === undefined || this.#store === undefined) return;
    await this.#store.remove(note.role, note.id).catch((error: unknown) => {
      debug('a note could not be removed: %O', error);
    });
  }

  async #write(note: MigrationNote): Promise<void> {
    await this.#store?.write(note);
    this.#note = note;
  }
}

/**
 * Throws UsageError if a dead process has left the domain in the middle of something: a guest of which nobody knows
 * whether it runs elsewhere must not go on any journey before that is known.
 */
export async function refuseOpenMatter(notes: NoteStore | undefined, domid: number): Promise<void> {
  for (const note of (await notes?.list()) ?? []) {
    if (note.domid !== domid || note.role === 'receiver') continue;
    if ((await notes?.isAlive(note.owner)) === true) continue;
    const what = note.role === 'sender' ? `migration ${note.id}` : 'a save';
    throw new UsageError(
      `domain ${domid} was left behind by ${what}, whose process died or lost its receiver: recover it first (xen-migrate recover)`,
      { domid },
    );
  }
}
