import { describe, expect, it } from 'vitest';
import { PageType, pageTypeName } from '../../../lib/abi/pages.js';
import { type GuestWidth, PTES } from '../../../lib/abi/pv.js';
import { collectReferences, isTableOf, localiseTable } from '../../../lib/restore/localise.js';
import { LocalP2m, P2mLeaves } from '../../../lib/restore/p2m.js';

const NX = 1n << 63n;

function p2mOf(entries: Record<number, number>, maxPfn = 2 ** 32 - 1): LocalP2m {
  const p2m = new LocalP2m();
  p2m.grow(maxPfn);
  for (const [pfn, mfn] of Object.entries(entries)) p2m.set(Number(pfn), mfn);
  return p2m;
}

/** A table, at a place in a larger array as in a mapping, and its entries. */
function tableOf(entries: Record<number, bigint>): {
  words: Uint32Array;
  at: number;
  read: (i: number) => bigint;
} {
  const at = 1024;
  const words = new Uint32Array(3 * 1024).fill(0xdead_beef);
  words.fill(0, at, at + 1024);
  for (const [i, value] of Object.entries(entries)) {
    words[at + 2 * Number(i)] = Number(value & 0xffff_ffffn);
    words[at + 2 * Number(i) + 1] = Number(value >> 32n);
  }
  const read = (i: number): bigint => (BigInt(words[at + 2 * i + 1]!) << 32n) | BigInt(words[at + 2 * i]!);
  return { words, at, read };
}

describe('isTableOf', () => {
  const widths: readonly GuestWidth[] = [4, 8];
  const types = Array.from({ length: 16 }, (_, type) => type);
  it.each(widths.flatMap((width) => types.map((type) => [width, pageTypeName(type), type] as const)))(
    'width %d, %s',
    (width, name, type) => {
      const level = Number(/^L(\d)TAB/.exec(name)?.[1] ?? 0);
      expect(isTableOf(type, width)).toBe(level > 0 && level <= (width === 8 ? 4 : 3));
    },
  );
});

describe('localiseTable', () => {
  const p2m = p2mOf({ 0: 0x1234_5678_9a, 1: 0xff_ffff_ffff, 7: 0x12, [2 ** 32 - 1]: 0x8000_0000 });
  it.each([
    ['a plain entry', 0x7067n, 0x1_2067n],
    ['pfn 0', 0x67n, 0x1234_5678_9a067n],
    ['the highest frame', 0x1067n, 0xf_ffff_ffff_f067n],
    ['the highest pfn', 0xfff_ffff_f001n, 0x800_0000_0001n],
    ['all flags', NX | 0x7ff0_0000_0000_0fffn | 0x7000n, NX | 0x7ff0_0000_0000_0fffn | 0x1_2000n],
    ['not present', 0x7066n, 0x7066n],
    ['not present, all else', 0xffff_ffff_ffff_fffen, 0xffff_ffff_ffff_fffen],
    ['empty', 0n, 0n],
  ])('%s', (_name, before, after) => {
    for (const index of [0, 1, 255, 511]) {
      const { words, at, read } = tableOf({ [index]: before });
      localiseTable(words, at, p2m);
      expect(read(index)).toBe(after);
      expect(words[at - 1]).toBe(0xdead_beef);
      expect(words[at + 1024]).toBe(0xdead_beef);
      for (let i = 0; i < PTES; i++) if (i !== index) expect(read(i)).toBe(0n);
    }
  });
});

describe('collectReferences', () => {
  const p2m = p2mOf({ 3: 33, 4: 44 }, 5000);
  const out = new Float64Array(PTES);
  const collect = (level: number, entries: Record<number, bigint>): number => {
    const { words, at } = tableOf(entries);
    return collectReferences(level, words, at, p2m, out);
  };

  it('lists pfns without memory, present ones only', () => {
    const n = collect(1, { 0: 0x3001n, 1: 0x5001n, 2: 0x6000n, 9: NX | 0x1388001n, 511: 0x5001n });
    expect([...out.subarray(0, n)]).toEqual([5, 5000, 5]);
  });

  it('can list all of a table', () => {
    const all = Object.fromEntries(
      Array.from({ length: PTES }, (_, i) => [i, (BigInt(i + 100) << 12n) | 1n]),
    );
    expect(collect(1, all)).toBe(PTES);
    expect(out[511]).toBe(611);
  });

  it.each([1, 2, 3, 4])('names the entry beyond the last pfn at level %d', (level) => {
    expect(collect(level, { 3: 0x5001n, 17: 0x138_9001n })).toBe(-1 - 17);
    expect(collect(level, { 0: 0xf_ffff_ffff_f001n })).toBe(-1);
    expect(collect(level, { 5: 0xf_ffff_ffff_f000n })).toBe(0);
  });

  it.each([
    [1, 1],
    [2, -1 - 8],
    [3, -1 - 8],
    [4, -1 - 8],
  ])('takes bit 7 for PSE above level 1 (level %d)', (level, result) => {
    expect(collect(level, { 8: 0x5081n })).toBe(result);
    expect(collect(level, { 8: 0x5080n })).toBe(0);
  });
});

describe('LocalP2m', () => {
  it('keeps frames and types in range, and has none beyond', () => {
    const p2m = new LocalP2m();
    expect(p2m.maxPfn).toBe(-1);
    expect(p2m.mfnOf(0)).toBe(-1);
    p2m.grow(10_000);
    p2m.set(4095, 1);
    p2m.set(4096, 2 ** 39);
    p2m.grow(20_000);
    p2m.grow(5);
    expect(p2m.maxPfn).toBe(20_000);
    expect([
      p2m.mfnOf(4095),
      p2m.mfnOf(4096),
      p2m.mfnOf(4097),
      p2m.mfnOf(20_001),
      p2m.mfnOf(2 ** 52),
    ]).toEqual([1, 2 ** 39, -1, -1, -1]);
    p2m.setType(4096, PageType.L1TAB | PageType.PINNED);
    p2m.setType(19_999, PageType.L1TAB);
    expect(p2m.typeOf(4096)).toBe(9);
    expect(p2m.typeOf(19_999)).toBe(0);
    const typed: number[][] = [];
    p2m.forEachTyped((...args) => typed.push(args));
    expect(typed).toEqual([[4096, 9, 2 ** 39]]);
  });

  it('writes entries of both widths', () => {
    const p2m = p2mOf({ 1: 0x12_3456_789a, 2: 5 }, 3);
    const page = new Uint8Array(64);
    const words = new Uint32Array(page.buffer);
    p2m.writeEntries(words, 0, 0, 4, 8);
    expect(Buffer.from(page).toString('hex')).toBe(
      'ffffffffffffffff' + '9a78563412000000' + '0500000000000000' + 'ffffffffffffffff' + '00'.repeat(32),
    );
    page.fill(0);
    p2m.writeEntries(words, 1, 2, 4, 4);
    expect(Buffer.from(page).toString('hex')).toBe('00000000' + '05000000' + 'ffffffff' + '00'.repeat(52));
  });

  it('writes all ones where no pfn of a piece has a frame', () => {
    const p2m = p2mOf({ 1: 7 }, 9000);
    for (const width of [4, 8] as const) {
      const words = new Uint32Array(16);
      p2m.writeEntries(words, 2, 8192, 8195, width);
      const count = (3 * width) / 4;
      expect([...words]).toEqual(
        Array.from({ length: 16 }, (_, i) => (i >= 2 && i < 2 + count ? 0xffff_ffff : 0)),
      );
    }
  });

  it('for the largest guest there can be takes memory for what it has', () => {
    const p2m = p2mOf({ 0: 1, [2 ** 32 - 1]: 2 });
    expect(p2m.mfnOf(2 ** 32 - 1)).toBe(2);
    expect(p2m.mfnOf(2 ** 31)).toBe(-1);
  });
});

describe('P2mLeaves', () => {
  it('refuses records without number', () => {
    const leaves = new P2mLeaves();
    for (let i = 0; i < 256; i++) leaves.add(i * 2, Float64Array.of(1), i);
    expect(() => {
      leaves.add(1000, Float64Array.of(1), 4711);
    }).toThrow(/more than 256 records/);
  });
});
