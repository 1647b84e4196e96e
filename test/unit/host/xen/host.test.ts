/** XenHost over an addon that records: opening, listing, the M2P, and closing in any order. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { Errno } from '../../../../lib/abi/errno.js';
import { AddonError, HypercallError, UsageError } from '../../../../lib/errors.js';
import { INVALID_FRAME } from '../../../../lib/host/host.js';
import { XenHost, type XenHostOptions } from '../../../../lib/host/xen/host.js';
import { SimulatedHost } from '../../../../lib/testing.js';
import { startFakeXenstored } from '../../toolstack/fake-xenstored.js';
import { FakeAddon, FakePageMap, nativeError, nativeInfo } from './fake-addon.js';

const toolstack = new SimulatedHost().toolstack;

function open(options: XenHostOptions = {}): { fake: FakeAddon; host: XenHost } {
  const fake = new FakeAddon();
  return { fake, host: new XenHost({ addon: fake.addon, toolstack, ...options }) };
}

describe('opening', () => {
  it('knows its hypervisor and keeps the toolstack it was given', async () => {
    const { host } = open();
    expect(host.kind).toBe('xen');
    expect(await host.xenVersion()).toEqual({ major: 4, minor: 17 });
    expect(host.hypervisor.extra).toBe('.4');
    expect(host.toolstack).toBe(toolstack);
    expect(host.calls).toEqual({ getpageframeinfo3: 3 });
  });

  it.each([
    ['EACCES', 13, 'ERR_XEN_PERMISSION', /run as root/],
    ['EPERM', 1, 'ERR_XEN_PERMISSION', /run as root/],
    [
      'ENOENT',
      2,
      'ERR_XEN_NO_PRIVCMD',
      /boot Xen and run this in its control domain, dom0.*`modprobe xen-privcmd`/,
    ],
  ])('%s is told as what it is, with the cure', (code, errno, expected, cure) => {
    const fake = new FakeAddon();
    fake.openFails = nativeError('xc_interface_open', code, errno);
    let error: unknown;
    try {
      new XenHost({ addon: fake.addon, toolstack });
    } catch (e) {
      error = e;
    }
    expect(error).toBeInstanceOf(AddonError);
    expect(error).toMatchObject({ code: expected, cause: fake.openFails });
    expect((error as Error).message).toMatch(cure);
  });

  it('needs an addon with Xen', () => {
    const { hypervisor, ...rest } = new FakeAddon().addon;
    expect(hypervisor).toBeDefined();
    expect(() => new XenHost({ addon: rest, toolstack })).toThrow(UsageError);
    const { Xen: _, ...withoutClass } = new FakeAddon().addon;
    expect(() => new XenHost({ addon: withoutClass, toolstack })).toThrow(
      expect.objectContaining({
        code: 'ERR_XEN_ADDON_NO_XEN',
        message: expect.stringMatching(/libxen-dev.*npm rebuild/) as string,
      }),
    );
  });

  it('passes on what the libraries say, and asks for nothing if nobody listens', () => {
    const heard: unknown[] = [];
    const { fake } = open({ log: (level, message) => heard.push([level, message]) });
    fake.log!(8, 'no good');
    expect(heard).toEqual([[8, 'no good']]);
    expect(fake.minLevel).toBe(1);
    expect(open().fake.minLevel).toBeGreaterThan(9);
  });
});

describe('listing', () => {
  it('tells all domains, the control domain too', async () => {
    const { fake, host } = open();
    fake.answers.listDomains = () => [nativeInfo(0, { hvm: false }), nativeInfo(4, { paused: true })];
    expect(await host.listDomains()).toMatchObject([
      { domid: 0, hvm: false },
      { domid: 4, hvm: true, paused: true },
    ]);
    expect(fake.calls).toEqual([['listDomains', 0, 1024]]);
  });

  it('goes on where the last call ended', async () => {
    const { fake, host } = open();
    const all = Array.from({ length: 2500 }, (_, i) => nativeInfo(2 * i));
    fake.answers.listDomains = (first: number, max: number) =>
      all.filter(({ domid }) => domid >= first).slice(0, max);
    expect((await host.listDomains()).map(({ domid }) => domid)).toEqual(all.map(({ domid }) => domid));
    expect(fake.calls.map(([, first]) => first)).toEqual([0, 2047, 4095]);
  });

  it('maps errors', async () => {
    const { fake, host } = open();
    fake.answers.listDomains = () => Promise.reject(nativeError('xc_domain_getinfolist', 'EACCES', 13));
    await expect(host.listDomains()).rejects.toMatchObject({
      errno: Errno.EACCES,
      message: expect.stringMatching(/another version/) as string,
    });
  });
});

describe('domains', () => {
  it('that are not there are ESRCH', async () => {
    const { fake, host } = open();
    fake.answers.domainInfo = () => Promise.reject(nativeError('XEN_DOMCTL_getdomaininfo', 'ESRCH', 3));
    const error: unknown = await host.openDomain(12).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(HypercallError);
    expect(error).toMatchObject({ errno: Errno.ESRCH, domid: 12 });
  });
});

describe('the M2P', () => {
  function table(entries: readonly bigint[]): FakePageMap {
    const map = new FakePageMap(1);
    new BigUint64Array(map.buffer()).set(entries);
    return map;
  }

  it('tells the pfn of each frame, and of none but those', async () => {
    const { fake, host } = open();
    const map = table([7n, 0xffff_ffff_ffff_ffffn, 0xffff_ffff_ffff_fffen, 0x12_3456_789an, 9n, 10n]);
    fake.answers.mapMachineToPhys = { maxMfn: 4, compatFirstMfn: 0x1000, map };
    const m2p = await host.mapMachineToPhys();
    expect([m2p.maxMfn, m2p.compatFirstMfn]).toEqual([4, 0x1000]);
    expect([0, 1, 2, 3, 4].map((mfn) => m2p.pfnOf(mfn))).toEqual([
      7,
      INVALID_FRAME,
      INVALID_FRAME,
      0x12_3456_789a,
      9,
    ]);
    for (const mfn of [5, 600, INVALID_FRAME, 0.25, NaN]) expect(m2p.pfnOf(mfn)).toBe(INVALID_FRAME);
    m2p.release();
    m2p.release();
    expect(map.live).toBe(false);
    expect(m2p.pfnOf(0)).toBe(INVALID_FRAME);
  });

  it('may not be there', async () => {
    const { fake, host } = open();
    fake.answers.mapMachineToPhys = () =>
      Promise.reject(nativeError('XENMEM_machphys_mfn_list', 'EOPNOTSUPP', 95));
    await expect(host.mapMachineToPhys()).rejects.toMatchObject({ errno: Errno.EOPNOTSUPP });
  });
});

describe('names', () => {
  it('are those of xenstore', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'xen-host-'));
    const store = await startFakeXenstored({ dir });
    vi.stubEnv('XENSTORED_PATH', store.path);
    try {
      store.write('/local/domain/7/name', 'web1');
      const fake = new FakeAddon();
      fake.answers.domainInfo = (domid: number) => {
        if (domid === 7) return nativeInfo(domid);
        throw nativeError('getdomaininfo', 'ESRCH', 3);
      };
      await using host = new XenHost({ addon: fake.addon });
      expect([...(await host.listNames())]).toEqual([[7, 'web1']]);
      expect(await host.resolveDomain('web1')).toBe(7);
      expect(await host.resolveDomain('7')).toBe(7);
      await expect(host.resolveDomain('web2')).rejects.toThrow('there is no domain "web2" on this host');
      await host.close();
      await expect(host.listNames()).rejects.toBeInstanceOf(UsageError);
    } finally {
      vi.unstubAllEnvs();
      await store.close();
      await rm(dir, { recursive: true });
    }
  });

  it('are the business of the toolstack that it was given', async () => {
    const { host } = open();
    await expect(host.listNames()).rejects.toThrow(/was given its toolstack/);
    await expect(host.resolveDomain('web1')).rejects.toBeInstanceOf(UsageError);
  });
});

describe('close', () => {
  it('closes the domains, then the interfaces, once', async () => {
    const { fake, host } = open();
    const [one, two] = [await host.openDomain(1), await host.openDomain(2)];
    await one.close();
    await Promise.all([host.close(), host.close()]);
    await host.close();
    expect(fake.closed).toBe(1);
    await expect(two.info()).rejects.toBeInstanceOf(UsageError);
    await expect(host.listDomains()).rejects.toBeInstanceOf(UsageError);
    await expect(host.openDomain(1)).rejects.toBeInstanceOf(UsageError);
    await expect(host.mapMachineToPhys()).rejects.toBeInstanceOf(UsageError);
    await two.close();
    expect(fake.names).toEqual(['domainInfo', 'domainInfo', 'close']);
  });

  it('waits for calls of its domains before the interfaces go', async () => {
    const { fake, host } = open();
    const domain = await host.openDomain(1);
    const call = fake.defer('clearPage');
    const clearing = domain.clearPage(3);
    const closing = host.close();
    await new Promise((resolve) => setImmediate(resolve));
    expect(fake.closed).toBe(0);
    call.resolve();
    await clearing;
    await closing;
    expect(fake.names.at(-1)).toBe('close');
  });

  it('waits for its own calls, and hands out no domain afterwards', async () => {
    const { fake, host } = open();
    const call = fake.defer('domainInfo');
    const opening = host.openDomain(3);
    const closing = host.close();
    call.resolve(nativeInfo(3));
    await expect(opening).rejects.toThrow(/closed meanwhile/);
    await closing;
    expect(fake.closed).toBe(1);
  });

  it('comes with `await using`', async () => {
    const fake = new FakeAddon();
    {
      await using host = new XenHost({ addon: fake.addon, toolstack });
      await host.xenVersion();
    }
    expect(fake.closed).toBe(1);
  });
});
