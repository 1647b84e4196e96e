import { describe, expect, it } from 'vitest';
import { PageType } from '../../../lib/abi/pages.js';
import { HypercallError } from '../../../lib/errors.js';
import { AREA_PFNS, maxAreas, PopulatedSet, Populator } from '../../../lib/restore/populate.js';
import { FakeHost, type FakeOptions } from './fake-host.js';

function make(options: Partial<FakeOptions> = {}): {
  populator: Populator;
  host: FakeHost;
  frames: Map<number, number>;
} {
  const host = new FakeHost({ hvm: true, maxPages: 4096, ...options });
  const frames = new Map<number, number>();
  const set = (pfn: number, gfn: number): void => {
    if (frames.has(pfn)) throw new Error(`pfn ${pfn} twice`);
    frames.set(pfn, gfn);
  };
  const populator = new Populator(host.domain, 100, {
    setGfns: (pfns, gfns, count) => {
      for (let i = 0; i < count; i++) set(pfns[i] as number, gfns[i] as number);
    },
    setGfnRun: (pfn, gfn, count) => {
      for (let i = 0; i < count; i++) set(pfn + i, gfn + i);
    },
  });
  return { populator, host, frames };
}

const range = (from: number, to: number): Float64Array =>
  Float64Array.from({ length: to - from }, (_, i) => from + i);
const calls = (host: FakeHost): string[] =>
  host.domain.populates.map(
    ({ order, frames, done }) => `${order}: ${frames.length}${done < frames.length ? ` (${done})` : ''}`,
  );

describe('PopulatedSet', () => {
  it('holds what was added, wherever it lies', () => {
    const set = new PopulatedSet(8);
    const pfns = [0, 31, 32, AREA_PFNS - 1, AREA_PFNS, 5 * AREA_PFNS + 7, 2 ** 32, 2 ** 32 + 31, 2 ** 40 - 1];
    for (const pfn of pfns) expect(set.has(pfn)).toBe(false);
    for (const pfn of pfns) expect(set.add(pfn)).toBe(true);
    for (const pfn of pfns) expect(set.add(pfn)).toBe(false);
    for (const pfn of pfns) expect(set.has(pfn)).toBe(true);
    for (const pfn of [1, 30, 33, AREA_PFNS + 1, 2 ** 32 - 1, 2 ** 32 + 1, 2 ** 40 - 2])
      expect(set.has(pfn)).toBe(false);
    expect(set.size).toBe(pfns.length);
  });

  it('takes runs of whole words, all of them new or all of them there', () => {
    const set = new PopulatedSet(3);
    expect(set.addRun(1024, 1024)).toBe(1024);
    expect(set.addRun(1024, 1024)).toBe(0);
    expect(set.addRun(1056, 64)).toBe(0);
    expect(set.addRun(992, 64)).toBe(-1);
    expect(set.has(1023)).toBe(false);
    expect(set.has(1024)).toBe(true);
    expect(set.has(2047)).toBe(true);
    expect(set.has(2048)).toBe(false);
    expect(set.addRun(5, 64)).toBe(-1);
    expect(set.addRun(0, 33)).toBe(-1);
    expect(set.add(2100)).toBe(true);
    expect(set.addRun(2048, 1024)).toBe(-1);
    expect(set.has(2101)).toBe(false);
    expect(set.addRun(AREA_PFNS - 32, 64)).toBe(-1);
    expect(set.addRun(AREA_PFNS - 32, 32)).toBe(32);
    const far = 2 ** 40 - 64;
    expect(set.addRun(far, 64)).toBe(64);
    expect(set.has(far + 63)).toBe(true);
    expect(set.addRun(7 * AREA_PFNS, 32)).toBe(32);
    expect(set.addRun(8 * AREA_PFNS, 32)).toBe(-1);
    expect(set.size).toBe(1024 + 1 + 32 + 64 + 32);
  });

  it('makes so many areas and no more', () => {
    const set = new PopulatedSet(2);
    expect(set.add(0)).toBe(true);
    expect(set.add(9 * AREA_PFNS)).toBe(true);
    expect(set.add(3 * AREA_PFNS)).toBeUndefined();
    expect(set.add(1)).toBe(true);
    expect(set.has(3 * AREA_PFNS)).toBe(false);
  });

  it('has room for twice the memory of a domain, side by side', () => {
    expect(maxAreas(1, 0)).toBe(2);
    expect(maxAreas(AREA_PFNS * 3, 5)).toBe(11);
  });
});

describe('Populator', () => {
  it('gives memory once, to what needs it', async () => {
    const { populator, host, frames } = make();
    const types = Uint8Array.of(
      PageType.NOTAB,
      PageType.XTAB,
      PageType.XALLOC,
      PageType.BROKEN,
      PageType.L1TAB,
      PageType.NOTAB,
    );
    await populator.populate(Float64Array.of(10, 11, 12, 13, 14, 10), 6, types, 0);
    expect([...frames.keys()]).toEqual([10, 12, 14]);
    await populator.populate(Float64Array.of(14, 11, 12), 3, undefined, 0);
    expect([...frames.keys()]).toEqual([10, 12, 14, 11]);
    expect(calls(host)).toEqual(['0: 3', '0: 1']);
    await populator.populate(Float64Array.of(14, 11, 12), 3, undefined, 0);
    expect(calls(host)).toHaveLength(2);
    expect(populator.pages).toBe(4);
    expect(populator.has(13)).toBe(false);
  });

  it('asks for superpages where 512 pfns fill 2 MiB', async () => {
    const { populator, host, frames } = make();
    await populator.populate(range(0, 1024), 1024, undefined, 0);
    expect(calls(host)).toEqual(['9: 2']);
    expect(host.domain.populates[0]?.frames).toEqual([0, 512]);
    expect(frames.size).toBe(1024);
    expect(frames.get(777)).toBe(777);
    expect(populator.superpages).toBe(2);
  });

  it.each([
    ['not aligned', range(1, 513), ['0: 512']],
    ['aligned in the middle', range(100, 1124), ['9: 1', '0: 512']],
    ['descending', range(0, 512).reverse(), ['0: 512']],
    ['with a gap', Float64Array.from([...range(0, 300), ...range(301, 512)]), ['0: 511']],
    ['one short at the end', range(0, 511), ['0: 511']],
  ])('%s', async (_name, pfns, expected) => {
    const { populator, host, frames } = make();
    await populator.populate(pfns, pfns.length, undefined, 0);
    expect(calls(host)).toEqual(expected);
    expect([...frames.keys()].sort((a, b) => a - b)).toEqual([...pfns].sort((a, b) => a - b));
  });

  it('does not make a superpage of pfns some of which had memory', async () => {
    const { populator, host } = make();
    await populator.populate(Float64Array.of(200), 1, undefined, 0);
    await populator.populate(range(0, 512), 512, undefined, 0);
    expect(calls(host)).toEqual(['0: 1', '0: 511']);
  });

  it('does not join pfns of two calls', async () => {
    const { populator, host } = make();
    await populator.populate(range(0, 256), 256, undefined, 0);
    await populator.populate(range(256, 512), 256, undefined, 0);
    expect(calls(host)).toEqual(['0: 256', '0: 256']);
  });

  it('finds superpages in a table longer than its own buffers', async () => {
    const { populator, host, frames } = make({ maxPages: 80_000 });
    // 1900 odd ones, so that the buffer is full in the middle of the run that follows.
    const odd = Float64Array.from({ length: 1900 }, (_, i) => 100_000 + 2 * i);
    const run = range(0, 40 * 512);
    const pfns = Float64Array.from([...odd, ...run]);
    await populator.populate(pfns, pfns.length, undefined, 0);
    expect(frames.size).toBe(pfns.length);
    expect(populator.superpages).toBe(40);
    expect(calls(host)).toEqual(['0: 1900', '9: 32', '9: 8'].sort((a, b) => (a < b ? -1 : 1)));
  });

  it.each([0, 1, 3])('falls back to 4 KiB when %d superpages are left', async (superpages) => {
    const { populator, host, frames } = make({ superpages });
    await populator.populate(range(0, 2048), 2048, undefined, 0);
    expect(populator.superpages).toBe(superpages);
    expect(frames.size).toBe(2048);
    expect(host.domain.used).toBe(2048);
    expect(calls(host)).toEqual([
      `9: 4 (${superpages})`,
      ...Array.from({ length: 4 - superpages }, () => '0: 512'),
    ]);
  });

  it('falls back when superpages are refused', async () => {
    const { populator, frames } = make({
      onCall: (_, name) => {
        if (name === 'populate 2M') throw new HypercallError('XENMEM_populate_physmap', 1, 'no');
      },
    });
    await populator.populate(range(0, 512), 512, undefined, 0);
    expect(frames.size).toBe(512);
    expect(populator.superpages).toBe(0);
  });

  it('tells PV guests the frame of each page of a superpage', async () => {
    const { populator, host, frames } = make({ hvm: false });
    await populator.populate(range(512, 1030), 518, undefined, 0);
    for (const [pfn, mfn] of frames) expect(host.domain.mfnOf.get(pfn)).toBe(mfn);
    expect(frames.get(1023)! - frames.get(512)!).toBe(511);
  });

  const runOf = (from: number, count: number, type: number): Parameters<Populator['populateTable']>[0] => ({
    pfns: range(from, from + count),
    types: new Uint8Array(count).fill(type),
    count,
    run: true,
  });

  it.each([
    ['a run of 1024', 1024, 1024, ['9: 2']],
    ['a run with ends that are no superpages', 1024 - 32, 1024, ['0: 32', '9: 1', '0: 480']],
    ['a short run', 4096, 64, ['0: 64']],
    ['a run that begins in the middle of a word', 1023, 1025, ['9: 2', '0: 1']],
    ['a run longer than its own buffers', 0, 40 * 512, ['9: 32', '9: 8']],
    ['a run from one area to the next', AREA_PFNS - 512, 1024, ['9: 2']],
  ])('gives memory to %s as it does one by one', async (_name, from, count, expected) => {
    for (const hvm of [true, false]) {
      const { populator, host, frames } = make({ hvm, maxPages: 80_000 });
      await populator.populateTable(runOf(from, count, PageType.NOTAB), 0);
      expect(calls(host)).toEqual(expected);
      expect(populator.pages).toBe(count);
      expect([...frames.keys()].sort((a, b) => a - b)).toEqual([...range(from, from + count)]);
      for (const [pfn, gfn] of frames) expect(gfn).toBe(hvm ? pfn : host.domain.mfnOf.get(pfn));
      // Once more: it is there, and nothing has to be waited for, or looked at page by page.
      await populator.populateTable(runOf(from, count, PageType.L1TAB), 0);
      expect(calls(host)).toHaveLength(expected.length);
    }
  });

  it('has nothing to wait for where a run needs no memory, or has it', async () => {
    const { populator, host } = make();
    expect(populator.populateTable(runOf(0, 1024, PageType.XTAB), 0)).toBeUndefined();
    expect(populator.pages).toBe(0);
    await populator.populateTable(runOf(0, 1024, PageType.XALLOC), 0);
    expect(populator.populateTable(runOf(0, 1024, PageType.NOTAB), 0)).toBeUndefined();
    expect(calls(host)).toEqual(['9: 2']);
  });

  it('completes a run that has some memory', async () => {
    const { populator, host, frames } = make();
    await populator.populate(Float64Array.of(700), 1, undefined, 0);
    await populator.populateTable(runOf(0, 1024, PageType.NOTAB), 0);
    expect(frames.size).toBe(1024);
    expect(calls(host)).toEqual(['0: 1', '9: 1', '0: 511']);
  });

  it('is exact', async () => {
    const { populator } = make({ maxPages: 100 });
    const job = populator.populate(range(1, 102), 101, undefined, 0);
    await expect(job).rejects.toThrow(/1 pages could not be allocated: the domain has 100 of at most 100/);
  });

  it('refuses pfns scattered over more areas than there may be', async () => {
    const { populator } = make();
    const pfns = Float64Array.from({ length: 200 }, (_, i) => i * AREA_PFNS);
    await expect(populator.populate(pfns, 200, undefined, 4711)).rejects.toMatchObject({
      code: 'ERR_XEN_STREAM_LIMIT',
      offset: 4711,
      path: 'pfns[100].pfn',
    });
  });
});
