/**
 * Migrations between simulated hosts in which one thing goes wrong: a call to either host fails, the connection is cut
 * or either end cancels at that call, the connection is cut at a byte of the stream. Afterwards exactly one copy may
 * run, its memory is whole, and the sender's error says where it is.
 */
import { afterEach, describe, expect, test } from 'vitest';
import { XenMigrationError } from '../../lib/errors.js';
import type { GuestKind } from '../../lib/host/simulated/guest.js';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import type { ArmedFault, CallRecord, SimulatedCall } from '../../lib/host/simulated/faults.js';
import { startMigrate, startReceive } from '../../lib/migrate/migrate.js';
import type { MigrateJob, MigrateResult, ReceiveJob, ReceiveResult } from '../../lib/migrate/types.js';
import { duplexPair, type Fault } from '../unit/migrate/fakes.js';

type Outcome<T> = { readonly value: T } | { readonly error: XenMigrationError };

async function outcome<T>(promise: Promise<T>): Promise<Outcome<T>> {
  try {
    return { value: await promise };
  } catch (error) {
    if (!XenMigrationError.is(error)) throw error;
    return { error };
  }
}

/** Two hosts and a guest that is somewhere on them. */
class Stage {
  readonly hosts: readonly [SimulatedHost, SimulatedHost];
  readonly kind: GuestKind;
  /** Where the guest is now. */
  #at: 0 | 1 = 0;
  #domid = 0;

  constructor(kind: GuestKind) {
    this.kind = kind;
    this.hosts = [
      new SimulatedHost({ seed: 11, recordCalls: true, guardMappings: true }),
      new SimulatedHost({ seed: 12, recordCalls: true, guardMappings: true }),
    ];
  }

  get source(): SimulatedHost {
    return this.hosts[this.#at];
  }

  get destination(): SimulatedHost {
    return this.hosts[1 - this.#at] as SimulatedHost;
  }

  async start(): Promise<void> {
    const workload = { kind: 'hot-set', rate: 2000 } as const;
    const guest = await this.source.createGuest({ kind: this.kind, memory: 4 << 20, seed: 5, workload });
    this.#domid = guest.domid;
  }

  /** One migration; `arm` sets its fault. Checks everything that must hold afterwards, and puts the guest right. */
  async migrate(
    what: string,
    arm: (jobs: { send: () => MigrateJob; receive: () => ReceiveJob; cut: () => void }) => void = () =>
      undefined,
    faults: { toReceiver?: Fault; toSender?: Fault } = {},
  ): Promise<string> {
    const { source, destination } = this;
    const domid = this.#domid;
    const [peer, from] = duplexPair(faults.toReceiver, faults.toSender, 1 << 20);
    const jobs: { send?: MigrateJob; receive?: ReceiveJob } = {};
    arm({
      send: () => jobs.send as MigrateJob,
      receive: () => jobs.receive as ReceiveJob,
      cut: () => {
        const reset = Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' });
        peer.destroy(reset);
        from.destroy(reset);
      },
    });
    jobs.receive = startReceive(destination, { from });
    jobs.send = startMigrate(source, { domid, peer, maxIterations: 2 });
    const [sent, received] = await Promise.all([outcome(jobs.send.result), outcome(jobs.receive.result)]);
    for (const host of this.hosts) host.faults.clear();
    const place = await this.#judge(what, sent, received);
    expect([source.mappings, destination.mappings], what).toEqual([0, 0]);
    return place;
  }

  async close(): Promise<void> {
    await Promise.all(this.hosts.map((host) => host.close()));
  }

  async #judge(
    what: string,
    sent: Outcome<MigrateResult>,
    received: Outcome<ReceiveResult>,
  ): Promise<string> {
    const { source, destination } = this;
    const place = 'value' in sent ? 'destination' : (sent.error.guest?.host ?? 'nowhere');
    const here = (await source.listDomains()).find((info) => info.domid === this.#domid);
    const there = await destination.listDomains();
    const running = [...(here === undefined ? [] : [here]), ...there].filter((d) => !d.paused && !d.shutdown);
    const text = `${what}: ${place}, ${'error' in sent ? sent.error.message : 'sent'} / ${'error' in received ? received.error.message : 'received'}`;
    if (place === 'source') {
      expect(there, text).toEqual([]);
      expect(running, text).toHaveLength(1);
    } else if (place === 'destination') {
      expect(running, text).toEqual(there);
      expect(there, text).toHaveLength(1);
      // A failed destroy leaves a copy that never runs again.
      if (here !== undefined) {
        expect(here.shutdown, text).toBe(true);
        await source.toolstack.destroy(this.#domid);
      }
    } else {
      expect(place, text).toBe('unknown');
      expect(here?.shutdown, text).toBe(true);
      expect(running, text).toEqual(there);
      expect(there.length, text).toBeLessThanOrEqual(1);
      // As the message tells: look at the destination, then destroy or resume here.
      if (there.length === 1) await source.toolstack.destroy(this.#domid);
      else await source.toolstack.resume(this.#domid);
    }
    const arrived = there[0];
    if (arrived !== undefined) {
      this.#at = (1 - this.#at) as 0 | 1;
      this.#domid = arrived.domid;
    }
    const guest = this.source.guest(this.#domid);
    expect(guest.stats().running, text).toBe(true);
    expect(await guest.check(), text).toMatchObject({ errors: 0 });
    return place;
  }
}

let stage: Stage | undefined;
afterEach(async () => {
  await stage?.close();
  stage = undefined;
});

/** Calls of a clean run to be hit: the first, second and last of each kind. */
function targets(log: readonly CallRecord[]): { call: SimulatedCall; nth: number }[] {
  const counts = new Map<SimulatedCall, number>();
  for (const { call } of log) counts.set(call, (counts.get(call) ?? 0) + 1);
  return [...counts].flatMap(([call, count]) =>
    [...new Set([1, 2, count])].filter((nth) => nth <= count).map((nth) => ({ call, nth })),
  );
}

describe.each(['pvh', 'pv'] as const)('%s', (kind) => {
  async function prepare(): Promise<{
    scene: Stage;
    calls: [ReturnType<typeof targets>, ReturnType<typeof targets>];
  }> {
    const scene = (stage = new Stage(kind));
    await scene.start();
    for (const host of scene.hosts) host.faults.log.length = 0;
    const [source, destination] = [scene.source, scene.destination];
    expect(await scene.migrate('clean run')).toBe('destination');
    const calls: [ReturnType<typeof targets>, ReturnType<typeof targets>] = [
      targets(source.faults.log),
      targets(destination.faults.log),
    ];
    expect(calls[0].length).toBeGreaterThan(10);
    expect(calls[1].length).toBeGreaterThan(10);
    return { scene, calls };
  }

  test.each([0, 1] as const)('a call fails (host %i)', async (side) => {
    const { scene, calls } = await prepare();
    const armed: ArmedFault[] = [];
    for (const { call, nth } of calls[side]) {
      const what = `${side === 0 ? 'source' : 'destination'} ${call} #${nth} fails`;
      await scene.migrate(what, () => {
        armed.push((side === 0 ? scene.source : scene.destination).faults.add({ call, nth, errno: 5 }));
      });
    }
    // How often some calls come depends on the guest; nearly all faults must have hit.
    expect(armed.filter(({ hits }) => hits > 0).length).toBeGreaterThan(armed.length * 0.8);
  });

  test.each([0, 1] as const)('the connection breaks at a call (host %i)', async (side) => {
    const { scene, calls } = await prepare();
    const places = new Set<string>();
    for (const { call, nth } of calls[side]) {
      const place = await scene.migrate(`cut at ${call} #${nth}`, ({ cut }) => {
        (side === 0 ? scene.source : scene.destination).faults.add({ call, nth, action: cut });
      });
      places.add(place);
    }
    expect(places).toContain('source');
  });

  test.each([0, 1] as const)('either end cancels at a call (host %i)', async (side) => {
    const { scene, calls } = await prepare();
    for (const who of ['send', 'receive'] as const) {
      for (const { call, nth } of calls[side].filter(({ nth: n }) => n === 1)) {
        const place = await scene.migrate(`${who} cancelled at ${call}`, (jobs) => {
          const action = (): void => jobs[who]().cancel('the test wants it');
          (side === 0 ? scene.source : scene.destination).faults.add({ call, nth, action });
        });
        expect(place, `${who} cancelled at ${call}`).not.toBe('unknown');
      }
    }
  });

  test('the connection is cut in the stream', async () => {
    const { scene } = await prepare();
    const bytes = kind === 'pv' ? 4.3e6 : 12e6;
    for (let i = 0; i < 8; i++) {
      const cutAt = Math.floor((bytes * (i + 0.5)) / 8);
      const place = await scene.migrate(`cut at byte ${cutAt}`, undefined, { toReceiver: { cutAt } });
      expect(['source', 'destination']).toContain(place);
    }
    for (let cutAt = 120; cutAt < 240; cutAt += 10) {
      await scene.migrate(`cut at byte ${cutAt} of the answers`, undefined, { toSender: { cutAt } });
    }
  });
});

test('hvm: a call for the device model fails', async () => {
  const scene = (stage = new Stage('hvm'));
  await scene.start();
  const calls = ['setDeviceModelLogDirty', 'deviceModelState', 'loadDeviceModelState'] as const;
  for (const name of calls) {
    const call = `toolstack.${name}` as const;
    const host = name === 'loadDeviceModelState' ? scene.destination : scene.source;
    expect(await scene.migrate(`${call} fails`, () => host.faults.add({ call, errno: 5 }))).toBe('source');
    expect(host.faults.count(call)).toBeGreaterThan(0);
  }
  expect(await scene.migrate('clean run')).toBe('destination');
});
