import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { PageMapping } from '../../../lib/host/host.js';
import { copyIn, copyOut, copyPageOut, gatherRuns, pageView, runLength } from '../../../lib/host/pages.js';

const PAGE = 4096;

/** A mapping of the given (region, page in region) places over patterned memory. */
function mappingOf(places: readonly (readonly [number, number])[], pagesEach = 16): PageMapping {
  const buffers = [0, 1, 2].map((r) => {
    const b = new Uint8Array(new SharedArrayBuffer(pagesEach * PAGE));
    for (let p = 0; p < pagesEach; p++) b.fill(r * pagesEach + p + 1, p * PAGE, (p + 1) * PAGE);
    return b;
  });
  return {
    count: places.length,
    regions: buffers,
    words: buffers.map((b) => new Uint32Array(b.buffer)),
    regionOf: Uint16Array.from(places, ([r]) => r),
    offsetOf: Float64Array.from(places, ([, p]) => p * PAGE),
    errors: new Int32Array(places.length),
    release: () => undefined,
  };
}

const places = fc.array(fc.tuple(fc.integer({ min: 0, max: 2 }), fc.integer({ min: 0, max: 15 })), {
  minLength: 1,
  maxLength: 40,
});
const marker = ([r, p]: readonly [number, number]): number => r * 16 + p + 1;

describe('page mappings', () => {
  test('runs stop where memory does not go on', () => {
    const m = mappingOf([
      [0, 3],
      [0, 4],
      [0, 5],
      [1, 6],
      [1, 5],
    ]);
    expect(runLength(m, 0)).toBe(3);
    expect(runLength(m, 0, 2)).toBe(2);
    expect(runLength(m, 3)).toBe(1);
    expect(runLength(m, 4)).toBe(1);
  });

  test('gathered views and copies hold the pages in order', () => {
    fc.assert(
      fc.property(places, (list) => {
        const m = mappingOf(list);
        const views: Uint8Array[] = [];
        expect(gatherRuns(m, 0, m.count, views)).toBe(true);
        const joined = Buffer.concat(views);
        const words = new Uint32Array((m.count * PAGE) / 4);
        copyOut(m, 0, m.count, words, 0);
        expect(Buffer.from(words.buffer).equals(joined)).toBe(true);
        list.forEach((place, i) => {
          expect(joined[i * PAGE]).toBe(marker(place));
          expect(joined[i * PAGE + PAGE - 1]).toBe(marker(place));
          expect(pageView(m, i)[7]).toBe(marker(place));
        });
      }),
    );
  });

  test('too many scattered pages are left to copying, and the views stay as they were', () => {
    const list = Array.from({ length: 100 }, (_, i) => [0, (i * 2) % 16] as const);
    const views = [new Uint8Array(1)];
    expect(gatherRuns(mappingOf(list), 0, 100, views)).toBe(false);
    expect(views).toHaveLength(1);
  });

  test('one page out', () => {
    const words = new Uint32Array(2048);
    copyPageOut(mappingOf([[2, 1]]), 0, words, 1024);
    expect(words[1023]).toBe(0);
    expect(words[1024]).toBe(0x22222222);
    expect(words[2047]).toBe(0x22222222);
  });

  test('bytes come in piece by piece, whatever the pieces', () => {
    const distinct = fc.uniqueArray(
      fc.tuple(fc.integer({ min: 0, max: 2 }), fc.integer({ min: 0, max: 15 })),
      {
        minLength: 1,
        maxLength: 12,
        selector: ([r, p]) => r * 16 + p,
      },
    );
    fc.assert(
      fc.property(distinct, fc.array(fc.integer({ min: 1, max: 9000 }), { maxLength: 8 }), (list, cuts) => {
        const m = mappingOf(list);
        const bytes = Uint8Array.from({ length: m.count * PAGE }, (_, i) => (i * 31) >>> 3);
        let at = 0;
        for (const cut of [...cuts, bytes.length]) {
          const n = Math.min(cut, bytes.length - at);
          copyIn(m, at, bytes.subarray(at, at + n));
          at += n;
        }
        const views: Uint8Array[] = [];
        gatherRuns(m, 0, m.count, views);
        expect(Buffer.concat(views).equals(bytes)).toBe(true);
      }),
    );
  });
});
