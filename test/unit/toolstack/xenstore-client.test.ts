/** The client against a fake xenstored: nodes, transactions, watches, and what goes wrong in between. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { CancelledError, TimeoutError, UsageError, XenstoreError } from '../../../lib/errors.js';
import { openXenstore, xenstorePaths, type XenstoreClient } from '../../../lib/toolstack/xenstore/index.js';
import { startFakeXenstored, type FakeXenstored } from './fake-xenstored.js';

let dir: string;
let fake: FakeXenstored;
let client: XenstoreClient;

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'xenstore-'));
  fake = await startFakeXenstored({ dir });
  client = await openXenstore({ path: fake.path });
});

afterEach(async () => {
  client.close();
  await fake.close();
  await rm(dir, { recursive: true, force: true });
});

/** Waits for the fake to have seen something. */
const until = (condition: () => boolean): Promise<void> =>
  vi.waitFor(() => expect(condition()).toBe(true), { interval: 2, timeout: 20_000 });

const errorOf = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    (value) => expect.fail(`resolved to ${String(value)}`),
    (error: unknown) => error,
  );

describe('nodes', () => {
  it('are written, read, listed and removed', async () => {
    await client.write('/a/b', 'hello');
    await client.write('/a/c', new Uint8Array([0, 255, 0]));
    await client.mkdir('/a/d/e');
    expect(await client.read('/a/b')).toBe('hello');
    expect(await client.readBytes('/a/c')).toEqual(new Uint8Array([0, 255, 0]));
    expect(await client.read('/a/d')).toBe('');
    expect(await client.list('/a')).toEqual(['b', 'c', 'd']);
    expect(await client.list('/')).toEqual(['a']);
    expect(await client.list('/a/b')).toEqual([]);
    await client.remove('/a/d');
    expect(await client.read('/a/d/e')).toBeUndefined();
    expect(fake.store.get('/a/b')).toBe('hello');
  });

  it('that do not exist are undefined, empty, or gone already', async () => {
    expect(await client.read('/x')).toBeUndefined();
    expect(await client.readBytes('/x')).toBeUndefined();
    expect(await client.list('/x')).toEqual([]);
    expect(await client.getPermissions('/x')).toBeUndefined();
    await client.remove('/x');
    await client.remove('/x/y/z');
  });

  it('have permissions', async () => {
    await client.write('/p', '');
    await client.setPermissions('/p', [
      { domid: 3, access: 'none' },
      { domid: 0, access: 'both' },
      { domid: 32_000, access: 'write' },
    ]);
    expect(await client.getPermissions('/p')).toEqual([
      { domid: 3, access: 'none' },
      { domid: 0, access: 'both' },
      { domid: 32_000, access: 'write' },
    ]);
  });

  it('with more children than one answer holds are listed in parts', async () => {
    const names = Array.from({ length: 700 }, (_, i) => `child-${String(i).padStart(6, '0')}`);
    for (const name of names) fake.write(`/long/${name}`, '');
    expect(await client.list('/long')).toEqual(names);
    expect(fake.requests.filter((request) => request === 'XS_DIRECTORY_PART /long')).toHaveLength(3);
  });

  it('that change while they are listed in parts are listed anew', async () => {
    for (let i = 0; i < 700; i++) fake.write(`/long/child-${i}`, '');
    const release = fake.hold('XS_DIRECTORY_PART');
    const listed = client.list('/long');
    await until(() => fake.requests.includes('XS_DIRECTORY_PART /long'));
    fake.write('/long/zzz', '');
    release();
    expect(await listed).toHaveLength(701);
  });

  it('refused by xenstored tell operation, path and errno', async () => {
    const error = await errorOf(client.write('/not allowed', 'x'));
    expect(error).toBeInstanceOf(XenstoreError);
    expect(error).toMatchObject({
      code: 'ERR_XEN_XENSTORE',
      operation: 'XS_WRITE',
      path: '/not allowed',
      errno: 22,
      message: 'xenstore: XS_WRITE /not allowed: xenstored answered EINVAL',
    });
    expect(await client.list('/')).toEqual([]);
  });

  it('that cannot be sent are not sent', async () => {
    await expect(client.read('')).rejects.toThrow(UsageError);
    await expect(client.read('relative')).rejects.toThrow('must be absolute, not "relative"');
    await expect(client.write('/a\0b', 'x')).rejects.toThrow(UsageError);
    await expect(client.read(`/${'a'.repeat(3072)}`)).rejects.toThrow(UsageError);
    await expect(client.write('/a', 'x'.repeat(4096))).rejects.toMatchObject({
      errno: 7,
      operation: 'XS_WRITE',
    });
    expect(fake.requests).toEqual([]);
    // The longest that fits.
    await client.write('/a', 'x'.repeat(4093));
    expect(fake.store.get('/a')).toHaveLength(4093);
  });

  it('many at once come back to whoever asked', async () => {
    await Promise.all(Array.from({ length: 300 }, (_, i) => client.write(`/n/${i}`, `value ${i}`)));
    const values = await Promise.all(Array.from({ length: 300 }, (_, i) => client.read(`/n/${i}`)));
    expect(values).toEqual(Array.from({ length: 300 }, (_, i) => `value ${i}`));
  });
});

describe('domains', () => {
  it('are introduced, resumed and released', async () => {
    await client.introduce(7, 0xff_fff, 3);
    expect(fake.introduced.get(7)).toEqual({ gfn: 0xff_fff, port: 3 });
    expect(await client.isIntroduced(7)).toBe(true);
    expect(await client.isIntroduced(8)).toBe(false);
    expect(await client.domainPath(7)).toBe('/local/domain/7');
    await client.resume(7);
    expect(fake.resumed).toEqual([7]);
    await client.release(7);
    expect(await client.isIntroduced(7)).toBe(false);
    await expect(client.resume(7)).rejects.toMatchObject({ operation: 'XS_RESUME', errno: 2 });
    await expect(client.introduce(-1, 0, 0)).rejects.toThrow(UsageError);
    await expect(client.introduce(1, 0.5, 0)).rejects.toThrow(UsageError);
  });
});

describe('transactions', () => {
  it('commit what they did, all at once', async () => {
    const result = await client.transaction(async (tx) => {
      await tx.write('/t/a', '1');
      await tx.write('/t/b', '2');
      expect(await tx.read('/t/a')).toBe('1');
      expect(await client.read('/t/a')).toBeUndefined();
      return 'done';
    });
    expect(result).toBe('done');
    expect(await client.list('/t')).toEqual(['a', 'b']);
  });

  it('run again after a conflict', async () => {
    fake.write('/counter', '0');
    const increment = (): Promise<void> =>
      client.transaction(async (tx) => {
        await tx.write('/counter', String(Number(await tx.read('/counter')) + 1));
      });
    await Promise.all(Array.from({ length: 8 }, increment));
    expect(fake.store.get('/counter')).toBe('8');
  });

  it('give up after so many conflicts', async () => {
    fake.conflict(3);
    let runs = 0;
    await expect(client.transaction(() => ++runs, { attempts: 3 })).rejects.toMatchObject({
      operation: 'XS_TRANSACTION_END',
      errno: 11,
    });
    expect(runs).toBe(3);
    fake.conflict(2);
    await client.transaction(() => ++runs, { attempts: 3 });
    expect(runs).toBe(6);
  });

  it('drop what they did if the body throws', async () => {
    const mine = new Error('mine');
    const error = await errorOf(
      client.transaction(async (tx) => {
        await tx.write('/t', '1');
        throw mine;
      }),
    );
    expect(error).toBe(mine);
    expect(fake.requests.at(-1)).toBe('XS_TRANSACTION_END F');
    expect(fake.store.has('/t')).toBe(false);
  });

  it('drop what they did if they are aborted, even at the end', async () => {
    const abort = new AbortController();
    await expect(
      client.transaction(
        async (tx) => {
          await tx.write('/t', '1');
          abort.abort();
        },
        { signal: abort.signal },
      ),
    ).rejects.toThrow(CancelledError);
    expect(fake.requests.at(-1)).toBe('XS_TRANSACTION_END F');
    expect(fake.store.has('/t')).toBe(false);
  });

  it('do nothing once they are over', async () => {
    const tx = await client.transaction((inner) => inner);
    await expect(tx.write('/late', 'x')).rejects.toThrow(UsageError);
    expect(fake.store.has('/late')).toBe(false);
  });

  it('whose start was given up are ended when its answer comes', async () => {
    const release = fake.hold('XS_TRANSACTION_START');
    const abort = new AbortController();
    const started = client.transaction(() => expect.fail('must not run'), { signal: abort.signal });
    await until(() => fake.requests.length === 1);
    abort.abort();
    await expect(started).rejects.toThrow(CancelledError);
    release();
    await until(() => fake.requests.includes('XS_TRANSACTION_END F'));
  });
});

describe('watches', () => {
  it('tell at once, and of each change below', async () => {
    const watch = await client.watch('/w');
    expect(await watch.next()).toBe('/w');
    fake.write('/w/a/b', 'x');
    expect(await watch.next()).toBe('/w/a/b');
    fake.write('/w', undefined);
    expect(await watch.next()).toBe('/w');
    await expect(watch.next({ timeoutMs: 0 })).rejects.toThrow(TimeoutError);
    await watch.close();
    expect(fake.watched).toEqual([]);
    expect(await watch.next()).toBeUndefined();
  });

  it('are iterated, and end with the loop', async () => {
    const seen: string[] = [];
    for await (const path of await client.watch('/w')) {
      seen.push(path);
      if (seen.length === 1) fake.write('/w', 'x');
      else break;
    }
    expect(seen).toEqual(['/w', '/w']);
    expect(fake.watched).toEqual([]);
  });

  it('call back, and survive a callback that throws', async () => {
    const seen: string[] = [];
    const watch = await client.watch('@releaseDomain', {
      onChange: (path) => {
        seen.push(path);
        throw new Error('mine');
      },
    });
    await until(() => seen.length === 1);
    fake.fire('@releaseDomain');
    await until(() => seen.length === 2);
    await watch.close();
    fake.fire('@releaseDomain');
    await client.read('/');
    expect(seen).toEqual(['@releaseDomain', '@releaseDomain']);
  });

  it("on one path do not get in each other's way", async () => {
    const [a, b] = await Promise.all([client.watch('/w'), client.watch('/w')]);
    expect([await a.next(), await b.next()]).toEqual(['/w', '/w']);
    await a.close();
    fake.write('/w', '1');
    expect(await b.next()).toBe('/w');
    await b.close();
  });

  it('that nobody reads keep few events', async () => {
    const watch = await client.watch('/w');
    for (let i = 0; i < 1000; i++) fake.write(`/w/${i}`, '');
    await client.read('/w');
    const seen: (string | undefined)[] = [];
    for (;;) {
      try {
        seen.push(await watch.next({ timeoutMs: 0 }));
      } catch (error) {
        expect(error).toBeInstanceOf(TimeoutError);
        break;
      }
    }
    // What was left out is told as a change of the whole.
    expect(seen.length).toBeLessThanOrEqual(256);
    expect(seen).toContain('/w');
    expect(seen).toContain('/w/999');
  });

  it('end their waits by signal, by time and when the connection breaks', async () => {
    const watch = await client.watch('/w');
    await watch.next();
    await expect(watch.next({ timeoutMs: 1 })).rejects.toThrow(TimeoutError);
    const abort = new AbortController();
    const aborted = watch.next({ signal: abort.signal });
    abort.abort();
    await expect(aborted).rejects.toThrow(CancelledError);
    const lost = vi.fn();
    await client.watch('/v', { onChange: () => undefined, onLost: lost });
    const waiting = watch.next();
    fake.drop();
    await expect(waiting).rejects.toMatchObject({ errno: 104 });
    await expect(watch.next()).rejects.toBe(client.failure);
    expect(lost).toHaveBeenCalledExactlyOnceWith(client.failure);
    await watch.close();
  });

  it('whose setting was given up are taken off when its answer comes', async () => {
    const release = fake.hold('XS_WATCH');
    const abort = new AbortController();
    const set = client.watch('/w', { signal: abort.signal });
    await until(() => fake.requests.length === 1);
    abort.abort();
    await expect(set).rejects.toThrow(CancelledError);
    release();
    await until(() => fake.requests.includes('XS_UNWATCH /w'));
    await client.read('/');
    expect(fake.watched).toEqual([]);
  });

  it('all go by a reset', async () => {
    const watch = await client.watch('/w');
    await watch.next();
    const waiting = watch.next();
    await client.resetWatches();
    expect(await waiting).toBeUndefined();
    expect(fake.watched).toEqual([]);
  });
});

describe('waiting for a value', () => {
  it('ends when it is there', async () => {
    fake.onWrite = (path, value) => {
      if (path === '/d/control/shutdown' && value === 'suspend') setImmediate(() => fake.write(path, ''));
    };
    await client.write('/d/control/shutdown', 'suspend');
    expect(await client.waitFor('/d/control/shutdown', (value) => value !== 'suspend')).toBe('');
    expect(await client.waitFor('/absent', (value) => value === undefined)).toBeUndefined();
    expect(fake.watched).toEqual([]);
  });

  it('ends by time, saying what stood there, or by signal', async () => {
    fake.write('/s', 'suspend');
    const error = await errorOf(client.waitFor('/s', (value) => value === '', { timeoutMs: 5 }));
    expect(error).toBeInstanceOf(TimeoutError);
    expect((error as Error).message).toBe('xenstore /s is still "suspend" after 5 ms');
    const abort = new AbortController();
    const waiting = client.waitFor('/s', () => false, { signal: abort.signal });
    await until(() => fake.requests.filter((request) => request === 'XS_READ /s').length > 2);
    abort.abort();
    await expect(waiting).rejects.toThrow(CancelledError);
    await until(() => fake.watched.length === 0);
  });
});

describe('requests that are given up', () => {
  it('by signal or time leave the connection in order', async () => {
    fake.write('/a', 'first');
    fake.write('/b', 'second');
    const release = fake.hold('XS_READ');
    const abort = new AbortController();
    const first = client.read('/a', { signal: abort.signal });
    const late = client.read('/a', { timeoutMs: 5 });
    const second = client.read('/b');
    await expect(late).rejects.toThrow(TimeoutError);
    abort.abort(new Error('enough'));
    const error = await errorOf(first);
    expect(error).toBeInstanceOf(CancelledError);
    expect((error as Error).cause).toMatchObject({ message: 'enough' });
    release();
    expect(await second).toBe('second');
    expect(await client.read('/b')).toBe('second');
    expect(client.failure).toBeUndefined();
  });

  it('before they begin are not sent', async () => {
    await expect(client.write('/a', 'x', { signal: AbortSignal.abort() })).rejects.toThrow(CancelledError);
    expect(fake.requests).toEqual([]);
  });
});

describe('the connection', () => {
  it('lost, rejects all that is pending with one error, and all that comes later', async () => {
    fake.hold('XS_READ');
    const errors = Promise.all([errorOf(client.read('/a')), errorOf(client.read('/b'))]);
    await until(() => fake.requests.length === 2);
    fake.drop();
    const [a, b] = await errors;
    expect(a).toBeInstanceOf(XenstoreError);
    expect(a).toBe(b);
    expect(a).toMatchObject({ operation: 'connection', errno: 104 });
    expect((a as Error).message).toContain(fake.path);
    await expect(client.write('/a', 'x')).rejects.toBe(a);
    expect(client.failure).toBe(a);
  });

  it('closed here, rejects likewise', async () => {
    fake.hold('XS_READ');
    const pending = client.read('/a');
    client.close();
    client.close();
    await expect(pending).rejects.toThrow(/was closed here/);
    await expect(client.read('/a')).rejects.toThrow(/was closed here/);
    await until(() => fake.connections === 0);
  });
});

describe('opening', () => {
  it('looks where libxenstore looks', () => {
    expect(xenstorePaths({ XENSTORED_PATH: '/p', XENSTORED_RUNDIR: '/r' })).toEqual(['/p']);
    expect(xenstorePaths({ XENSTORED_RUNDIR: '/r' })).toEqual([
      '/r/socket',
      '/dev/xen/xenbus',
      '/proc/xen/xenbus',
    ]);
    expect(xenstorePaths({})[0]).toBe('/var/run/xenstored/socket');
  });

  it('finds the socket by the environment', async () => {
    const other = await openXenstore({ env: { XENSTORED_RUNDIR: dir } });
    await other.write('/a', 'x');
    other.close();
    expect(fake.store.get('/a')).toBe('x');
  });

  it('says what it tried', async () => {
    const error = await errorOf(openXenstore({ env: { XENSTORED_RUNDIR: join(dir, 'none') } }));
    expect(error).toBeInstanceOf(XenstoreError);
    expect(error).toMatchObject({ operation: 'open', errno: 2 });
    expect((error as Error).message).toContain(`${join(dir, 'none/socket')} (ENOENT), /dev/xen/xenbus`);
  });

  it('of a socket that nobody serves says so', async () => {
    const path = join(dir, 'socket');
    await fake.close();
    const { createServer } = await import('node:net');
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(path, resolve));
    await expect(openXenstore({ path, signal: AbortSignal.abort() })).rejects.toThrow(CancelledError);
    server.close();
  });

  it('of a device needs the addon', async () => {
    await expect(openXenstore({ path: '/dev/null' })).rejects.toThrow(/native addon/);
  });
});
