/** Saves of simulated guests, restored: the guest itself says whether it is whole; and whatever can go wrong on the way. */
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { Errno } from '../../lib/abi/errno.js';
import { CancelledError, HypercallError, XenMigrationError } from '../../lib/errors.js';
import type { GuestKind } from '../../lib/host/simulated/guest.js';
import { SimulatedHost, type SimulatedHostOptions } from '../../lib/host/simulated/host.js';
import { restore, startRestore } from '../../lib/restore/restore.js';
import type { RestoreOptions } from '../../lib/restore/types.js';
import { save } from '../../lib/save/save.js';
import type { SaveOptions } from '../../lib/save/types.js';
import { MemorySink } from '../../lib/transport/index.js';

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

function newHost(options: SimulatedHostOptions = {}): SimulatedHost {
  const host = new SimulatedHost({ seed: 20, ...options });
  cleanups.push(() => host.close());
  return host;
}

async function imageOf(kind: GuestKind, options: Partial<SaveOptions> = {}, vcpus = 1): Promise<Uint8Array> {
  const host = newHost({ seed: 10 });
  const guest = await host.createGuest({
    kind,
    memory: 4 << 20,
    vcpus,
    seed: 4,
    workload: { kind: 'uniform' },
  });
  const sink = new MemorySink();
  await save(host, { domid: guest.domid, to: sink, ...options });
  return sink.bytes.slice();
}

/** Nothing may be left of a restore that failed. */
async function expectNothing(host: SimulatedHost): Promise<void> {
  host.faults.clear();
  expect(await host.listDomains()).toEqual([]);
  expect(host.mappings).toBe(0);
}

const kinds: readonly GuestKind[] = ['pvh', 'hvm', 'pv', 'pv32'];

describe.each(kinds)('%s', (kind) => {
  test.each([1, 3])(
    'with %d vcpus goes on where it was, through mappings that die when they are released',
    async (vcpus) => {
      const image = await imageOf(kind, {}, vcpus);
      const host = newHost({ guardMappings: true });
      const { domid, guestType } = await restore(host, { from: image });
      expect(guestType).toBe(kind.startsWith('pv') && kind !== 'pvh' ? 'pv' : 'hvm');
      const guest = host.guest(domid);
      expect(guest.kind).toBe(kind);
      const { steps } = guest.stats();
      await expect.poll(() => guest.stats().steps).toBeGreaterThan(steps);
      expect(await guest.check()).toMatchObject({ errors: 0 });
      expect(host.mappings).toBe(0);
    },
  );

  test('is verified, and nothing differs', async () => {
    const host = newHost();
    const { verifyMismatches } = await restore(host, { from: await imageOf(kind, { verify: true }) });
    expect(verifyMismatches).toEqual({ count: 0, pfns: [] });
  });

  test('any call that fails: nothing is left', async () => {
    const image = await imageOf(kind, { live: false });
    const count = newHost();
    await restore(count, { from: image, run: false });
    const calls = count.faults.total;
    expect(calls).toBeGreaterThan(10);
    for (let nth = 1; nth <= calls; nth++) {
      const host = newHost();
      host.faults.add({ nth, errno: Errno.EIO });
      const error: unknown = await restore(host, { from: image, run: false }).catch(
        (reason: unknown) => reason,
      );
      if (!XenMigrationError.is(error)) {
        // A superpage that is refused is not missed.
        expect(error).toMatchObject({ domid: 1 });
        await host.close();
        continue;
      }
      expect(error).toBeInstanceOf(HypercallError);
      expect(error).toMatchObject({ errno: Errno.EIO, guest: { host: 'none', state: 'gone' } });
      await expectNothing(host);
      await host.close();
    }
  });

  test('a cancel at any call: nothing is left', async () => {
    const image = await imageOf(kind, { live: false });
    const count = newHost();
    await restore(count, { from: image, run: false });
    const calls = count.faults.total;
    for (let nth = 1; nth <= calls; nth++) {
      const host = newHost();
      const job = startRestore(host, { from: image, run: false });
      host.faults.add({ nth, action: () => job.cancel() });
      await expect(job.result).rejects.toBeInstanceOf(CancelledError);
      await expectNothing(host);
      await host.close();
    }
  });
});

test('a host that lacks what the guest was promised refuses it', async () => {
  const host = newHost({ missingFeatures: [{ leaf: 1, register: 'edx', mask: 1 }] });
  const image = await imageOf('pvh');
  const error: unknown = await restore(host, { from: image }).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(HypercallError);
  expect(error).toMatchObject({ phase: 'static-data', guest: { host: 'none', state: 'gone' } });
  await expectNothing(host);
});

test('a host without PV refuses PV guests', async () => {
  const host = newHost({ pv: false });
  await expect(restore(host, { from: await imageOf('pv') })).rejects.toMatchObject({
    errno: Errno.EOPNOTSUPP,
  });
  await expectNothing(host);
});

test('a host that is too small says how much was missing', async () => {
  const host = newHost({ memory: 2 << 20 });
  await expect(restore(host, { from: await imageOf('pvh') })).rejects.toThrow(
    /XENMEM_populate_physmap: \d+ pages could not be allocated: the domain has \d+ of at most \d+ pages/,
  );
  await expectNothing(host);
});

test.each(kinds)('a %s stream for a domain of the other kind', async (kind) => {
  const host = newHost();
  const config = JSON.stringify({
    c_info: { type: kind.startsWith('pv') && kind !== 'pvh' ? 'pvh' : 'pv' },
    b_info: { max_memkb: 8192 },
  });
  await expect(restore(host, { from: await imageOf(kind), config })).rejects.toMatchObject({
    code: 'ERR_XEN_STREAM_GUEST_TYPE',
  });
  await expectNothing(host);
});

describe('a peer', () => {
  /** Sends so much of an image and goes away as `leave` does. */
  async function fromPeer(
    image: Uint8Array,
    length: number,
    leave: (socket: net.Socket) => void,
    options: RestoreOptions = {},
  ): Promise<{ error: unknown; host: SimulatedHost }> {
    const dir = await mkdtemp(path.join(tmpdir(), 'xen-migration-test-'));
    cleanups.push(() => rm(dir, { recursive: true, force: true }));
    const server = net.createServer((socket) => {
      socket.on('error', () => undefined);
      socket.write(image.subarray(0, length), () => leave(socket));
    });
    cleanups.push(async () => server.close());
    server.listen(path.join(dir, 'socket'));
    await once(server, 'listening');
    const host = newHost();
    const error: unknown = await restore(host, {
      from: net.connect(path.join(dir, 'socket')),
      ...options,
    }).catch((reason: unknown) => reason);
    return { error, host };
  }

  test.each([10, 3000, 1_000_000])('that ends after %d bytes', async (length) => {
    const { error, host } = await fromPeer(await imageOf('pvh'), length, (socket) => socket.end());
    expect(error).toMatchObject({ code: 'ERR_XEN_STREAM_TRUNCATED', offset: length });
    await expectNothing(host);
  });

  test('that is gone, as if its host had lost power', async () => {
    const { error, host } = await fromPeer(await imageOf('pvh'), 1_000_000, (socket) => socket.destroy());
    expect(XenMigrationError.is(error)).toBe(true);
    expect(['ERR_XEN_STREAM_TRUNCATED', 'ERR_XEN_PEER_LOST']).toContain((error as XenMigrationError).code);
    await expectNothing(host);
  });

  test('that falls silent: the caller gives up', async () => {
    const { error, host } = await fromPeer(await imageOf('pvh'), 1_000_000, () => undefined, {
      signal: AbortSignal.timeout(300),
    });
    expect(error).toBeInstanceOf(CancelledError);
    await expectNothing(host);
  });
});
