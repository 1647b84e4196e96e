/**
 * What a migration comes to when its destination can be asked again: the connection is cut, silent or late at every byte of
 * either direction, or either process is killed at it; in virtual time. No case may end with a guest of which nobody knows
 * where it is, nor with two of them.
 */
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { PeerError, XenMigrationError } from '../../../lib/errors.js';
import { JobControl } from '../../../lib/job.js';
import { startReceive } from '../../../lib/migrate/migrate.js';
import { runReceive } from '../../../lib/migrate/receiver.js';
import { recover } from '../../../lib/migrate/recover.js';
import { runMigrate, type SenderOptions } from '../../../lib/migrate/sender.js';
import type { ReceiveOptions } from '../../../lib/migrate/types.js';
import { SaveSteering } from '../../../lib/save/steering.js';
import { Mortal } from '../../simulated/mortal.js';
import { duplexPair, FakeHost, fakeRestore, fakeSave, World, type FakeDomain, type Fault } from './fakes.js';
import { ID } from './scene.js';

const MEMORY = 350;
const directions = ['toReceiver', 'toSender'] as const;
type Direction = (typeof directions)[number];
type Outcome = { readonly value: unknown } | { readonly error: unknown } | 'killed';

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date', 'performance'] }));
afterEach(() => void vi.useRealTimers());

interface Play {
  readonly faults?: Partial<Record<Direction, Fault>>;
  readonly send?: Partial<SenderOptions>;
  readonly receive?: Partial<ReceiveOptions>;
  /** Attempts to connect again that fail. */
  readonly deaf?: number;
  /** Dies when this byte is sent. */
  readonly death?: { readonly of: 'sender' | 'receiver'; readonly direction: Direction; readonly at: number };
}

/** Two hosts that keep notes, a guest, and a migration of it. */
class Scene {
  readonly world = new World();
  readonly source = new FakeHost(this.world, true);
  readonly destination = new FakeHost(this.world, true);
  readonly memory = Uint8Array.from({ length: MEMORY }, (_, i) => (i * 7) & 0xff);
  readonly guest: FakeDomain;
  /** Bytes that each direction carried. */
  sent: Record<Direction, number> = { toReceiver: 0, toSender: 0 };
  /** What a new connection takes until somebody is at its other end. */
  loginMs = 0;
  #deaf = 0;

  constructor() {
    const config = '{"c_info":{"name":"guest"}}';
    this.guest = this.source.add({ suspended: false, paused: false, memory: this.memory, config });
  }

  /** A new connection to the service of the destination. */
  async connect(): Promise<ReturnType<typeof duplexPair>[0]> {
    if (this.#deaf-- > 0) throw new PeerError('ERR_XEN_PEER_LOST', 'nobody listens');
    const [peer, from] = duplexPair();
    const answer = (): void => {
      startReceive(this.destination, { from }).result.catch(() => undefined);
    };
    if (this.loginMs === 0) answer();
    else setTimeout(answer, this.loginMs);
    return peer;
  }

  /** From now on every attempt to connect succeeds. */
  answers(): void {
    this.#deaf = 0;
  }

  async play({ faults = {}, send, receive, deaf = 0, death }: Play = {}): Promise<[Outcome, Outcome]> {
    this.#deaf = deaf;
    const sender = new Mortal(this.source, 'sender');
    const receiver = new Mortal(this.destination, 'receiver');
    const all: Record<Direction, Fault> = { toReceiver: {}, toSender: {}, ...faults };
    if (death !== undefined) {
      const act = (): void => (death.of === 'sender' ? sender : receiver).kill();
      all[death.direction] = { ...all[death.direction], notice: { at: death.at, act } };
    }
    const ends = duplexPair(all.toReceiver, all.toSender);
    const sendOptions: SenderOptions = {
      domid: this.guest.domid,
      peer: sender.holds(ends[0]),
      id: ID,
      reconnect: async () => sender.holds(await this.connect()),
      ...send,
    };
    const receiveOptions: ReceiveOptions = { from: receiver.holds(ends[1]), ...receive };
    const sending = new JobControl('migrate', this.guest.domid, sendOptions);
    const receiving = new JobControl('receive', undefined, receiveOptions);
    const over = settled([
      [
        sender,
        sending.run(() => runMigrate(sending, sender.host, sendOptions, new SaveSteering(), fakeSave)),
      ],
      [receiver, receiving.run(() => runReceive(receiving, receiver.host, receiveOptions, fakeRestore))],
    ]);
    const outcomes = await patiently(over);
    this.sent = { toReceiver: ends[0].sent, toSender: ends[1].sent };
    return outcomes;
  }

  /** Both hosts, by new processes. */
  async recover(): Promise<void> {
    for (const host of [this.source, this.destination]) {
      await patiently(recover(host, { reconnect: () => this.connect(), watchMs: 0 }));
    }
  }

  /** Exactly one copy, running, whole, under its name, and no matter open. Returns where. */
  async judge(what: string): Promise<'source' | 'destination'> {
    expect(this.world.mostRunning, what).toBe(1);
    const copies = [this.source, this.destination].flatMap((host) => [...host.domains.values()]);
    expect(copies.length, what).toBe(1);
    const [copy] = copies;
    expect(copy, what).toMatchObject({ suspended: false, paused: false });
    expect(Buffer.from(copy?.memory ?? []), what).toEqual(Buffer.from(this.memory));
    const host = this.source.domains.size === 1 ? this.source : this.destination;
    expect(await host.toolstack.nameOf?.(copy?.domid ?? 0), what).toBe(
      host === this.source && copy?.domid === 1 ? undefined : 'guest',
    );
    expect(await this.source.toolstack.notes?.list(), what).toEqual([]);
    for (const note of (await this.destination.toolstack.notes?.list()) ?? []) {
      expect(note, what).toMatchObject({ role: 'receiver', point: 6 });
    }
    return host === this.source ? 'source' : 'destination';
  }
}

async function settled(ends: [Mortal, Promise<unknown>][]): Promise<[Outcome, Outcome]> {
  const each = ends.map(([process, result]) =>
    Promise.race<Outcome>([
      result.then(
        (value) => ({ value }),
        (error: unknown) => ({ error }),
      ),
      process.died.then(() => 'killed'),
    ]),
  );
  return (await Promise.all(each)) as [Outcome, Outcome];
}

/** Waits in virtual time: an hour at most. */
async function patiently<T>(promise: Promise<T>): Promise<T> {
  const state = { over: false };
  const done = promise.finally(() => (state.over = true));
  done.catch(() => undefined);
  for (let i = 0; !state.over; i++) {
    if (i > 40_000) expect.unreachable('it hangs');
    // What is under way in this turn first, then time.
    await new Promise((resolve) => setImmediate(resolve));
    if (i % 8 === 7) await vi.advanceTimersByTimeAsync(200);
  }
  return done;
}

const length: Record<Direction, number> = { toReceiver: 0, toSender: 0 };

beforeEach(async () => {
  if (length.toSender > 0) return;
  const scene = new Scene();
  await scene.play();
  Object.assign(length, scene.sent);
  expect(await scene.judge('clean run')).toBe('destination');
});

function place(outcome: Outcome): string {
  if (outcome === 'killed') return 'killed';
  if ('value' in outcome) return 'destination';
  const { error } = outcome;
  return XenMigrationError.is(error) ? (error.guest?.host ?? 'nowhere') : `not ours: ${String(error)}`;
}

describe.each(directions)('%s', (direction) => {
  const faults: [string, (at: number) => Fault][] = [
    ['cut', (cutAt) => ({ cutAt })],
    ['silent', (silentAt) => ({ silentAt })],
    ['late beyond every limit', (at) => ({ late: { at, ms: 10 * 60_000 } })],
  ];
  test.each(faults)('%s at every byte: the sender knows where the guest is', async (name, fault) => {
    const places = new Map<string, number>();
    for (let at = 0; at < length[direction]; at++) {
      const what = `${direction} ${name} at ${at}`;
      const scene = new Scene();
      const [sent] = await scene.play({ faults: { [direction]: fault(at) }, deaf: at % 4 });
      await scene.recover();
      const there = await scene.judge(`${what}: ${place(sent)}`);
      expect(place(sent), what).toBe(there);
      places.set(there, (places.get(there) ?? 0) + 1);
    }
    expect([...places.keys()].sort()).toEqual(['destination', 'source']);
  });

  test('late, with a receiver that is more patient: it is waited for', async () => {
    for (let at = 0; at < length[direction]; at++) {
      const what = `${direction} late at ${at}`;
      const scene = new Scene();
      const [sent] = await scene.play({
        faults: { [direction]: { late: { at, ms: 20_000 } } },
        send: { timeouts: { helloMs: 60_000, switchoverMs: 5000 } },
        receive: { timeouts: { helloMs: 60_000, switchoverMs: 600_000 } },
      });
      await scene.recover();
      expect(place(sent), what).toBe(await scene.judge(what));
    }
  });

  test('the other host takes half a minute to let one in, as a login may: it is asked all the same', async () => {
    for (let at = 0; at < length[direction]; at += 3) {
      const what = `${direction} cut at ${at}`;
      const scene = new Scene();
      scene.loginMs = 25_000;
      const [sent] = await scene.play({ faults: { [direction]: { cutAt: at } } });
      expect(place(sent), what).not.toBe('unknown');
      await scene.recover();
      expect(place(sent), what).toBe(await scene.judge(what));
    }
  });

  test.each(['sender', 'receiver'] as const)('the %s killed at every byte', async (of) => {
    for (let at = 0; at < length[direction]; at++) {
      const what = `${of} killed, ${direction} ${at}`;
      const scene = new Scene();
      const outcomes = await scene.play({
        death: { of, direction, at },
        send: { timeouts: { resolveMs: 2000 } },
      });
      await scene.recover();
      await scene.recover();
      await scene.judge(`${what}: ${outcomes.map(place).join(', ')}`);
    }
  });

  test('nobody can be asked: the guest stands still at the source until somebody can', async () => {
    let unknown = 0;
    for (let at = 0; at < length[direction]; at++) {
      const what = `${direction} cut at ${at}, nobody answers`;
      const scene = new Scene();
      const [sent] = await scene.play({ faults: { [direction]: { cutAt: at } }, deaf: 1_000_000 });
      if (place(sent) === 'unknown') {
        unknown++;
        expect(scene.guest.suspended, what).toBe(true);
        expect(sent, what).toMatchObject({ error: { code: 'ERR_XEN_HANDOVER_UNKNOWN' } });
        const found = await patiently(recover(scene.source, { watchMs: 0 }));
        expect(found, what).toMatchObject([{ outcome: 'unresolved', guest: { host: 'unknown' } }]);
        expect(scene.guest.suspended, what).toBe(true);
      }
      scene.answers();
      await scene.recover();
      await scene.judge(what);
    }
    expect(unknown).toBeGreaterThan(10);
  });
});
