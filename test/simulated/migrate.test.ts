/** Whole migrations between two simulated hosts, over a real Unix socket: the guest itself says whether it survived. */
import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import type { GuestKind } from '../../lib/host/simulated/guest.js';
import { startMigrate, startReceive } from '../../lib/migrate/migrate.js';

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
    new SimulatedHost({ seed: 2 }),
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
