import { describe, expect, it } from 'vitest';
import { PageType } from '../../../lib/abi/pages.js';
import { u32, u64 } from '../../../lib/bytes/le.js';
import { FakeWorld } from './fake.js';
import { received, runToEnd } from './run.js';

const HEADERS = ['image-header', 'domain-header'];
const STATIC = ['X86_CPUID_POLICY', 'X86_MSR_POLICY', 'STATIC_DATA_END'];
const STATE = ['X86_TSC_INFO', 'HVM_CONTEXT', 'HVM_PARAMS', 'END'];

describe('the records of an HVM save', () => {
  it('stand in the order of the C sender, non-live', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    const { names, pages, result } = await runToEnd(world, { live: false });
    expect(names).toEqual([...HEADERS, ...STATIC, 'PAGE_DATA 40', ...STATE]);
    expect(pages[0]!.pfns).toEqual(Array.from({ length: 40 }, (_, i) => i));
    expect(result.iterations).toMatchObject([{ iteration: 0, sentPages: 40, suspended: true }]);
    expect(world.calls).not.toContain('enableLogDirty');
    expect(world.destroyed).toBe(true);
    expect(world.quiet).toMatchObject({ openMappings: 0, openDomains: 0, deviceModelLogDirty: false });
  });

  it('repeat dirty pages while the guest runs, and once more suspended', async () => {
    const dirty = [Array.from({ length: 60 }, (_, i) => i * 2), [3, 5, 99], [7]];
    const world = new FakeWorld({ kind: 'pvh', pages: 130, dirty });
    const { names, pages, result } = await runToEnd(world);
    expect(names).toEqual([
      ...HEADERS,
      ...STATIC,
      ...['PAGE_DATA 130', 'PAGE_DATA 60', 'PAGE_DATA 3', 'PAGE_DATA 1'],
      ...STATE,
    ]);
    expect(pages[2]!.pfns).toEqual([3, 5, 99]);
    expect(result.iterations.map((i) => [i.iteration, i.dirtyPages, i.suspended])).toEqual([
      [0, 130, false],
      [1, 60, false],
      // Fewer than 50: stop-and-copy, but this pass still goes live.
      [2, 3, false],
      [3, 1, true],
    ]);
    expect(result.pages).toBe(194);
    expect(result.entriesByType).toEqual({ NOTAB: 194 });
    expect(result.bytes).toBe(
      result.iterations.reduce((sum, i) => sum + i.bytes, 0) +
        40 +
        (8 + 48) +
        (8 + 16) +
        8 +
        32 +
        (8 + 48) +
        (16 + 48) +
        8,
    );
    expect(world.calls.filter((c) => c.startsWith('logDirty'))).toEqual([
      'logDirty clean',
      'logDirty clean',
      'logDirty clean final',
    ]);
  });

  it('surround the libxc stream with what libxl and xl write', async () => {
    const world = new FakeWorld({ kind: 'hvm' });
    const { names, records, events } = await runToEnd(world, { live: false, format: 'xl' });
    expect(names).toEqual([
      'xl-header',
      'libxl-header',
      'LIBXC_CONTEXT',
      ...HEADERS,
      ...STATIC,
      'PAGE_DATA 40',
      ...STATE,
      'EMULATOR_XENSTORE_DATA',
      'EMULATOR_CONTEXT',
      'END',
    ]);
    expect(events[0]).toMatchObject({ header: { config: '{"c_info":{"name":"fake"}}', mandatoryFlags: 3 } });
    const [context] = records.get('EMULATOR_CONTEXT')!;
    expect([...context!]).toEqual([2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
    expect(world.calls.indexOf('toolstack.deviceModelState')).toBeGreaterThan(
      world.calls.indexOf('toolstack.suspend'),
    );
  });

  it('leave out the device model of a guest that has none, and a given configuration replaces the toolstack’s', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    const { names, events } = await runToEnd(world, { live: false, format: 'xl', config: '{"a":1}' });
    expect(names.slice(-2)).toEqual(['END', 'END']);
    expect(events[0]).toMatchObject({ header: { config: '{"a":1}' } });
    expect(world.calls).not.toContain('toolstack.domainConfig');
  });

  it('send parameters that are not zero, in libxc’s order', async () => {
    const { records } = await runToEnd(new FakeWorld(), { live: false });
    const [params] = records.get('HVM_PARAMS')!;
    const list = Array.from({ length: u32(params!, 0) }, (_, i) => [
      u64(params!, 8 + i * 16),
      u64(params!, 16 + i * 16),
    ]);
    expect(list).toEqual([
      [1n, 0xfeffcn],
      [17n, 0xfefffn],
      [38n, 1n],
    ]);
  });

  it('repeat all pages behind VERIFY, and look at the dirty bitmap without clearing it', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 60, dirty: [[1], [2]] });
    const { names, result } = await runToEnd(world, { verify: true });
    expect(names.slice(5)).toEqual([
      'PAGE_DATA 60',
      'PAGE_DATA 1',
      'PAGE_DATA 1',
      'VERIFY',
      'PAGE_DATA 60',
      ...STATE,
    ]);
    expect(world.calls.filter((c) => c.startsWith('logDirty'))).toEqual([
      'logDirty clean',
      'logDirty clean final',
      'logDirty peek',
    ]);
    expect(result.iterations).toHaveLength(3);
  });
});

describe('batches', () => {
  it('hold 1024 entries, the first pass aligned to 4 MiB', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 2500 });
    const { pages, sink } = await runToEnd(world, { live: false });
    expect(pages.map((p) => [p.pfns[0], p.pfns.length])).toEqual([
      [0, 1024],
      [1024, 1024],
      [2048, 452],
    ]);
    const memory = received(pages);
    for (let pfn = 0; pfn < 2500; pfn++) {
      const page = memory.get(pfn)!;
      expect(page.equals(world.memory.subarray(pfn * 4096, pfn * 4096 + 4096))).toBe(true);
    }
    // Frames side by side go out as one view.
    expect(sink.writes.filter((w) => w.length === 2 && w[0]! > 8000).map((w) => w[1])).toEqual([
      1024 * 4096,
      1024 * 4096,
    ]);
  });

  it('take dirty pages from all over the guest together', async () => {
    const scattered = Array.from({ length: 1500 }, (_, i) => i * 3);
    const world = new FakeWorld({ kind: 'pvh', pages: 5000, dirty: [scattered, []] });
    const { pages } = await runToEnd(world);
    expect(pages.slice(5).map((p) => p.pfns)).toEqual([scattered.slice(0, 1024), scattered.slice(1024)]);
    expect(pages[5]!.contents).toHaveLength(1024 * 4096);
    for (const pfn of scattered) {
      expect(u32(received(pages.slice(5)).get(pfn)!, 0)).toBe(pfn + 1);
      if (pfn > 60) break;
    }
  });

  it('list XTAB and BROKEN entries without data, and only map what has data', async () => {
    const types = new Map([
      [3, PageType.XTAB],
      [4, PageType.BROKEN],
      [5, PageType.XTAB],
    ]);
    const world = new FakeWorld({ kind: 'pvh', pages: 8, types });
    const { pages, result } = await runToEnd(world, { live: false });
    expect(pages[0]!.types).toEqual([0, 0, 0, 0xf, 0xd, 0xf, 0, 0]);
    expect(pages[0]!.contents).toHaveLength(5 * 4096);
    expect(u32(received(pages).get(6)!, 0)).toBe(7);
    expect(result).toMatchObject({ pages: 5, entriesByType: { NOTAB: 5, XTAB: 2, BROKEN: 1 } });
  });

  it('map nothing for a batch without any memory', async () => {
    const types = new Map(Array.from({ length: 8 }, (_, pfn) => [pfn, PageType.XTAB] as const));
    const world = new FakeWorld({ kind: 'pvh', pages: 8, types });
    const { pages } = await runToEnd(world, { live: false });
    expect(pages[0]!.contents).toHaveLength(0);
    expect(world.calls).not.toContain('mapFrames');
  });

  it('refuse types that do not exist', async () => {
    const world = new FakeWorld({ kind: 'pvh', types: new Map([[9, 6]]) });
    await expect(runToEnd(world, { live: false })).rejects.toMatchObject({
      code: 'ERR_XEN_HYPERCALL',
      message: expect.stringContaining('type 0x6 of pfn 0x9') as string,
    });
  });

  it('prepare the next while others are being written, but no more than three at once', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 8 * 1024 });
    let mostMapped = 0;
    world.before = (name) => {
      mostMapped = Math.max(mostMapped, world.openMappings);
      if (name === 'sink.write') return new Promise((resolve) => setTimeout(resolve, 1));
      return undefined;
    };
    const { sink } = await runToEnd(world, { live: false });
    expect(sink.maxInFlight).toBe(3);
    expect(mostMapped).toBe(3);
    expect(world.openMappings).toBe(0);
  });

  it('defer a page that cannot be mapped while the guest runs to the final pass', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 8 });
    world.unmappable.add(5);
    world.before = (name) => {
      if (name === 'toolstack.suspend') world.unmappable.clear();
    };
    const { pages } = await runToEnd(world);
    expect(pages[0]!.types[5]).toBe(PageType.XTAB);
    expect(pages[0]!.contents).toHaveLength(7 * 4096);
    expect(pages.at(-1)!.pfns).toEqual([5]);
    expect(u32(received(pages).get(5)!, 0)).toBe(6);
    expect(u32(received(pages).get(6)!, 0)).toBe(7);
  });

  it('fail if a page of the suspended guest cannot be mapped', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 8 });
    world.unmappable.add(5);
    await expect(runToEnd(world)).rejects.toMatchObject({
      code: 'ERR_XEN_HYPERCALL',
      phase: 'stop-and-copy',
      message: expect.stringContaining('pfn 0x5') as string,
      guest: { host: 'source', state: 'running' },
    });
  });
});
