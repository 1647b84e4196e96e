/**
 * The pages of persistent tmem pools as files in a folder. docs/design/tmem.md has their format:
 *
 *     tmem.json          the section, its pools, what is missing; written last
 *     pool-N.pages       the pages of pool N one behind the other, in the order of the image
 *     pool-N.jsonl       a line for each of them: where it belongs
 *     invalidated.jsonl  a line for each page that chunk −6 takes back
 */

import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs/promises';
import path from 'node:path';
import { CancelledError, UsageError } from '../errors.js';
import type { TmemHandle } from '../stream/legacy/events.js';
import { transportFailure } from '../transport/failure.js';
import { FileSink } from '../transport/file.js';
import { openSink } from '../transport/open.js';
import type { ByteSink } from '../transport/types.js';

/** Bytes that a file holds back before it writes. */
const HELD_MAX = 1 << 20;

const DESCRIPTION = 'tmem.json';
const INVALIDATED = 'invalidated.jsonl';
const OURS = /^(?:tmem\.json|invalidated\.jsonl|pool-\d+\.(?:pages|jsonl))$/;

/** Names of a pool's files, relative to the folder. */
export function poolFiles(poolId: number): { readonly pages: string; readonly index: string } {
  return { pages: `pool-${poolId}.pages`, index: `pool-${poolId}.jsonl` };
}

/** A file that has a name of its own until it is complete. */
class PartFile {
  readonly target: string;
  readonly partial: string;
  #sink: ByteSink | undefined;
  #held: Uint8Array[] = [];
  #heldBytes = 0;

  constructor(folder: string, name: string) {
    this.target = path.join(folder, name);
    this.partial = path.join(folder, `.${name}.${randomBytes(4).toString('hex')}.partial`);
  }

  async open(): Promise<void> {
    this.#sink = await openSink(this.partial, { exclusive: true, name: this.target });
  }

  /** Takes bytes, which are then the file's. A promise where they have to be written before more may come. */
  add(bytes: Uint8Array): Promise<void> | undefined {
    this.#held.push(bytes);
    this.#heldBytes += bytes.length;
    return this.#heldBytes >= HELD_MAX ? this.#flush() : undefined;
  }

  /** All bytes on the disk. */
  async end(): Promise<void> {
    await this.#flush();
    await this.#sink?.end();
    this.#sink = undefined;
  }

  async abort(reason: unknown): Promise<void> {
    const sink = this.#sink;
    this.#sink = undefined;
    this.#held = [];
    sink?.abort(reason);
    if (sink instanceof FileSink) await sink.released;
  }

  async #flush(): Promise<void> {
    const views = this.#held;
    this.#held = [];
    this.#heldBytes = 0;
    if (views.length > 0) await this.#sink?.write(views);
  }
}

/** The files of one export. One call at a time; what returns a promise is to be awaited. After a failure: `abort`. */
export class TmemExport {
  readonly #folder: string;
  /** The topmost folder that had to be made. */
  #made: string | undefined;
  readonly #files: PartFile[] = [];
  /** Final names that are taken. */
  readonly #placed: string[] = [];
  #pages: PartFile | undefined;
  #index: PartFile | undefined;
  #invalidated: PartFile | undefined;
  #page = 0;

  constructor(folder: string) {
    this.#folder = folder;
  }

  /**
   * Makes the folder if it is not there.
   *
   * @throws UsageError if it holds an export already; TransportError
   */
  async open(): Promise<void> {
    const folder = this.#folder;
    const doing = `exporting tmem to ${folder}`;
    this.#made = await attempt(doing, () => fs.mkdir(folder, { recursive: true, mode: 0o700 }));
    const there = (await attempt(doing, () => fs.readdir(folder))).filter((name) => OURS.test(name));
    if (there.length > 0) throw taken(path.join(folder, there[0] as string));
  }

  /** A pool begins. */
  async pool(poolId: number): Promise<void> {
    const names = poolFiles(poolId);
    this.#page = 0;
    this.#pages = await this.#file(names.pages);
    this.#index = await this.#file(names.index);
  }

  /** A page of the pool that began last. `bytes` are given away. */
  page(handle: TmemHandle, bytes: Uint8Array): Promise<void> | undefined {
    const written = this.#pages?.add(bytes);
    const { oid, index } = handle;
    const indexed = this.#index?.add(line({ page: this.#page++, oid: oid.map(hex), index }));
    return both(written, indexed);
  }

  /** No more pages of the pool. */
  async poolEnd(): Promise<void> {
    await this.#pages?.end();
    await this.#index?.end();
    this.#pages = this.#index = undefined;
  }

  /** A page that chunk −6 takes back. */
  invalidated({ poolId, oid, index }: TmemHandle): Promise<void> | undefined {
    const bytes = line({ pool: poolId, oid: oid.map(hex), index });
    return this.#invalidated === undefined ? this.#firstInvalidated(bytes) : this.#invalidated.add(bytes);
  }

  async #firstInvalidated(bytes: Uint8Array): Promise<void> {
    this.#invalidated = await this.#file(INVALIDATED);
    await this.#invalidated.add(bytes);
  }

  /**
   * Gives the files their names, that of the description last.
   *
   * @param description Of everything but the file of invalidated pages, which is added
   * @throws UsageError if one of the names was taken meanwhile; TransportError
   */
  async end(description: Readonly<Record<string, unknown>>): Promise<void> {
    await this.#invalidated?.end();
    const whole = { ...description, invalidated: this.#invalidated === undefined ? null : INVALIDATED };
    const file = await this.#file(DESCRIPTION);
    await file.add(new TextEncoder().encode(`${JSON.stringify(whole, undefined, 2)}\n`));
    await file.end();
    for (const { partial, target } of this.#files) await this.#place(partial, target);
    await syncFolder(this.#folder);
  }

  /** Removes every file that it made, also under its final name, and the folder if it made that. Idempotent. */
  async abort(reason: unknown = new CancelledError('the export of tmem was given up')): Promise<void> {
    const files = this.#files.splice(0);
    for (const file of files) await file.abort(reason);
    const failures: unknown[] = [];
    for (const name of [...files.map(({ partial }) => partial), ...this.#placed.splice(0)]) {
      const doing = `removing ${name}`;
      await attempt(doing, () => fs.rm(name, { force: true })).catch((error: unknown) =>
        failures.push(error),
      );
    }
    await this.#removeFolders();
    if (failures.length > 0) throw failures[0];
  }

  async #file(name: string): Promise<PartFile> {
    const file = new PartFile(this.#folder, name);
    this.#files.push(file);
    await file.open();
    return file;
  }

  /** Renames, but never onto a file that is there: the name is taken first, by an empty file. */
  async #place(partial: string, target: string): Promise<void> {
    try {
      await (await fs.open(target, 'wx', 0o600)).close();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') throw taken(target);
      throw transportFailure(error, `creating ${target}`);
    }
    this.#placed.push(target);
    await attempt(`renaming ${partial} to ${target}`, () => fs.rename(partial, target));
  }

  /** Those that it made, unless somebody else put something into them. */
  async #removeFolders(): Promise<void> {
    const top = this.#made === undefined ? undefined : path.resolve(this.#made);
    this.#made = undefined;
    if (top === undefined) return;
    for (let folder = path.resolve(this.#folder); ; folder = path.dirname(folder)) {
      try {
        await fs.rmdir(folder);
      } catch {
        return;
      }
      if (folder === top) return;
    }
  }
}

function taken(name: string): UsageError {
  return new UsageError(`${name} exists: an export of tmem overwrites nothing, give it a folder of its own`);
}

async function attempt<T>(doing: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw transportFailure(error, doing);
  }
}

/** The names on the disk too. Not every file system can; the files themselves are there already. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await fs.open(folder, 'r').catch(() => undefined);
  await handle?.sync().catch(() => undefined);
  await handle?.close().catch(() => undefined);
}

function line(value: unknown): Uint8Array {
  return new TextEncoder().encode(`${JSON.stringify(value)}\n`);
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}

function both(one: Promise<void> | undefined, other: Promise<void> | undefined): Promise<void> | undefined {
  if (one === undefined) return other;
  return other === undefined ? one : Promise.all([one, other]).then(() => undefined);
}
