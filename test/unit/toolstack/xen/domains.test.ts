/** Names, configurations, building and destroying of domains. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { UsageError, XenMigrationError, XenstoreError } from '../../../../lib/errors.js';
import { openXenstore } from '../../../../lib/toolstack/xenstore/index.js';
import { EINVAL, errorOf, ESRCH, keepConfig, makeWorld, UUID, type World } from './world.js';

type Json = Record<string, unknown>;

let world: World;

beforeEach(async () => {
  world = await makeWorld();
});

afterEach(async () => {
  await world[Symbol.asyncDispose]();
});

/** A configuration as libxl keeps it. */
function config(create: Json = {}, build: Json = {}, rest: Json = {}): Json {
  return {
    c_info: { type: 'pvh', name: 'guest', uuid: UUID, run_hotplug_scripts: 'True', ...create },
    b_info: {
      max_vcpus: 2,
      avail_vcpus: [0],
      max_memkb: 131072,
      target_memkb: 65536,
      video_memkb: 0,
      sched_params: { sched: 'credit2', weight: 256, cap: 0 },
      kernel: '/boot/kernel',
      cmdline: 'console=hvc0',
      'type.pvh': {},
      arch_arm: {},
      arch_x86: { msr_relaxed: 'False' },
      ...build,
    },
    ...rest,
    on_reboot: 'preserve',
  };
}

const create = (...of: Parameters<typeof config>): Promise<number> =>
  world.toolstack.createDomain(JSON.stringify(config(...of)));

/** Nodes below a path, without it. */
function nodes(below: string): Record<string, string> {
  const found: Record<string, string> = {};
  for (const [path, value] of world.store.store) {
    if (path.startsWith(`${below}/`)) found[path.slice(below.length + 1)] = value;
  }
  return found;
}

describe('names', () => {
  beforeEach(() => {
    for (const domid of [0, 3, 10]) world.xen.add(domid);
    world.store.write('/local/domain/10/name', 'ten');
    world.store.write('/local/domain/0/name', 'Domain-0');
    world.store.write('/local/domain/3/name', '');
    world.store.write('/local/domain/nonsense/name', 'nonsense');
  });

  it('are listed by domid', async () => {
    expect([...(await world.toolstack.listNames())]).toEqual([
      [0, 'Domain-0'],
      [10, 'ten'],
    ]);
  });

  it('and numbers mean domains', async () => {
    expect(await world.toolstack.resolveDomain('ten')).toBe(10);
    expect(await world.toolstack.resolveDomain('3')).toBe(3);
    expect(await world.toolstack.resolveDomain('0')).toBe(0);
  });

  it('a number is a domid first, and else a name', async () => {
    world.store.write('/local/domain/10/name', '3');
    expect(await world.toolstack.resolveDomain('3')).toBe(3);
    world.store.write('/local/domain/10/name', '77');
    expect(await world.toolstack.resolveDomain('77')).toBe(10);
  });

  it.each(['eleven', 'nonsense', '', '4', '32752', '99999999999', 'Ten'])('%j is no domain', async (name) => {
    await expect(world.toolstack.resolveDomain(name)).rejects.toBeInstanceOf(UsageError);
  });

  it('of domains that are no more do not count', async () => {
    world.store.write('/local/domain/12/name', 'ten');
    expect(await world.toolstack.resolveDomain('ten')).toBe(10);
    world.xen.add(12);
    const error = await errorOf(world.toolstack.resolveDomain('ten'));
    expect(String(error)).toContain('domains 10, 12 are all named "ten"');
  });
});

describe('the configuration of a running domain', () => {
  beforeEach(() => {
    world.xen.add(5, { maxVcpuId: 2 });
    world.store.write('/local/domain/5/name', 'renamed');
    world.store.write('/local/domain/5/memory/target', '60000');
    world.store.write('/local/domain/5/memory/static-max', '120000');
    world.store.write('/local/domain/5/cpu/0/availability', 'online');
    world.store.write('/local/domain/5/cpu/1/availability', 'offline');
    world.store.write('/local/domain/5/cpu/2/availability', 'online');
  });

  it('is libxl’s, with what has changed', async () => {
    await keepConfig(world, 5, config({ domid: 4294967295, uuid: 'other' }, { max_vcpus: 3 }));
    const text = await world.toolstack.domainConfig(5);
    expect(text.endsWith('}\n')).toBe(true);
    const live = JSON.parse(text) as Json;
    expect(live['c_info']).toEqual({ type: 'pvh', name: 'renamed', uuid: UUID, run_hotplug_scripts: 'True' });
    expect(live['b_info']).toMatchObject({
      max_vcpus: 3,
      avail_vcpus: [0, 2],
      max_memkb: 120000,
      target_memkb: 60000,
    });
    expect(live['on_reboot']).toBe('preserve');
  });

  it('has what cannot be asked as it was', async () => {
    world.store.write('/local/domain/5', undefined);
    await keepConfig(world, 5, config());
    const live = JSON.parse(await world.toolstack.domainConfig(5)) as Json;
    expect(live).toEqual(config());
  });

  it('keeps 64-bit numbers to the digit', async () => {
    const text = JSON.stringify(config()).replace(
      '"video_memkb":0',
      '"shadow_memkb":18446744073709551615,"text":"18446744073709551615"',
    );
    await keepConfig(world, 5, text);
    const live = await world.toolstack.domainConfig(5);
    expect(live).toContain('"shadow_memkb": 18446744073709551615');
    expect(live).toContain('"text": "18446744073709551615"');
  });

  it('of an HVM guest has the vcpus that QEMU has, and its memory as libxl counts it', async () => {
    world.xen.add(5, { hvm: true, maxVcpuId: 2 });
    await world.qemu(5, (command) => ({
      return:
        command === 'query-cpus-fast' ? [{ 'cpu-index': 1 }, { 'cpu-index': 0 }, { 'cpu-index': 9 }] : {},
    }));
    await keepConfig(world, 5, config({ type: 'hvm' }, { max_vcpus: 3, video_memkb: 4096 }));
    const live = JSON.parse(await world.toolstack.domainConfig(5)) as Json;
    expect(live['b_info']).toMatchObject({ avail_vcpus: [0, 1], target_memkb: 60000 + 4096 + 1024 });
  });

  it('is missing for a domain that libxl did not make', async () => {
    const error = await errorOf(world.toolstack.domainConfig(5));
    expect(error).toBeInstanceOf(UsageError);
    expect(String(error)).toContain('libxl has no configuration of domain 5');
  });

  it.each(['{', '[]', '"text"', ''])('that libxl cannot have written is refused: %j', async (text) => {
    await keepConfig(world, 5, text);
    await expect(world.toolstack.domainConfig(5)).rejects.toBeInstanceOf(UsageError);
  });

  it('of no domain is an error', async () => {
    await expect(world.toolstack.domainConfig(6)).rejects.toMatchObject({ errno: 3 });
  });
});

describe('an empty domain', () => {
  it('is built as libxl builds it: PVH', async () => {
    world.store.write('/tool/xenstored/domid', '7');
    const domid = await create();
    expect(domid).toBe(1);
    expect(world.xen.created).toEqual([
      {
        hvm: true,
        hap: true,
        handle: new Uint8Array(Buffer.from(UUID.replaceAll('-', ''), 'hex')),
        maxVcpus: 2,
        maxEvtchnPort: 1023,
        maxGrantFrames: 64,
        maxMaptrackFrames: 1024,
        emulationFlags: 1,
      },
    ]);
    expect(world.xen.log).toEqual([
      'createDomain',
      'setMaxVcpus 1 2',
      'setMaxMemory 1 66560',
      'setHvmParam 1 10 1',
      // 2 MiB for vcpus, 128 pages for the p2m of 128 MiB.
      'setPagingAllocation 1 3',
      'setTscInfo 1 0',
      'allocUnbound 1 7',
      'allocUnbound 1 0',
    ]);
    expect(await world.toolstack.backendWiring(1)).toEqual({
      storeDomid: 7,
      storeEvtchn: 1,
      consoleDomid: 0,
      consoleEvtchn: 2,
    });
    expect(nodes('/local/domain/1')).toMatchObject({
      name: 'guest',
      vm: `/vm/${UUID}`,
      'control/shutdown': '',
      'control/platform-feature-xs_reset_watches': '1',
      'device/suspend/event-channel': '',
    });
    expect(nodes('/libxl/1')).toEqual({ device: '', type: 'pvh', 'dm-version': 'qemu_xen' });
    expect(nodes(`/vm/${UUID}`)).toEqual({ uuid: UUID, name: 'guest' });
    await using store = {
      client: await openXenstore({ path: world.store.path }),
      [Symbol.asyncDispose]: async () => store.client.close(),
    };
    const permissions = async (path: string): Promise<unknown> => store.client.getPermissions(path);
    const none = { domid: 0, access: 'none' };
    expect(await permissions('/local/domain/1')).toEqual([none, { domid: 1, access: 'read' }]);
    expect(await permissions('/local/domain/1/control/shutdown')).toEqual([{ domid: 1, access: 'none' }]);
    expect(await permissions('/libxl/1')).toEqual([none]);
    const kept = await readFile(join(world.dir, `userdata-d.1.${UUID}.libxl-json`), 'utf8');
    expect(kept.endsWith('}\n\0')).toBe(true);
    expect(JSON.parse(kept.slice(0, -1))).toEqual(config());
    expect(await world.files()).toHaveLength(1);
  });

  it('is built as libxl builds it: PV', async () => {
    await create(
      { type: 'pv' },
      { 'type.pvh': undefined, 'type.pv': {}, tsc_mode: 'native', ramdisk: '/boot/initrd' },
    );
    expect(world.xen.created).toMatchObject([{ hvm: false, hap: false, emulationFlags: 0 }]);
    expect(world.xen.log).toEqual([
      'createDomain',
      'setMaxVcpus 1 2',
      'setMaxMemory 1 66560',
      'setTscInfo 1 2',
      'allocUnbound 1 0',
      'allocUnbound 1 0',
    ]);
    await world.toolstack.finishRestore(1, { storeGfn: 10, consoleGfn: 11 });
    expect(nodes(`/vm/${UUID}`)).toEqual({
      uuid: UUID,
      name: 'guest',
      start_time: expect.stringMatching(/^\d+\.\d\d$/) as string,
      image: '',
      'image/ostype': 'linux',
    });
  });

  it('is completed with its rings, and introduced', async () => {
    await create();
    await world.toolstack.finishRestore(1, { storeGfn: 0xfeffc, consoleGfn: 0xfefff });
    expect(world.store.introduced.get(1)).toMatchObject({ gfn: 0xfeffc, port: 1 });
    expect(nodes('/local/domain/1')).toMatchObject({
      'memory/static-max': '131072',
      'memory/target': '65536',
      'memory/videoram': '0',
      domid: '1',
      'store/port': '1',
      'store/ring-ref': String(0xfeffc),
      'cpu/0/availability': 'online',
      'cpu/1/availability': 'offline',
      'console/backend': '/local/domain/0/backend/console/1/0',
      'console/type': 'xenconsoled',
      'console/port': '2',
      'console/ring-ref': String(0xfefff),
      'console/limit': '1048576',
      'console/tty': '',
    });
    expect(nodes('/local/domain/0/backend/console/1/0')).toEqual({
      frontend: '/local/domain/1/console',
      'frontend-id': '1',
      online: '1',
      state: '1',
      protocol: 'vt100',
    });
    expect(nodes('/libxl/1/device/console/0')).toMatchObject({
      backend: '/local/domain/0/backend/console/1/0',
    });
    await world.toolstack.unpause(1);
    expect(world.xen.domains.get(1)?.paused).toBe(false);
  });

  it('takes what a configuration may say otherwise', async () => {
    await create(
      { hap: 'False', name: undefined, uuid: undefined },
      {
        event_channels: 2047,
        max_grant_frames: 32,
        max_maptrack_frames: 0,
        shadow_memkb: 8192,
        timer_mode: 'no_missed_ticks_pending',
        tsc_mode: 'always_emulate',
        target_memkb: undefined,
        avail_vcpus: undefined,
        nested_hvm: 'False',
        cpumap: [],
      },
      { disks: [], nics: [] },
    );
    expect(world.xen.created).toMatchObject([
      { hap: false, maxEvtchnPort: 2047, maxGrantFrames: 32, maxMaptrackFrames: 0 },
    ]);
    expect(world.xen.log).toEqual(
      expect.arrayContaining([
        'setMaxMemory 1 132096',
        'setPagingAllocation 1 8',
        'setHvmParam 1 10 2',
        'setTscInfo 1 1',
      ]),
    );
    expect(nodes('/local/domain/1')['name']).toBe('');
    const [file] = await world.files();
    const kept = JSON.parse((await readFile(join(world.dir, file ?? ''), 'utf8')).slice(0, -1)) as {
      c_info: Json;
    };
    expect(file).toContain(String(kept.c_info['uuid']));
  });

  it.each<[string, Parameters<typeof config>]>([
    ['disks', [{}, {}, { disks: [{ vdev: 'xvda' }] }]],
    ['nics', [{}, {}, { nics: [{ devid: 0 }] }]],
    ['pcidevs', [{}, {}, { pcidevs: [{}] }]],
    ['vfbs', [{}, {}, { vfbs: [{}] }]],
    ['channels', [{}, {}, { channels: [{}] }]],
    ['b_info.nested_hvm', [{}, { nested_hvm: 'True' }]],
    ['b_info.altp2m', [{}, { altp2m: 'mixed' }]],
    ['b_info.vcpu_hard_affinity', [{}, { vcpu_hard_affinity: [[0]] }]],
    ['b_info.ioports', [{}, { ioports: [{ first: 1, number: 1 }] }]],
    ['b_info.vnuma_nodes', [{}, { vnuma_nodes: [{}] }]],
    ['b_info.sched_params', [{}, { sched_params: { weight: 512 } }]],
    ['b_info.sched_params', [{}, { sched_params: { cap: 50 } }]],
    ['b_info.type.pv.e820_host', [{ type: 'pv' }, { 'type.pv': { e820_host: 'True' } }]],
    ['b_info.arch_x86.msr_relaxed', [{}, { arch_x86: { msr_relaxed: 'True' } }]],
    ['c_info.pool_name', [{ pool_name: 'other' }]],
    ['c_info.passthrough', [{ passthrough: 'share_pt' }]],
    ['HVM guest', [{ type: 'hvm' }]],
  ])('that needs more is refused, and told the way: %s', async (field, of) => {
    const error = await errorOf(create(...of));
    expect(error).toBeInstanceOf(UsageError);
    expect(String(error)).toContain(field);
    expect(String(error)).toContain('LIBXL_SAVE_HELPER=xen-migrate-save-helper xl restore FILE');
    expect(world.xen.log).toEqual([]);
  });

  it.each<[string, string]>([
    ['not JSON', '{'],
    ['not a JSON object', '[]'],
    ['no c_info and b_info', '{}'],
    ['no guest type', '{"c_info":{},"b_info":{"max_memkb":1}}'],
    ['c_info.type', '{"c_info":{"type":"vm"},"b_info":{"max_memkb":1}}'],
    ['no b_info.max_memkb', '{"c_info":{"type":"pv"},"b_info":{}}'],
    ['b_info.max_memkb', '{"c_info":{"type":"pv"},"b_info":{"max_memkb":-4}}'],
    ['b_info.max_memkb', '{"c_info":{"type":"pv"},"b_info":{"max_memkb":1e99}}'],
    ['b_info.target_memkb', '{"c_info":{"type":"pv"},"b_info":{"max_memkb":4,"target_memkb":8}}'],
    ['b_info.max_vcpus', '{"c_info":{"type":"pv"},"b_info":{"max_memkb":4,"max_vcpus":1000000}}'],
    ['b_info.avail_vcpus', '{"c_info":{"type":"pv"},"b_info":{"max_memkb":4,"avail_vcpus":[7]}}'],
    ['c_info.uuid', '{"c_info":{"type":"pv","uuid":"../.."},"b_info":{"max_memkb":4}}'],
    ['c_info.name', '{"c_info":{"type":"pv","name":"a/b"},"b_info":{"max_memkb":4}}'],
    ['c_info.name', '{"c_info":{"type":"pv","name":"12"},"b_info":{"max_memkb":4}}'],
    ['b_info.tsc_mode', '{"c_info":{"type":"pv"},"b_info":{"max_memkb":4,"tsc_mode":"constructor"}}'],
    ['b_info.event_channels', '{"c_info":{"type":"pv"},"b_info":{"max_memkb":4,"event_channels":"x"}}'],
  ])('cannot be built of a configuration with %s wrong', async (text, json) => {
    const error = await errorOf(world.toolstack.createDomain(json));
    expect(error).toBeInstanceOf(UsageError);
    expect(String(error)).toContain(text);
    expect(world.xen.log).toEqual([]);
  });

  it('cannot have the name of another domain', async () => {
    world.xen.add(5);
    world.store.write('/local/domain/5/name', 'guest');
    await expect(create()).rejects.toThrow('domain 5 has the name "guest" already');
    expect(world.xen.created).toEqual([]);
    // A name without a domain is free.
    world.xen.domains.delete(5);
    expect(await create()).toBe(1);
  });

  it('is taken down again if the name is taken in between', async () => {
    world.xen.add(5);
    const release = world.store.hold('XS_TRANSACTION_START');
    const creating = create();
    const error = errorOf(creating);
    while (!world.store.requests.some((r) => r.startsWith('XS_TRANSACTION_START'))) {
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    world.store.write('/local/domain/5/name', 'guest');
    release();
    expect(String(await error)).toContain('already');
    expect([...world.xen.domains.keys()]).toEqual([5]);
    expect(await world.files()).toEqual([]);
  });

  it.each([
    'setMaxVcpus',
    'setMaxMemory',
    'setHvmParam',
    'setPagingAllocation',
    'setTscInfo',
    'allocUnbound',
  ])('is taken down again if %s fails', async (name) => {
    world.xen.fails.set(name, EINVAL);
    const error = await errorOf(create());
    expect(error).toMatchObject({ code: 'ERR_XEN_HYPERCALL', syscall: name, errno: EINVAL, domid: 1 });
    expect(world.xen.domains.size).toBe(0);
    expect(nodes('/local')).toEqual({});
    expect(await world.files()).toEqual([]);
  });

  it('that cannot be created is an error', async () => {
    world.xen.fails.set('createDomain', 12);
    await expect(create()).rejects.toMatchObject({ syscall: 'createDomain', errno: 12 });
  });

  it('is taken down again if xenstore fails, or the file cannot be written', async () => {
    world.store.write('/local/domain/1', 'x');
    const folder = await makeWorld({ folders: { lib: '/nonexistent' } });
    try {
      const error = await errorOf(folder.toolstack.createDomain(JSON.stringify(config())));
      expect(error).toMatchObject({ code: 'ERR_XEN_TRANSPORT' });
      expect(folder.xen.domains.size).toBe(0);
      expect(folder.store.store.has('/libxl/1')).toBe(false);
    } finally {
      await folder[Symbol.asyncDispose]();
    }
    await world.store.close();
    await expect(create()).rejects.toBeInstanceOf(XenstoreError);
  });

  it('is not built when cancelled, and taken down when cancelled in between', async () => {
    const text = JSON.stringify(config());
    await expect(world.toolstack.createDomain(text, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ERR_XEN_CANCELLED',
    });
    expect(world.xen.log).toEqual([]);
    const stopper = new AbortController();
    const { calls } = world.xen;
    const other = await makeWorld({
      calls: {
        ...calls,
        setTscInfo: async () => stopper.abort(),
      },
    });
    try {
      const creating = other.toolstack.createDomain(text, { signal: stopper.signal });
      await expect(creating).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
      expect(world.xen.domains.size).toBe(0);
    } finally {
      await other[Symbol.asyncDispose]();
    }
  });

  it('of HVM kind is built for tests only', async () => {
    const other = await makeWorld({ hvmWithoutDeviceModel: true });
    try {
      await other.toolstack.createDomain(JSON.stringify(config({ type: 'hvm' })));
      expect(other.xen.created).toMatchObject([{ hvm: true, emulationFlags: 0x3ff }]);
      expect(await other.toolstack.deviceModelState(1).catch((e: unknown) => e)).toBeUndefined();
    } finally {
      await other[Symbol.asyncDispose]();
    }
  });

  it('has no wiring if it was built elsewhere', async () => {
    world.xen.add(5);
    await expect(world.toolstack.backendWiring(5)).rejects.toBeInstanceOf(UsageError);
    await expect(world.toolstack.finishRestore(5, { storeGfn: 1, consoleGfn: 2 })).rejects.toBeInstanceOf(
      UsageError,
    );
  });

  it('takes no stream without a CPUID policy, but when told to', async () => {
    const missing = { cpuid: true, msr: true };
    await world.toolstack.staticDataDone(1, { cpuid: false, msr: true });
    await expect(world.toolstack.staticDataDone(1, missing)).rejects.toThrow('acceptDefaultCpuPolicy');
    const other = await makeWorld({ acceptDefaultCpuPolicy: true });
    await other.toolstack.staticDataDone(1, missing);
    await other[Symbol.asyncDispose]();
  });

  it('takes no state of a device model', async () => {
    const state = { emulator: 2, xenstore: new Uint8Array(), context: new Uint8Array(1) };
    await expect(world.toolstack.loadDeviceModelState(1, state)).rejects.toThrow('xl restore FILE');
  });
});

describe('destroying a domain', () => {
  /** As libxl leaves it. */
  async function libxlDomain(hvm: boolean): Promise<void> {
    world.xen.add(5, { hvm });
    const { store } = world;
    store.write('/local/domain/5/vm', `/vm/${UUID}`);
    store.write('/local/domain/5/name', 'guest');
    store.write(`/vm/${UUID}/name`, 'guest');
    store.write('/libxl/5/type', hvm ? 'hvm' : 'pv');
    store.write('/libxl/5/device/console/0/backend', '/local/domain/0/backend/console/5/0');
    store.write('/local/domain/0/backend/console/5/0/state', '1');
    store.write('/local/domain/0/backend/console/6/0/state', '1');
    store.write('/local/domain/0/name', 'Domain-0');
    await keepConfig(world, 5, '{}');
    await writeFile(join(world.dir, `userdata-l.5.${UUID}.domain-userdata-lock`), '');
    await writeFile(join(world.dir, `userdata-d.55.${UUID}.libxl-json`), '');
    await writeFile(join(world.dir, 'qemu-save.5'), '');
  }
  const LEFT = [`userdata-d.55.${UUID}.libxl-json`, `userdata-l.5.${UUID}.domain-userdata-lock`];

  it('leaves nothing of it, and others alone', async () => {
    await libxlDomain(false);
    await world.toolstack.destroy(5);
    expect(world.xen.log).toEqual(['pause 5', 'destroy 5']);
    expect(world.store.store.get('/local/domain/0/backend/console/6/0/state')).toBe('1');
    for (const path of world.store.store.keys()) expect(path).not.toMatch(/\/5(\/|$)|\/vm\/./);
    expect(await world.files()).toEqual(LEFT);
    expect(world.xl).toEqual([]);
    expect(world.ended).toEqual([]);
  });

  it('ends its device model', async () => {
    await libxlDomain(true);
    world.store.write('/local/domain/0/device-model/5/state', 'running');
    world.store.write('/local/domain/5/image/device-model-pid', '4242');
    world.store.write('/libxl/5/device/vkbd/0/backend', '/local/domain/0/backend/vkbd/5/0');
    world.store.write('/local/domain/0/backend/vkbd/5/0/state', '2');
    await world.toolstack.destroy(5);
    expect(world.ended).toEqual(['4242 5']);
    expect(world.store.store.has('/local/domain/0/device-model/5')).toBe(false);
    expect(world.store.store.has('/local/domain/0/backend/vkbd')).toBe(false);
    expect(await world.files()).toEqual(LEFT);
  });

  it('removes no back end but its own, whatever the nodes say', async () => {
    await libxlDomain(false);
    for (const [device, path] of [
      ['1', '/local/domain/0/backend/console/6/0'],
      ['2', '/local/domain/0'],
      ['3', '/local/domain/0/backend/console/5/0/../../6/0'],
    ] as const) {
      world.store.write(`/libxl/5/device/console/${device}/backend`, path);
    }
    world.store.write('/local/domain/5/vm', '/local/domain/0');
    await world.toolstack.destroy(5);
    expect(world.store.store.get('/local/domain/0/backend/console/6/0/state')).toBe('1');
    expect(world.store.store.get('/local/domain/0/name')).toBe('Domain-0');
  });

  it('does nothing if there is none', async () => {
    await world.toolstack.destroy(5);
    expect(world.xen.log).toEqual([]);
  });

  it.each([
    ['/libxl/5/device/vbd/51712/backend', '/local/domain/0/backend/vbd/5/51712'],
    ['/libxl/5/device/vif/0/backend', '/local/domain/0/backend/vif/5/0'],
    ['/local/domain/5/image/device-model-domid', '9'],
    ['/local/domain/5/image/device-model-kill-uid', '65536'],
  ])('is left to xl where scripts or another user are in it: %s', async (path, value) => {
    await libxlDomain(true);
    world.store.write(path, value);
    await world.toolstack.destroy(5);
    expect(world.xl).toEqual([['destroy', '5']]);
    expect(world.xen.log).toEqual([]);
  });

  it('says so where there is no xl, and when xl fails', async () => {
    const none = await makeWorld({ runXl: async () => undefined });
    const failing = await makeWorld({ runXl: async () => ({ code: 1, stderr: 'libxl: error: no\n' }) });
    try {
      for (const other of [none, failing]) {
        other.xen.add(5);
        other.store.write('/libxl/5/device/vif/0/backend', 'x');
      }
      await expect(none.toolstack.destroy(5)).rejects.toThrow('there is no xl here');
      // Who asks before is told before.
      const refusal = await errorOf(none.toolstack.assertDestroyable(5));
      expect(refusal).toBeInstanceOf(UsageError);
      expect(String(refusal)).toMatch(
        /domain 5 has a device \(vif\), which only libxl .* there is no xl here/,
      );
      await failing.toolstack.assertDestroyable(5);
      const error = await errorOf(failing.toolstack.destroy(5));
      expect(error).toBeInstanceOf(XenMigrationError);
      expect(error).toMatchObject({ code: 'ERR_XEN_GUEST_NOT_DESTROYED' });
      expect(String(error)).toContain('libxl: error: no');
      expect(none.xen.domains.size + failing.xen.domains.size).toBe(2);
      none.xen.add(6);
      await none.toolstack.assertDestroyable(6);
    } finally {
      await none[Symbol.asyncDispose]();
      await failing[Symbol.asyncDispose]();
    }
  });

  it('goes on after a step that fails, and says so', async () => {
    await libxlDomain(false);
    world.xen.fails.set('pause', EINVAL);
    const error = await errorOf(world.toolstack.destroy(5));
    expect(error).toMatchObject({ syscall: 'pause' });
    expect(world.xen.domains.has(5)).toBe(false);
    expect(world.store.store.has('/libxl/5')).toBe(false);
  });

  // One that was dying already, or that somebody else destroys.
  it.each(['pause', 'destroy'])('is done if the domain has gone by the time of %s', async (call) => {
    await libxlDomain(false);
    world.xen.fails.set(call, ESRCH);
    await world.toolstack.destroy(5);
    expect(world.xen.log).toEqual(['pause 5', 'destroy 5']);
    for (const path of world.store.store.keys()) expect(path).not.toMatch(/\/5(\/|$)|\/vm\/./);
    expect(await world.files()).toEqual(LEFT);
  });

  it('is an error if the hypervisor refuses', async () => {
    await libxlDomain(false);
    world.xen.fails.set('destroy', EINVAL);
    await expect(world.toolstack.destroy(5)).rejects.toMatchObject({ syscall: 'destroy', errno: EINVAL });
  });
});
