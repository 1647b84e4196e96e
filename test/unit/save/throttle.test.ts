/** What a save asks of its throttle and when; and saves that share a budget. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { afterEach, describe, expect, it } from 'vitest';
import { CancelledError, UsageError } from '../../../lib/errors.js';
import { channels } from '../../../lib/job.js';
import { MigrationBudget } from '../../../lib/migrate/budget.js';
import type { Progress } from '../../../lib/progress.js';
import { startSave } from '../../../lib/save/save.js';
import type { JobBudget, Throttle } from '../../../lib/save/throttle.js';
import { MemorySink } from '../../../lib/transport/memory.js';
import { DOMID, FakeSink, FakeWorld, type FakeOptions } from './fake.js';
import { start } from './run.js';

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Writes down what it is asked, in the same list as the calls of the world. */
function spy(world: FakeWorld, patient = true): Throttle {
  return {
    ready: (limit) => {
      world.calls.push(`ready ${limit}`);
      return patient;
    },
    wait: async () => void world.calls.push('wait'),
    spend: (bytes) => void world.calls.push(`spend ${bytes}`),
    beginSwitchover: () => void world.calls.push('beginSwitchover'),
    endSwitchover: () => void world.calls.push('endSwitchover'),
  };
}

async function played(
  options: FakeOptions,
  limits: { live?: boolean } = {},
  patient = true,
): Promise<string[]> {
  const world = new FakeWorld({ kind: 'pvh', pages: 3000, ...options });
  const run = start(world, { maxBytesPerSecond: 7, ...limits });
  run.steering.throttle = spy(world, patient);
  await run.result;
  return world.calls;
}

describe('a throttle', () => {
  it('is asked before each batch of pre-copy, and of no other', async () => {
    const calls = await played({ dirty: [[1, 2, 3]] });
    const suspended = calls.indexOf('toolstack.suspend');
    // 3000 pages are three batches, and the question before it is known that there is no fourth.
    expect(calls.slice(0, suspended).filter((call) => call === 'ready 7').length).toBeGreaterThanOrEqual(4);
    expect(calls.slice(suspended)).not.toContain('ready 7');
    expect(calls).not.toContain('wait');
    const spent = calls.filter((call) => call.startsWith('spend')).map((call) => Number(call.slice(6)));
    expect(spent.slice(0, 3).reduce((sum, n) => sum + n)).toBeGreaterThan(3000 * 4096);
  });

  it('is waited for when it says no, once for each batch', async () => {
    const calls = await played({ dirty: [[]] }, {}, false);
    const asked = calls.filter((call) => call === 'ready 7').length;
    expect(asked).toBeGreaterThanOrEqual(4);
    expect(calls.filter((call) => call === 'wait')).toHaveLength(asked);
  });

  it('hears of the switch-over before the guest is suspended, and that it is over after the last byte', async () => {
    for (const live of [true, false]) {
      const calls = await played({ dirty: [[5]] }, { live });
      const at = (call: string): number => calls.indexOf(call);
      expect(at('beginSwitchover')).toBeGreaterThan(0);
      expect(at('beginSwitchover')).toBeLessThan(at('toolstack.suspend'));
      expect(at('endSwitchover')).toBeGreaterThan(calls.lastIndexOf('sink.write'));
      expect(at('endSwitchover')).toBeGreaterThan(at('sink.end'));
    }
  });

  it.each<[string, FakeOptions]>([
    ['paused', { paused: true }],
    ['suspended', { state: 'suspended' }],
  ])('of a guest found %s has no switch-over, and limits all of its memory', async (_what, options) => {
    const calls = await played(options);
    expect(calls).not.toContain('beginSwitchover');
    expect(calls.filter((call) => call === 'ready 7').length).toBeGreaterThanOrEqual(4);
  });
});

describe('saves that share a budget', () => {
  const seen: Progress[] = [];
  const note = (message: unknown): void => void seen.push(message as Progress);
  afterEach(() => {
    unsubscribe(channels.progress.name, note);
    seen.length = 0;
  });

  it('wait for a slot in phase queued, before anything is asked of the guest', async () => {
    subscribe(channels.progress.name, note);
    const budget = new MigrationBudget({ slots: 1 });
    const worlds = [new FakeWorld(), new FakeWorld(), new FakeWorld()];
    let most = 0;
    const jobs = worlds.map((world) => {
      world.before = () => {
        most = Math.max(most, budget.status.running);
      };
      return startSave(world.host, { domid: DOMID, to: new MemorySink(), budget });
    });
    expect(budget.status).toMatchObject({ running: 1, waiting: 2 });
    expect(jobs[2]!.status).toMatchObject({ phase: 'queued', state: 'active' });
    expect(worlds[2]!.calls).toEqual([]);
    const stopped = jobs[1]!.result.catch((error: unknown) => error);
    jobs[1]!.cancel('never mind');
    expect(await stopped).toBeInstanceOf(CancelledError);
    expect(await stopped).toMatchObject({ phase: 'queued', guest: { host: 'source', state: 'running' } });
    await Promise.all([jobs[0]!.result, jobs[2]!.result]);
    expect(most).toBe(1);
    expect(budget.status).toMatchObject({ running: 0, waiting: 0, switchingOver: 0 });
    expect(seen.map((progress) => progress.phase)).toContain('queued');
  });

  it('give their slots back when they fail', async () => {
    const budget = new MigrationBudget({ slots: 1 });
    const failing = new FakeWorld();
    failing.before = (call) => {
      if (call === 'toolstack.suspend') throw new Error('no');
    };
    const first = startSave(failing.host, { domid: DOMID, to: new MemorySink(), budget });
    const second = startSave(new FakeWorld().host, { domid: DOMID, to: new MemorySink(), budget });
    await expect(first.result).rejects.toThrow(/no/);
    await second.result;
    expect(budget.status).toMatchObject({ running: 0, waiting: 0, switchingOver: 0 });
  });

  it('hold their pre-copy back while the guest of another stands still', async () => {
    const budget = new MigrationBudget();
    const [one, other] = [
      new FakeWorld({ dirty: [[1]] }),
      new FakeWorld({ pages: 5000, dirty: [[1, 2, 3]] }),
    ];
    let release = (): void => undefined;
    let standing = false;
    one.before = async (call) => {
      if (call !== 'toolstack.suspend') return;
      standing = true;
      await new Promise<void>((resolve) => (release = resolve));
    };
    let sent = 0;
    other.before = (call) => {
      if (call === 'sink.write') sent++;
      return turn();
    };
    const options = { domid: DOMID, budget, policy: () => 'continue' as const };
    const moving = startSave(other.host, { ...options, to: new FakeSink(other) });
    while (sent === 0) await turn();
    const switching = startSave(one.host, { domid: DOMID, budget, to: new FakeSink(one) });
    while (!standing) await turn();
    expect(budget.status).toMatchObject({ running: 2, switchingOver: 1 });
    // What was on its way arrives.
    for (let i = 0; i < 100; i++) await turn();
    const before = sent;
    for (let i = 0; i < 300; i++) await turn();
    expect(sent).toBe(before);
    expect(moving.status).toMatchObject({ phase: 'pre-copy', state: 'active' });
    release();
    await switching.result;
    while (sent < before + 20) await turn();
    moving.switchover();
    await moving.result;
    expect(budget.status).toMatchObject({ running: 0, switchingOver: 0 });
  });

  it('refuse what is no budget', () => {
    const { host } = new FakeWorld();
    for (const budget of [{}, 4, null] as unknown as JobBudget[]) {
      expect(() => startSave(host, { domid: DOMID, to: new MemorySink(), budget })).toThrow(UsageError);
    }
  });
});
