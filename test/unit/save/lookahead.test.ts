/** Page types are asked for ahead of the batches that need them: how many, how often, and what if that fails. */
import { describe, expect, it } from 'vitest';
import { Errno } from '../../../lib/abi/errno.js';
import { PAGE_SIZE, PageType } from '../../../lib/abi/pages.js';
import { CancelledError, HypercallError } from '../../../lib/errors.js';
import { FakeWorld } from './fake.js';
import { runToEnd, start } from './run.js';

const AHEAD = 16 * 1024;

/** A guest of which few pages are there: `from` and `to` of those that are not. */
function hollow(pages: number, from: number, to: number): FakeWorld {
  const world = new FakeWorld({ kind: 'pvh', pages });
  world.types.fill(PageType.XTAB, from, to);
  return world;
}

/** Sizes of the calls. */
function watchTypes(world: FakeWorld): number[] {
  const sizes: number[] = [];
  const pageTypes = world.domain.pageTypes.bind(world.domain);
  world.domain.pageTypes = (gfns, types) => {
    sizes.push(gfns.length);
    return pageTypes(gfns, types);
  };
  return sizes;
}

describe('page types', () => {
  it('of many batches come in one call, the batches as ever', async () => {
    const world = hollow(2 * AHEAD + 1500, 100, 2 * AHEAD);
    const sizes = watchTypes(world);
    const { pages } = await runToEnd(world, { live: false });
    expect(sizes).toEqual([AHEAD, AHEAD, 1500]);
    expect(pages.map(({ pfns }) => pfns.length)).toEqual([...Array<number>(33).fill(1024), 476]);
    expect(pages.flatMap(({ pfns }) => pfns)).toEqual(Array.from({ length: 2 * AHEAD + 1500 }, (_, i) => i));
    expect(pages.flatMap(({ types }) => types)).toEqual([...world.types]);
    expect(world.calls.filter((call) => call === 'mapFrames')).toHaveLength(3);
  });

  it('are asked for again in each pass', async () => {
    const world = hollow(40, 0, 0);
    world.dirty = [[3, 4], [5]];
    const sizes = watchTypes(world);
    world.before = (call) => {
      // Gone between two passes.
      if (call.startsWith('logDirty clean')) world.types[4] = PageType.XTAB;
    };
    const { pages } = await runToEnd(world);
    expect(sizes.slice(0, 2)).toEqual([40, 2]);
    expect(pages[0]!.types[4]).toBe(PageType.NOTAB);
    expect(pages[1]!.types).toEqual([PageType.NOTAB, PageType.XTAB]);
  });

  it('of a PV guest are asked for in small numbers while it runs, in large ones when it stands still', async () => {
    const pages = 3000;
    for (const live of [true, false]) {
      const world = new FakeWorld({ kind: 'pv', pv: { pages } });
      const sizes = watchTypes(world);
      await runToEnd(world, { live });
      expect(sizes.slice(0, 3)).toEqual(live ? [1024, 1024, 952] : [pages]);
    }
  });

  it('are asked for while the batches before them go out', async () => {
    const world = hollow(2 * AHEAD, 0, 0);
    await runToEnd(world, { live: false });
    const { calls } = world;
    expect(calls.indexOf('pageTypes', calls.indexOf('pageTypes') + 1)).toBeLessThan(
      calls.indexOf('mapFrames', calls.indexOf('mapFrames') + 1),
    );
  });
});

describe('batches of one kind', () => {
  /** Gives mappings that need no look at their arrays, as the real host does. */
  function mapPlainly(world: FakeWorld): void {
    const { memory } = world;
    world.domain.mapFrames = async (gfns) => {
      world.calls.push('mapFrames');
      const bytes = new Uint8Array(gfns.length * PAGE_SIZE);
      gfns.forEach((gfn, i) =>
        bytes.set(memory.subarray(gfn * PAGE_SIZE, (gfn + 1) * PAGE_SIZE), i * PAGE_SIZE),
      );
      return {
        count: gfns.length,
        regions: [bytes],
        words: [new Uint32Array(bytes.buffer)],
        regionOf: new Uint16Array(gfns.length),
        offsetOf: Float64Array.from({ length: gfns.length }, (_, i) => i * PAGE_SIZE),
        errors: new Int32Array(gfns.length),
        plain: true,
        release: () => undefined,
      };
    };
  }

  it('are written as all others are', async () => {
    const make = (): FakeWorld => {
      // Blank and whole batches, in a row and not, and mixed ones.
      const world = hollow(12_000, 3000, 9000);
      world.types[5] = PageType.BROKEN;
      world.dirty = [Array.from({ length: 5500 }, (_, i) => 2 * i)];
      return world;
    };
    const [usual, plain] = [make(), make()];
    mapPlainly(plain);
    const [one, other] = [await runToEnd(usual), await runToEnd(plain)];
    expect(Buffer.compare(one.sink.bytes, other.sink.bytes)).toBe(0);
    expect(other.result.entriesByType).toEqual(one.result.entriesByType);
    expect(other.result.pages).toBe(one.result.pages);
    expect(plain.calls.filter((call) => call === 'mapFrames')).toEqual(
      usual.calls.filter((call) => call === 'mapFrames'),
    );
  });

  it('of which a page cannot be mapped lose that page alone', async () => {
    const world = hollow(2048, 0, 0);
    world.unmappable.add(1500);
    world.dirty = [[]];
    world.before = (call) => {
      if (call.startsWith('logDirty clean final')) world.unmappable.clear();
    };
    const { pages } = await runToEnd(world);
    expect(pages.map(({ pfns }) => pfns.length)).toEqual([1024, 1024, 1]);
    expect(pages[1]!.types.flatMap((type, i) => (type === PageType.XTAB ? [i] : []))).toEqual([1500 - 1024]);
    expect(pages[2]).toMatchObject({ pfns: [1500], types: [PageType.NOTAB] });
  });
});

describe('asking ahead', () => {
  it('that fails ends the save when it comes to those pages', async () => {
    const world = hollow(AHEAD + 10, 0, 0);
    let asked = 0;
    world.before = (call) => {
      if (call === 'pageTypes' && ++asked === 2) throw new HypercallError('types', Errno.ESRCH, 'gone');
    };
    const { result } = start(world, { live: false });
    await expect(result).rejects.toMatchObject({ errno: Errno.ESRCH });
    // All batches before them were mapped.
    expect(world.calls.filter((call) => call === 'mapFrames')).toHaveLength(16);
    expect(world.quiet).toMatchObject({ openMappings: 0, openDomains: 0, state: 'running' });
  });

  it('is over before the domain is let go, also when the save is cancelled', async () => {
    const world = hollow(AHEAD + 10, 0, 0);
    let answer!: () => void;
    const answered = new Promise<void>((resolve) => (answer = resolve));
    let asked = 0;
    let settled = false;
    const run = start(world, { live: false });
    world.before = async (call) => {
      if (call === 'pageTypes' && ++asked === 2) await answered;
      if (call === 'mapFrames') run.control.cancel();
    };
    const outcome = run.result.catch((error: unknown) => error).finally(() => (settled = true));
    for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(asked).toBe(2);
    expect(settled).toBe(false);
    expect(world.openDomains).toBe(1);
    answer();
    expect(await outcome).toBeInstanceOf(CancelledError);
    expect(world.quiet).toMatchObject({ openMappings: 0, openDomains: 0, state: 'running' });
  });
});
