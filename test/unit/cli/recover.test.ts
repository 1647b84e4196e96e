/** `xen-migrate recover`: what it finds, says and returns. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { answerQuery } from '../../../lib/migrate/answer.js';
import type { MigrationNote } from '../../../lib/toolstack/notes.js';
import { run, testIo } from './io.js';
import { FakeXen } from './xen.js';

const ID = '01234567-89ab-4cde-8f01-23456789abcd';

let dir: string;
let xen: FakeXen;
let domid: number;
beforeEach(async () => {
  dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-recover-'));
  xen = new FakeXen();
  domid = await xen.guest('web1');
});
afterEach(async () => {
  await xen.sim.close();
  rmSync(dir, { recursive: true, force: true });
});

const xm = (...argv: string[]): ReturnType<typeof run> => run(argv, testIo({ openXen: xen.openXen }));
const suspended = async (): Promise<boolean> => {
  const [info] = await xen.sim.listDomains();
  return info?.shutdown === true;
};

/** A note of a process that is dead. */
async function leave(changes: Partial<MigrationNote> = {}): Promise<void> {
  await xen.sim.toolstack.notes.create({
    role: 'sender',
    id: ID,
    owner: '',
    domid,
    name: 'web1',
    point: 2,
    paused: false,
    suspended: false,
    peer: undefined,
    peerHost: 'boot-2',
    since: 1,
    ...changes,
  });
}

test('nothing was left behind', async () => {
  expect(await xm('recover')).toMatchObject({ code: 0, out: 'nothing was left behind\n', err: '' });
  expect(await xm('recover', '--json')).toMatchObject({ code: 0, out: '[]\n' });
});

test('a guest that stood still goes on', async () => {
  await xen.sim.toolstack.suspend(domid, { live: true });
  await xen.sim.toolstack.rename(domid, 'web1--migratedaway');
  await leave({ point: 4 });
  const look = await xm('recover', '--dry-run');
  expect(look).toMatchObject({ code: 0 });
  expect(look.out).toContain('its guest is to go on here');
  expect(await suspended()).toBe(true);
  const { code, out } = await xm('recover');
  expect(out).toBe(
    `resumed     a migration from here of web1 (${ID}_sender) was cut short: its guest stood still and goes on here\n`,
  );
  expect(code).toBe(0);
  expect(await suspended()).toBe(false);
  expect(await xen.sim.toolstack.nameOf(domid)).toBe('web1');
  expect((await xm('recover')).out).toBe('nothing was left behind\n');
});

describe('a guest that was handed over', () => {
  beforeEach(async () => {
    await xen.sim.toolstack.suspend(domid, { live: true });
    await leave({ point: 5, peer: `unix://${path.join(dir, 'socket')}` });
  });

  test('nobody can be asked: it stays, the exit code says so, nothing else is done with it', async () => {
    const { code, out } = await xm('recover', '--timeout', '200ms');
    expect(code).toBe(3);
    expect(out).toMatch(/^unresolved {2}a migration from here of web1 /);
    expect(out).toContain(`xl destroy ${domid}`);
    expect(out).toContain(`xen-migrate recover --resume ${ID}`);
    expect(await suspended()).toBe(true);
    const saved = await xm('save', 'web1', path.join(dir, 'a'));
    expect(saved.code).not.toBe(0);
    expect(saved.err).toContain('recover it first');
    expect(await suspended()).toBe(true);
  });

  test('the administrator decides', async () => {
    const wrong = await xm('recover', '--resume', ID.replace('0', '9'), '--timeout', '200ms');
    expect(wrong.code).toBe(3);
    const { code, out } = await xm('recover', '--resume', ID, '--timeout', '200ms');
    expect([code, out.split(' ')[0]]).toEqual([0, 'resumed']);
    expect(await suspended()).toBe(false);
  });

  test('it is at the destination: the copy goes', async () => {
    const { code, out } = await xm('recover', '--destroy', ID, '--timeout', '200ms');
    expect([code, out.split(' ')[0]]).toEqual([0, 'destroyed']);
    expect(await xen.sim.listDomains()).toEqual([]);
  });

  test('the destination answers', async () => {
    const there = new FakeXen();
    const copy = await there.guest('web1');
    await there.sim.toolstack.notes.create({
      role: 'receiver',
      id: ID,
      owner: '',
      domid: copy,
      name: 'web1',
      point: 6,
      paused: false,
      suspended: false,
      peer: undefined,
      peerHost: undefined,
      since: 1,
    });
    const receiver = testIo({ openXen: there.openXen });
    const stop = new AbortController();
    const ended = run(['receive', '--listen', path.join(dir, 'socket')], receiver, stop.signal);
    await expect.poll(() => receiver.stdout.text).toContain('listening');
    const { code, out } = await xm('recover', '--json');
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject([
      { role: 'sender', id: ID, domid, outcome: 'destroyed', guest: { host: 'destination' } },
    ]);
    expect(await xen.sim.listDomains()).toEqual([]);
    stop.abort();
    await ended;
    // A question is no failed migration.
    expect(receiver.stderr.text).toBe('');
    await there.sim.close();
  });
});

test('a half-built domain goes; what a living process is at, and what is not ours, stays', async () => {
  const busy = { ...(await xen.sim.toolstack.notes.list())[0] };
  expect(busy).toEqual({});
  const config = await xen.sim.toolstack.domainConfig(domid);
  const half = await xen.sim.toolstack.createDomain(config.replaceAll('web1', 'web2--incoming'));
  const strange = await xen.sim.toolstack.createDomain(config.replaceAll('web1', 'web3--incoming'));
  // Its number was not noted any more.
  await leave({ role: 'receiver', domid: undefined, name: 'web2' });
  await leave({ id: ID.replace('0', '9'), owner: xen.sim.toolstack.notes.self });
  const { code, out } = await xm('recover');
  expect(code).toBe(0);
  expect(out.split('\n').map((line) => line.split(' ')[0])).toEqual(['destroyed', 'busy', 'stranger', '']);
  const left = (await xen.sim.listDomains()).map((info) => info.domid);
  expect(left).not.toContain(half);
  expect(left).toEqual([domid, strange]);
});

describe('a guest that came here, and its process died when it could not note that it was handed over', () => {
  beforeEach(async () => {
    await xen.sim.toolstack.rename(domid, 'web1--incoming');
    await leave({ role: 'receiver', point: 2 });
  });

  test('it runs: it has arrived, and stays', async () => {
    const { code, out } = await xm('recover', '--json');
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject([
      { role: 'receiver', domid, outcome: 'nothing', guest: { host: 'destination', state: 'running' } },
    ]);
    expect(await xen.sim.listDomains()).toMatchObject([{ domid, paused: false, shutdown: false }]);
    expect(await xen.sim.toolstack.nameOf(domid)).toBe('web1');
    expect(await xen.sim.toolstack.notes.list()).toMatchObject([{ role: 'receiver', point: 6, owner: '' }]);
    expect(await xm('recover')).toMatchObject({ code: 0, out: 'nothing was left behind\n' });
  });

  test.each([false, true])('its source, which asks, hears so (shut down since: %s)', async (down) => {
    if (down) await xen.sim.toolstack.suspend(domid, { live: true });
    const { toolstack } = xen.sim;
    expect(await answerQuery(xen.sim, toolstack, ID)).toEqual({
      standing: 'arrived',
      domid,
      state: 'running',
    });
    expect(await xen.sim.listDomains()).toMatchObject([{ domid, shutdown: down }]);
  });

  test('it is paused: it never ran, and goes', async () => {
    await xen.sim.toolstack.pause(domid);
    expect((await xm('recover')).out).toMatch(/^destroyed /);
    expect(await xen.sim.listDomains()).toEqual([]);
  });
});

test.each([
  [['--resume', 'x'], 'is no id of a migration'],
  [['--ask', 'gopher://x'], 'gopher'],
  [['--timeout', 'x'], '--timeout'],
])('%j is refused', async (argv, text) => {
  const { code, err } = await xm('recover', ...argv);
  expect(code).toBe(2);
  expect(err).toContain(text);
});
