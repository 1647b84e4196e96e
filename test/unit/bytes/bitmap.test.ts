import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Bitmap } from '../../../lib/bytes/bitmap.js';

const members = fc.uniqueArray(fc.integer({ min: 0, max: 999 }), { maxLength: 300 });

function of(bits: number, list: readonly number[]): Bitmap {
  const b = new Bitmap(bits);
  for (const n of list) b.set(n);
  return b;
}

function all(b: Bitmap, step: number): number[] {
  const out = new Float64Array(step);
  const found: number[] = [];
  let from = 0;
  for (;;) {
    const n = b.collect(from, out);
    found.push(...out.subarray(0, n));
    if (n < step) return found;
    from = (out[n - 1] as number) + 1;
  }
}

describe('Bitmap', () => {
  test('holds what was set and nothing else', () => {
    fc.assert(
      fc.property(members, fc.integer({ min: 1, max: 40 }), (list, step) => {
        const b = of(1000, list);
        expect(all(b, step)).toEqual(list.toSorted((x, y) => x - y));
        expect(b.count()).toBe(list.length);
        for (const n of list) expect(b.has(n)).toBe(true);
        for (const n of list) b.clear(n);
        expect(b.count()).toBe(0);
      }),
    );
  });

  test.each([1, 31, 32, 33, 63, 64, 1000, 1023, 1024])('fill sets exactly %d bits', (bits) => {
    const b = new Bitmap(bits);
    b.fill();
    expect(b.count()).toBe(bits);
    expect(b.has(bits - 1)).toBe(true);
    expect(b.has(bits)).toBe(false);
    expect(all(b, 100)).toEqual(Array.from({ length: bits }, (_, i) => i));
  });

  test('or is the union, cut to its own size', () => {
    fc.assert(
      fc.property(members, members, (x, y) => {
        const b = of(1000, x);
        b.or(of(1000, y));
        expect(b.count()).toBe(new Set([...x, ...y]).size);
      }),
    );
    const small = new Bitmap(10);
    const large = new Bitmap(40);
    large.fill();
    small.or(large);
    expect(small.count()).toBe(10);
  });

  test('grow keeps the members and adds none', () => {
    const b = of(40, [0, 39]);
    b.fill();
    b.grow(5000);
    expect(b.count()).toBe(40);
    b.set(4999);
    expect(all(b, 7).at(-1)).toBe(4999);
    b.grow(10);
    expect(b.bits).toBe(5000);
  });

  test('collect from beyond the end gives nothing', () => {
    const b = of(100, [99]);
    expect(b.collect(100, new Float64Array(4))).toBe(0);
    expect(b.collect(5000, new Float64Array(4))).toBe(0);
    expect(b.collect(99, new Float64Array(4))).toBe(1);
  });
});
