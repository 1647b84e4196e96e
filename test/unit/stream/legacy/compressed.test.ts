/** The changes of pages in compressed checkpoints. */

import { describe, expect, it } from 'vitest';
import { StreamFormatError } from '../../../../lib/errors.js';
import {
  applyDelta,
  DeltaCheck,
  deltaSize,
  LEGACY_DELTA_SIZE_MAX,
} from '../../../../lib/stream/legacy/compressed.js';
import * as W from '../../../legacy/writer.js';
import { brief } from './feed.js';

const page = W.pageOf(3);
const skips = [127, 127, 127, 127, 127, 127, 127, 127] as const;

const good: readonly (readonly [string, W.Delta])[] = [
  ['nothing', W.unchanged],
  ['the whole page', W.full(W.pageOf(9))],
  ['runs that leave all', W.rawRuns(...skips, 8)],
  ['the first word', W.rawRuns(W.seeded(4, 1), 126, 127, 127, 127, 127, 127, 127, 127, 8)],
  ['the last word', W.rawRuns(...skips, 7, W.seeded(4, 2))],
  ['runs that replace all', W.rawRuns(...skips.map((n, i) => W.seeded(4 * n, i)), W.seeded(32, 9))],
  ['a run for each word', W.rawRuns(...Array.from({ length: 1024 }, (_, i) => W.seeded(4, i)))],
  ['runs by turns', W.runs(page, W.touched(page, [0, 5, 6, 7, 300, 1023]))],
  ['a first run of 127 words', W.rawRuns(W.seeded(508, 4), 127, 127, 127, 127, 127, 127, 127, 8)],
];

const bad: readonly (readonly [string, Uint8Array, string])[] = [
  ['a run of no words, to leave', W.rawRuns(5, 0, 1018), 'FIELD COMPRESSED_DATA.runs @101'],
  ['a run of no words, to replace', W.rawRuns(5, new Uint8Array(0), 1018), 'FIELD COMPRESSED_DATA.runs @101'],
  ['a skip beyond the page', W.rawRuns(...skips, 9), 'LENGTH COMPRESSED_DATA.runs @108'],
  ['a run beyond the page', W.rawRuns(...skips, W.seeded(36, 1)), 'LENGTH COMPRESSED_DATA.runs @108'],
];

function thrown(what: () => unknown): string {
  try {
    what();
  } catch (error) {
    if (error instanceof StreamFormatError) return brief(error);
    throw error;
  }
  return 'nothing';
}

describe('one change', () => {
  it.each(good)('%s', (_name, delta) => {
    const after = W.play(page, delta);
    // Between other bytes, so that neither beginning nor end is that of the array.
    const bytes = W.cat(W.seeded(7, 1), delta, W.seeded(5, 2));
    const changed = Uint8Array.from(page);
    expect(deltaSize(bytes, 7)).toBe(delta.length);
    expect(applyDelta(changed, bytes, 7)).toBe(7 + delta.length);
    expect(changed).toEqual(after);
    expect(delta.length).toBeLessThanOrEqual(LEGACY_DELTA_SIZE_MAX);
  });

  it.each(good)('%s, cut short anywhere', (_name, delta) => {
    for (let n = 0; n < delta.length; n++) {
      const bytes = delta.subarray(0, n);
      expect(deltaSize(bytes, 0)).toBe(0);
      expect(thrown(() => applyDelta(new Uint8Array(4096), bytes, 0, 50))).toBe(
        'LENGTH COMPRESSED_DATA.runs @50',
      );
    }
  });

  it.each(bad)('%s', (_name, bytes, error) => {
    // The bytes go on: that is not what is wrong.
    const more = W.cat(bytes, new Uint8Array(8192));
    expect(thrown(() => deltaSize(more, 0, 100))).toBe(error);
    expect(thrown(() => applyDelta(new Uint8Array(4096), more, 0, 100))).toBe(error);
  });

  it('writes nothing beside its page', () => {
    for (const [, delta] of [...good, ...bad]) {
      const memory = new Uint8Array(3 * 4096).fill(0xa5);
      thrown(() => applyDelta(memory.subarray(4096, 8192), delta, 0));
      expect(memory.subarray(0, 4096).every((byte) => byte === 0xa5)).toBe(true);
      expect(memory.subarray(8192).every((byte) => byte === 0xa5)).toBe(true);
    }
  });
});

describe('the changes of a checkpoint', () => {
  const all = W.cat(...good.map(([, delta]) => delta));

  function check(...pieces: readonly Uint8Array[]): DeltaCheck {
    const of = new DeltaCheck();
    let offset = 0;
    for (const piece of pieces) {
      of.feed(piece, offset);
      offset += piece.length;
    }
    return of;
  }

  it('are counted', () => {
    const of = check(all);
    expect([of.deltas, of.unchanged, of.whole, of.unfinished]).toEqual([good.length, 1, 1, 0]);
    of.reset();
    expect([of.deltas, of.unchanged, of.whole, of.unfinished]).toEqual([0, 0, 0, 0]);
  });

  it('in two chunks, split anywhere', () => {
    for (let n = 0; n <= all.length; n++) {
      const of = check(all.subarray(0, n), all.subarray(n));
      if (of.deltas !== good.length || of.unfinished !== 0) expect.fail(`split at ${n}: ${of.deltas}`);
    }
  });

  it.each([1, 2, 3, 61, 4096, 5000])('in chunks of %d bytes', (size) => {
    const pieces = Array.from({ length: Math.ceil(all.length / size) }, (_, i) =>
      all.subarray(i * size, (i + 1) * size),
    );
    const of = check(...pieces);
    expect([of.deltas, of.unchanged, of.whole, of.unfinished]).toEqual([good.length, 1, 1, 0]);
  });

  it('that are not whole', () => {
    const of = check(all.subarray(0, 1 + 4097 + 2));
    expect([of.deltas, of.unfinished]).toEqual([2, 2]);
  });

  it.each(bad)('with %s, whole or split', (_name, bytes, error) => {
    const more = W.cat(bytes, new Uint8Array(8192));
    const offset = Number(error.split('@')[1]) - 100;
    expect(thrown(() => check(W.unchanged, more))).toBe(error.replace(/@.*/, `@${offset + 1}`));
    expect(thrown(() => check(more.subarray(0, 3), more.subarray(3)))).toBe(
      error.replace(/@.*/, `@${offset}`),
    );
  });

  it('hold no more than one of them', () => {
    const of = new DeltaCheck();
    const chunk = W.cat(...Array.from({ length: 500 }, () => W.full(page)), W.seeded(3, 1).fill(0x81));
    of.feed(chunk, 0);
    expect(of.unfinished).toBe(3);
    expect(of.deltas).toBe(500);
  });
});
