import { afterEach, describe, expect, it } from 'vitest';
import { Errno } from '../../lib/abi/errno.js';
import { HvmParam } from '../../lib/abi/hvm.js';
import { PageType } from '../../lib/abi/pages.js';
import { isZero, setU16, setU32 } from '../../lib/bytes/le.js';
import { HypercallError, UsageError } from '../../lib/errors.js';
import { INVALID_FRAME, type Domain } from '../../lib/host/host.js';
import { pageView } from '../../lib/host/pages.js';
import { SimulatedHost, type SimulatedHostOptions } from '../../lib/testing.js';
import { until } from './move-guest.js';

const hosts: SimulatedHost[] = [];

function newHost(options: SimulatedHostOptions = {}): SimulatedHost {
  const host = new SimulatedHost({ seed: 5, memory: 256 << 20, ...options });
  hosts.push(host);
  return host;
}

afterEach(async () => {
  await Promise.all(hosts.splice(0).map((host) => host.close()));
});

function config(type: string, memkb = 16384, vcpus = 2): string {
  return JSON.stringify({
    c_info: { type, name: `x-${type}` },
    b_info: { max_vcpus: vcpus, max_memkb: memkb },
  });
}

async function empty(host: SimulatedHost, type: string, memkb?: number): Promise<Domain> {
  return await host.openDomain(await host.toolstack.createDomain(config(type, memkb)));
}

async function refused(promise: Promise<unknown>, errno: number): Promise<void> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(HypercallError);
  expect((error as HypercallError).errno).toBe(errno);
}

const frames = (...list: number[]): Float64Array => Float64Array.from(list);

describe('physmap', () => {
  it('has the size that real HVM streams show: special pages below 0xff000, the APIC page among them', async () => {
    const host = newHost();
    const domain = await empty(host, 'pvh');
    expect(await domain.maxGpfn()).toBe(0xfee00);
    const types = new Uint8Array(1);
    await domain.pageTypes(frames(0xfee00), types);
    expect(types[0]).toBe(PageType.XTAB);
    const guest = await host.createGuest({ kind: 'hvm', memory: 8 << 20, workload: { kind: 'idle' } });
    expect(await (await host.openDomain(guest.domid)).maxGpfn()).toBe(0xfefff);
    const amd = newHost({ apicAccessPage: false });
    expect(await (await empty(amd, 'hvm')).maxGpfn()).toBe(0);
  });

  it('has holes where real guests have them', async () => {
    const host = newHost();
    const guest = await host.createGuest({ kind: 'hvm', memory: 8 << 20, workload: { kind: 'idle' } });
    const domain = await host.openDomain(guest.domid);
    const gfns = frames(
      0x9f,
      0xa0,
      0xbf,
      0xc0,
      0x7ff,
      0x800,
      0xfefef,
      0xfeff0,
      0xfefff,
      0xff000,
      1e12,
      -1,
      0.5,
    );
    const types = new Uint8Array(gfns.length);
    await domain.pageTypes(gfns, types);
    const [ram, hole] = [PageType.NOTAB, PageType.XTAB];
    expect([...types]).toEqual([ram, hole, hole, ram, ram, hole, hole, ram, ram, hole, hole, hole, hole]);
    expect((await domain.info()).totPages).toBe(2048 - 32 + 16);
  });

  it('puts RAM above 4 GiB beyond the hole', async () => {
    const host = newHost({ memory: 8 * 2 ** 30 });
    const workload = { kind: 'sweep', filled: 0.001 } as const;
    const guest = await host.createGuest({ kind: 'pvh', memory: 4 * 2 ** 30, workload });
    const domain = await host.openDomain(guest.domid);
    const types = new Uint8Array(4);
    await domain.pageTypes(frames(0xeffff, 0xf0000, 0x100000, 0x10ffff), types);
    expect([...types]).toEqual([0, PageType.XTAB, 0, 0]);
    expect(await domain.maxGpfn()).toBe(0x10ffff);
  });

  it('maps a batch of 1024 neighbours as one run of 4 MiB', async () => {
    const host = newHost();
    const domain = await empty(host, 'pvh');
    for (let batch = 0; batch < 3; batch++) {
      const gfns = Float64Array.from({ length: 1024 }, (_, i) => batch * 1024 + i);
      await domain.populate(gfns);
      const mapping = await domain.mapFrames(gfns, 'write');
      for (let i = 1; i < 1024; i++) {
        expect(mapping.offsetOf[i]).toBe(mapping.offsetOf[0]! + i * 4096);
        expect(mapping.regionOf[i]).toBe(mapping.regionOf[0]);
      }
      mapping.release();
    }
  });

  it('has frame numbers that are no pfns, and differ from host to host', async () => {
    const firsts = new Set<number>();
    for (const seed of [1, 2, 3]) {
      const host = newHost({ seed });
      const domain = await empty(host, 'pvh');
      await domain.populate(frames(0, 1));
      const mfn = host.inspect(domain.domid).state.mfnOf(0);
      expect(mfn).toBeGreaterThan(0x100_0000);
      expect((await host.mapMachineToPhys()).pfnOf(mfn)).toBe(0);
      firsts.add(mfn);
    }
    expect(firsts.size).toBe(3);
  });

  it('has broken pages', async () => {
    const host = newHost();
    for (const type of ['hvm', 'pv']) {
      const domain = await empty(host, type);
      const gfns = frames(4, 5, 6);
      await domain.populate(gfns);
      host.inspect(domain.domid).state.breakPage(5);
      const types = new Uint8Array(3);
      await domain.pageTypes(gfns, types);
      expect([...types]).toEqual([PageType.NOTAB, PageType.BROKEN, PageType.NOTAB]);
      if (type === 'hvm') {
        const mapping = await domain.mapFrames(gfns, 'read');
        expect([...mapping.errors]).toEqual([0, Errno.EINVAL, 0]);
        expect(() => pageView(mapping, 1)).toThrow();
        mapping.release();
      }
    }
  });

  it('takes superpages where they are wanted, and no pfns beyond its end', async () => {
    const domain = await empty(newHost(), 'hvm');
    const types = new Uint8Array(4);
    expect(await domain.populate(frames(513), 9)).toBe(1);
    await domain.pageTypes(frames(512, 513, 1024, 1025), types);
    expect([...types]).toEqual([PageType.XTAB, PageType.NOTAB, PageType.NOTAB, PageType.XTAB]);
    for (const pfn of [2 ** 40, -1, Number.NaN, 1.5])
      expect(await domain.populate(frames(3, pfn, 4))).toBe(1);
  });

  it('is short of memory when the host is', async () => {
    const host = newHost({ memory: 8 << 20 });
    const domain = await empty(host, 'hvm', 1 << 20);
    const list = Float64Array.from({ length: 3000 }, (_, i) => i);
    expect(await domain.populate(list)).toBe(2048);
    expect(await domain.populate(frames(4000))).toBe(0);
    await expect(host.createGuest({ memory: 8 << 20 })).rejects.toMatchObject({ errno: Errno.ENOMEM });
    expect((await host.listDomains()).length).toBe(1);
    await host.toolstack.destroy(domain.domid);
    expect(host.memory.freePages).toBe(2048);
  });

  it('takes no memory for what a configuration claims', async () => {
    const host = newHost();
    const domain = await empty(host, 'hvm', 2 ** 40);
    expect((await domain.info()).maxPages).toBe(2 ** 38 + 256);
    expect(host.memory.freePages).toBe(65536);
  });

  it('does not take types or clear what is not there', async () => {
    const domain = await empty(newHost(), 'hvm');
    await refused(domain.pageTypes(frames(1, 2), new Uint8Array(1)), Errno.EFAULT);
    await refused(domain.clearPage(1), Errno.EINVAL);
  });
});

describe('mappings', () => {
  it('are counted, and keep the memory of a destroyed domain', async () => {
    const host = newHost();
    const domain = await empty(host, 'hvm');
    await domain.populate(frames(0, 1, 2));
    const mapping = await domain.mapFrames(frames(0, 1), 'write');
    const other = await domain.mapFrames(frames(1), 'read');
    expect(host.mappings).toBe(2);
    pageView(mapping, 0)[0] = 77;
    await host.toolstack.destroy(domain.domid);
    expect((await host.listDomains())[0]).toMatchObject({ dying: true });
    expect(await domain.info()).toMatchObject({ dying: true });
    await refused(domain.maxGpfn(), Errno.ESRCH);
    await refused(host.toolstack.domainConfig(domain.domid), Errno.ESRCH);
    expect(host.memory.freePages).toBe(65536 - 3);
    expect(pageView(mapping, 0)[0]).toBe(77);
    mapping.release();
    expect(host.memory.freePages).toBe(65536 - 3);
    other.release();
    other.release();
    expect(host.memory.freePages).toBe(65536);
    expect(await host.listDomains()).toEqual([]);
    await refused(domain.info(), Errno.ESRCH);
  });

  it('cannot be used through their own arrays after the release', async () => {
    const domain = await empty(newHost(), 'hvm');
    await domain.populate(frames(0));
    const mapping = await domain.mapFrames(frames(0), 'read');
    mapping.release();
    expect(() => pageView(mapping, 0)).toThrow();
  });

  it('that are guarded lose what is written after the release', async () => {
    const host = newHost({ guardMappings: true });
    const domain = await empty(host, 'hvm');
    await domain.populate(frames(0, 1));
    const mapping = await domain.mapFrames(frames(0, 9, 1), 'write');
    const view = pageView(mapping, 2);
    view.fill(5);
    mapping.release();
    view.fill(6);
    const { state } = host.inspect(domain.domid);
    expect(state.page(1).every((b) => b === 5)).toBe(true);
    const reading = await domain.mapFrames(frames(1), 'read');
    pageView(reading, 0).fill(7);
    reading.release();
    expect(state.page(1).every((b) => b === 5)).toBe(true);
  });
});

describe('memory that is not scrubbed', () => {
  it.each(['hvm', 'pv'] as const)('holds junk until it is written: %s', async (kind) => {
    const host = newHost({ unscrubbedMemory: true });
    const domain = await empty(host, kind);
    const small = frames(0, 1);
    const large = frames(512);
    expect([await domain.populate(small), await domain.populate(large, 9)]).toEqual([2, 1]);
    const gfns = frames(small[0]!, small[1]!, large[0]!, large[0]! + 511);
    const mapping = await domain.mapFrames(gfns, 'write');
    for (let i = 0; i < 4; i++) expect(isZero(pageView(mapping, i))).toBe(false);
    mapping.release();
    await domain.clearPage(large[0]!);
    const again = await domain.mapFrames(gfns, 'read');
    expect([0, 1, 2, 3].map((i) => isZero(pageView(again, i)))).toEqual([false, false, true, false]);
    again.release();
  });
});

describe('log-dirty', () => {
  async function bits(
    domain: Domain,
    op: 'clean' | 'peek',
    pages = 0x1000,
    final = false,
  ): Promise<number[]> {
    const bitmap = new Uint32Array(Math.ceil(pages / 32)).fill(0xffff_ffff);
    const { dirtyCount } = await domain.logDirty(op, bitmap, pages, final);
    const set: number[] = [];
    bitmap.forEach((word, w) => {
      for (let k = 0; k < 32; k++) if (((word >>> k) & 1) === 1) set.push(w * 32 + k);
    });
    expect(dirtyCount).toBe(set.length);
    return set;
  }

  it('is refused with a device passed through, and twice', async () => {
    const host = newHost();
    const domain = await empty(host, 'hvm');
    const { logDirty } = host.inspect(domain.domid).state;
    logDirty.passthrough = true;
    await refused(domain.enableLogDirty(), Errno.EINVAL);
    logDirty.passthrough = false;
    await domain.enableLogDirty();
    await refused(domain.enableLogDirty(), Errno.EINVAL);
    await domain.disableLogDirty();
    const bitmap = Uint32Array.of(5);
    expect(await domain.logDirty('clean', bitmap, 32)).toMatchObject({ pages: 32, dirtyCount: 0 });
    expect(bitmap).toEqual(Uint32Array.of(0));
    await domain.disableLogDirty();
  });

  it('does not know what the toolstack writes', async () => {
    const host = newHost();
    const domain = await empty(host, 'hvm');
    await domain.populate(frames(1, 2, 3, 40, 41));
    await domain.enableLogDirty();
    expect(await bits(domain, 'clean')).toEqual([]);
    const mapping = await domain.mapFrames(frames(2, 7, 40), 'write');
    pageView(mapping, 0).fill(1);
    mapping.release();
    await domain.clearPage(3);
    expect(await bits(domain, 'peek', 0x1000, true)).toEqual([]);
  });

  it('looks with PEEK and takes with CLEAN', async () => {
    const host = newHost();
    const domain = await empty(host, 'hvm');
    const { logDirty } = host.inspect(domain.domid).state;
    logDirty.mark(1);
    await domain.enableLogDirty();
    logDirty.mark(2);
    logDirty.mark(40);
    expect(await bits(domain, 'peek')).toEqual([2, 40]);
    expect(await bits(domain, 'clean')).toEqual([2, 40]);
    expect(await bits(domain, 'clean')).toEqual([]);
  });

  it('takes only the pages asked for', async () => {
    const host = newHost();
    const domain = await empty(host, 'hvm');
    await domain.enableLogDirty();
    for (const pfn of [1, 30, 31, 33, 64]) host.inspect(domain.domid).state.logDirty.mark(pfn);
    expect(await bits(domain, 'clean', 31)).toEqual([1, 30]);
    expect(await bits(domain, 'peek', 65)).toEqual([31, 33, 64]);
    expect(await bits(domain, 'clean', 33)).toEqual([31]);
    expect(await bits(domain, 'clean', 0x20_0100)).toEqual([33, 64]);
    await refused(domain.logDirty('clean', new Uint32Array(1), 33), Errno.EFAULT);
  });

  it('marks what Xen itself keeps mapped only when asked for the final pass', async () => {
    const host = newHost();
    const domain = await empty(host, 'hvm');
    await domain.populate(frames(5, 6));
    host.inspect(domain.domid).state.logDirty.writable.add(6);
    await domain.enableLogDirty();
    expect(await bits(domain, 'clean')).toEqual([]);
    expect(await bits(domain, 'clean', 0x1000, true)).toEqual([6]);
  });

  it('begins empty', async () => {
    const host = newHost();
    const guest = await host.createGuest({ memory: 8 << 20, workload: { kind: 'sweep', rate: Infinity } });
    await until(() => guest.stats().steps > 10);
    await host.toolstack.suspend(guest.domid, { live: true });
    const domain = await host.openDomain(guest.domid);
    await domain.enableLogDirty();
    expect(await bits(domain, 'peek')).toEqual([]);
  });
});

describe('state', () => {
  it('takes HVM parameters by Xen’s rules', async () => {
    const domain = await empty(newHost(), 'hvm');
    for (const index of [-1, 39, 1.5]) await refused(domain.hvmParam(index), Errno.EINVAL);
    await refused(domain.setHvmParam(HvmParam.PAE_ENABLED, 1n), Errno.EINVAL);
    await refused(domain.hvmParam(HvmParam.PAE_ENABLED), Errno.EINVAL);
    // Numbers without a name are kept; TRIPLE_FAULT_REASON is SHUTDOWN_reboot.
    await domain.setHvmParam(3, 5n);
    expect(await domain.hvmParam(3)).toBe(5n);
    expect(await domain.hvmParam(31)).toBe(1n);
    await refused(domain.setHvmParam(31, 6n), Errno.EINVAL);
    await refused(domain.setHvmParam(HvmParam.VM86_TSS_SIZED, 1n), Errno.EINVAL);
    await refused(domain.setHvmParam(HvmParam.NR_IOREQ_SERVER_PAGES, 65n), Errno.EINVAL);
    await domain.setHvmParam(HvmParam.NR_IOREQ_SERVER_PAGES, 8n);
    await domain.setHvmParam(HvmParam.NR_IOREQ_SERVER_PAGES, 8n);
    await refused(domain.setHvmParam(HvmParam.NR_IOREQ_SERVER_PAGES, 4n), Errno.EEXIST);
    await refused(domain.setHvmParam(HvmParam.X87_FIP_WIDTH, 5n), Errno.EINVAL);
    await refused(domain.setHvmParam(HvmParam.VIRIDIAN, 2n), Errno.EINVAL);
    await refused(domain.setHvmParam(HvmParam.ACPI_IOPORTS_LOCATION, 2n), Errno.EINVAL);
    await domain.setHvmParam(HvmParam.VM_GENERATION_ID_ADDR, 0xffff_ffff_ffff_ffffn);
    expect(await domain.hvmParam(HvmParam.VM_GENERATION_ID_ADDR)).toBe(0xffff_ffff_ffff_ffffn);
    expect(await domain.hvmParam(HvmParam.MCA_CAP)).toBe(0n);
    const pvh = await empty(newHost(), 'pvh');
    await refused(pvh.setHvmParam(HvmParam.ACPI_IOPORTS_LOCATION, 1n), Errno.ENODEV);
  });

  it('checks the framing of an HVM context', async () => {
    const host = newHost();
    const guest = await host.createGuest({ memory: 8 << 20, vcpus: 2, workload: { kind: 'idle' } });
    const context = await (await host.openDomain(guest.domid)).hvmContext();
    const domain = await empty(host, 'pvh');
    // Without vcpus that are up: a header and the end.
    expect((await domain.hvmContext()).length).toBe(8 + 24 + 8);
    await domain.setHvmContext(context);
    expect(await domain.hvmContext()).toEqual(context);
    const damages: [errno: number, (bytes: Uint8Array) => Uint8Array | undefined][] = [
      [Errno.ENODATA, (b) => b.subarray(0, 4)],
      [Errno.ENODATA, (b) => b.subarray(0, b.length - 8)],
      [Errno.EINVAL, (b) => b.subarray(0, b.length - 9)],
      [Errno.ENODATA, (b) => b.subarray(8)],
      [Errno.EINVAL, (b) => void setU32(b, 8, 0)],
      [Errno.ENODATA, (b) => void setU32(b, 4, 0xffff_ffff)],
      [Errno.EINVAL, (b) => void setU16(b, 32, 99)],
      [Errno.EINVAL, (b) => void setU16(b, 34, 2)],
    ];
    for (const [errno, damage] of damages) {
      const copy = context.slice();
      await refused(domain.setHvmContext(damage(copy) ?? copy), errno);
    }
    expect(await domain.hvmContext()).toEqual(context);
  });

  it('counts how often the TSC was set', async () => {
    const domain = await empty(newHost(), 'hvm');
    await domain.setTscInfo({ mode: 1, khz: 5, nsec: 7n, incarnation: 1 });
    expect(await domain.tscInfo()).toEqual({ mode: 1, khz: 5, nsec: 7n, incarnation: 2 });
    await domain.setTscInfo({ mode: 2, khz: 5, nsec: 7n, incarnation: 2 });
    expect(await domain.tscInfo()).toEqual({ mode: 2, khz: 0, nsec: 0n, incarnation: 3 });
    await refused(domain.setTscInfo({ mode: 3, khz: 0, nsec: 0n, incarnation: 0 }), Errno.EINVAL);
  });

  it('refuses a policy with features that the machine lacks, naming the leaf', async () => {
    const host = newHost({ missingFeatures: [{ leaf: 7, subleaf: 0, register: 'ebx', mask: 0x20 }] });
    const source = newHost();
    const guest = await source.createGuest({ memory: 4 << 20, workload: { kind: 'idle' } });
    const policy = await (await source.openDomain(guest.domid)).cpuPolicy();
    const domain = await empty(host, 'pvh');
    await expect(domain.setCpuPolicy(policy)).rejects.toThrow('leaf 0x00000007, subleaf 0x00000000');
    expect((await domain.cpuPolicy()).cpuid.length).toBe(0);
    await domain.setCpuPolicy({ cpuid: new Uint8Array(0), msrs: policy.msrs });
    await refused(domain.setCpuPolicy({ cpuid: new Uint8Array(23), msrs: policy.msrs }), Errno.EINVAL);
    const msrs = policy.msrs.slice();
    setU32(msrs, 0, 0x1a0);
    await refused(domain.setCpuPolicy({ cpuid: new Uint8Array(0), msrs }), Errno.ERANGE);
    await source.toolstack.pause(guest.domid);
    await refused((await source.openDomain(guest.domid)).setCpuPolicy(policy), Errno.EEXIST);
  });

  it('makes up a policy that the stream did not bring', async () => {
    const host = newHost();
    const domain = await empty(host, 'pvh');
    const cpuid = new Uint8Array(24).fill(0, 0, 4);
    await domain.setCpuPolicy({ cpuid, msrs: new Uint8Array(0) });
    await host.toolstack.staticDataDone(domain.domid, { cpuid: false, msr: true });
    expect((await domain.cpuPolicy()).cpuid).toEqual(cpuid);
    expect((await domain.cpuPolicy()).msrs.length).toBe(32);
    expect(host.inspect(domain.domid).missing).toEqual({ cpuid: false, msr: true });
  });

  it('seeds the grant table, but not for nobody and not for itself', async () => {
    const host = newHost();
    const domain = await empty(host, 'hvm');
    const { grants } = host.inspect(domain.domid).state;
    await domain.seedGrantTable({
      consoleGfn: INVALID_FRAME,
      consoleDomid: 0,
      storeGfn: 3,
      storeDomid: domain.domid,
    });
    expect(grants).toEqual([undefined, undefined]);
    await domain.seedGrantTable({ consoleGfn: 8, consoleDomid: 0, storeGfn: 9, storeDomid: 4 });
    expect(grants).toEqual([
      { frame: 8, domid: 0 },
      { frame: 9, domid: 4 },
    ]);
  });

  it('keeps PV calls from HVM domains and the other way round', async () => {
    const host = newHost();
    const hvm = await empty(host, 'hvm');
    await refused(hvm.vcpuState(0, 'basic'), Errno.EINVAL);
    await refused(hvm.setVcpuState(0, 'basic', new Uint8Array(1)), Errno.EINVAL);
    await refused(hvm.pinTables(new Uint8Array(0), new Float64Array(0)), Errno.EINVAL);
    await refused(hvm.setGuestWidth(4), Errno.EOPNOTSUPP);
    await refused(hvm.guestWidth(), Errno.EOPNOTSUPP);
    const pv = await empty(host, 'pv');
    await refused(pv.hvmContext(), Errno.EINVAL);
    await refused(pv.setHvmContext(new Uint8Array(0)), Errno.EINVAL);
    await refused(pv.hvmParam(1), Errno.EINVAL);
    await refused(pv.setHvmParam(1, 0n), Errno.EINVAL);
  });

  it('is out of reach of an access that was closed', async () => {
    const domain = await empty(newHost(), 'hvm');
    await domain.close();
    await expect(domain.info()).rejects.toBeInstanceOf(UsageError);
  });

  it('has no PV part where the hypervisor has none', async () => {
    const host = newHost({ pv: false });
    await refused(host.mapMachineToPhys(), Errno.EOPNOTSUPP);
    await refused(host.toolstack.createDomain(config('pv')), Errno.EOPNOTSUPP);
  });
});
