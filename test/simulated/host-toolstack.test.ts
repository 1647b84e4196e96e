import { afterEach, describe, expect, it } from 'vitest';
import { Errno } from '../../lib/abi/errno.js';
import { UsageError } from '../../lib/errors.js';
import { ShutdownReason } from '../../lib/host/host.js';
import { makeConfig, parseConfig } from '../../lib/host/simulated/config.js';
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

const small = { memory: 4 << 20, workload: { kind: 'uniform', rate: Infinity } } as const;

describe('suspending', () => {
  it('waits for a guest that takes its time', async () => {
    const host = newHost();
    const guest = await host.createGuest(small);
    guest.onSuspend = { delayMs: 20 };
    const { steps } = guest.stats();
    await host.toolstack.suspend(guest.domid, { live: true });
    expect(guest.stats().steps).toBeGreaterThan(steps);
    expect(host.inspect(guest.domid)).toMatchObject({ suspendedLive: true });
    expect(guest.state.suspended).toBe(true);
  });

  it('gives up on a guest that never answers, and leaves it running', async () => {
    const host = newHost();
    const guest = await host.createGuest(small);
    guest.onSuspend = 'ignore';
    await expect(host.toolstack.suspend(guest.domid, { live: true, timeoutMs: 20 })).rejects.toMatchObject({
      code: 'ERR_XEN_TIMEOUT',
      domid: guest.domid,
      ms: 20,
    });
    expect(guest.state.shutdownReason).toBeUndefined();
    const { steps, running } = guest.stats();
    expect(running).toBe(true);
    await until(() => guest.stats().steps > steps);
    guest.onSuspend = 'prompt';
    await host.toolstack.suspend(guest.domid, { live: true });
    expect(guest.state.suspended).toBe(true);
  });

  it('waits in vain for a paused guest', async () => {
    const host = newHost();
    const guest = await host.createGuest(small);
    await host.toolstack.pause(guest.domid);
    await expect(host.toolstack.suspend(guest.domid, { live: true, timeoutMs: 20 })).rejects.toMatchObject({
      code: 'ERR_XEN_TIMEOUT',
    });
    await host.toolstack.unpause(guest.domid);
    await host.toolstack.suspend(guest.domid, { live: true });
  });

  it('is withdrawn when it is cancelled, at whatever moment', async () => {
    const host = newHost();
    const guest = await host.createGuest(small);
    for (const behaviour of ['ignore', 'prompt', { delayMs: 10 }] as const) {
      guest.onSuspend = behaviour;
      const controller = new AbortController();
      const request = host.toolstack.suspend(guest.domid, { live: true, signal: controller.signal });
      setImmediate(() => controller.abort(new Error('changed my mind')));
      const outcome = await request.then(
        () => 'suspended',
        (error: unknown) => (error as { code: string }).code,
      );
      expect(['ERR_XEN_CANCELLED', 'suspended']).toContain(outcome);
      expect(guest.state.suspended).toBe(outcome === 'suspended');
      await host.toolstack.resume(guest.domid);
      const { steps } = guest.stats();
      await until(() => guest.stats().steps > steps);
    }
    expect((await guest.check()).errors).toBe(0);
  });

  it('fails for a guest that crashes instead', async () => {
    const host = newHost();
    const guest = await host.createGuest(small);
    guest.onSuspend = 'crash';
    await expect(host.toolstack.suspend(guest.domid, { live: true })).rejects.toMatchObject({
      code: 'ERR_XEN_GUEST_CRASHED',
    });
    expect(guest.state.shutdownReason).toBe(ShutdownReason.CRASH);
    await expect(host.toolstack.suspend(guest.domid, { live: true })).rejects.toMatchObject({
      code: 'ERR_XEN_GUEST_CRASHED',
    });
    await expect(host.toolstack.resume(guest.domid)).rejects.toMatchObject({ code: 'ERR_XEN_GUEST_CRASHED' });
    await host.toolstack.destroy(guest.domid);
    expect(host.memory.freePages).toBe(65536);
  });

  it('returns 1 to a guest whose suspend was cancelled', async () => {
    const host = newHost();
    const guest = await host.createGuest(small);
    const rax = (): number => guest.state.context![8 + 24 + 8 + 512]!;
    await host.toolstack.suspend(guest.domid, { live: false });
    expect(rax()).toBe(0);
    await host.toolstack.resume(guest.domid);
    expect(rax()).toBe(1);
    await host.toolstack.suspend(guest.domid, { live: false });
    expect(rax()).toBe(0);
  });

  it('and resuming leave a paused guest where it is', async () => {
    const host = newHost();
    const guest = await host.createGuest(small);
    await host.toolstack.suspend(guest.domid, { live: false });
    await host.toolstack.pause(guest.domid);
    await host.toolstack.resume(guest.domid);
    expect(guest.stats().running).toBe(false);
    const { steps } = guest.stats();
    await host.toolstack.unpause(guest.domid);
    await until(() => guest.stats().steps > steps);
    await expect(host.toolstack.unpause(guest.domid)).rejects.toMatchObject({ errno: Errno.EINVAL });
  });
});

describe('the device model', () => {
  it('has state only once it stands still', async () => {
    const host = newHost();
    const guest = await host.createGuest({ ...small, kind: 'hvm' });
    await until(() => guest.deviceModel!.writes > 2);
    await expect(host.toolstack.deviceModelState(guest.domid)).rejects.toBeInstanceOf(UsageError);
    await host.toolstack.suspend(guest.domid, { live: true });
    const { writes } = guest.deviceModel!;
    const state = await host.toolstack.deviceModelState(guest.domid);
    expect(new TextDecoder().decode(state!.xenstore).split('\0')[0]).toMatch(/^physmap\//);
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(guest.deviceModel!.writes).toBe(writes);
    await host.toolstack.resume(guest.domid);
    await until(() => guest.deviceModel!.writes > writes);
  });

  it('keeps the state of another one as it came', async () => {
    const host = newHost();
    const domid = await host.toolstack.createDomain(
      makeConfig({ type: 'hvm', name: 'q', vcpus: 1, memkb: 4096, cmdline: '', seed: 1 }),
    );
    const state = {
      emulator: 2,
      xenstore: Uint8Array.of(97, 0, 98, 0),
      context: new TextEncoder().encode('QEVM…'),
    };
    await host.toolstack.loadDeviceModelState(domid, state);
    await host.toolstack.unpause(domid);
    await host.toolstack.suspend(domid, { live: false });
    expect(await host.toolstack.deviceModelState(domid)).toEqual(state);
  });

  it('is not there for other guests', async () => {
    const host = newHost();
    const guest = await host.createGuest(small);
    const state = { emulator: 2, xenstore: new Uint8Array(0), context: new Uint8Array(4) };
    await expect(host.toolstack.loadDeviceModelState(guest.domid, state)).rejects.toBeInstanceOf(UsageError);
    await host.toolstack.setDeviceModelLogDirty(guest.domid, true);
    expect(await host.toolstack.deviceModelState(guest.domid)).toBeUndefined();
  });
});

describe('guests without a program', () => {
  it('hold their state, are suspended at once and cannot be checked', async () => {
    const host = newHost();
    const domid = await host.toolstack.createDomain(
      makeConfig({ type: 'pvh', name: 'foreign', vcpus: 1, memkb: 4096, cmdline: '', seed: 1 }),
    );
    await host.toolstack.unpause(domid);
    await host.toolstack.suspend(domid, { live: true });
    expect(host.guest(domid).state.suspended).toBe(true);
    await host.toolstack.resume(domid);
    expect(host.guest(domid).stats()).toEqual({ steps: 0, errors: 0, running: false });
    await expect(host.guest(domid).check()).rejects.toMatchObject({ code: 'ERR_XEN_GUEST_NO_PROGRAM' });
  });
});

describe('configurations', () => {
  it('are read tolerantly', () => {
    const read = (value: unknown) => parseConfig(JSON.stringify(value));
    expect(read({ c_info: { type: 'pvh', name: 'a' }, b_info: { max_memkb: 131072, max_vcpus: 3 } })).toEqual(
      {
        type: 'pvh',
        name: 'a',
        maxVcpus: 3,
        maxPages: 32768 + 256,
      },
    );
    expect(read({ c_info: { type: 1 }, b_info: { target_memkb: 4096 } })).toMatchObject({
      type: 'hvm',
      maxVcpus: 1,
    });
    expect(read({ c_info: {}, b_info: { 'type.pv': {}, max_memkb: 4096, extra: [1] } })).toMatchObject({
      type: 'pv',
    });
    expect(read({ c_info: { type: 'PV' }, b_info: { max_memkb: 4096, max_vcpus: -1 } }).maxVcpus).toBe(1);
  });

  it('are refused where they cannot be right', () => {
    const bad: unknown[] = [
      null,
      [],
      'x',
      {},
      { c_info: 1, b_info: {} },
      { c_info: { type: 'arm' }, b_info: { max_memkb: 1 } },
      { c_info: { type: 'pv' }, b_info: {} },
      { c_info: { type: 'pv' }, b_info: { max_memkb: 2 ** 60 } },
    ];
    for (const value of bad) expect(() => parseConfig(JSON.stringify(value))).toThrow(UsageError);
    expect(() => parseConfig('')).toThrow(UsageError);
  });

  it('come back as they were given', async () => {
    const host = newHost();
    const config = makeConfig({ type: 'pvh', name: 'n', vcpus: 4, memkb: 4096, cmdline: 'x', seed: 3 });
    const domid = await host.toolstack.createDomain(config);
    expect(await host.toolstack.domainConfig(domid)).toBe(config);
    expect(parseConfig(config)).toEqual({ type: 'pvh', name: 'n', maxVcpus: 4, maxPages: 1280 });
    expect(host.inspect(domid).name).toBe('n');
  });
});

describe('faults', () => {
  it('hit the call that they are for, and no other', async () => {
    const host = newHost({ recordCalls: true });
    const guest = await host.createGuest(small);
    const domain = await host.openDomain(guest.domid);
    const second = host.faults.add({ call: 'maxGpfn', nth: 2, errno: Errno.EIO });
    await domain.maxGpfn();
    await expect(domain.maxGpfn()).rejects.toMatchObject({
      errno: Errno.EIO,
      syscall: 'maxGpfn',
      domid: guest.domid,
    });
    await domain.maxGpfn();
    expect(second.hits).toBe(1);
    const boom = new Error('boom');
    const any = host.faults.add({ error: boom, times: 2 });
    await expect(domain.tscInfo()).rejects.toBe(boom);
    await expect(host.toolstack.domainConfig(guest.domid)).rejects.toBe(boom);
    await domain.tscInfo();
    expect(any.hits).toBe(2);
    const removed = host.faults.add({ error: boom, times: Infinity });
    removed.remove();
    host.faults.add({ call: 'logDirty', detail: 'clean-final', errno: Errno.ENOMEM, times: Infinity });
    host.faults.add({ domid: 99, errno: Errno.ENOMEM, times: Infinity });
    await domain.enableLogDirty();
    await domain.logDirty('clean', new Uint32Array(1), 32);
    await expect(domain.logDirty('clean', new Uint32Array(1), 32, true)).rejects.toMatchObject({
      errno: Errno.ENOMEM,
    });
    host.faults.clear();
    await domain.logDirty('clean', new Uint32Array(1), 32, true);
    expect(host.faults.count('logDirty')).toBe(3);
    expect(host.faults.count('toolstack.suspend')).toBe(0);
    expect(host.faults.log.length).toBe(host.faults.total);
    expect(host.faults.log.at(-1)).toEqual({
      seq: host.faults.total,
      call: 'logDirty',
      domid: guest.domid,
      detail: 'clean-final',
    });
  });

  it('can wait, and do something else first', async () => {
    const host = newHost();
    const guest = await host.createGuest(small);
    const domain = await host.openDomain(guest.domid);
    host.faults.add({ call: 'pageTypes', delayMs: 5, action: () => guest.crash() });
    await domain.pageTypes(Float64Array.of(0), new Uint8Array(1));
    expect(await domain.info()).toMatchObject({ shutdown: true, shutdownReason: ShutdownReason.CRASH });
  });

  it('are none when nobody asked for them', async () => {
    const host = newHost();
    await host.xenVersion();
    expect(host.faults.log).toEqual([]);
    expect(host.faults.total).toBe(1);
  });
});

describe('hosts', () => {
  it('share nothing in one process', async () => {
    const one = newHost({ seed: 1 });
    const two = newHost({ seed: 2 });
    const a = await one.createGuest({ ...small, seed: 9 });
    const b = await two.createGuest({ ...small, seed: 9 });
    expect(a.domid).toBe(b.domid);
    await one.toolstack.destroy(a.domid);
    await until(() => b.stats().steps > 10);
    expect((await b.check()).errors).toBe(0);
    expect(one.memory.baseMfn).not.toBe(two.memory.baseMfn);
    await one.close();
    await expect(one.createGuest(small)).rejects.toBeInstanceOf(UsageError);
  });

  it('give each domain a number of its own', async () => {
    const host = newHost();
    const first = await host.createGuest(small);
    await host.toolstack.destroy(first.domid);
    const second = await host.createGuest(small);
    expect(second.domid).not.toBe(first.domid);
  });

  it('refuse guests that cannot be', async () => {
    const host = newHost();
    await expect(host.createGuest({ memory: 4097 })).rejects.toBeInstanceOf(UsageError);
    await expect(host.createGuest({ ...small, vcpus: 0 })).rejects.toBeInstanceOf(UsageError);
    expect(() => host.guest(4)).toThrow(UsageError);
    expect(host.memory.freePages).toBe(65536);
  });
});
