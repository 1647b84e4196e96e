/** `NoteStore` of a simulated host. A process is a name: tests say which of them are dead. */
import {
  decodeNote,
  encodeNote,
  noteKey,
  type MigrationNote,
  type NoteRole,
  type NoteStore,
} from '../../toolstack/notes.js';
import type { Faults } from './faults.js';

/** What a host keeps, whoever asks. Notes are kept as text, so that nothing is shared by accident. */
export class NoteShelf {
  readonly texts = new Map<string, string>();
  /** Owners that do not run any more. */
  readonly dead = new Set<string>();
  readonly incarnation: string;
  readonly faults: Faults;

  constructor(incarnation: string, faults: Faults) {
    this.incarnation = incarnation;
    this.faults = faults;
  }
}

/** The shelf as one process sees it. */
export class SimulatedNotes implements NoteStore {
  readonly self: string;
  readonly #shelf: NoteShelf;

  constructor(shelf: NoteShelf, self: string) {
    this.#shelf = shelf;
    this.self = self;
  }

  /** The same notes, as another process sees them. */
  as(self: string): SimulatedNotes {
    return new SimulatedNotes(this.#shelf, self);
  }

  /** From now on the process counts as dead. */
  bury(owner: string): void {
    this.#shelf.dead.add(owner);
  }

  async incarnation(): Promise<string> {
    return this.#shelf.incarnation;
  }

  async isAlive(owner: string): Promise<boolean> {
    return owner !== '' && !this.#shelf.dead.has(owner);
  }

  async list(): Promise<readonly MigrationNote[]> {
    await this.#shelf.faults.before('notes.list');
    return [...this.#shelf.texts.values()].flatMap((text) => decodeNote(text) ?? []);
  }

  async read(role: NoteRole, id: string): Promise<MigrationNote | undefined> {
    await this.#shelf.faults.before('notes.read');
    return this.#read(noteKey(role, id));
  }

  async create(note: MigrationNote): Promise<boolean> {
    await this.#shelf.faults.before('notes.create', note.domid, note.point);
    const key = noteKey(note.role, note.id);
    if (this.#shelf.texts.has(key)) return false;
    this.#shelf.texts.set(key, encodeNote(note));
    return true;
  }

  async write(note: MigrationNote): Promise<void> {
    await this.#shelf.faults.before('notes.write', note.domid, note.point);
    this.#shelf.texts.set(noteKey(note.role, note.id), encodeNote(note));
  }

  async claim(note: MigrationNote): Promise<MigrationNote | undefined> {
    await this.#shelf.faults.before('notes.claim', note.domid);
    const key = noteKey(note.role, note.id);
    const present = this.#read(key);
    if (present?.owner !== note.owner) return undefined;
    const mine = { ...present, owner: this.self };
    this.#shelf.texts.set(key, encodeNote(mine));
    return mine;
  }

  async remove(role: NoteRole, id: string): Promise<void> {
    await this.#shelf.faults.before('notes.remove');
    this.#shelf.texts.delete(noteKey(role, id));
  }

  #read(key: string): MigrationNote | undefined {
    const text = this.#shelf.texts.get(key);
    return text === undefined ? undefined : decodeNote(text);
  }
}
