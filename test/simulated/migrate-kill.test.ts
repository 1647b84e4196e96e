/**
 * Either end of a migration is killed at each of its calls to its host, before and after the call; then both hosts are
 * recovered, in either order, once by a process that is killed itself at each of its calls. Afterwards exactly one copy
 * of the guest runs, its memory is whole, log-dirty is off, and no note is open.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DomainInfo } from '../../lib/host/host.js';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import { startMigrate, startReceive } from '../../lib/migrate/migrate.js';
import { recover, type RecoveryFinding } from '../../lib/migrate/recover.js';
import { duplexPair } from '../unit/migrate/fakes.js';
import { Mortal, type Death } from './mortal.js';

type Side = 'sender' | 'receiver';
type Order = 'source first' | 'destination first';

/** Two hosts, and one guest that is moved between them again and again. */
class Ground {
  readonly hosts = [
    new SimulatedHost({ seed: 21 }),
    new SimulatedHost({ seed: 22, unscrubbedMemory: true }),
  ] as const;
  #at: 0 | 1 = 0;
  #domid = 0;
  #processes = 0;

  get source(): SimulatedHost {
    return this.hosts[this.#at];
  }

  get destination(): SimulatedHost {
    return this.hosts[1 - this.#at] as SimulatedHost;
  }

  async begin(kind: 'pvh' | 'hvm'): Promise<void> {
    const workload = { kind: 'hot-set', rate: 500 } as const;
    const guest = await this.source.createGuest({ kind, memory: 1 << 20, seed: 3, name: 'web1', workload });
    this.#domid = guest.domid;
  }

  async close(): Promise<void> {
    for (const host of this.hosts) await host.close();
  }

  process(host: SimulatedHost, death?: Death): Mortal {
    return new Mortal(host, `process ${++this.#processes}`, death);
  }

  /** A migration in which one end dies. Returns both ends' calls. */
  async migrate(side: Side | undefined, death?: Death): Promise<{ sender: Mortal; receiver: Mortal }> {
    const sender = this.process(this.source, side === 'sender' ? death : undefined);
    const receiver = this.process(this.destination, side === 'receiver' ? death : undefined);
    const [peer, from] = duplexPair({}, {}, 1 << 20);
    const received = startReceive(receiver.host, {
      from: receiver.holds(from),
      timeouts: { releaseMs: 20 },
    });
    // Without `reconnect`: asking again is recover's here.
    const sent = startMigrate(sender.host, {
      domid: this.#domid,
      peer: sender.holds(peer),
      maxIterations: 2,
    });
    const over = (job: { result: Promise<unknown> }, process: Mortal): Promise<unknown> =>
      Promise.race([job.result.catch((error: unknown) => error), process.died]);
    await Promise.all([over(sent, sender), over(received, receiver)]);
    return { sender, receiver };
  }

  /** Each host by a process of its own. */
  async recover(order: Order, death?: Death): Promise<RecoveryFinding[]> {
    const hosts = [this.source, this.destination];
    if (order === 'destination first') hosts.reverse();
    const findings: RecoveryFinding[] = [];
    for (const host of hosts) {
      const mortal = this.process(host, death);
      const done = recover(mortal.host, {
        watchMs: 0,
        resolveMs: 5000,
        reconnect: async () => mortal.holds(this.#ask()),
      });
      findings.push(...((await Promise.race([done, mortal.died])) ?? []));
    }
    return findings;
  }

  /** A connection to the service that answers at the destination. */
  #ask(): ReturnType<typeof duplexPair>[0] {
    const [peer, from] = duplexPair();
    startReceive(this.destination, { from }).result.catch(() => undefined);
    return peer;
  }

  /** What must hold whatever happened. Returns the side that has the guest. */
  async judge(what: string): Promise<'source' | 'destination'> {
    // A domain that is gone stays dying for as long as a dead process of this test seems to have pages of it mapped.
    const alive = async (host: SimulatedHost): Promise<DomainInfo[]> =>
      (await host.listDomains()).filter(({ dying }) => !dying);
    const here = await alive(this.source);
    const there = await alive(this.destination);
    const text = `${what}: ${JSON.stringify([here, there].map((side) => side.map(({ domid, paused, shutdown }) => ({ domid, paused, shutdown }))))}`;
    expect(here.length + there.length, text).toBe(1);
    const [info] = [...here, ...there];
    expect([info?.paused, info?.shutdown], text).toEqual([false, false]);
    const place = here.length === 1 ? 'source' : 'destination';
    if (place === 'destination') this.#at = (1 - this.#at) as 0 | 1;
    this.#domid = info?.domid as number;
    const guest = this.source.guest(this.#domid);
    expect(guest.stats().running, text).toBe(true);
    expect(await guest.check(), text).toMatchObject({ errors: 0 });
    expect(await this.source.toolstack.nameOf(this.#domid), text).toBe('web1');
    const { state } = this.source.inspect(this.#domid);
    expect(state.logDirty.enabled, text).toBe(false);
    expect(guest.deviceModel?.logDirty ?? false, text).toBe(false);
    for (const host of this.hosts) {
      for (const note of await host.toolstack.notes.list()) {
        // A receiver keeps the note of a guest that arrived for as long as its sender may ask.
        expect(note, text).toMatchObject({ role: 'receiver', point: 6 });
        expect(await host.toolstack.notes.isAlive(note.owner), text).toBe(false);
        await host.toolstack.notes.remove(note.role, note.id);
      }
    }
    return place;
  }
}

describe.each(['pvh', 'hvm'] as const)('%s', (kind) => {
  const ground = new Ground();
  let calls: Record<Side, string[]>;

  beforeAll(async () => {
    await ground.begin(kind);
    const clean = await ground.migrate(undefined);
    calls = { sender: clean.sender.calls, receiver: clean.receiver.calls };
    expect(await ground.judge('clean run')).toBe('destination');
  });

  afterAll(() => ground.close());

  /** One of each run of equal calls, and all about the handover: a batch more or less makes no difference. */
  function deaths(side: Side): Death[] {
    const list = calls[side];
    return list.flatMap((call, i) =>
      call === list[i - 1] && call === list[i + 1]
        ? []
        : (['before', 'after'] as const).map((when) => ({ at: i + 1, when })),
    );
  }

  test.each<[Side, Order]>([
    ['sender', 'source first'],
    ['sender', 'destination first'],
    ['receiver', 'source first'],
    ['receiver', 'destination first'],
  ])('the %s is killed at each call; recovered %s', async (side, order) => {
    const places = new Map<string, number>();
    for (const death of deaths(side)) {
      const ends = await ground.migrate(side, death);
      const what = `${side} killed ${death.when} ${ends[side].death ?? 'nothing'}`;
      const findings = await ground.recover(order);
      const again = await ground.recover(order);
      const bad = [...findings, ...again].filter(({ outcome }) => /unresolved|failed|busy/.test(outcome));
      // Whoever asks first may find the destination undecided, but not for long.
      expect(bad, what).toEqual([]);
      expect(again, what).toEqual([]);
      const place = await ground.judge(`${what}: ${JSON.stringify(findings)}`);
      places.set(place, (places.get(place) ?? 0) + 1);
    }
    expect([...places.keys()].sort()).toEqual(['destination', 'source']);
  });

  test.each<Side>(['sender', 'receiver'])('the %s is killed, and those who recover too', async (side) => {
    for (const [i, death] of deaths(side).entries()) {
      const ends = await ground.migrate(side, death);
      const what = `${side} killed ${death.when} ${ends[side].death ?? 'nothing'}`;
      const order = i % 2 === 0 ? 'source first' : 'destination first';
      for (const at of [2 + (i % 5), 3 + (i % 11)]) {
        await ground.recover(order, { at, when: i % 3 === 0 ? 'before' : 'after' });
      }
      await ground.recover(order);
      await ground.judge(what);
    }
  });
});
