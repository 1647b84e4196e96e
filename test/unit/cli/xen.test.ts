/** The commands on a Xen host: guests are found there, and stay. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { AddonError, UsageError } from '../../../lib/errors.js';
import type { Toolstack } from '../../../lib/toolstack/toolstack.js';
import { run, testIo, type TestIo } from './io.js';
import { FakeXen, HYPERVISOR } from './xen.js';

let dir: string;
let xen: FakeXen;
beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-cli-'));
  xen = new FakeXen();
});
afterEach(async () => {
  expect(xen.closed).toBe(xen.opened);
  await xen.sim.close();
  rmSync(dir, { recursive: true, force: true });
});

const at = (name: string): string => path.join(dir, name);
const io = (): TestIo => testIo({ openXen: xen.openXen });
const xm = (...argv: string[]): ReturnType<typeof run> => run(argv, io());

describe('which guest', () => {
  test('by name, by domid, and a number that is only a name', async () => {
    const domid = await xen.guest('web1');
    await xen.guest('77');
    for (const operand of ['web1', String(domid), '77']) {
      const { code, out } = await xm('save', operand, at(operand), '-c', '--json');
      expect(code, operand).toBe(0);
      expect(JSON.parse(out)).toMatchObject({ guest: operand === '77' ? '77' : 'web1' });
    }
  });

  test('a number is a domid first, and else a name', async () => {
    const domid = await xen.guest('web1');
    await xen.guest(String(domid));
    const { out } = await xm('save', String(domid), at('a'), '-c', '--json');
    expect(JSON.parse(out)).toMatchObject({ guest: 'web1', domid });
  });

  test.each(['web', 'Web1', '99', ''])('unknown: "%s"', async (operand) => {
    await xen.guest('web1');
    xen.labels.set(await xen.guest('x'), { name: undefined, type: undefined });
    const { code, out, err } = await xm('save', operand, at('a'));
    expect({ code, out }).toEqual({ code: 1, out: '' });
    expect(err).toBe(
      `xen-migrate save: there is no guest "${operand}" on this host: there are web1 (1), domain 2\n`,
    );
    expect(existsSync(at('a'))).toBe(false);
  });

  test('nothing is there', async () => {
    const { err } = await xm('migrate', 'web1', at('socket'));
    expect(err).toContain('there is no guest "web1" on this host: no guest is here\n');
  });

  test('hundreds are not all listed', async () => {
    const many = Array.from({ length: 40 }, (_, i) => i + 1);
    for (const domid of many) xen.labels.set(domid, { name: `g${domid}`, type: 'pvh' });
    const domid = await xen.guest('g1', 'pvh', 1 << 20);
    const one = (await xen.sim.listDomains())[0];
    xen.sim.listDomains = async () => many.map((n) => ({ ...one, domid: n }) as NonNullable<typeof one>);
    const { err } = await xm('save', 'nobody', at('a'));
    expect(err).toMatch(/there are g1 \(1\), .*g12 \(12\) and 28 more\n$/);
    expect(domid).toBe(1);
  });

  test.each(['0', 'Domain-0'])('the control domain (%s) is refused', async (operand) => {
    const { code, err } = await xm('save', operand, at('a'));
    expect(code).toBe(2);
    expect(err).toContain(`"${operand}" is the control domain, which cannot be moved`);
  });

  test('names cannot talk to the terminal', async () => {
    const domid = await xen.guest('a');
    xen.labels.set(domid, { name: 'a\u001b[2J', type: 'pvh' });
    const { out } = await xm('save', String(domid), at('a'), '-c');
    expect(out).toContain('saved a\\u001b[2J to ');
  });
});

describe('save and restore', () => {
  test('the guest is gone after a save, runs after a restore', async () => {
    const domid = await xen.guest('web1', 'pv');
    const saved = await xm('save', 'web1', at('a'));
    expect(saved.code, saved.err).toBe(0);
    expect(saved.out).toContain(`saved web1 to ${at('a')}: `);
    expect(await xen.sim.listDomains()).toEqual([]);
    const restored = await xm('restore', at('a'));
    expect(restored.code, restored.err).toBe(0);
    expect(restored.out).toMatch(
      new RegExp(`^restored pv guest web1 from .* as domain ${domid + 1}: .*\\n {2}it runs\\n$`),
    );
    expect(xen.sim.guest(domid + 1).stats().running).toBe(true);
  });

  test('a guest that cannot be destroyed afterwards is not saved first', async () => {
    const domid = await xen.guest('web1');
    const toolstack: Toolstack = xen.sim.toolstack;
    toolstack.assertDestroyable = async (asked) => {
      throw new UsageError(`domain ${asked} has a device (vif)`, { phase: 'setup' });
    };
    const { code, err } = await xm('save', 'web1', at('a'));
    expect({ code, err }).toEqual({
      code: 1,
      err: `xen-migrate save: domain ${domid} has a device (vif); the guest is running at the source\n`,
    });
    expect(existsSync(at('a'))).toBe(false);
    expect(xen.sim.guest(domid).stats().running).toBe(true);
    expect((await xm('save', 'web1', at('a'), '-c')).code).toBe(0);
  });

  test('-c lets it go on, -p keeps it paused, both together are refused', async () => {
    const domid = await xen.guest('web1');
    const guest = xen.sim.guest(domid);
    expect((await xm('save', 'web1', at('a'), '-c')).code).toBe(0);
    expect((await xen.sim.listDomains())[0]).toMatchObject({ domid, paused: false, shutdown: false });
    await expect.poll(() => guest.stats().running).toBe(true);
    expect((await xm('save', 'web1', at('b'), '--pause')).code).toBe(0);
    expect((await xen.sim.listDomains())[0]).toMatchObject({ domid, paused: true, shutdown: false });
    await xen.sim.toolstack.unpause(domid);
    await expect.poll(() => guest.stats().running).toBe(true);
    expect(await guest.check()).toMatchObject({ errors: 0 });
    const { code, err } = await xm('save', 'web1', at('c'), '-c', '-p');
    expect({ code, err }).toMatchObject({ code: 2, err: expect.stringContaining('give one') as string });
  });

  test('restore -p leaves it paused', async () => {
    await xen.guest('web1');
    await xm('save', 'web1', at('a'));
    const { code, out } = await xm('restore', at('a'), '-p');
    expect(code).toBe(0);
    expect(out).toMatch(/\n {2}it is paused\n$/);
    expect((await xen.sim.listDomains())[0]).toMatchObject({ paused: true });
  });

  test('a guest that cannot be asked about has arrived all the same', async () => {
    await xen.guest('web1', 'hvm');
    await xm('save', 'web1', at('a'));
    Object.defineProperty(xen, 'labels', {
      get: () => {
        throw new Error('xenstored is gone');
      },
    });
    const { code, out } = await xm('restore', at('a'), '--json');
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ ok: true, kind: 'hvm', restored: { domid: 2 } });
  });

  test.each([
    ['restore', 'file', '--check'],
    ['restore', 'file', '--save-to', 'x'],
    ['save', 'web1', 'file', '--memory', '4M'],
    ['migrate', 'web1', '/socket', '--sim-guest', 'pv'],
  ])('what is the simulator’s is refused: %s %s %s', async (...argv) => {
    const { code, err } = await xm(...argv);
    expect(code).toBe(2);
    expect(err).toMatch(
      /^xen-migrate \w+: --[a-z-]+ is for simulated hosts and this is a Xen host; add --host sim; see /,
    );
  });
});

describe('a hypervisor without shadow paging', () => {
  beforeEach(() => {
    xen.hypervisor = { ...HYPERVISOR, guests: { pv: true, hvm: true, hap: true, shadow: false } };
  });

  test('save stops a PV guest first, and says so', async () => {
    await xen.guest('web1', 'pv');
    xen.sim.faults.add({ call: 'enableLogDirty', errno: 95 });
    const { code, out, err } = await xm('save', 'web1', at('a'), '--json');
    expect(code, err).toBe(0);
    expect(err).toBe(
      'this hypervisor has no shadow paging and cannot tell which pages a PV guest writes: it is stopped first\n',
    );
    expect(JSON.parse(out)).toMatchObject({ iterations: [{ suspended: true }] });
  });

  test('migrate wants --no-live for a PV guest, and not for others', async () => {
    await xen.guest('web1', 'pv');
    await xen.guest('web2', 'pvh');
    const refused = await xm('migrate', 'web1', at('socket'));
    expect(refused.code).toBe(2);
    expect(refused.err).toContain('with --no-live it stands still while its memory is sent');
    expect((await xm('migrate', 'web1', at('socket'), '--no-live')).code).toBe(5);
    expect((await xm('migrate', 'web2', at('socket'))).code).toBe(5);
  });
});

test('migrate and receive', async () => {
  const domid = await xen.guest('web1', 'pv');
  const there = new FakeXen();
  const receiver = testIo({ openXen: there.openXen });
  const ended = run(['receive', '--listen', at('socket'), '--once', '--json'], receiver);
  await expect.poll(() => receiver.stdout.text).toContain('listening');
  const sent = await xm('migrate', String(domid), at('socket'));
  expect(sent.code, sent.err).toBe(0);
  expect(sent.err).toContain(`sending web1 to unix://${at('socket')}: pv guest, 7.85 MiB, 1 vcpu\n`);
  expect(sent.out).toMatch(/^web1 is running there as domain 1: /);
  const received = await ended;
  expect(received).toMatchObject({ code: 0, err: '' });
  const event = JSON.parse(received.out.trim().split('\n').at(-1) ?? '') as object;
  expect(event).toMatchObject({ event: 'received', ok: true, name: 'web1', kind: 'pv', state: 'running' });
  expect(event).not.toHaveProperty('proof');
  expect(await there.sim.guest(1).check()).toMatchObject({ errors: 0 });
  await there.sim.close();
});

describe('a paused guest and a receiver that is xl', () => {
  /** Stands for ssh, and for any command: says what it was given, greets as xl does, and keeps what it hears. */
  const stub = (): string => {
    const file = at('stub');
    const lines = [
      `for a; do echo "$a"; done > ${at('given')}`,
      "echo 'xl migration receiver ready, send binary domain data.'",
      `exec cat > ${at('heard')}`,
    ];
    writeFileSync(file, ['#!/bin/sh', ...lines, ''].join('\n'), { mode: 0o755 });
    return file;
  };
  const given = (): string | undefined => readFileSync(at('given'), 'utf8').trimEnd().split('\n').at(-1);

  test.each<[boolean, string[], string]>([
    [false, [], 'xl migrate-receive'],
    [true, [], 'xl migrate-receive -p'],
    [false, ['--peer-leaves-paused'], 'xl migrate-receive -p'],
    [true, ['--remote-command', 'xl2 migrate-receive -p', '--peer-leaves-paused'], 'xl2 migrate-receive -p'],
  ])('ssh, guest paused: %s, %j: it runs %s', async (paused, options, command) => {
    const domid = await xen.guest('web1', 'pvh', 1 << 20);
    if (paused) await xen.sim.toolstack.pause(domid);
    const { code } = await xm('migrate', 'web1', 'ssh://host2', '--ssh', stub(), ...options);
    // The stub closes its end when it has heard all, instead of saying that it has the guest.
    expect(code).not.toBe(0);
    expect(given()).toBe(command);
    expect(readFileSync(at('heard'), 'latin1')).toMatch(/^Xen saved domain/);
    expect((await xen.sim.listDomains())[0]).toMatchObject({ paused, shutdown: false });
  });

  test.each([
    ['ssh://host2', ['--remote-command', 'xl migrate-receive']],
    ['exec', []],
  ])('%s %j: it would run there, and is not sent', async (kind, options) => {
    const domid = await xen.guest('web1', 'pvh', 1 << 20);
    await xen.sim.toolstack.pause(domid);
    const file = stub();
    const address = kind === 'exec' ? `exec:${file}` : kind;
    const { code, err } = await xm('migrate', 'web1', address, '--ssh', file, ...options);
    expect(code).toBe(1);
    expect(err).toContain('--peer-leaves-paused');
    expect(err).toContain('the guest is paused at the source');
    expect(existsSync(at('heard')) ? readFileSync(at('heard'), 'latin1') : '').toBe('');
    expect((await xen.sim.listDomains())[0]).toMatchObject({ domid, paused: true, shutdown: false });
  });
});

describe('source and destination are one host', () => {
  const names = async (): Promise<unknown[]> => {
    const { out } = await xm('list', '--json');
    return (JSON.parse(out) as { name: string; domid: number }[]).map(({ name, domid }) => [domid, name]);
  };

  test('the guest has its name again when the old one is gone', async () => {
    await xen.guest('web1', 'pv');
    const receiver = io();
    const ended = run(['receive', '--listen', at('socket'), '--once'], receiver);
    await expect.poll(() => receiver.stdout.text).toContain('listening');
    expect((await xm('migrate', 'web1', at('socket'))).code).toBe(0);
    const { code, out, err } = await ended;
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toMatch(/^received web1 as domain 2: pv guest, running; /m);
    expect(await names()).toEqual([
      [0, 'Domain-0'],
      [2, 'web1'],
    ]);
    // What the toolstack was told: two domains never had one name.
    const config = JSON.parse(xen.sim.inspect(2).config) as { c_info: { name: string } };
    expect(config.c_info.name).toBe('web1--incoming');
  });

  test('another guest of the name stays, and it is said', async () => {
    const there = new FakeXen();
    await there.guest('web1');
    await xen.guest('web1');
    const receiver = testIo({ openXen: there.openXen });
    const ended = run(['receive', '--listen', at('socket'), '--once'], receiver);
    await expect.poll(() => receiver.stdout.text).toContain('listening');
    expect((await xm('migrate', 'web1', at('socket'))).code).toBe(0);
    const { code, out, err } = await ended;
    expect(code).toBe(0);
    expect(out).toContain('received web1--incoming as domain 2: ');
    expect(err).toBe(
      'xen-migrate receive: web1--incoming: another guest here is named web1; use xl rename when it is gone\n',
    );
    await there.sim.close();
  });
});

describe('list', () => {
  test('the columns of xl list, and the kind', async () => {
    await xen.guest('web1', 'pv', 16 << 20);
    await xen.guest('db', 'pvh', 16 << 20);
    await xen.guest('desk', 'hvm', 32 << 20);
    const gone = await xen.guest('x', 'pvh', 16 << 20);
    xen.labels.set(gone, { name: undefined, type: undefined });
    const use = { running: false, blocked: true, onlineVcpus: 2, cpuMs: 1249 };
    const pages = (16 << 20) / 4096;
    xen.infos.set(1, { use, totPages: pages });
    xen.infos.set(2, { use: { ...use, blocked: false }, paused: true, totPages: pages });
    xen.infos.set(3, { use: undefined, totPages: 2 * pages });
    const dead = { ...use, blocked: false, cpuMs: 0 };
    xen.infos.set(gone, { use: dead, shutdown: true, shutdownReason: 3, dying: true, totPages: 0 });
    const { code, out, err } = await xm('list');
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toBe(
      [
        'Name       ID   Mem   VCPUs   State    Time   Kind',
        'Domain-0    0   640       2   r-----   65.8   pv',
        'web1        1    16       2   -b----    1.2   pv',
        'db          2    16       2   --p---    1.2   pvh',
        'desk        3    32       1   r-----      -   hvm',
        '-           4     0       2   ---scd    0.0   hvm',
        '',
      ].join('\n'),
    );
  });

  test('--json', async () => {
    await xen.guest('web1');
    const { out } = await xm('list', '--json');
    expect(JSON.parse(out)).toMatchObject([
      { name: 'Domain-0', domid: 0, memory: 640 << 20, vcpus: 2, state: 'r-----', cpuMs: 65840, kind: 'pv' },
      { name: 'web1', domid: 1, kind: 'pvh' },
    ]);
  });

  test('--host sim has one of each kind to look at', async () => {
    const { code, out } = await run(['list', '--host', 'sim'], io());
    expect(code).toBe(0);
    expect(out.split('\n').map((line) => line.split(/\s+/).at(-1))).toEqual([
      'Kind',
      'pv',
      'pv32',
      'pvh',
      'hvm',
      '',
    ]);
  });
});

test('--host xen insists, and a host that cannot be opened keeps its code', async () => {
  const openXen = (): never => {
    throw new AddonError('ERR_XEN_PERMISSION', 'no permission: run as root');
  };
  for (const choice of [[], ['--host', 'xen']]) {
    const { code, err } = await run(['list', ...choice], testIo({ openXen }));
    expect({ code, err }).toEqual({
      code: 4,
      err: 'xen-migrate list: no permission: run as root; add --host sim to use a simulated host\n',
    });
  }
});
