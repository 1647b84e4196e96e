import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { UsageError, type XenMigrationError } from '../../../lib/errors.js';
import { limitsPolicy, STALLED_PASSES, xenDefaultPolicy } from '../../../lib/save/policy.js';
import { MAX_PASSES, SaveSteering } from '../../../lib/save/steering.js';
import { TokenBucket, waitForTokens } from '../../../lib/save/throttle.js';
import type { PrecopyStats, SaveLimits } from '../../../lib/save/types.js';
import { FakeWorld } from './fake.js';
import { runToEnd, start } from './run.js';

const stats = (changes: Partial<PrecopyStats>): PrecopyStats => ({
  iteration: 1,
  totalWritten: 0,
  dirtyCount: 1000,
  p2mSize: 10_000,
  rate: 0,
  dirtyPagesRate: undefined,
  expectedDowntime: undefined,
  stalledPasses: 0,
  ...changes,
});

const dirty = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

async function caught(promise: Promise<unknown>): Promise<XenMigrationError> {
  return promise.then(
    () => {
      throw new Error('did not fail');
    },
    (error: unknown) => error as XenMigrationError,
  );
}

describe('xenDefaultPolicy', () => {
  it.each([
    [{ iteration: 0, dirtyCount: 10_000 }, 'continue'],
    [{ iteration: 1, dirtyCount: -1 }, 'continue'],
    [{ iteration: 1, dirtyCount: 50 }, 'continue'],
    [{ iteration: 1, dirtyCount: 49 }, 'stop-and-copy'],
    [{ iteration: 1, dirtyCount: 0 }, 'stop-and-copy'],
    [{ iteration: 4, dirtyCount: 10_000 }, 'continue'],
    [{ iteration: 5, dirtyCount: -1 }, 'stop-and-copy'],
    [{ iteration: 0, dirtyCount: 3 }, 'stop-and-copy'],
    // What libxc does not look at.
    [{ iteration: 4, expectedDowntime: 0, stalledPasses: 99 }, 'continue'],
  ] as const)('%o: %s', (changes, decision) => {
    expect(xenDefaultPolicy(stats(changes))).toBe(decision);
  });
});

describe('the policy of the limits', () => {
  it.each<[SaveLimits, Partial<PrecopyStats>, string]>([
    [{}, { iteration: 4 }, 'continue'],
    [{}, { iteration: 5 }, 'stop-and-copy'],
    [{ maxIterations: 9 }, { iteration: 8 }, 'continue'],
    [{ maxIterations: 9 }, { iteration: 9, dirtyCount: -1 }, 'stop-and-copy'],
    [{ minRemaining: 1000 }, { dirtyCount: 1000 }, 'continue'],
    [{ minRemaining: 1000 }, { dirtyCount: 999 }, 'stop-and-copy'],
    [{ minRemaining: 0 }, { dirtyCount: 0 }, 'continue'],
    [{ minRemaining: 1000 }, { dirtyCount: -1 }, 'continue'],
    [{ maxDowntimeMs: 300 }, { expectedDowntime: 301 }, 'continue'],
    [{ maxDowntimeMs: 300 }, { expectedDowntime: 300 }, 'stop-and-copy'],
    [{ maxDowntimeMs: 300 }, { expectedDowntime: undefined }, 'continue'],
    [{ maxDowntimeMs: 300 }, { expectedDowntime: 1, dirtyCount: -1 }, 'continue'],
    [{}, { expectedDowntime: 0 }, 'continue'],
    [{ maxIterations: 30 }, { iteration: 12, stalledPasses: STALLED_PASSES - 1 }, 'continue'],
    [{ maxIterations: 30 }, { iteration: 12, stalledPasses: STALLED_PASSES }, 'stop-and-copy'],
  ])('%o, %o: %s', (limits, changes, decision) => {
    expect(limitsPolicy(new SaveSteering(limits))(stats(changes))).toBe(decision);
  });

  it('reads the limits anew each time', () => {
    const steering = new SaveSteering({ minRemaining: 10 });
    const policy = limitsPolicy(steering);
    expect(policy(stats({}))).toBe('continue');
    steering.update({ minRemaining: 5000 });
    expect(policy(stats({}))).toBe('stop-and-copy');
  });
});

describe('SaveSteering', () => {
  it.each<SaveLimits>([
    { maxIterations: 0 },
    { maxIterations: 1.5 },
    { maxIterations: MAX_PASSES + 1 },
    { minRemaining: -1 },
    { minRemaining: Number.NaN },
    { maxDowntimeMs: -0.5 },
    { maxDowntimeMs: Infinity },
    { maxBytesPerSecond: -1 },
    { maxBytesPerSecond: '5' as unknown as number },
  ])('refuses %o and changes nothing', (limits) => {
    const steering = new SaveSteering({ minRemaining: 3 });
    const before = steering.limits;
    expect(() => steering.update({ maxIterations: 7, ...limits })).toThrow(UsageError);
    expect(steering.limits).toEqual(before);
  });
});

describe('pre-copy', () => {
  it('makes libxc’s five passes over a guest that never rests, and asks its policy twice for each', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 100, dirty: [dirty(80)] });
    const asked: [number, number][] = [];
    const { result } = await runToEnd(world, {
      policy: (s) => {
        asked.push([s.iteration, s.dirtyCount]);
        return xenDefaultPolicy(s);
      },
    });
    expect(asked).toEqual([
      [0, 100],
      [1, -1],
      [1, 80],
      [2, -1],
      [2, 80],
      [3, -1],
      [3, 80],
      [4, -1],
      [4, 80],
      [5, -1],
    ]);
    expect(result.iterations.map((i) => i.sentPages)).toEqual([100, 80, 80, 80, 80, 80]);
    // Four CLEANs between the passes; the one for the final pass is made suspended.
    expect(world.calls.filter((c) => c === 'logDirty clean')).toHaveLength(4);
    expect(world.finalCleans).toBe(1);
  });

  it('tells the policy what was written and what gets dirty', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 100, dirty: [dirty(80), dirty(70)] });
    const seen: PrecopyStats[] = [];
    await runToEnd(world, {
      policy: (s) => {
        seen.push(s);
        return s.iteration < 2 ? 'continue' : 'stop-and-copy';
      },
    });
    expect(seen.map((s) => s.totalWritten)).toEqual([0, 100, 100, 180]);
    expect(seen[0]).toMatchObject({
      p2mSize: 100,
      rate: 0,
      dirtyPagesRate: undefined,
      expectedDowntime: undefined,
    });
    expect(seen[2]!.rate).toBeGreaterThan(0);
    expect(seen[2]!.dirtyPagesRate).toBeGreaterThan(0);
    expect(seen[2]!.expectedDowntime).toBeCloseTo((80 * 4104 * 1000) / seen[2]!.rate, 3);
  });

  it('sends nothing when nothing is dirty, and stops', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 100, dirty: [[]] });
    const { names, result } = await runToEnd(world);
    expect(names.filter((n) => n.startsWith('PAGE_DATA'))).toEqual(['PAGE_DATA 100']);
    expect(result.iterations.map((i) => i.sentPages)).toEqual([100, 0]);
  });

  it('ends with any policy', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 4, dirty: [[]] });
    let asked = 0;
    await runToEnd(world, {
      policy: () => {
        asked++;
        return 'continue';
      },
    });
    expect(world.cleans).toBe(MAX_PASSES);
    expect(asked).toBe(2 * MAX_PASSES);
  });

  it('gives up on a guest that gains on it', async () => {
    const world = new FakeWorld({
      kind: 'pvh',
      pages: 100,
      dirty: [dirty(90), dirty(60), dirty(58), dirty(61)],
    });
    const { result } = await runToEnd(world, { maxIterations: 500 });
    // Passes of 100, 90 and 60 pages helped; then five that did not.
    expect(result.iterations.map((i) => i.sentPages)).toEqual([100, 90, 60, 58, 61, 61, 61, 61, 61]);
  });

  it('is aborted by its policy, before and after a pass', async () => {
    for (const when of [0, 1, 2]) {
      const world = new FakeWorld({ kind: 'pvh', pages: 100, dirty: [dirty(80)] });
      let asked = 0;
      const { result, control } = start(world, { policy: () => (asked++ === when ? 'abort' : 'continue') });
      const error = await caught(result);
      expect(error).toMatchObject({ name: 'CancelledError', code: 'ERR_XEN_CANCELLED', phase: 'pre-copy' });
      expect(error.message).toMatch(/^the pre-copy policy aborted the save/);
      expect(error.guest).toEqual({ host: 'source', state: 'running' });
      expect(control.status.state).toBe('cancelled');
      expect(world.calls).not.toContain('toolstack.suspend');
      expect(world.logDirty).toBe(false);
    }
  });

  it('turns what a user’s function throws into one of its own errors', async () => {
    const cause = new RangeError('oops');
    const boom = (): never => {
      throw cause;
    };
    const failures: [string, Promise<unknown>][] = [
      ['policy', start(new FakeWorld(), { policy: boom }).result],
      ['beforeSwitchover', start(new FakeWorld(), { beforeSwitchover: boom }).result],
      ['beforeSwitchover', start(new FakeWorld(), { beforeSwitchover: async () => boom() }).result],
    ];
    for (const [name, result] of failures) {
      expect(await caught(result)).toMatchObject({
        code: 'ERR_XEN_CALLBACK',
        message: `${name} failed: oops`,
        cause,
        guest: { host: 'source', state: 'running' },
      });
    }
  });

  it('switches over when told to, after the present pass', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 5000, dirty: [dirty(4000)] });
    const run = start(world, { policy: () => 'continue' });
    world.before = (call) => {
      if (call === 'mapFrames' && world.cleans === 2) run.steering.switchover();
    };
    const { iterations } = await run.result;
    expect(iterations.map((i) => [i.sentPages, i.suspended])).toEqual([
      [5000, false],
      [4000, false],
      [4000, false],
      [4000, true],
    ]);
  });

  it('follows limits that change while it runs', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 500, dirty: [dirty(400)] });
    const run = start(world, { maxIterations: 100 });
    world.before = (call) => {
      if (call === 'logDirty clean' && world.cleans === 1) run.steering.update({ maxIterations: 3 });
    };
    const { iterations } = await run.result;
    expect(iterations).toHaveLength(4);
  });

  it('waits for beforeSwitchover with the guest running, and gives it a signal', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 100, dirty: [dirty(80), dirty(3)] });
    const seen: unknown[] = [];
    await runToEnd(world, {
      beforeSwitchover: async (signal) => {
        seen.push(world.state, world.logDirty, signal.aborted, world.calls.includes('toolstack.suspend'));
        await new Promise((resolve) => setTimeout(resolve, 1));
        seen.push(world.state);
      },
    });
    expect(seen).toEqual(['running', true, false, false, 'running']);
  });

  it('does not wait for a beforeSwitchover that ignores its signal', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    const run = start(world, {
      beforeSwitchover: () => {
        setImmediate(() => run.control.cancel());
        return new Promise(() => undefined);
      },
    });
    expect(await caught(run.result)).toMatchObject({ code: 'ERR_XEN_CANCELLED', phase: 'pre-switchover' });
    expect(world.logDirty).toBe(false);
  });

  it('publishes each pass', async () => {
    const heard: unknown[] = [];
    const listen = (message: unknown): void => void heard.push(message);
    subscribe('xen-migration:job:iteration', listen);
    try {
      await runToEnd(new FakeWorld({ kind: 'pvh', pages: 100, dirty: [[1, 2], [3]] }));
    } finally {
      unsubscribe('xen-migration:job:iteration', listen);
    }
    expect(heard).toMatchObject([
      { iteration: 0, sentPages: 100, domid: 7, operation: 'save', suspended: false },
      { iteration: 1, sentPages: 2, suspended: false },
      { iteration: 2, sentPages: 1, suspended: true },
    ]);
  });

  it('reports progress by batches, and every phase', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 2500, dirty: [[1], [2]] });
    const phases: string[] = [];
    const remaining: (number | undefined)[] = [];
    const run = start(
      world,
      { verify: true, beforeSwitchover: () => undefined },
      {
        progressInterval: 0,
        onProgress: (p) => {
          if (phases.at(-1) !== p.phase) phases.push(p.phase);
          if (p.phase === 'pre-copy' && p.iteration === 0) remaining.push(p.remaining);
        },
      },
    );
    await run.result;
    expect(phases).toEqual([
      ...[
        'setup',
        'static-data',
        'pre-copy',
        'pre-switchover',
        'suspend',
        'stop-and-copy',
        'verify',
        'state',
      ],
      ...['complete', 'done'],
    ]);
    expect(remaining).toEqual([2500, 1476, 452, 0, 0]);
    expect(run.control.status).toMatchObject({ total: 2500, pages: 5002, state: 'completed' });
  });
});

describe('log-dirty', () => {
  it('that was on already is turned off and on', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    world.logDirty = true;
    await runToEnd(world);
    expect(world.calls.filter((c) => c.endsWith('LogDirty'))).toEqual([
      'enableLogDirty',
      'disableLogDirty',
      'enableLogDirty',
      'disableLogDirty',
    ]);
  });

  it('that cannot be had says with which three errors', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    world.logDirty = true;
    world.domain.disableLogDirty = async () => undefined;
    expect(await caught(start(world).result)).toMatchObject({
      code: 'ERR_XEN_HYPERCALL',
      syscall: 'XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY',
      errno: 22,
      message: expect.stringContaining('EINVAL, then off: ok, then again: EINVAL') as string,
    });
  });

  it('must cover the whole guest', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 100, dirty: [dirty(80)] });
    world.missingPages = 1;
    expect(await caught(start(world).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_PHYSMAP_CHANGED',
      message: expect.stringContaining('99 pages instead of 100') as string,
    });
    const late = new FakeWorld({ kind: 'pvh', pages: 100, dirty: [dirty(80)] });
    late.before = (call) => {
      if (call === 'toolstack.suspend') late.missingPages = 1;
    };
    expect(await caught(start(late).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_PHYSMAP_CHANGED',
      phase: 'stop-and-copy',
      guest: { state: 'running' },
    });
  });

  it('may set bits beyond the guest in its last word', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 70, dirty: [[69, 70, 95], [64]] });
    const { pages } = await runToEnd(world);
    expect(pages.slice(1).map((p) => p.pfns)).toEqual([[69], [64]]);
  });
});

describe('the bandwidth limit', () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('averages to the rate, however large the amounts', () => {
    const bucket = new TokenBucket();
    let waited = 0;
    for (let i = 0; i < 20; i++) {
      const ms = bucket.delay(1_000_000);
      vi.advanceTimersByTime(ms);
      waited += ms;
      bucket.spend(i % 2 === 0 ? 4_000_000 : 10_000);
    }
    waited += bucket.delay(1_000_000);
    expect(waited).toBeGreaterThan(40_000);
    expect(waited).toBeLessThanOrEqual(40_100);
  });

  it('saves up no more than a moment', () => {
    const bucket = new TokenBucket();
    expect(bucket.delay(1000)).toBe(0);
    vi.advanceTimersByTime(3_600_000);
    bucket.delay(1000);
    bucket.spend(1050);
    expect(bucket.delay(1000)).toBe(1000);
  });

  it('is forgotten when it is taken away', () => {
    const bucket = new TokenBucket();
    bucket.spend(1e9);
    expect(bucket.delay(1000)).toBeGreaterThan(1e8);
    expect(bucket.delay(0)).toBe(0);
    expect(bucket.delay(1000)).toBe(0);
  });

  it('takes effect while waiting, when it changes and when the job is cancelled', async () => {
    const bucket = new TokenBucket();
    bucket.spend(1000);
    let rate = 1;
    const controller = new AbortController();
    const waiting = waitForTokens(bucket, () => rate, controller.signal);
    await vi.advanceTimersByTimeAsync(5000);
    rate = 1_000_000;
    await vi.advanceTimersByTimeAsync(200);
    await waiting;
    bucket.spend(1e12);
    const again = waitForTokens(bucket, () => rate, controller.signal);
    controller.abort();
    await again;
    expect(vi.getTimerCount()).toBe(0);
  });

  it('slows pre-copy and not the final pass', async () => {
    const pages = 6 * 1024;
    const all = dirty(pages);
    const world = new FakeWorld({ kind: 'pvh', pages, dirty: [all] });
    const seen: PrecopyStats[] = [];
    const run = start(world, {
      maxBytesPerSecond: 4096 * 1024,
      policy: (s) => {
        seen.push(s);
        return s.iteration < 2 ? 'continue' : 'stop-and-copy';
      },
    });
    // A line that takes 10 ms for a batch.
    world.before = (call) =>
      call === 'sink.write' ? new Promise((resolve) => setTimeout(resolve, 10)) : undefined;
    let over = false;
    void run.result.finally(() => (over = true));
    while (!over) {
      await vi.advanceTimersByTimeAsync(10);
      await new Promise((resolve) => setImmediate(resolve));
    }
    const { iterations } = await run.result;
    const [first, second, final] = iterations;
    expect(first!.rate).toBeLessThan(6_000_000);
    expect(second!.rate).toBeLessThan(4_500_000);
    expect(second!.rate).toBeGreaterThan(3_500_000);
    expect(final!.rate).toBeGreaterThan(100_000_000);
    // The limit does not hold for the final pass, so the expected downtime must not count it.
    const counted = seen.find((s) => s.iteration === 1 && s.dirtyCount === pages);
    expect(counted!.expectedDowntime).toBeLessThan(500);
  });
});
