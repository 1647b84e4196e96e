import { Readable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { HvmParam } from '../../../lib/abi/hvm.js';
import { PAGE_SIZE, PageType } from '../../../lib/abi/pages.js';
import { cr3ToFrame, type GuestWidth, START_INFO, VCPU_CONTEXT, VGCF_ONLINE } from '../../../lib/abi/pv.js';
import { u32, u64, u64n } from '../../../lib/bytes/le.js';
import { restore, startRestore } from '../../../lib/restore/restore.js';
import type { RestoreOptions, RestoreResult } from '../../../lib/restore/types.js';
import { MemorySource } from '../../../lib/transport/index.js';
import { FAKE_DOMID, FakeHost, type FakeOptions } from './fake-host.js';
import * as S from './streams.js';

async function run(
  bytes: Uint8Array,
  fake: FakeOptions,
  options: RestoreOptions = {},
): Promise<{ host: FakeHost; result: RestoreResult }> {
  const host = new FakeHost(fake);
  const result = await restore(host, { from: bytes, ...options });
  expect(host.leaks()).toEqual([]);
  return { host, result };
}

function words(bytes: Uint8Array, at: number, width: GuestWidth): number {
  return width === 8 ? u64n(bytes, at) : u32(bytes, at);
}

describe('an HVM stream of xl', () => {
  it('becomes a running guest with the same memory and state', async () => {
    const { host, result } = await run(S.xl(S.hvmStream(), S.deviceModel(9)), { hvm: true });
    const { domain, toolstack } = host;
    for (const pfn of [0, 1, 2, 3, 8, 9]) expect(domain.page(pfn)).toEqual(S.pageOf(pfn));
    expect(domain.page(4)).toBeUndefined();
    expect(domain.used).toBe(8);
    expect(domain.tsc).toEqual(S.TSC);
    expect(domain.policy).toEqual({ cpuid: S.CPUID, msrs: S.MSRS });
    expect(domain.context).toEqual(S.HVM_CONTEXT);
    expect(Object.fromEntries(domain.params)).toEqual({
      [HvmParam.STORE_PFN]: 60n,
      [HvmParam.CONSOLE_PFN]: 61n,
      [HvmParam.IDENT_PT]: 0xfe_ffe0_00n,
      [HvmParam.STORE_EVTCHN]: 3n,
      [HvmParam.CONSOLE_EVTCHN]: 4n,
    });
    expect(domain.seed).toEqual({ storeGfn: 60, consoleGfn: 61, storeDomid: 0, consoleDomid: 0 });
    expect(toolstack.config).toBe(S.CONFIG);
    expect(toolstack.missing).toEqual({ cpuid: false, msr: false });
    expect(toolstack.rings).toEqual({ storeGfn: 60, consoleGfn: 61 });
    expect(toolstack.deviceModel?.emulator).toBe(2);
    expect(toolstack.deviceModel?.context).toEqual(new Uint8Array(40).fill(9));
    expect(Buffer.from(toolstack.deviceModel!.xenstore).toString()).toBe('physmap/0/size\0' + '9\0');
    expect(host.running).toBe(true);
    expect(host.destroyed).toBe(false);
    expect(result).toMatchObject({
      domid: FAKE_DOMID,
      guestType: 'hvm',
      bytes: S.xl(S.hvmStream(), S.deviceModel(9)).length,
      pages: 8,
      populated: { pages: 8, superpages: 0 },
      checkpoints: 0,
      failedOver: false,
      missing: { cpuid: false, msr: false },
      storeGfn: 60,
      consoleGfn: 61,
      verifyMismatches: { count: 0, pfns: [] },
      config: S.CONFIG,
    });
  });

  it('has its rings cleared, before the parameter is set', async () => {
    const { host } = await run(S.xl(S.hvmStream()), { hvm: true });
    expect(host.domain.cleared).toEqual([60, 61]);
    expect(host.domain.page(60)).toEqual(new Uint8Array(PAGE_SIZE));
    expect(host.domain.page(61)).toEqual(new Uint8Array(PAGE_SIZE));
    const first = host.calls.indexOf('clearPage');
    expect(host.calls[first + 1]).toBe('setHvmParam');
  });

  it('may name a ring page that it does not bring', async () => {
    const stream = S.hvmStream([S.pageData(S.plainPages(0, 2))]);
    const { host, result } = await run(S.xl(stream), { hvm: true });
    expect(host.domain.cleared).toEqual([]);
    expect(result.storeGfn).toBe(60);
  });

  it('sets the context last, though it comes before the parameters', async () => {
    const { host } = await run(S.xl(S.hvmStream()), { hvm: true });
    const { calls } = host;
    expect(calls.indexOf('setHvmContext')).toBeGreaterThan(calls.lastIndexOf('setHvmParam'));
    expect(calls.slice(calls.indexOf('setHvmContext'))).toEqual([
      'setHvmContext',
      'seedGrantTable',
      'closeDomain',
      'finishRestore',
      'unpause',
    ]);
  });

  it('is restored into a domain of the caller, and left paused if asked', async () => {
    const { host } = await run(S.hvmStream(), { hvm: true }, { domid: FAKE_DOMID, run: false });
    expect(host.created).toBe(false);
    expect(host.running).toBe(false);
    expect(host.toolstack.rings).toEqual({ storeGfn: 60, consoleGfn: 61 });
  });

  it('is built from another configuration, or wired otherwise, if the caller says so', async () => {
    const wiring = { storeEvtchn: 11, storeDomid: 2, consoleEvtchn: 12, consoleDomid: 5 };
    const { host } = await run(S.libxl(S.hvmStream()), { hvm: true }, { config: '{"x":1}', wiring });
    expect(host.toolstack.config).toBe('{"x":1}');
    expect(host.domain.seed).toEqual({ storeGfn: 60, consoleGfn: 61, storeDomid: 2, consoleDomid: 5 });
    expect(host.domain.params.get(HvmParam.STORE_EVTCHN)).toBe(11n);
    expect(host.calls).not.toContain('backendWiring');
  });

  it('reads no byte behind its end', async () => {
    const stream = S.hvmStream();
    const source = new MemorySource(S.join(stream, new Uint8Array(44).fill(7)));
    const host = new FakeHost({ hvm: true });
    const result = await restore(host, { from: source, domid: FAKE_DOMID });
    expect(result.bytes).toBe(stream.length);
    expect(source.position).toBe(stream.length);
  });

  it.each([1, 3, 7, 4096, 4099])('arrives in pieces of %d bytes', async (size) => {
    const stream = S.xl(S.hvmStream(), S.deviceModel(1));
    const pieces = Array.from({ length: Math.ceil(stream.length / size) }, (_, i) =>
      Buffer.from(stream.subarray(i * size, (i + 1) * size)),
    );
    const host = new FakeHost({ hvm: true });
    await restore(host, { from: Readable.from(pieces, { objectMode: false }) });
    for (const pfn of [0, 1, 2, 3, 8, 9]) expect(host.domain.page(pfn)).toEqual(S.pageOf(pfn));
    expect(host.running).toBe(true);
  });

  it('infers the end of static data in version 2, and reports what is missing', async () => {
    const { host, result } = await run(S.xl(S.hvmStream(undefined, 2)), { hvm: true });
    expect(host.toolstack.missing).toEqual({ cpuid: true, msr: true });
    expect(result.missing).toEqual({ cpuid: true, msr: true });
    expect(host.domain.policy).toBeUndefined();
    expect(host.calls.indexOf('staticDataDone')).toBeLessThan(host.calls.indexOf('populate'));
  });

  it('reports one missing policy alone', async () => {
    const cpuid = S.policies().subarray(0, 32);
    const stream = S.join(
      S.headers('hvm'),
      cpuid,
      S.STATIC_DATA_END,
      S.pageData(S.HVM_PAGES),
      S.hvmState(),
      S.END,
    );
    const { host, result } = await run(S.xl(stream), { hvm: true });
    expect(result.missing).toEqual({ cpuid: false, msr: true });
    expect(host.domain.policy).toEqual({ cpuid: S.CPUID, msrs: new Uint8Array(0) });
  });

  it('may bring a page again, and the last one counts', async () => {
    const memory = [
      S.pageData(S.HVM_PAGES),
      S.pageData([{ pfn: 1, bytes: S.pageOf(77) }]),
      S.pageData([
        { pfn: 2, bytes: S.pageOf(78) },
        { pfn: 2, bytes: S.pageOf(79) },
        { pfn: 3, type: PageType.XTAB },
      ]),
    ];
    const { host } = await run(S.xl(S.hvmStream(memory)), { hvm: true });
    expect(host.domain.page(1)).toEqual(S.pageOf(77));
    expect(host.domain.page(2)).toEqual(S.pageOf(79));
    expect(host.domain.page(3)).toEqual(S.pageOf(3));
    expect(host.domain.used).toBe(8);
  });

  it('may have pages to allocate only, and broken ones', async () => {
    const memory = [
      S.pageData([
        { pfn: 0 },
        { pfn: 1, type: PageType.XALLOC },
        { pfn: 2, type: PageType.BROKEN },
        { pfn: 3 },
      ]),
    ];
    const { host, result } = await run(S.xl(S.hvmStream(memory)), { hvm: true });
    expect(host.domain.page(0)).toEqual(S.pageOf(0));
    expect(host.domain.page(1)).toEqual(new Uint8Array(PAGE_SIZE));
    expect(host.domain.page(2)).toBeUndefined();
    expect(host.domain.page(3)).toEqual(S.pageOf(3));
    expect(result.pages).toBe(2);
  });

  it('may have records of more than 1024 pages, mapped in batches', async () => {
    const pages = S.plainPages(100, 2600).map((page) =>
      page.pfn % 7 === 3 ? { pfn: page.pfn, type: PageType.XTAB } : page,
    );
    const fake = { hvm: true, maxPages: 2500 };
    const stream = S.xl(S.hvmStream([S.pageData(pages), S.pageData([{ pfn: 101 }])]));
    for (const size of [stream.length, 5000]) {
      const pieces: Uint8Array[] = [];
      for (let at = 0; at < stream.length; at += size) pieces.push(stream.subarray(at, at + size));
      const host = new FakeHost(fake);
      const result = await restore(host, { from: new MemorySource(pieces) });
      const withData = pages.filter(({ type }) => type === undefined).length;
      expect(result.pages).toBe(withData + 1);
      expect(host.domain.maps).toEqual([1024, 1024, withData - 2048, 1]);
      for (const { pfn, type } of pages)
        if (type === undefined) expect(Buffer.compare(host.domain.page(pfn)!, S.pageOf(pfn))).toBe(0);
      expect(host.leaks()).toEqual([]);
    }
  });

  it('may end a record of exactly 1024 pages with entries that have no data', async () => {
    const pages = [...S.plainPages(0, 1024), { pfn: 2000, type: PageType.XTAB }];
    const stream = S.xl(S.hvmStream([S.pageData(pages), S.pageData([{ pfn: 1500 }])]));
    const { host } = await run(stream, { hvm: true, maxPages: 1100 });
    expect(host.domain.maps).toEqual([1024, 1]);
    expect(host.domain.page(1023)).toEqual(S.pageOf(1023));
    expect(host.domain.page(1500)).toEqual(S.pageOf(1500));
  });

  it('is compared instead of copied after VERIFY, and the differences are told', async () => {
    const again = S.HVM_PAGES.map((page) => (page.pfn === 2 ? { pfn: 2, bytes: S.pageOf(99) } : page));
    const stream = S.hvmStream([
      S.pageData(S.HVM_PAGES),
      S.VERIFY,
      S.pageData(again),
      S.pageData([{ pfn: 9 }]),
    ]);
    const { host, result } = await run(S.xl(stream), { hvm: true });
    expect(result.verifyMismatches).toEqual({ count: 1, pfns: [2] });
    expect(host.domain.page(2)).toEqual(S.pageOf(2));
    expect(host.calls.filter((name) => name === 'mapFrames read')).toHaveLength(2);
  });
});

describe.each([8, 4] as const)('a PV stream of %d-byte words', (width) => {
  it('becomes a guest on other frames', async () => {
    const { host, result } = await run(S.xl(S.pvStream(width)), { hvm: false });
    const { domain } = host;
    const mfn = (pfn: number): number => domain.mfnOf.get(pfn)!;
    expect(domain.width).toBe(width);
    for (const pfn of [0, 2, 3, 4, 11]) expect(domain.page(pfn)).toEqual(S.pageOf(pfn));
    expect(domain.mfnOf.has(12)).toBe(false);
    expect(domain.mfnOf.has(13)).toBe(true);

    const l1 = domain.page(S.PV.l1)!;
    expect(u64(l1, 0)).toBe(S.NX | (BigInt(mfn(0)) << 12n) | 0x67n);
    expect(u64(l1, 8)).toBe((BigInt(mfn(S.PV.startInfo)) << 12n) | 0x67n);
    expect(u64(l1, 16)).toBe((BigInt(mfn(13)) << 12n) | 0x67n);
    expect(u64(l1, 24)).toBe((BigInt(mfn(13)) << 12n) | 0x67n);
    expect(u64(l1, 40)).toBe(0x123_4066n);
    expect(u64(l1, 511 * 8)).toBe((BigInt(mfn(S.PV.leaf)) << 12n) | 0x67n);
    expect(u64(domain.page(8)!, 0)).toBe((BigInt(mfn(7)) << 12n) | 0x67n);

    const layout = START_INFO[width];
    const startInfo = domain.page(S.PV.startInfo)!;
    expect(words(startInfo, layout.storeMfn, width)).toBe(mfn(S.PV.store));
    expect(words(startInfo, layout.consoleMfn, width)).toBe(mfn(S.PV.console));
    expect(u32(startInfo, layout.storeEvtchn)).toBe(3);
    expect(u32(startInfo, layout.consoleEvtchn)).toBe(4);
    expect(words(startInfo, layout.nrPages, width)).toBe(16);
    expect(words(startInfo, layout.sharedInfo, width)).toBe(domain.sharedInfoFrame * PAGE_SIZE);
    expect(u32(startInfo, layout.flags)).toBe(0);

    const context = domain.vcpus.get('0 basic')!;
    const vcpu = VCPU_CONTEXT[width];
    expect(words(context, vcpu.rdx, width)).toBe(mfn(S.PV.startInfo));
    expect(u32(context, vcpu.flags)).toBe(4 | VGCF_ONLINE);
    expect(words(context, vcpu.gdtFrames, width)).toBe(mfn(S.PV.gdt));
    const cr = (n: number): bigint =>
      width === 8 ? u64(context, vcpu.ctrlreg + n * 8) : BigInt(u32(context, vcpu.ctrlreg + n * 4));
    expect(cr3ToFrame(cr(3), width)).toBe(mfn(S.PV.top));
    if (width === 8) expect(cr(1)).toBe(BigInt(mfn(S.PV.user)) << 12n);
    else expect(cr(1)).toBe(0n);
    expect(words(domain.vcpus.get('1 basic')!, vcpu.rdx, width)).toBe(0x7777);
    for (const kind of ['extended', 'xsave', 'msrs']) expect(domain.vcpus.has(`1 ${kind}`)).toBe(true);

    expect(Object.fromEntries(domain.pinned)).toEqual({
      [mfn(S.PV.top)]: width === 8 ? 4 : 3,
      [mfn(S.PV.l1)]: 1,
    });
    const leaf = domain.page(S.PV.leaf)!;
    for (let pfn = 0; pfn <= S.PV.maxPfn; pfn++) {
      const entry = words(leaf, pfn * width, width);
      const none = width === 8 ? Number(0xffff_ffff_ffff_ffffn) : 0xffff_ffff;
      expect(entry).toBe(domain.mfnOf.get(pfn) ?? none);
    }
    expect(leaf.subarray(16 * width)).toEqual(S.pageOf(S.PV.leaf).subarray(16 * width));
    expect(result).toMatchObject({
      guestType: 'pv',
      storeGfn: mfn(S.PV.store),
      consoleGfn: mfn(S.PV.console),
      pages: 12,
      populated: { pages: 13 },
    });
    expect(domain.seed).toEqual({
      storeGfn: mfn(S.PV.store),
      consoleGfn: mfn(S.PV.console),
      storeDomid: 0,
      consoleDomid: 0,
    });
  });

  it('takes vcpus and architecture from SHARED_INFO, and keeps the rest of the new page', async () => {
    const host = new FakeHost({ hvm: false });
    const page = host.domain.bytes.subarray((host.domain.frames - 1) * PAGE_SIZE);
    page.fill(0xee);
    await restore(host, { from: S.xl(S.pvStream(width)) });
    const layout = S.sharedInfoLayout[width];
    const sent = S.sharedInfoPage();
    const expected = new Uint8Array(PAGE_SIZE).fill(0xee);
    for (let v = 0; v < 32; v++) {
      const at = v * 64;
      expected.set(sent.subarray(at, at + 64), at);
      expected.fill(0, at + layout.pendingSel, at + layout.pendingSel + width);
    }
    expected.fill(0, layout.evtchnPending, layout.evtchnMask);
    expected.fill(0xff, layout.evtchnMask, layout.evtchnMask + layout.evtchnBytes);
    expected.set(sent.subarray(layout.arch, layout.arch + layout.archBytes), layout.arch);
    expected.fill(0, layout.frameListList, layout.frameListList + width);
    expect(page).toEqual(expected);
  });

  it('sets vcpus before it pins, and writes the p2m after', async () => {
    const { host } = await run(S.xl(S.pvStream(width)), { hvm: false });
    const { calls } = host;
    const from = calls.indexOf('setVcpuState 0 basic');
    expect(calls.slice(from)).toEqual([
      'setVcpuState 0 basic',
      'setVcpuState 0 extended',
      'setVcpuState 0 xsave',
      'setVcpuState 0 msrs',
      'setVcpuState 1 basic',
      'setVcpuState 1 extended',
      'setVcpuState 1 xsave',
      'setVcpuState 1 msrs',
      'pinTables',
      'mapFrames write',
      'seedGrantTable',
      'closeDomain',
      'finishRestore',
      'unpause',
    ]);
  });

  it('infers the end of static data at P2M_FRAMES in version 2', async () => {
    const { host, result } = await run(S.xl(S.pvStream(width, { version: 2 })), { hvm: false });
    expect(result.missing).toEqual({ cpuid: true, msr: true });
    expect(host.calls.indexOf('staticDataDone')).toBeLessThan(host.calls.indexOf('populate'));
  });

  it('has its tables localised once where a pfn comes twice in a record', async () => {
    const l1 = S.table([[4, 2]]);
    const pages = [
      { pfn: 7, type: PageType.L1TAB, bytes: S.table([[0, 0]]) },
      { pfn: 2 },
      { pfn: 7, type: PageType.L1TAB, bytes: l1 },
      { pfn: 8, type: PageType.L1TAB, bytes: l1 },
      { pfn: 8, bytes: S.pageOf(8) },
    ];
    const memory = [
      S.pageData(pages),
      S.pageData(S.pvPages(width).filter(({ pfn }) => pfn !== 7 && pfn !== 8)),
    ];
    const { host } = await run(S.xl(S.pvStream(width, { memory })), { hvm: false });
    const mfn = (pfn: number): bigint => BigInt(host.domain.mfnOf.get(pfn)!);
    expect(u64(host.domain.page(7)!, 32)).toBe((mfn(2) << 12n) | 0x67n);
    expect(u64(host.domain.page(7)!, 0)).toBe(0n);
    expect(host.domain.page(8)).toEqual(S.pageOf(8));
  });

  it('is verified with its tables localised', async () => {
    const pages = S.pvPages(width);
    const bent = pages.map((page) =>
      page.pfn === 7
        ? { ...page, bytes: S.table([[9, 3]]) }
        : page.pfn === 11
          ? { ...page, bytes: S.pageOf(1) }
          : page,
    );
    const good = await run(
      S.xl(S.pvStream(width, { memory: [S.pageData(pages), S.VERIFY, S.pageData(pages)] })),
      { hvm: false },
    );
    expect(good.result.verifyMismatches).toEqual({ count: 0, pfns: [] });
    const bad = await run(
      S.xl(S.pvStream(width, { memory: [S.pageData(pages), S.VERIFY, S.pageData(bent)] })),
      { hvm: false },
    );
    expect(bad.result.verifyMismatches).toEqual({ count: 2, pfns: [7, 11] });
  });

  it('may tell its p2m frames in parts', async () => {
    const fpp = PAGE_SIZE / width;
    const frames = S.join(S.p2mFrames([11], fpp, fpp + 3), S.p2mFrames([S.PV.leaf], 0, fpp - 1));
    const { host } = await run(S.xl(S.pvStream(width, { frames })), { hvm: false });
    expect(words(host.domain.page(S.PV.leaf)!, 0, width)).toBe(host.domain.mfnOf.get(0));
    const leaf = host.domain.page(11)!;
    expect(leaf.subarray(0, 4 * width)).toEqual(new Uint8Array(4 * width).fill(0xff));
    expect(leaf.subarray(4 * width)).toEqual(S.pageOf(11).subarray(4 * width));
  });
});

describe('the job', () => {
  it('tells its phases and what came', async () => {
    const host = new FakeHost({ hvm: true });
    const phases: string[] = [];
    const stream = S.xl(S.hvmStream([S.pageData(S.HVM_PAGES), S.VERIFY, S.pageData(S.HVM_PAGES)]));
    const job = startRestore(host, {
      from: stream,
      onProgress: ({ phase }) => {
        if (phases.at(-1) !== phase) phases.push(phase);
      },
    });
    expect(job.status.state).toBe('active');
    await job.result;
    expect(phases).toEqual(
      ['setup', 'static-data', 'memory', 'verify', 'state', 'complete', 'done'].slice(1),
    );
    expect(job.status).toMatchObject({
      state: 'completed',
      operation: 'restore',
      domid: FAKE_DOMID,
      transferred: stream.length,
      pages: 16,
    });
  });

  it('has no limits to change', async () => {
    const job = startRestore(new FakeHost({ hvm: true }), { from: S.xl(S.hvmStream()) });
    expect(() => {
      job.update({});
    }).not.toThrow();
    expect(() => {
      job.update({ maxIterations: 3 });
    }).toThrow(/no limit 'maxIterations'/);
    await job.result;
  });
});
