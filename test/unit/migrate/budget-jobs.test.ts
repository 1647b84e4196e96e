/**
 * What a daemon does with running migrations, on simulated hosts: many that share a budget, and limits that change
 * meanwhile. Effects are seen in bytes, passes and order; no clock is looked at.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { Duplex } from 'node:stream';
import { afterEach, describe, expect, test } from 'vitest';
import { SimulatedHost } from '../../../lib/host/simulated/host.js';
import type { SimulatedGuest } from '../../../lib/host/simulated/guest.js';
import { channels } from '../../../lib/job.js';
import { MigrationBudget } from '../../../lib/migrate/budget.js';
import { startMigrate, startReceive } from '../../../lib/migrate/migrate.js';
import type { MigrateJob, MigrateOptions, ReceiveJob } from '../../../lib/migrate/types.js';
import type { IterationStats, Progress } from '../../../lib/progress.js';
import { duplexPair } from './fakes.js';

const MIB = 1 << 20;
/** A batch of pages and what is before it, generously. */
const BATCH = 5 * MIB;

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

function twoHosts(): [SimulatedHost, SimulatedHost] {
  const pair: [SimulatedHost, SimulatedHost] = [
    new SimulatedHost({ seed: 1 }),
    new SimulatedHost({ seed: 2 }),
  ];
  cleanups.push(() => Promise.all(pair.map((host) => host.close())));
  return pair;
}

interface Moving {
  readonly source: SimulatedHost;
  readonly destination: SimulatedHost;
  readonly guest: SimulatedGuest;
  readonly sending: MigrateJob;
  readonly receiving: ReceiveJob;
}

async function begin(
  options: Partial<MigrateOptions>,
  kind: 'uniform' | 'idle' = 'uniform',
  memory = 16 * MIB,
): Promise<Moving> {
  const [source, destination] = twoHosts();
  const guest = await source.createGuest({
    kind: 'pvh',
    memory,
    seed: 3,
    // Fast enough that no pass finds nothing.
    workload: { kind, filled: 1, rate: 100_000 },
  });
  const [peer, from] = duplexPair({}, {}, MIB);
  const receiving = startReceive(destination, { from });
  receiving.result.catch(() => undefined);
  const sending = startMigrate(source, { domid: guest.domid, peer, ...options });
  return { source, destination, guest, sending, receiving };
}

/** Calls `listen` with every pass of domid's migration. */
function onPass(domid: number, listen: (pass: IterationStats) => void): void {
  const hear = (message: unknown): void => {
    const pass = message as IterationStats & { readonly domid: number };
    if (pass.domid === domid) listen(pass);
  };
  subscribe(channels.iteration.name, hear);
  cleanups.push(() => void unsubscribe(channels.iteration.name, hear));
}

async function arrived({ destination, receiving, sending }: Moving): Promise<void> {
  await sending.result;
  const { domid } = await receiving.result;
  expect(await destination.guest(domid).check()).toMatchObject({ errors: 0 });
}

describe('limits that change while a migration runs', () => {
  test('bandwidth: a byte a second lets one batch go, and lifting it lets all go', async () => {
    const moving = await begin({ maxBytesPerSecond: 1 }, 'idle');
    const { sending } = moving;
    await expect.poll(() => sending.status.transferred, { timeout: 50_000 }).toBeGreaterThan(4 * MIB);
    // At this rate the next byte is due in weeks.
    const { transferred, phase } = sending.status;
    expect(phase).toBe('pre-copy');
    expect(transferred).toBeLessThan(BATCH);
    for (let i = 0; i < 1000; i++) await new Promise((resolve) => setImmediate(resolve));
    expect(sending.status.transferred).toBe(transferred);
    sending.update({ maxBytesPerSecond: 0 });
    await arrived(moving);
    expect((await sending.result).bytes).toBeGreaterThan(16 * MIB);
  });

  test('bandwidth: a limit that comes later holds from the next batch on', async () => {
    const moving = await begin({ policy: () => 'continue' });
    const { sending } = moving;
    let before = 0;
    onPass(moving.guest.domid, ({ iteration }) => {
      if (iteration !== 0) return;
      sending.update({ maxBytesPerSecond: 1 });
      before = sending.status.transferred;
    });
    await expect.poll(() => before, { timeout: 50_000 }).toBeGreaterThan(16 * MIB);
    for (let i = 0; i < 1000; i++) await new Promise((resolve) => setImmediate(resolve));
    // A pass is on its way in which most of 16 MiB is dirty, and it stays on its way.
    expect(sending.status.phase).toBe('pre-copy');
    expect(sending.status.transferred - before).toBeLessThan(BATCH);
    sending.switchover();
    sending.update({ maxBytesPerSecond: 0 });
    await arrived(moving);
  });

  test('downtime target: a new one ends pre-copy with the pass that it comes before', async () => {
    const never = { maxIterations: 1000, minRemaining: 0 };
    const patient = await begin(never);
    await arrived(patient);
    // Without another target, pre-copy ends when it has stopped helping.
    expect((await patient.sending.result).iterations.length).toBeGreaterThanOrEqual(6);

    const moving = await begin(never);
    onPass(moving.guest.domid, ({ iteration }) => {
      if (iteration === 0) moving.sending.update({ maxDowntimeMs: 3_600_000 });
    });
    await arrived(moving);
    const { iterations } = await moving.sending.result;
    expect(iterations.map((pass) => pass.suspended)).toEqual([false, false, true]);
  });

  test('passes: fewer of them', async () => {
    const moving = await begin({ maxIterations: 1000, minRemaining: 0 });
    onPass(moving.guest.domid, ({ iteration }) => {
      if (iteration === 1) moving.sending.update({ maxIterations: 3 });
    });
    await arrived(moving);
    const { iterations } = await moving.sending.result;
    expect(iterations.filter((pass) => !pass.suspended)).toHaveLength(3);
  });
});

describe('many migrations that share a budget', () => {
  test('run two at a time, in their order, and all arrive', async () => {
    const budget = new MigrationBudget({ slots: 2 });
    const [source, destination] = twoHosts();
    const seen: Progress[] = [];
    const started: number[] = [];
    let most = 0;
    const jobs: { sending: MigrateJob; receiving: ReceiveJob }[] = [];
    const guests: SimulatedGuest[] = [];
    for (let seed = 1; seed <= 6; seed++) {
      guests.push(await source.createGuest({ kind: 'pvh', memory: 4 * MIB, seed }));
    }
    for (const { domid } of guests) {
      const [peer, from] = duplexPair({}, {}, MIB);
      const receiving = startReceive(destination, { from });
      const onProgress = (progress: Progress): void => {
        seen.push(progress);
        most = Math.max(most, budget.status.running);
        if (progress.phase === 'setup' && !started.includes(domid)) started.push(domid);
      };
      jobs.push({ receiving, sending: startMigrate(source, { domid, peer, budget, onProgress }) });
    }
    expect(budget.status).toMatchObject({ running: 2, waiting: 4 });
    // Those with a slot have it a moment later.
    for (let i = 0; i < 10; i++) await Promise.resolve();
    const queued = jobs.map(({ sending }) => sending.status.phase === 'queued');
    expect(queued).toEqual([false, false, true, true, true, true]);
    for (const { sending, receiving } of jobs) {
      await sending.result;
      const { domid } = await receiving.result;
      expect(await destination.guest(domid).check()).toMatchObject({ errors: 0 });
    }
    expect(most).toBe(2);
    expect(started).toEqual([...started].sort((a, b) => a - b));
    expect(seen.filter((progress) => progress.phase === 'queued').length).toBeGreaterThan(0);
    expect(budget.status).toMatchObject({ running: 0, waiting: 0, switchingOver: 0 });
    expect(await source.listDomains()).toEqual([]);
  });

  test('one that is cancelled while it waits, and one that fails: the next goes on, the guests stay', async () => {
    const budget = new MigrationBudget({ slots: 1 });
    const [source, destination] = twoHosts();
    const start = async (): Promise<{
      sending: MigrateJob;
      peer: Duplex;
      from: Duplex;
      guest: SimulatedGuest;
    }> => {
      const guest = await source.createGuest({ kind: 'pvh', memory: 4 * MIB });
      const [peer, from] = duplexPair({}, {}, MIB);
      const sending = startMigrate(source, { domid: guest.domid, peer, budget, maxBytesPerSecond: 1 });
      sending.result.catch(() => undefined);
      return { sending, peer, from, guest };
    };
    const [first, second, third] = [await start(), await start(), await start()];
    second.sending.cancel('not needed any more');
    await expect(second.sending.result).rejects.toMatchObject({
      name: 'CancelledError',
      phase: 'queued',
      guest: { host: 'source', state: 'running' },
    });
    expect(second.peer.destroyed).toBe(true);
    // The connection of one that waits breaks: that is heard when its turn comes, and ends no process before.
    const broken = await start();
    broken.peer.destroy(new Error('read ECONNRESET'));
    const receiving = startReceive(destination, { from: third.from });
    third.sending.update({ maxBytesPerSecond: 0 });
    first.from.destroy();
    await expect(first.sending.result).rejects.toMatchObject({
      name: 'PeerError',
      guest: { host: 'source', state: 'running' },
    });
    await third.sending.result;
    await receiving.result;
    await expect(broken.sending.result).rejects.toMatchObject({
      guest: { host: 'source', state: 'running' },
    });
    for (const { guest } of [first, second, broken]) expect(guest.stats().running).toBe(true);
    expect(budget.status).toMatchObject({ running: 0, waiting: 0, switchingOver: 0 });
  });

  test('receivers take slots, too', async () => {
    const budget = new MigrationBudget({ slots: 1 });
    const [source, destination] = twoHosts();
    const results: Promise<unknown>[] = [];
    const receivers: ReceiveJob[] = [];
    let most = 0;
    const guests = [1, 2, 3].map((seed) => source.createGuest({ kind: 'pvh', memory: 4 * MIB, seed }));
    for (const { domid } of await Promise.all(guests)) {
      const [peer, from] = duplexPair({}, {}, MIB);
      const onProgress = (): void => void (most = Math.max(most, budget.status.running));
      const receiving = startReceive(destination, { from, budget, onProgress });
      receivers.push(receiving);
      results.push(receiving.result, startMigrate(source, { domid, peer }).result);
    }
    for (let i = 0; i < 10; i++) await Promise.resolve();
    expect(receivers.map((job) => job.status.phase === 'queued')).toEqual([false, true, true]);
    await Promise.all(results);
    expect(most).toBe(1);
    expect(budget.status).toMatchObject({ running: 0, waiting: 0 });
  });

  test('a paused guest stays paused, and is never a switch-over', async () => {
    const budget = new MigrationBudget({ slots: 1 });
    const [source, destination] = twoHosts();
    const { domid } = await source.createGuest({ kind: 'pvh', memory: 4 * MIB });
    await source.toolstack.pause(domid);
    const [peer, from] = duplexPair({}, {}, MIB);
    let switching = 0;
    const onProgress = (): void => void (switching += budget.status.switchingOver);
    const receiving = startReceive(destination, { from });
    await startMigrate(source, { domid, peer, budget, onProgress, progressInterval: 0 }).result;
    expect(await receiving.result).toMatchObject({ state: 'paused' });
    expect((await destination.listDomains())[0]).toMatchObject({ paused: true });
    expect(switching).toBe(0);
  });
});
