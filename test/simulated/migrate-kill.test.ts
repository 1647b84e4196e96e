/**
 * Either end of a migration is killed at each of its calls to its host, before and after the call; then both hosts are
 * recovered, in either order, once by a process that is killed itself at each of its calls. Afterwards exactly one copy
 * of the guest runs, or is paused if it was, its memory is whole, log-dirty is off, and no note is open. The same of a save.
 */
import { Writable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DomainInfo } from '../../lib/host/host.js';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import { startMigrate, startReceive } from '../../lib/migrate/migrate.js';
import { recover, type RecoveryFinding } from '../../lib/migrate/recover.js';
import { startSave } from '../../lib/save/save.js';
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
  #paused = false;
  #processes = 0;

  get source(): SimulatedHost {
    return this.hosts[this.#at];
  }

  get destination(): SimulatedHost {
    return this.hosts[1 - this.#at] as SimulatedHost;
  }

  async begin(kind: 'pvh' | 'hvm', paused: boolean): Promise<void> {
    const workload = { kind: 'hot-set', rate: 500 } as const;
    const guest = await this.source.createGuest({ kind, memory: 1 << 20, seed: 3, name: 'web1', workload });
    this.#domid = guest.domid;
    this.#paused = paused;
    if (paused) await this.source.toolstack.pause(this.#domid);
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

  /** A save, its guest going on afterwards, in which the process dies. */
  async save(death?: Death): Promise<Mortal> {
    const process = this.process(this.source, death);
    const to = new Writable({ write: (_bytes, _encoding, done) => done() });
    const { result } = startSave(process.host, {
      domid: this.#domid,
      to,
      afterwards: 'resume',
      maxIterations: 2,
    });
    await Promise.race([result.catch((error: unknown) => error), process.died]);
    return process;
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
    expect([info?.paused, info?.shutdown], text).toEqual([this.#paused, false]);
    const place = here.length === 1 ? 'source' : 'destination';
    if (place === 'destination') this.#at = (1 - this.#at) as 0 | 1;
    this.#domid = info?.domid as number;
    const guest = this.source.guest(this.#domid);
    expect(guest.stats().running, text).toBe(!this.#paused);
    if (this.#paused) await this.source.toolstack.unpause(this.#domid);
    expect(await guest.check(), text).toMatchObject({ errors: 0 });
    if (this.#paused) await this.source.toolstack.pause(this.#domid);
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

/** One of each run of equal calls, and all about the handover: a batch more or less makes no difference. */
function deathsIn(calls: readonly string[]): Death[] {
  return calls.flatMap((call, i) =>
    call === calls[i - 1] && call === calls[i + 1]
      ? []
      : (['before', 'after'] as const).map((when) => ({ at: i + 1, when })),
  );
}

const guests = [
  ['pvh', 'running'],
  ['hvm', 'running'],
  ['pvh', 'paused'],
] as const;

describe.each(guests)('%s, %s', (kind, state) => {
  const ground = new Ground();
  let calls: Record<Side, string[]>;

  beforeAll(async () => {
    await ground.begin(kind, state === 'paused');
    const clean = await ground.migrate(undefined);
    calls = { sender: clean.sender.calls, receiver: clean.receiver.calls };
    expect(await ground.judge('clean run')).toBe('destination');
  });

  afterAll(() => ground.close());

  const deaths = (side: Side): Death[] => deathsIn(calls[side]);

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

describe.each(guests)('a save of a guest: %s, %s', (kind, state) => {
  const ground = new Ground();
  afterAll(() => ground.close());

  test('its process is killed at each call, and who recovers it too', async () => {
    await ground.begin(kind, state === 'paused');
    const { calls } = await ground.save();
    expect(calls).toContain('toolstack.suspend');
    expect(await ground.judge('clean run')).toBe('source');
    const outcomes = new Set<string>();
    for (const [i, death] of deathsIn(calls).entries()) {
      const process = await ground.save(death);
      const what = `killed ${death.when} ${process.death ?? 'nothing'}`;
      for (const at of i % 2 === 0 ? [2 + (i % 7)] : [])
        await ground.recover('source first', { at, when: 'after' });
      const findings = await ground.recover('source first');
      for (const { role, outcome, message } of findings) {
        expect([role, outcome], what).toEqual(['save', 'resumed']);
        outcomes.add(message.replace(/^.*: /, ''));
      }
      expect(await ground.judge(`${what}: ${JSON.stringify(findings)}`)).toBe('source');
    }
    expect([...outcomes].sort()).toEqual(
      state === 'paused'
        ? ['its guest is here, paused as before', 'its guest stood still and is here, paused as before']
        : ['its guest goes on here as before', 'its guest stood still and goes on here'],
    );
  });
});
