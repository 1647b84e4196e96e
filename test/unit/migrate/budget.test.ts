/** What jobs share, in virtual time: who goes when, who waits for whom, and that nothing is ever left behind. */
import fc from 'fast-check';
import { getEventListeners, setMaxListeners } from 'node:events';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { CancelledError, TimeoutError, UsageError } from '../../../lib/errors.js';
import { now } from '../../../lib/job.js';
import {
  BATCH_BYTES,
  HELD_BACK_MS,
  MigrationBudget,
  type BudgetLimits,
} from '../../../lib/migrate/budget.js';
import type { JobTicket } from '../../../lib/save/throttle.js';

const MIB = 1 << 20;
const BATCH = 4 * MIB;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
});
afterEach(() => {
  vi.useRealTimers();
});

/** Bytes that went, and when. */
interface Sent {
  readonly job: number;
  readonly at: number;
  readonly bytes: number;
}

interface Sender {
  readonly ticket: JobTicket;
  readonly log: Sent[];
  readonly number: number;
  /** What the next batch has, bytes. */
  readonly size?: (() => number) | undefined;
  /** ms from the leave to send a batch until it goes; of every third batch, the others go at once. */
  readonly prepare?: number | undefined;
  /** ms that the line takes for a batch. */
  readonly line?: number | undefined;
  readonly limit?: (() => number) | undefined;
  readonly signal: AbortSignal;
}

/** Sends batches as pre-copy does, until it is stopped. */
async function send({ ticket, log, number, size, prepare, line, limit, signal }: Sender): Promise<void> {
  const own = limit ?? ((): number => 0);
  let batches = 0;
  const stopped = (): boolean => signal.aborted;
  while (!stopped()) {
    if (!ticket.ready(own())) await ticket.wait(own, signal);
    if (prepare !== undefined && batches++ % 3 === 0)
      await new Promise((resolve) => setTimeout(resolve, prepare));
    if (stopped()) return;
    const bytes = size?.() ?? BATCH;
    ticket.spend(bytes);
    log.push({ job: number, at: now(), bytes });
    // Without a line the loop would never end.
    await new Promise((resolve) => setTimeout(resolve, line ?? 1));
  }
}

/** Jobs that send for a while; what each of them got. */
async function share(
  budget: MigrationBudget,
  jobs: readonly Pick<Sender, 'size' | 'line' | 'limit'>[],
  ms: number,
): Promise<{ log: Sent[]; bytes: number[] }> {
  const stop = new AbortController();
  const log: Sent[] = [];
  const tickets = await Promise.all(jobs.map(() => budget.enter()));
  const running = jobs.map((job, number) =>
    send({ ...job, ticket: tickets[number]!, number, log, signal: stop.signal }),
  );
  await vi.advanceTimersByTimeAsync(ms);
  stop.abort();
  await vi.advanceTimersByTimeAsync(1000);
  await Promise.all(running);
  for (const ticket of tickets) ticket.leave();
  const bytes = jobs.map((_, i) => log.reduce((sum, s) => (s.job === i ? sum + s.bytes : sum), 0));
  return { log, bytes };
}

/** A promise's state after what could happen at once has happened. */
async function settled(promise: Promise<unknown>): Promise<boolean> {
  let over = false;
  const note = (): void => void (over = true);
  promise.then(note, note);
  for (let i = 0; i < 10; i++) await Promise.resolve();
  return over;
}

describe('limits', () => {
  it.each<[string, BudgetLimits]>([
    ['half a slot', { slots: 1.5 }],
    ['less than no slot', { slots: -1 }],
    ['slots that are no number', { slots: '3' as unknown as number }],
    ['NaN slots', { slots: NaN }],
    ['negative bandwidth', { maxBytesPerSecond: -1 }],
    ['infinite bandwidth', { maxBytesPerSecond: Infinity }],
    ['NaN bandwidth', { maxBytesPerSecond: NaN }],
    ['bandwidth that is no number', { maxBytesPerSecond: '1' as unknown as number }],
  ])('refuses %s, and changes nothing', (_what, limits) => {
    expect(() => new MigrationBudget(limits)).toThrow(UsageError);
    const budget = new MigrationBudget({ slots: 3, maxBytesPerSecond: 7 });
    expect(() => budget.update({ slots: 9, maxBytesPerSecond: 9, ...limits })).toThrow(UsageError);
    expect(budget.status).toMatchObject({ slots: 3, maxBytesPerSecond: 7 });
  });

  it('are none where none are given', () => {
    expect(new MigrationBudget().status).toEqual({
      running: 0,
      waiting: 0,
      slots: Infinity,
      maxBytesPerSecond: 0,
      switchingOver: 0,
    });
  });
});

describe('slots', () => {
  it('are given in the order of arrival', async () => {
    const budget = new MigrationBudget({ slots: 2 });
    const order: number[] = [];
    const tickets: JobTicket[] = [];
    const all = Array.from({ length: 6 }, async (_, i) => {
      const ticket = await budget.enter();
      order.push(i);
      tickets.push(ticket);
    });
    await settled(Promise.all(all));
    expect(order).toEqual([0, 1]);
    expect(budget.status).toMatchObject({ running: 2, waiting: 4 });
    for (let i = 0; i < 6; i++) {
      tickets[i]!.leave();
      await settled(Promise.all(all));
      expect(order).toEqual([0, 1, 2, 3, 4, 5].slice(0, i + 3));
    }
    expect(budget.status).toMatchObject({ running: 0, waiting: 0 });
  });

  it('come back once, however often they are given back', async () => {
    const budget = new MigrationBudget({ slots: 1 });
    const first = await budget.enter();
    const second = budget.enter();
    const third = budget.enter();
    first.leave();
    first.leave();
    (await second).ready(0);
    first.leave();
    expect(await settled(third)).toBe(false);
    expect(budget.status).toMatchObject({ running: 1, waiting: 1 });
    (await second).leave();
    (await third).leave();
  });

  it('are not waited for any more once the job is cancelled', async () => {
    const budget = new MigrationBudget({ slots: 1 });
    const first = await budget.enter();
    const stop = new AbortController();
    const gone = budget.enter(stop.signal);
    const next = budget.enter();
    stop.abort('changed my mind');
    const error: unknown = await gone.catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(CancelledError);
    expect(error).toMatchObject({ cause: 'changed my mind' });
    expect(budget.status).toMatchObject({ running: 1, waiting: 1 });
    first.leave();
    expect(await settled(next)).toBe(true);

    const late = new TimeoutError('total', 5, 'too late');
    await expect(budget.enter(AbortSignal.abort(late))).rejects.toBe(late);
    expect(budget.status).toMatchObject({ running: 1, waiting: 0 });
  });

  it('can become more and fewer meanwhile, and none', async () => {
    const budget = new MigrationBudget({ slots: 1 });
    const entered = Array.from({ length: 5 }, () => budget.enter());
    await settled(entered[4]!);
    budget.update({ slots: 3 });
    const tickets = await Promise.all(entered.slice(0, 3));
    expect(budget.status).toMatchObject({ running: 3, waiting: 2 });
    budget.update({ slots: 1 });
    tickets[0]!.leave();
    tickets[1]!.leave();
    expect(await settled(entered[3]!)).toBe(false);
    expect(budget.status).toMatchObject({ running: 1, waiting: 2, slots: 1 });
    tickets[2]!.leave();
    expect(await settled(entered[3]!)).toBe(true);
    budget.update({ slots: 0 });
    (await entered[3]!).leave();
    expect(await settled(entered[4]!)).toBe(false);
    budget.update({ slots: Infinity });
    expect(await settled(entered[4]!)).toBe(true);
    (await entered[4]!).leave();
  });
});

describe('bandwidth', () => {
  it('is shared fairly, however large the batches of each', async () => {
    const budget = new MigrationBudget({ maxBytesPerSecond: 100 * MIB });
    const { bytes } = await share(
      budget,
      [{}, { size: () => MIB }, { size: () => 100_000 }, { size: () => 3 * MIB, line: 5 }],
      60_000,
    );
    for (const b of bytes) expect(Math.abs(b - (60 * 100 * MIB) / 4)).toBeLessThan(3 * BATCH);
  });

  it('that one job does not use goes to the others', async () => {
    const budget = new MigrationBudget({ maxBytesPerSecond: 100 * MIB });
    const { bytes } = await share(
      budget,
      // The first has a limit of its own, the second a slow line: 4 MiB in 400 ms.
      [{ limit: () => 5 * MIB }, { line: 400 }, {}, {}],
      60_000,
    );
    expect(bytes[0]! / 60 / MIB).toBeGreaterThan(4.7);
    expect(bytes[0]! / 60 / MIB).toBeLessThanOrEqual(5.1);
    expect(bytes[1]! / 60 / MIB).toBeGreaterThan(9);
    expect(bytes[1]! / 60 / MIB).toBeLessThanOrEqual(10.1);
    for (const b of bytes.slice(2)) expect(b / 60 / MIB).toBeGreaterThan(42);
    const all = bytes.reduce((sum, b) => sum + b, 0);
    expect(all / 60 / MIB).toBeGreaterThan(99);
    expect(all / 60 / MIB).toBeLessThan(101);
  });

  it('is not saved up by a job that paused', async () => {
    const budget = new MigrationBudget({ maxBytesPerSecond: 100 * MIB });
    const [early, late] = await Promise.all([budget.enter(), budget.enter()]);
    const stop = new AbortController();
    const log: Sent[] = [];
    const one = send({ ticket: early, number: 0, log, signal: stop.signal });
    await vi.advanceTimersByTimeAsync(30_000);
    const from = log.length;
    const two = send({ ticket: late, number: 1, log, signal: stop.signal });
    await vi.advanceTimersByTimeAsync(10_000);
    stop.abort();
    await Promise.all([one, two, vi.advanceTimersByTimeAsync(1000)]);
    const afterwards = log.slice(from);
    const ofEarly = afterwards.filter((s) => s.job === 0).length;
    expect(Math.abs(ofEarly - afterwards.length / 2)).toBeLessThan(3);
    early.leave();
    late.leave();
  });

  it('can be changed while jobs wait for it', async () => {
    const budget = new MigrationBudget({ maxBytesPerSecond: 1 });
    const ticket = await budget.enter();
    expect(ticket.ready(0)).toBe(true);
    ticket.spend(BATCH);
    const signal = new AbortController().signal;
    const waiting = ticket.wait(() => 0, signal);
    // 48 days: more than a timer can have, which would fire at once and again and again.
    await vi.advanceTimersByTimeAsync(3_600_000);
    expect(await settled(waiting)).toBe(false);
    budget.update({ maxBytesPerSecond: 4 * MIB });
    await vi.advanceTimersByTimeAsync(1001);
    expect(await settled(waiting)).toBe(true);
    ticket.spend(BATCH);
    const again = ticket.wait(() => 0, signal);
    expect(await settled(again)).toBe(false);
    budget.update({ maxBytesPerSecond: 0 });
    expect(await settled(again)).toBe(true);
    expect(vi.getTimerCount()).toBe(0);
    ticket.leave();
  });

  it('is held to what it is now when the limit comes later', async () => {
    const budget = new MigrationBudget();
    const ticket = await budget.enter();
    for (let i = 0; i < 1000; i++) {
      expect(ticket.ready(0)).toBe(true);
      ticket.spend(BATCH);
    }
    budget.update({ maxBytesPerSecond: MIB });
    let waited = false;
    const waiting = ticket.wait(() => 0, new AbortController().signal).then(() => (waited = true));
    // What went without a limit is no debt, but for the last batch.
    await vi.advanceTimersByTimeAsync(4100);
    expect(waited).toBe(true);
    await waiting;
    ticket.leave();
  });

  it('ends a wait when the job is cancelled, and lets the next one go', async () => {
    const budget = new MigrationBudget({ maxBytesPerSecond: MIB });
    const [a, b] = await Promise.all([budget.enter(), budget.enter()]);
    a.ready(0);
    a.spend(BATCH);
    const stop = new AbortController();
    const first = a.wait(() => 0, stop.signal);
    const second = b.wait(() => 0, new AbortController().signal);
    stop.abort();
    expect(await settled(first)).toBe(true);
    await vi.advanceTimersByTimeAsync(4501);
    expect(await settled(second)).toBe(true);
    await a.wait(() => 0, stop.signal);
    a.leave();
    b.leave();
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe('a switch-over', () => {
  it('is never limited, and holds the others back to a batch in ten seconds', async () => {
    for (const maxBytesPerSecond of [0, 50 * MIB]) {
      const budget = new MigrationBudget({ maxBytesPerSecond });
      const tickets = await Promise.all(Array.from({ length: 4 }, () => budget.enter()));
      const stop = new AbortController();
      const log: Sent[] = [];
      const running = tickets
        .slice(1)
        .map((ticket, number) => send({ ticket, number, log, signal: stop.signal, line: 10 }));
      await vi.advanceTimersByTimeAsync(5000);
      expect(log.length).toBeGreaterThan(20);

      const [first] = tickets as [JobTicket];
      first.beginSwitchover();
      expect(budget.status).toMatchObject({ switchingOver: 1, running: 4 });
      // What had been begun may go; from then on one batch for each in ten seconds.
      await vi.advanceTimersByTimeAsync(1000);
      const held = log.length;
      for (let i = 0; i < 500; i++) {
        expect(first.ready(0)).toBe(true);
        first.spend(BATCH);
      }
      await vi.advanceTimersByTimeAsync(3 * HELD_BACK_MS);
      const meanwhile = log.slice(held);
      for (const job of [0, 1, 2]) {
        const ofJob = meanwhile.filter((s) => s.job === job);
        expect(ofJob).toHaveLength(3);
        for (let i = 1; i < 3; i++) {
          expect(ofJob[i]!.at - ofJob[i - 1]!.at).toBeGreaterThanOrEqual(HELD_BACK_MS);
        }
      }

      const before = log.length;
      first.endSwitchover();
      expect(budget.status.switchingOver).toBe(0);
      await vi.advanceTimersByTimeAsync(1000);
      // What the switch-over took is no debt of the others.
      expect(log.length - before).toBeGreaterThan(9);
      stop.abort();
      await Promise.all([...running, vi.advanceTimersByTimeAsync(100)]);
      for (const ticket of tickets) ticket.leave();
      expect(vi.getTimerCount()).toBe(0);
    }
  });

  it('also waits for nothing of another one', async () => {
    const budget = new MigrationBudget({ maxBytesPerSecond: MIB });
    const [a, b] = await Promise.all([budget.enter(), budget.enter()]);
    a.beginSwitchover();
    b.beginSwitchover();
    expect(budget.status.switchingOver).toBe(2);
    for (const ticket of [a, b, a, b]) {
      expect(ticket.ready(0)).toBe(true);
      ticket.spend(BATCH);
    }
    a.endSwitchover();
    a.endSwitchover();
    expect(budget.status.switchingOver).toBe(1);
    b.leave();
    expect(budget.status).toMatchObject({ switchingOver: 0, running: 1 });
    // Too late to be anything.
    b.beginSwitchover();
    expect(budget.status).toMatchObject({ switchingOver: 0, running: 1 });
    a.leave();
  });

  it('of a job that fails is over with it', async () => {
    const budget = new MigrationBudget({ maxBytesPerSecond: 100 * MIB });
    const [a, b] = await Promise.all([budget.enter(), budget.enter()]);
    b.ready(0);
    b.spend(100);
    a.beginSwitchover();
    const waiting = b.wait(() => 0, new AbortController().signal);
    await vi.advanceTimersByTimeAsync(1000);
    expect(await settled(waiting)).toBe(false);
    a.leave();
    expect(await settled(waiting)).toBe(true);
    b.leave();
  });

  it("lifts the job's own wait for the others, too", async () => {
    const budget = new MigrationBudget({ maxBytesPerSecond: 1 });
    const ticket = await budget.enter();
    ticket.ready(0);
    ticket.spend(BATCH);
    const waiting = ticket.wait(() => 0, new AbortController().signal);
    expect(await settled(waiting)).toBe(false);
    ticket.beginSwitchover();
    expect(await settled(waiting)).toBe(true);
    expect(vi.getTimerCount()).toBe(0);
    ticket.leave();
  });
});

it('leaves nothing behind after thousands of jobs, however they end', async () => {
  const budget = new MigrationBudget({ slots: 7, maxBytesPerSecond: 10_000 * MIB });
  const shared = new AbortController();
  setMaxListeners(0, shared.signal);
  let seed = 1;
  const random = (n: number): number => (seed = (seed * 48271) % 2147483647) % n;
  let most = 0;
  const one = async (): Promise<void> => {
    const stop = new AbortController();
    const ending = random(6);
    if (ending === 0) setTimeout(() => stop.abort(), random(50));
    let ticket: JobTicket;
    try {
      ticket = await budget.enter(ending === 1 ? shared.signal : stop.signal);
    } catch {
      return;
    }
    most = Math.max(most, budget.status.running);
    try {
      for (let i = 0; i < 5; i++) {
        if (!ticket.ready(0)) await ticket.wait(() => 0, stop.signal);
        if (ending === 2 && i === 2) setTimeout(() => stop.abort(), 0);
        if (ending === 3 && i === 3) throw new Error('failed, with a batch begun');
        if (random(10) > 0) ticket.spend(random(BATCH));
        await new Promise((resolve) => setTimeout(resolve, random(3)));
        if (stop.signal.aborted) return;
      }
      ticket.beginSwitchover();
      if (ending === 4) throw new Error('failed, in the switch-over');
      ticket.endSwitchover();
    } finally {
      ticket.leave();
      if (random(2) === 0) ticket.leave();
    }
  };
  const all = Promise.allSettled(Array.from({ length: 5000 }, one));
  let over = false;
  void all.then(() => (over = true));
  for (let i = 0; i < 2000; i++) await vi.advanceTimersByTimeAsync(100);
  expect(over).toBe(true);
  expect(most).toBe(7);
  expect(budget.status).toMatchObject({ running: 0, waiting: 0, switchingOver: 0 });
  expect(vi.getTimerCount()).toBe(0);
  expect(getEventListeners(shared.signal, 'abort')).toEqual([]);
  // Nor has anybody taken bytes with him: the next job has what any has after a moment.
  await vi.advanceTimersByTimeAsync(1000);
  const ticket = await budget.enter();
  const log: Sent[] = [];
  const stop = new AbortController();
  const sending = send({ ticket, number: 0, log, signal: stop.signal });
  await vi.advanceTimersByTimeAsync(100);
  expect(log.length).toBeGreaterThan(90);
  stop.abort();
  await Promise.all([sending, vi.advanceTimersByTimeAsync(10)]);
});

describe('whatever jobs do', () => {
  const job = fc.record({
    size: fc.oneof(fc.constant(BATCH), fc.integer({ min: 1, max: BATCH })),
    prepare: fc.constantFrom(undefined, 1, 100, 2000),
    line: fc.constantFrom(3, 30, 300),
    limit: fc.constantFrom(0, 0, 0, MIB, 20 * MIB),
    startsAt: fc.integer({ min: 0, max: 3000 }),
    stopsAt: fc.option(fc.integer({ min: 0, max: 20_000 }), { nil: undefined }),
    switchesAt: fc.option(fc.integer({ min: 0, max: 20_000 }), { nil: undefined }),
  });

  it('never more than the limit and a batch for each of them goes in any time, and nobody starves', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(...[1, 3, 8].map((maxLength) => fc.array(job, { minLength: 1, maxLength }))),
        fc.integer({ min: MIB, max: 400 * MIB }),
        fc.option(
          fc.record({
            at: fc.integer({ min: 1, max: 19_000 }),
            rate: fc.integer({ min: MIB, max: 400 * MIB }),
          }),
          { nil: undefined },
        ),
        async (jobs, rate, change) => {
          const budget = new MigrationBudget({ maxBytesPerSecond: rate });
          const began = now();
          const log: Sent[] = [];
          /** Bytes that the limit allows from the beginning to `at`. */
          const allowed = (at: number): number => {
            const changedAt = began + (change?.at ?? Infinity);
            const first = Math.min(at, changedAt) - began;
            return (first * rate + Math.max(0, at - changedAt) * (change?.rate ?? 0)) / 1000;
          };
          if (change !== undefined)
            setTimeout(() => budget.update({ maxBytesPerSecond: change.rate }), change.at);
          const running = jobs.map(async (j, number) => {
            const stop = new AbortController();
            setTimeout(() => stop.abort(), Math.max(j.startsAt, j.stopsAt ?? 20_000));
            await new Promise((resolve) => setTimeout(resolve, j.startsAt));
            const ticket = await budget.enter();
            if (j.switchesAt !== undefined && j.switchesAt > j.startsAt) {
              // A switch-over of a second, then the job is over.
              setTimeout(() => {
                stop.abort();
                ticket.beginSwitchover();
                for (let i = 0; i < 10; i++) {
                  expect(ticket.ready(j.limit)).toBe(true);
                  ticket.spend(BATCH);
                }
                setTimeout(() => ticket.leave(), 1000);
              }, j.switchesAt - j.startsAt);
            }
            await send({
              ticket,
              number,
              log,
              size: () => j.size,
              line: j.line,
              prepare: j.prepare,
              limit: () => j.limit,
              signal: stop.signal,
            });
            if (j.switchesAt === undefined || j.switchesAt <= j.startsAt) ticket.leave();
          });
          await vi.advanceTimersByTimeAsync(25_000);
          await Promise.all(running);
          expect(budget.status).toMatchObject({ running: 0, switchingOver: 0 });
          expect(vi.getTimerCount()).toBe(0);

          const burst = (Math.max(rate, change?.rate ?? 0) * 50) / 1000;
          const spare = Math.max(burst, jobs.length * BATCH_BYTES) + 1;
          // The least, over all earlier moments, by which less had gone than was allowed: the window that may hold most.
          let sent = 0;
          let least = 0;
          for (const { at, bytes } of log) {
            least = Math.min(least, sent - allowed(at));
            sent += bytes;
            expect(sent - allowed(at) - least).toBeLessThanOrEqual(spare);
          }

          // Whoever was there all the time and asked for more than its share got its share, switch-overs left out.
          const steady = jobs.every((j) => j.switchesAt === undefined) && change === undefined;
          if (!steady) return;
          for (const [number, j] of jobs.entries()) {
            if (j.stopsAt !== undefined || j.limit !== 0) continue;
            const share = rate / jobs.length;
            const line = (j.size * 1000) / (j.line + (j.prepare ?? 0) + 1);
            const got = log.reduce((sum, s) => (s.job === number ? sum + s.bytes : sum), 0);
            const due = (Math.min(share, line / 2) * (20_000 - j.startsAt)) / 1000;
            expect(got).toBeGreaterThan(0.75 * due - 3 * BATCH);
          }
        },
      ),
      // Shrinking takes minutes, and the jobs are few anyway.
      { numRuns: 150, endOnFailure: true },
    );
  });
});
