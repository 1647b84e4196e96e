/** Whole migrations between two simulated hosts, over a real Unix socket: the guest itself says whether it survived. */
import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import type { GuestKind, SimulatedGuest } from '../../lib/host/simulated/guest.js';
import { startMigrate, startReceive } from '../../lib/migrate/migrate.js';
import type { MigrateJob, MigrateOptions, ReceiveJob } from '../../lib/migrate/types.js';

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** Two sockets joined by the kernel. */
async function socketPair(): Promise<[net.Socket, net.Socket]> {
  const dir = await mkdtemp(path.join(tmpdir(), 'xen-migration-test-'));
  cleanups.push(() => rm(dir, { recursive: true, force: true }));
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(path.join(dir, 'socket'), resolve));
  const accepted = new Promise<net.Socket>((resolve) => server.once('connection', resolve));
  const socket = net.connect(path.join(dir, 'socket'));
  const pair: [net.Socket, net.Socket] = [socket, await accepted];
  server.close();
  cleanups.push(async () => pair.forEach((end) => end.destroy()));
  return pair;
}

function hosts(): [SimulatedHost, SimulatedHost] {
  const pair: [SimulatedHost, SimulatedHost] = [
    new SimulatedHost({ seed: 1 }),
    new SimulatedHost({ seed: 2, unscrubbedMemory: true }),
  ];
  cleanups.push(() => Promise.all(pair.map((host) => host.close())));
  return pair;
}

const kinds: readonly GuestKind[] = ['pvh', 'hvm', 'pv', 'pv32'];

describe.each(kinds)('%s', (kind) => {
  test.each(['idle', 'uniform', 'hot-set', 'sweep'] as const)('live, %s', async (workload) => {
    const [source, destination] = hosts();
    const guest = await source.createGuest({ kind, memory: 16 << 20, workload: { kind: workload }, seed: 7 });
    await sleep(50);
    const [peer, from] = await socketPair();
    const sending = startMigrate(source, { domid: guest.domid, peer });
    const receiving = startReceive(destination, { from });
    const [sent, received] = await Promise.all([sending.result, receiving.result]);
    expect(sent.peerDomid).toBe(received.domid);
    expect(sent.bytes).toBe(received.bytes);
    expect(await source.listDomains()).toEqual([]);
    const arrived = destination.guest(received.domid);
    expect(arrived.kind).toBe(kind);
    if (workload !== 'idle') {
      const before = arrived.stats().steps;
      await expect.poll(() => arrived.stats().steps).toBeGreaterThan(before);
    }
    expect(await arrived.check()).toMatchObject({ errors: 0 });
    expect([source.mappings, destination.mappings]).toEqual([0, 0]);
  });

  test('not live', async () => {
    const [source, destination] = hosts();
    const guest = await source.createGuest({ kind, memory: 8 << 20, seed: 3 });
    const [peer, from] = await socketPair();
    const [, received] = await Promise.all([
      startMigrate(source, { domid: guest.domid, peer, live: false }).result,
      startReceive(destination, { from }).result,
    ]);
    expect(await destination.guest(received.domid).check()).toMatchObject({ errors: 0 });
  });

  test('a paused guest stays paused', async () => {
    const [source, destination] = hosts();
    const guest = await source.createGuest({ kind, memory: 8 << 20, seed: 3 });
    await source.toolstack.pause(guest.domid);
    const [peer, from] = await socketPair();
    const [, received] = await Promise.all([
      startMigrate(source, { domid: guest.domid, peer }).result,
      startReceive(destination, { from }).result,
    ]);
    expect(received.state).toBe('paused');
    expect((await destination.listDomains())[0]).toMatchObject({ paused: true, shutdown: false });
    const arrived = destination.guest(received.domid);
    expect(arrived.stats().running).toBe(false);
    await destination.toolstack.unpause(received.domid);
    expect(arrived.stats().running).toBe(true);
    expect(await arrived.check()).toMatchObject({ errors: 0 });
  });
});

describe('while it runs', () => {
  async function begin(options: Partial<MigrateOptions>): Promise<{
    guest: SimulatedGuest;
    source: SimulatedHost;
    destination: SimulatedHost;
    sending: MigrateJob;
    receiving: ReceiveJob;
  }> {
    const [source, destination] = hosts();
    const guest = await source.createGuest({ kind: 'pv', memory: 16 << 20, workload: { kind: 'uniform' } });
    const [peer, from] = await socketPair();
    const receiving = startReceive(destination, { from });
    receiving.result.catch(() => undefined);
    const sending = startMigrate(source, { domid: guest.domid, peer, ...options });
    return { guest, source, destination, sending, receiving };
  }

  test('switchover() ends a pre-copy that would never end, update() lifts the limit', async () => {
    const { sending, receiving, destination } = await begin({
      policy: () => 'continue',
      maxBytesPerSecond: 16 << 20,
    });
    await expect.poll(() => sending.status.iteration).toBeGreaterThan(0);
    expect(sending.status).toMatchObject({ state: 'active', phase: 'pre-copy' });
    expect(receiving.status).toMatchObject({ state: 'active', phase: 'memory', domid: 1 });
    sending.update({ maxBytesPerSecond: 0 });
    sending.switchover();
    const { iterations } = await sending.result;
    expect(iterations.filter(({ suspended }) => suspended)).toHaveLength(1);
    const { domid } = await receiving.result;
    expect(await destination.guest(domid).check()).toMatchObject({ errors: 0 });
  });

  test('beforeSwitchover holds the guest back until it resolves', async () => {
    const seen: boolean[] = [];
    const { sending, guest, receiving } = await begin({
      beforeSwitchover: async () => {
        await sleep(20);
        seen.push(guest.stats().running);
      },
    });
    await sending.result;
    await receiving.result;
    expect(seen).toEqual([true]);
  });

  test('a guest that does not suspend in time runs on, and nothing is left there', async () => {
    const { sending, receiving, guest, destination } = await begin({ suspendTimeoutMs: 50 });
    guest.onSuspend = 'ignore';
    await expect(sending.result).rejects.toMatchObject({
      name: 'TimeoutError',
      phase: 'suspend',
      guest: { host: 'source', state: 'running' },
    });
    await expect(receiving.result).rejects.toMatchObject({ code: 'ERR_XEN_PEER_LOST' });
    expect(await destination.listDomains()).toEqual([]);
    expect(guest.stats().running).toBe(true);
    expect(await guest.check()).toMatchObject({ errors: 0 });
  });

  test('a guest that crashes is not migrated', async () => {
    const { sending, receiving, guest, destination } = await begin({});
    guest.onSuspend = 'crash';
    await expect(sending.result).rejects.toMatchObject({ name: 'GuestError', guest: { host: 'source' } });
    await expect(receiving.result).rejects.toMatchObject({ code: 'ERR_XEN_PEER_LOST' });
    expect(await destination.listDomains()).toEqual([]);
  });

  test('a migration cancelled while its hook waits', async () => {
    const { sending, guest, receiving, destination } = await begin({
      beforeSwitchover: () => new Promise<void>(() => undefined),
    });
    await expect.poll(() => sending.status.phase).toBe('pre-switchover');
    sending.cancel('not now');
    await expect(sending.result).rejects.toMatchObject({
      name: 'CancelledError',
      guest: { host: 'source', state: 'running' },
    });
    await expect(receiving.result).rejects.toMatchObject({ code: 'ERR_XEN_PEER_LOST' });
    expect(await destination.listDomains()).toEqual([]);
    expect(await guest.check()).toMatchObject({ errors: 0 });
  });
});

test('a guest goes round many hosts and stays itself', async () => {
  const [first, second] = hosts();
  const guest = await first.createGuest({ kind: 'pv32', memory: 8 << 20, vcpus: 3, seed: 4 });
  let [source, destination, domid] = [first, second, guest.domid];
  let steps = 0;
  for (let i = 0; i < 6; i++) {
    const [peer, from] = await socketPair();
    const [, received] = await Promise.all([
      startMigrate(source, { domid, peer, maxIterations: 2 }).result,
      startReceive(destination, { from }).result,
    ]);
    [source, destination, domid] = [destination, source, received.domid];
    const checked = await source.guest(domid).check();
    expect(checked).toMatchObject({ errors: 0 });
    expect(checked.steps).toBeGreaterThanOrEqual(steps);
    ({ steps } = checked);
  }
  expect(steps).toBeGreaterThan(0);
});
