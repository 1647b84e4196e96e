/** XenDomain over an addon that records: what goes down, what comes back, and what becomes of errors. */
import { beforeEach, describe, expect, it } from 'vitest';
import { Errno } from '../../../../lib/abi/errno.js';
import { HypercallError, UsageError } from '../../../../lib/errors.js';
import { MAX_TYPES, type Domain } from '../../../../lib/host/host.js';
import { XenHost } from '../../../../lib/host/xen/host.js';
import { SimulatedHost } from '../../../../lib/testing.js';
import { FakeAddon, FakePageMap, nativeError, nativeInfo } from './fake-addon.js';

const DOMID = 5;
const toolstack = new SimulatedHost().toolstack;

let fake: FakeAddon;
let host: XenHost;
let domain: Domain;

async function open(hvm = true): Promise<void> {
  fake = new FakeAddon();
  fake.answers.domainInfo = (domid: number) => nativeInfo(domid, { hvm });
  host = new XenHost({ addon: fake.addon, toolstack });
  domain = await host.openDomain(DOMID);
  fake.calls.length = 0;
}

beforeEach(() => open());

const bytes = Uint8Array.of(1, 2, 3);
const gfns = Float64Array.of(7, -1, 9);

describe('each method is one native call', () => {
  const tsc = { mode: 2, khz: 1000, nsec: 12n, incarnation: 3 };
  const policy = { cpuid: bytes, msrs: new Uint8Array(16) };
  const dirty = { pages: 64, dirtyCount: 2, faultCount: 1 };
  const bitmap = new Uint32Array(2);
  const levels = Uint8Array.of(1, 2, 3);
  const seed = { consoleGfn: 11, consoleDomid: 0, storeGfn: 12, storeDomid: 1 };
  const types = new Uint8Array(3);

  const rows: [
    method: string,
    call: (d: Domain) => Promise<unknown>,
    native: [string, ...unknown[]],
    answer?: unknown,
  ][] = [
    ['maxGpfn', (d) => d.maxGpfn(), ['maximumGpfn'], 99],
    ['pageTypes', (d) => d.pageTypes(gfns, types), ['pageTypes', gfns, types]],
    ['populate', (d) => d.populate(gfns), ['populate', gfns, 0], 2],
    ['populate of superpages', (d) => d.populate(gfns, 9), ['populate', gfns, 9], 2],
    ['clearPage', (d) => d.clearPage(4), ['clearPage', 4]],
    ['enableLogDirty', (d) => d.enableLogDirty(), ['enableLogDirty']],
    ['disableLogDirty', (d) => d.disableLogDirty(), ['disableLogDirty']],
    ['CLEAN', (d) => d.logDirty('clean', bitmap, 64), ['logDirty', true, false, bitmap, 64], dirty],
    ['PEEK', (d) => d.logDirty('peek', bitmap, 64), ['logDirty', false, false, bitmap, 64], dirty],
    ['final', (d) => d.logDirty('clean', bitmap, 64, true), ['logDirty', true, true, bitmap, 64], dirty],
    ['tscInfo', (d) => d.tscInfo(), ['tscInfo'], tsc],
    ['setTscInfo', (d) => d.setTscInfo(tsc), ['setTscInfo', 2, 1000, 12n, 3]],
    ['cpuPolicy', (d) => d.cpuPolicy(), ['cpuPolicy'], policy],
    ['setCpuPolicy', (d) => d.setCpuPolicy(policy), ['setCpuPolicy', policy.cpuid, policy.msrs]],
    ['hvmContext', (d) => d.hvmContext(), ['hvmContext'], bytes],
    ['setHvmContext', (d) => d.setHvmContext(bytes), ['setHvmContext', bytes]],
    ['hvmParam', (d) => d.hvmParam(17), ['hvmParam', 17], 5n],
    ['setHvmParam', (d) => d.setHvmParam(17, 6n), ['setHvmParam', 17, 6n]],
    ['guestWidth', (d) => d.guestWidth(), ['guestWidth'], 4],
    ['setGuestWidth', (d) => d.setGuestWidth(4), ['setGuestWidth', 4]],
    ['vcpuOnline', (d) => d.vcpuOnline(3), ['vcpuOnline', 3], true],
    ['basic state', (d) => d.vcpuState(3, 'basic'), ['vcpuState', 3, 0], bytes],
    ['extended state', (d) => d.vcpuState(3, 'extended'), ['vcpuState', 3, 1], bytes],
    ['xsave state', (d) => d.vcpuState(3, 'xsave'), ['vcpuState', 3, 2], bytes],
    ['msrs', (d) => d.vcpuState(3, 'msrs'), ['vcpuState', 3, 3], bytes],
    ['setVcpuState', (d) => d.setVcpuState(1, 'msrs', bytes), ['setVcpuState', 1, 3, bytes]],
    ['pinTables', (d) => d.pinTables(levels, gfns), ['pinTables', levels, gfns]],
    // PVH or HVM is told, and the order of the arguments is libxenctrl's.
    ['seedGrantTable', (d) => d.seedGrantTable(seed), ['seedGrantTable', true, 11, 12, 0, 1]],
  ];

  it.each(rows)('%s', async (_, call, [name, ...args], answer) => {
    fake.answers[name] = answer === undefined ? undefined : () => answer;
    expect(await call(domain)).toEqual(answer);
    expect(fake.calls).toEqual([[name, DOMID, ...args]]);
  });

  it.each(rows)('%s: a refusal is a HypercallError', async (_, call, [name]) => {
    const cause = nativeError('XEN_DOMCTL_something', 'EBUSY', 16);
    fake.answers[name] = () => Promise.reject(cause);
    const error: unknown = await call(domain).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(HypercallError);
    expect(error).toMatchObject({
      syscall: 'XEN_DOMCTL_something',
      errno: Errno.EBUSY,
      domid: DOMID,
      cause,
    });
    expect((error as Error).message).toBe('XEN_DOMCTL_something: EBUSY, so says the system');
  });

  it('arrays go down as they are, not as copies', async () => {
    await domain.pageTypes(gfns, types);
    const [, passedGfns, passedTypes] = fake.call('pageTypes');
    expect(passedGfns).toBe(gfns);
    expect(passedTypes).toBe(types);
  });

  it('no extent at all may be a domain that is gone', async () => {
    fake.answers.populate = 0;
    expect(await domain.populate(gfns)).toBe(0);
    expect(fake.names).toEqual(['populate', 'domainInfo']);
    fake.answers.domainInfo = () => Promise.reject(nativeError('getdomaininfo', 'ESRCH', 3));
    await expect(domain.populate(gfns)).rejects.toMatchObject({ errno: Errno.ESRCH });
    // Nothing was asked for.
    expect(await domain.populate(new Float64Array(0))).toBe(0);
  });

  it('log-dirty that the domain cannot have is off', async () => {
    fake.answers.disableLogDirty = () => Promise.reject(nativeError('shadow_op', 'EINVAL', 22));
    await domain.disableLogDirty();
    fake.answers.disableLogDirty = () => Promise.reject(nativeError('shadow_op', 'EBUSY', 16));
    await expect(domain.disableLogDirty()).rejects.toMatchObject({ errno: Errno.EBUSY });
  });

  it('info tells what the port knows', async () => {
    expect(await domain.info()).toEqual({
      domid: DOMID,
      hvm: true,
      paused: false,
      dying: false,
      shutdown: false,
      shutdownReason: 0,
      maxVcpuId: 1,
      totPages: 100,
      maxPages: 200,
      sharedInfoFrame: 0x1234,
      use: { running: false, blocked: true, onlineVcpus: 1, cpuMs: 77e-6 },
    });
  });

  it('a PV guest gets its grant table as one', async () => {
    await open(false);
    await domain.seedGrantTable(seed);
    expect(fake.call('seedGrantTable')[1]).toBe(false);
  });
});

describe('errors', () => {
  it.each([
    ['EACCES', 13, 'XEN_DOMCTL_getvcpucontext', /another version/],
    ['EPERM', 1, 'XEN_DOMCTL_getvcpucontext', /as root/],
    ['EPERM', 1, 'xc_clear_domain_page', /so says the system$/],
    ['EACCES', 13, 'set_address_size', /so says the system$/],
    ['ESRCH', 3, 'XEN_DOMCTL_getvcpucontext', /so says the system$/],
  ])('%s of %s is explained', async (code, errno, syscall, words) => {
    fake.answers.maximumGpfn = () => Promise.reject(nativeError(syscall, code, errno));
    await expect(domain.maxGpfn()).rejects.toMatchObject({
      errno,
      message: expect.stringMatching(words) as string,
    });
  });

  it('bad arguments are UsageErrors', async () => {
    const cause = Object.assign(new RangeError('domid must be…'), { code: 'ERR_OUT_OF_RANGE' });
    fake.answers.maximumGpfn = () => Promise.reject(cause);
    const error: unknown = await domain.maxGpfn().catch((e: unknown) => e);
    expect(error).toBeInstanceOf(UsageError);
    expect(error).toMatchObject({ cause, domid: DOMID });
  });

  it('a width that is none is not passed on', async () => {
    fake.answers.guestWidth = 16;
    await expect(domain.guestWidth()).rejects.toThrow(/16/);
  });

  it('more than Xen takes is E2BIG, and nothing is asked', async () => {
    const many = new Float64Array(1025);
    const types = new Uint8Array(MAX_TYPES + 1);
    for (const call of [
      domain.mapFrames(many, 'read'),
      domain.pinTables(new Uint8Array(1025), many),
      domain.pageTypes(new Float64Array(MAX_TYPES + 1), types),
    ]) {
      await expect(call).rejects.toMatchObject({ errno: Errno.E2BIG, domid: DOMID });
    }
    expect(fake.calls).toEqual([]);
    await domain.pageTypes(new Float64Array(MAX_TYPES), types);
    await domain.mapFrames(many.subarray(1), 'read');
    expect(fake.names).toEqual(['pageTypes', 'mapFrames']);
  });
});

describe('mappings', () => {
  it('are one region, page after page, with the errors of each', async () => {
    fake.answers.mapFrames = (_: number, __: Float64Array, ___: boolean, errors: Int32Array) => {
      errors[1] = Errno.ENOENT;
      return new FakePageMap(3);
    };
    const mapping = await domain.mapFrames(gfns, 'read');
    expect(fake.call('mapFrames').slice(0, 3)).toEqual([DOMID, gfns, false]);
    expect(mapping.count).toBe(3);
    expect([...mapping.errors]).toEqual([0, Errno.ENOENT, 0]);
    expect(mapping.regions.map((r) => r.length)).toEqual([3 * 4096]);
    expect(mapping.words[0]!.buffer).toBe(mapping.regions[0]!.buffer);
    expect([...mapping.regionOf.subarray(0, 3)]).toEqual([0, 0, 0]);
    expect([...mapping.offsetOf.subarray(0, 3)]).toEqual([0, 4096, 8192]);
    // Also the last page of the largest one.
    expect([mapping.regionOf[1023], mapping.offsetOf[1023]]).toEqual([0, 1023 * 4096]);
  });

  it('are plain if all frames could be mapped', async () => {
    expect((await domain.mapFrames(gfns, 'read')).plain).toBe(true);
    for (const bad of [0, 2]) {
      fake.answers.mapFrames = (_: number, __: Float64Array, ___: boolean, errors: Int32Array) => {
        errors[bad] = Errno.EINVAL;
        return new FakePageMap(3);
      };
      expect((await domain.mapFrames(gfns, 'read')).plain).toBe(false);
    }
  });

  it('for writing are asked as such', async () => {
    await domain.mapFrames(gfns, 'write');
    expect(fake.call('mapFrames')[2]).toBe(true);
  });

  it('are gone after release, which may come twice', async () => {
    const mapping = await domain.mapFrames(gfns, 'read');
    const view = mapping.regions[0]!.subarray(4096, 8192);
    mapping.release();
    mapping.release();
    expect(view.length).toBe(0);
    expect(mapping.regions).toEqual([]);
    expect(mapping.words).toEqual([]);
    expect(fake.maps[0]!.releases).toBe(1);
  });

  it('of nothing need no call', async () => {
    const none = await domain.mapFrames(new Float64Array(0), 'read');
    expect(none.count).toBe(0);
    none.release();
    expect(fake.calls).toEqual([]);
  });

  it('that cannot be taken back are tried again, and trouble nobody', async () => {
    const first = await domain.mapFrames(gfns, 'read');
    const second = await domain.mapFrames(gfns, 'read');
    fake.maps[0]!.failures = 1;
    first.release();
    expect(fake.maps[0]!.live).toBe(true);
    second.release();
    expect(fake.maps.map((m) => m.live)).toEqual([false, false]);

    const third = await domain.mapFrames(gfns, 'read');
    fake.maps[2]!.failures = 1;
    third.release();
    await domain.close();
    expect(fake.maps[2]!.live).toBe(false);
  });

  it('whose buffer cannot be had are released', async () => {
    const map = new FakePageMap(3);
    map.buffer = () => {
      throw new Error('no external buffers here');
    };
    fake.answers.mapFrames = () => map;
    await expect(domain.mapFrames(gfns, 'read')).rejects.toThrow(/no external buffers/);
    expect(map.live).toBe(false);
  });

  it('outlive their domain and host', async () => {
    const mapping = await domain.mapFrames(gfns, 'read');
    await host.close();
    expect(mapping.regions[0]!.length).toBe(3 * 4096);
    mapping.release();
    expect(fake.maps[0]!.live).toBe(false);
  });
});

describe('close', () => {
  it('refuses later calls and can be repeated', async () => {
    await Promise.all([domain.close(), domain.close()]);
    await domain.close();
    for (const call of [() => domain.info(), () => domain.pageTypes(gfns, bytes), () => domain.maxGpfn()]) {
      await expect(call()).rejects.toBeInstanceOf(UsageError);
    }
    expect(fake.calls).toEqual([]);
    // Another access to the same domain is another matter.
    expect((await (await host.openDomain(DOMID)).info()).domid).toBe(DOMID);
  });

  it('waits for the calls under way, however they end', async () => {
    const first = fake.defer('maximumGpfn');
    const second = fake.defer('clearPage');
    const calls = [domain.maxGpfn(), domain.clearPage(1)] as const;
    let closed = false;
    const closing = domain.close().then(() => (closed = true));
    first.resolve(8);
    expect(await calls[0]).toBe(8);
    expect(closed).toBe(false);
    second.reject(nativeError('MMUEXT_CLEAR_PAGE', 'EINVAL', 22));
    await expect(calls[1]).rejects.toMatchObject({ errno: 22 });
    await closing;
  });
});
