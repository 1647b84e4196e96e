/** Notes of migrations in xenstore, owners that live and die, and names of domains. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { UsageError } from '../../../../lib/errors.js';
import { decodeNote, encodeNote, NOTE_MAX, type MigrationNote } from '../../../../lib/toolstack/notes.js';
import { makeWorld, type World } from './world.js';

const ID = '01234567-89ab-4cde-8f01-23456789abcd';
const OTHER = '11234567-89ab-4cde-8f01-23456789abcd';
const ROOT = '/tool/xen-migration/notes';

const note: MigrationNote = {
  role: 'sender',
  id: ID,
  owner: '',
  domid: 5,
  name: 'web1',
  point: 2,
  paused: false,
  suspended: false,
  peer: 'tls://host2:8002',
  peerHost: 'boot-2',
  since: 1_700_000_000_000,
};

let world: World;

beforeEach(async () => {
  world = await makeWorld();
});

afterEach(async () => {
  await world[Symbol.asyncDispose]();
});

describe('notes', () => {
  it('come back as they were, oldest first', async () => {
    const { notes } = world.toolstack;
    const second = { ...note, id: OTHER, role: 'receiver', domid: undefined, since: note.since - 1 } as const;
    expect(await notes.create(note)).toBe(true);
    expect(await notes.create(second)).toBe(true);
    expect(await notes.create({ ...note, point: 0 })).toBe(false);
    expect(await notes.list()).toEqual([second, note]);
    await notes.write({ ...note, point: 5 });
    expect(await notes.read('sender', ID)).toEqual({ ...note, point: 5 });
    expect(await notes.read('receiver', ID)).toBeUndefined();
    expect(world.store.store.has(`${ROOT}/${ID}_sender`)).toBe(true);
    await notes.remove('sender', ID);
    await notes.remove('sender', ID);
    expect(await notes.list()).toEqual([second]);
  });

  it('are claimed by one of several, and only from the owner that was seen', async () => {
    const { notes } = world.toolstack;
    await notes.create(note);
    const claims = await Promise.all([notes.claim(note), notes.claim(note), notes.claim(note)]);
    expect(claims.filter((claimed) => claimed !== undefined)).toEqual([{ ...note, owner: notes.self }]);
    expect((await notes.read('sender', ID))?.owner).toBe(notes.self);
    await notes.remove('sender', ID);
    expect(await notes.claim(note)).toBeUndefined();
  });

  it('what others have written there is left out', async () => {
    const { notes } = world.toolstack;
    await notes.create(note);
    const { store } = world;
    store.write(`${ROOT}/${OTHER}_sender`, encodeNote(note));
    store.write(`${ROOT}/${OTHER}_receiver`, '{"role":"receiver"}');
    store.write(`${ROOT}/nonsense`, encodeNote(note));
    expect(await notes.list()).toEqual([note]);
  });

  it('of guests that arrived long ago are forgotten when there are too many', async () => {
    const { notes } = world.toolstack;
    const idOf = (i: number): string => `${i.toString(16).padStart(8, '0')}-89ab-4cde-8f01-23456789abcd`;
    const arrived = { ...note, role: 'receiver', point: 6 } as const;
    for (let i = 0; i < 1001; i++)
      world.store.write(`${ROOT}/${idOf(i)}_receiver`, encodeNote({ ...arrived, id: idOf(i), since: i }));
    await notes.create({ ...arrived, id: OTHER, owner: notes.self });
    const left = await notes.list();
    expect(left).toHaveLength(1001);
    expect(left[0]?.id).toBe(idOf(1));
  });
});

describe('owners', () => {
  it('this process lives, one that has ended does not, nor does another of the same pid', async () => {
    const { notes } = world.toolstack;
    const [pid] = notes.self.split('.');
    expect(await notes.isAlive(notes.self)).toBe(true);
    for (const owner of ['', `${pid}.1`, `${pid}`, '1', 'x.y', '-1.5']) {
      expect(await notes.isAlive(owner), owner).toBe(false);
    }
    const child = spawn('sleep', ['60']);
    await once(child, 'spawn');
    const start = (await import('node:fs')).readFileSync(`/proc/${child.pid}/stat`, 'utf8').split(' ')[21];
    expect(await notes.isAlive(`${child.pid}.${start}`)).toBe(true);
    child.kill('SIGKILL');
    await once(child, 'exit');
    expect(await notes.isAlive(`${child.pid}.${start}`)).toBe(false);
  });

  it('the host has a name until it is booted', async () => {
    const { notes } = world.toolstack;
    expect(await notes.incarnation()).toMatch(/^[0-9a-f-]{36}$/);
    expect(await notes.incarnation()).toBe(await notes.incarnation());
  });
});

describe('decodeNote', () => {
  it.each([
    ['no JSON', '{'],
    ['no object', 'null'],
    ['too long', encodeNote({ ...note, name: 'x'.repeat(NOTE_MAX) })],
    ['no id', encodeNote({ ...note, id: '../../etc' })],
    ['an unknown role', encodeNote({ ...note, role: 'other' as 'save' })],
    ['a role that has no notes', encodeNote({ ...note, role: 'restore' as 'save' })],
    ['a domid that is none', encodeNote({ ...note, domid: -1 })],
    ['a point that is none', encodeNote({ ...note, point: 1.5 })],
    ['text for a flag', JSON.stringify({ ...note, paused: 'no' })],
  ])('%s is no note', (_what, text) => {
    expect(decodeNote(text)).toBeUndefined();
  });
});

describe('names', () => {
  it('a domain is renamed, unless another one has the name', async () => {
    const { store, toolstack } = world;
    world.xen.add(5);
    world.xen.add(0);
    store.write('/local/domain/5/vm', '/vm/4458989b-3afe-4440-9394-b06ebb2c7bcd');
    await toolstack.rename(5, 'web1--migratedaway');
    expect(await toolstack.nameOf(5)).toBe('web1--migratedaway');
    expect(await toolstack.findByName('web1--migratedaway')).toBe(5);
    expect(String(store.store.get('/vm/4458989b-3afe-4440-9394-b06ebb2c7bcd/name'))).toBe(
      'web1--migratedaway',
    );
    expect(await toolstack.findByName('web1')).toBeUndefined();
    // Nodes of a domain that is no more do not keep a name taken.
    store.write('/local/domain/77/name', 'web1');
    await toolstack.rename(5, 'web1');
    store.write('/local/domain/0/name', 'Domain-0');
    await expect(toolstack.rename(5, 'Domain-0')).rejects.toBeInstanceOf(UsageError);
    expect(await toolstack.nameOf(5)).toBe('web1');
  });
});
