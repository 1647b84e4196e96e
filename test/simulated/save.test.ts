/** Saves of simulated guests that run meanwhile, judged by both verifiers and by the guest itself on another host. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import type { CreateGuestOptions } from '../../lib/host/simulated/toolstack.js';
import { restore } from '../../lib/restore/restore.js';
import { save, startSave } from '../../lib/save/save.js';
import type { SaveFormat } from '../../lib/save/types.js';
import { verify } from '../../lib/stream/verify/verify.js';
import { openSource } from '../../lib/transport/open.js';
import { oracleOnFile, withoutOracle } from '../differential/oracle.js';

const MIB = 1 << 20;
const busy = { kind: 'hot-set', rate: 20_000 } as const;

let folder: string;
let hosts: SimulatedHost[] = [];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'xen-migration-save-'));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});
afterEach(async () => {
  const closing = hosts;
  hosts = [];
  await Promise.all(closing.map((host) => host.close()));
});

function host(seed: number, options = {}): SimulatedHost {
  const made = new SimulatedHost({ memory: 512 * MIB, seed, ...options });
  hosts.push(made);
  return made;
}

const guests: [string, CreateGuestOptions][] = [
  ['PVH', { kind: 'pvh' }],
  ['HVM', { kind: 'hvm', vcpus: 2 }],
  ['PV, linear p2m', { kind: 'pv', vcpus: 3 }],
  ['PV, tree p2m', { kind: 'pv', p2m: 'tree' }],
  ['PV, p2m over a level-2 boundary', { kind: 'pv', pv: { unalignedP2m: true } }],
  ['PV, p2m with room for more', { kind: 'pv', pv: { p2mTail: 9 } }],
  ['PV 32-bit, linear p2m', { kind: 'pv32', vcpus: 2 }],
  ['PV 32-bit, tree p2m', { kind: 'pv32', p2m: 'tree' }],
  ['PV 32-bit, p2m over a level-2 boundary', { kind: 'pv32', pv: { unalignedP2m: true, p2mTail: 3 } }],
];

const ways: [string, { live: boolean; verify: boolean; format: SaveFormat }][] = [
  ['live, xl', { live: true, verify: false, format: 'xl' }],
  ['live and verified, libxl', { live: true, verify: true, format: 'libxl' }],
  ['suspended, libxc', { live: false, verify: false, format: 'libxc' }],
];

describe.each(guests)('%s', (name, options) => {
  it.each(ways)('%s', async (way, { live, verify: verified, format }) => {
    const from = host(1);
    const guest = await from.createGuest({ memory: 24 * MIB, workload: busy, ...options });
    const config = await from.toolstack.domainConfig(guest.domid);
    const file = join(folder, `${name}-${way}.img`.replaceAll(/[^a-z0-9.]+/gi, '-'));
    const result = await save(from, { domid: guest.domid, to: file, live, verify: verified, format });

    expect(result.iterations.at(-1)!.suspended).toBe(true);
    expect(result.iterations.length > 1).toBe(live);
    expect(result.cleanupErrors).toEqual([]);
    expect(from.mappings).toBe(0);
    expect(await from.listDomains()).toEqual([]);

    const source = await openSource(file);
    const report = await verify(source, { format });
    await source.close();
    expect(report.findings.filter((f) => f.severity === 'error')).toEqual([]);
    expect(report.valid).toBe(true);
    if (!withoutOracle) {
      const verdict = oracleOnFile(file, format);
      // It cannot read xenstore data on Python 3.
      const itsBug = options.kind === 'hvm' && format !== 'libxc';
      expect([verdict.exit, itsBug ? '' : verdict.text]).toEqual([itsBug ? verdict.exit : 0, '']);
    }

    const to = host(2);
    const restored = await restore(to, { from: file, ...(format === 'xl' ? {} : { config }) });
    if (verified) expect(restored.verifyMismatches.count).toBe(0);
    const check = await to.guest(restored.domid).check();
    expect(check).toMatchObject({ errors: 0 });
  });
});

describe('a failed save', () => {
  it('leaves a guest that runs on as if nothing had been, for every kind', async () => {
    for (const [name, options] of guests) {
      const from = host(1);
      const guest = await from.createGuest({ memory: 16 * MIB, workload: busy, ...options });
      from.faults.add({ call: 'tscInfo', errno: 5 });
      await expect(save(from, { domid: guest.domid, to: '/dev/null' }), name).rejects.toMatchObject({
        errno: 5,
        guest: { host: 'source', state: 'running' },
      });
      expect(from.mappings, name).toBe(0);
      expect(guest.stats().running, name).toBe(true);
      expect(await guest.check(), name).toMatchObject({ errors: 0 });
      // And can be saved all the same.
      const job = startSave(from, { domid: guest.domid, to: '/dev/null', afterwards: 'resume' });
      await job.result;
      expect(guest.stats().running, name).toBe(true);
    }
  });

  it('of a guest whose p2m changes says so', async () => {
    const from = host(1);
    const guest = await from.createGuest({
      memory: 24 * MIB,
      kind: 'pv',
      workload: busy,
      pv: { changesP2m: true },
    });
    // Slow enough that the guest, which changes its p2m many times a second, comes to it.
    const saving = save(from, { domid: guest.domid, to: '/dev/null', maxBytesPerSecond: 8 * MIB });
    await expect(saving).rejects.toMatchObject({
      code: 'ERR_XEN_GUEST_P2M_CHANGED',
      guest: { host: 'source', state: 'running' },
    });
    expect(await guest.check()).toMatchObject({ errors: 0 });
  });

  it('of such a guest is possible while it stands still', async () => {
    const from = host(1);
    const pv = { changesP2m: true };
    const guest = await from.createGuest({ memory: 24 * MIB, kind: 'pv', workload: busy, pv });
    const file = join(folder, 'still.img');
    await save(from, { domid: guest.domid, to: file, live: false });
    const to = host(2);
    const { domid } = await restore(to, { from: file });
    expect(await to.guest(domid).check()).toMatchObject({ errors: 0 });
  });

  it.each(['pv', 'pv32', 'pvh', 'hvm'] as const)(
    'of a restored %s guest that has not run yet',
    async (kind) => {
      const from = host(1);
      const guest = await from.createGuest({ memory: 16 * MIB, kind, workload: busy });
      const files = [join(folder, `${kind}-1.img`), join(folder, `${kind}-2.img`)] as const;
      await save(from, { domid: guest.domid, to: files[0] });
      const between = host(2);
      const { domid } = await restore(between, { from: files[0], run: false });
      await save(between, { domid, to: files[1] });
      const to = host(3);
      const last = await restore(to, { from: files[1] });
      expect(await to.guest(last.domid).check()).toMatchObject({ errors: 0 });
    },
  );

  it('uses no view of guest memory after it gave it back', async () => {
    const from = host(1, { guardMappings: true });
    const guest = await from.createGuest({ memory: 16 * MIB, kind: 'pvh', workload: busy });
    const file = join(folder, 'guarded.img');
    await save(from, { domid: guest.domid, to: file });
    const to = host(2);
    const { domid } = await restore(to, { from: file });
    expect(await to.guest(domid).check()).toMatchObject({ errors: 0 });
  });
});
