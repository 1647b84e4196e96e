/** The table of headers and records. */

import type { Layer, PageDataEvent } from '../events.js';
import { LegacyPart } from '../legacy/constants.js';
import type { RecordRow } from './report.js';

/** Collects rows, a bounded number of them. PAGE_DATA records that follow each other share one, unless told otherwise. */
export class RowList {
  readonly #max: number;
  readonly #fold: boolean;
  readonly #rows: RecordRow[] = [];
  /** The row that the next PAGE_DATA record may join. */
  #pages: RecordRow | undefined;
  #entries = 0;
  #dataPages = 0;
  #compressed = false;
  omitted = 0;

  constructor(max: number, fold: boolean) {
    this.#max = max;
    this.#fold = fold;
  }

  get rows(): readonly RecordRow[] {
    return this.#rows;
  }

  add(
    layer: Layer,
    name: string,
    event: { readonly offset: number },
    more: { type?: number; length: number; about: string; problem?: string | undefined },
  ): void {
    this.#pages = undefined;
    this.#push({ offset: event.offset, layer, name, type: undefined, records: 1, ...more });
  }

  pageData(event: PageDataEvent, problem: string | undefined): void {
    const { offset, length, count, dataPages, layer, compressed = false } = event;
    if (this.#pages !== undefined && this.#fold && problem === undefined) {
      this.#entries += count;
      this.#dataPages += dataPages;
      this.#pages.records++;
      this.#pages.length += length;
      this.#pages.about = aboutPages(this.#entries, this.#dataPages, this.#compressed);
      return;
    }
    const row: RecordRow = {
      offset,
      layer,
      name: layer === 'legacy' ? LegacyPart.PAGE_BATCH : 'PAGE_DATA',
      type: layer === 'legacy' ? undefined : 1,
      length,
      records: 1,
      about: aboutPages(count, dataPages, compressed),
      problem,
    };
    this.#entries = count;
    this.#dataPages = dataPages;
    this.#compressed = compressed;
    this.#pages = problem === undefined ? row : undefined;
    this.#push(row);
  }

  #push(row: RecordRow): void {
    if (this.#rows.length < this.#max) this.#rows.push(row);
    else this.omitted++;
  }
}

function aboutPages(entries: number, dataPages: number, compressed: boolean): string {
  const frames = `${entries} ${entries === 1 ? 'frame' : 'frames'}`;
  if (compressed) return `${frames}, ${dataPages} compressed`;
  if (dataPages === entries) return frames;
  return `${frames}, ${dataPages === 0 ? 'none' : dataPages} with data`;
}
