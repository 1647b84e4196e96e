/** Checks of compressed checkpoints: a change for each page of the batches, and no more. */

import { StreamFormatError } from '../../errors.js';
import { StreamErrorCode } from '../codes.js';
import type { PageDataEvent } from '../events.js';
import { DeltaCheck } from '../legacy/compressed.js';
import type { LegacyChunkEvent } from '../legacy/events.js';
import type { FindingList } from './report.js';

const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`;

/** Follows the compressed data of one checkpoint after the other. */
export class LegacyDeltaChecker {
  readonly #findings: FindingList;
  readonly #check = new DeltaCheck();
  #pages = 0;
  /** What is wrong has been said: the rest of this checkpoint cannot be counted. */
  #lost = false;

  constructor(findings: FindingList) {
    this.#findings = findings;
  }

  batch(event: PageDataEvent): void {
    this.#pages += event.dataPages;
  }

  data(event: LegacyChunkEvent, wordSize: number): void {
    if (this.#lost) return;
    try {
      this.#check.feed(event.body, event.offset + 4 + wordSize);
    } catch (error) {
      if (!(error instanceof StreamFormatError)) throw error;
      this.#lost = true;
      this.#findings.thrown(error);
      return;
    }
    if (this.#check.deltas <= this.#pages) return;
    this.#lost = true;
    const place = { offset: event.offset, record: event.name };
    const message = `${count(this.#check.deltas, 'change')} so far, but the batches before have ${count(this.#pages, 'page')}`;
    this.#findings.error(StreamErrorCode.FIELD, place, message);
  }

  /** The end of a checkpoint's chunks. */
  end(event: LegacyChunkEvent): void {
    if (this.#lost) return;
    const { deltas, unfinished } = this.#check;
    const place = { offset: event.offset, record: event.name };
    if (unfinished > 0) {
      const message = `the change of a page ends after ${unfinished} bytes`;
      this.#findings.error(StreamErrorCode.LENGTH, place, message);
      return;
    }
    if (deltas >= this.#pages) return;
    const message = `${count(this.#pages, 'page')} in the batches of a compressed checkpoint, ${count(deltas, 'change')} in its data`;
    this.#findings.error(StreamErrorCode.FIELD, place, message);
  }

  /** A checkpoint begins. */
  begin(): void {
    this.#check.reset();
    this.#pages = 0;
    this.#lost = false;
  }
}
