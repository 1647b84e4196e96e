/** PV guests of every layout through save and restore, their kernel at work meanwhile. */
import { afterEach, describe, expect, test } from 'vitest';
import { SHARED_INFO } from '../../lib/abi/pv.js';
import { u32 } from '../../lib/bytes/le.js';
import { GuestError } from '../../lib/errors.js';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import type { CreateGuestOptions } from '../../lib/host/simulated/toolstack.js';
import { restore } from '../../lib/restore/restore.js';
import { save } from '../../lib/save/save.js';
import { MemorySink } from '../../lib/transport/index.js';

const hosts: SimulatedHost[] = [];
afterEach(async () => {
  await Promise.all(hosts.splice(0).map((host) => host.close()));
});

function newHost(seed: number): SimulatedHost {
  const host = new SimulatedHost({ seed });
  hosts.push(host);
  return host;
}

/** Fast enough that the kernel ticks many times in a save. */
const workload = { kind: 'hot-set', rate: 100_000 } as const;
const layouts: readonly (readonly [string, Partial<CreateGuestOptions>])[] = [
  ['linear p2m', { p2m: 'linear' }],
  ['linear p2m across two tables', { p2m: 'linear', pv: { unalignedP2m: true } }],
  ['linear p2m with a tail', { p2m: 'linear', pv: { unalignedP2m: true, p2mTail: 2 } }],
  ['tree', { p2m: 'tree' }],
  ['tree with a tail', { p2m: 'tree', pv: { p2mTail: 1 } }],
];

describe.each(['pv', 'pv32'] as const)('%s', (kind) => {
  test.each(layouts)('%s, there and back, live', async (_name, options) => {
    const here = newHost(1);
    const there = newHost(2);
    const guest = await here.createGuest({ kind, memory: 32 << 20, vcpus: 3, workload, seed: 5, ...options });
    await expect.poll(() => guest.stats().steps).toBeGreaterThan(2000);
    const first = new MemorySink();
    const sent = await save(here, { domid: guest.domid, to: first, afterwards: 'destroy' });
    expect(sent.iterations.length).toBeGreaterThan(1);
    const { domid } = await restore(there, { from: first.bytes });
    const arrived = there.guest(domid);
    const { steps } = arrived.stats();
    await expect.poll(() => arrived.stats().steps).toBeGreaterThan(steps + 2000);
    expect(await arrived.check()).toMatchObject({ errors: 0 });

    const second = new MemorySink();
    await save(there, { domid, to: second, afterwards: 'destroy' });
    const back = await restore(here, { from: second.bytes });
    const again = here.guest(back.domid);
    await expect.poll(() => again.stats().steps).toBeGreaterThan(steps + 4000);
    expect(await again.check()).toMatchObject({ errors: 0 });
  });

  test('a guest that changes its p2m cannot be saved live, and runs on', async () => {
    const host = newHost(1);
    const pv = { changesP2m: true };
    const guest = await host.createGuest({ kind, memory: 32 << 20, workload, seed: 5, pv });
    const { state } = host.inspect(guest.domid);
    const at = SHARED_INFO[kind === 'pv' ? 8 : 4].p2mGeneration;
    const generation = (): number => u32(state.memory.page(state.sharedInfoMfn), at);
    const beforeSwitchover = async (): Promise<void> => {
      const before = generation();
      await expect.poll(generation).toBeGreaterThan(before);
    };
    const saving = save(host, { domid: guest.domid, to: new MemorySink(), beforeSwitchover });
    await expect(saving).rejects.toThrow(GuestError);
    const { steps } = guest.stats();
    await expect.poll(() => guest.stats().steps).toBeGreaterThan(steps + 2000);
    expect(await guest.check()).toMatchObject({ errors: 0 });
  });

  test('a guest that gave memory back and took some again', async () => {
    const host = newHost(1);
    const guest = await host.createGuest({ kind, memory: 16 << 20, workload, seed: 5 });
    expect(await guest.balloon(20)).toHaveLength(20);
    expect(await guest.balloon(-30)).toHaveLength(30);
    const sink = new MemorySink();
    await save(host, { domid: guest.domid, to: sink, afterwards: 'destroy' });
    const there = newHost(2);
    const { domid } = await restore(there, { from: sink.bytes });
    const arrived = there.guest(domid);
    expect(await arrived.check()).toMatchObject({ errors: 0 });
    // The rest of its balloon area is still out: it can come back there.
    expect((await arrived.balloon(-1000)).length).toBeGreaterThan(0);
    expect(await arrived.check()).toMatchObject({ errors: 0 });
  });
});
