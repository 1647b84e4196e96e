/** The client against the real xenstored, with Debian's own tools on the same daemon; and the fake against both. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TimeoutError, XenstoreError } from '../../lib/errors.js';
import { openXenstore, type XenstoreClient } from '../../lib/toolstack/xenstore/index.js';
import { startFakeXenstored } from '../unit/toolstack/fake-xenstored.js';
import { Xenstored, present } from './xenstored.js';

if (!present)
  process.stderr.write(
    'not compared with xenstored: it, xenstore-utils, libxen-dev or gcc is not installed\n',
  );

/** How the fake answers is compared with the real one by running the same scenario on both. */
type Scenario = (client: XenstoreClient) => Promise<unknown>;

const outcome = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    (value) => value,
    (error: unknown) => {
      if (!(error instanceof XenstoreError)) throw error;
      return `errno ${error.errno} of ${error.operation} ${error.path ?? ''}`;
    },
  );

/** Events that a watch has got until now. Requests after them have been answered, so none is on its way. */
async function events(
  client: XenstoreClient,
  path: string,
  action: () => Promise<unknown>,
): Promise<string[]> {
  const seen: string[] = [];
  const watch = await client.watch(path, { onChange: (changed) => seen.push(changed) });
  await client.read('/');
  await action();
  await client.read('/');
  await watch.close();
  return seen;
}

const scenarios: Record<string, Scenario> = {
  'values, as bytes': async (client) => {
    await client.write('/v/text', 'hello');
    await client.write('/v/empty', '');
    await client.write('/v/bytes', new Uint8Array([1, 0, 255, 0]));
    await client.write('/v/utf8', 'grün');
    return Promise.all(
      ['text', 'empty', 'bytes', 'utf8', 'none'].map((name) => client.readBytes(`/v/${name}`)),
    );
  },
  'nodes made, listed and removed': async (client) => {
    await client.mkdir('/m/a/b');
    await client.mkdir('/m/a');
    await client.write('/m/z', '1');
    const lists = [await client.list('/m'), await client.list('/m/a'), await client.list('/m/z')];
    await client.remove('/m/a');
    await client.remove('/m/none');
    await client.remove('/none/none');
    return [...lists, await client.list('/m'), await client.read('/m/a/b'), await client.list('/none')];
  },
  'what is refused': (client) =>
    Promise.all(
      [
        client.write('/sp ace', 'x'),
        client.write('/slash/', 'x'),
        client.write('//double', 'x'),
        client.read('@special'),
        client.write(`/${'long/'.repeat(600)}x`, 'x'),
        client.remove('/'),
        client.setPermissions('/refused-none', [{ domid: 0, access: 'none' }]),
        client.watch('/with space'),
        client.resume(77),
        client.release(77),
      ].map(outcome),
    ),
  permissions: async (client) => {
    await client.write('/p', 'x');
    await client.setPermissions('/p', [
      { domid: 0, access: 'none' },
      { domid: 3, access: 'read' },
      { domid: 4, access: 'both' },
      { domid: 5, access: 'write' },
    ]);
    return [await client.getPermissions('/p'), await client.getPermissions('/p/none')];
  },
  'a list longer than a message': async (client) => {
    for (let i = 0; i < 900; i++) await client.write(`/long/a-rather-long-name-${i}`, '');
    return (await client.list('/long')).sort();
  },
  'lists around the length of a message': async (client) => {
    const lengths: number[] = [];
    // 63 names of 64 bytes with their NUL; then one that fills up to 4094 … 4098 bytes, and so on past it.
    for (let i = 0; i < 63; i++) await client.write(`/edge/${String(i).padStart(63, 'n')}`, '');
    for (let length = 61; length <= 66; length++) {
      await client.write(`/edge/${'x'.repeat(length)}`, '');
      lengths.push((await client.list('/edge')).length);
      await client.remove(`/edge/${'x'.repeat(length)}`);
    }
    return lengths;
  },
  'events of writes, of new nodes and of removals': async (client) => {
    await client.write('/e/old', '1');
    return [
      await events(client, '/e', () => client.write('/e/old', '1')),
      await events(client, '/e', () => client.write('/e/new/deep', '1')),
      await events(client, '/e', () => client.mkdir('/e/dir/deep')),
      await events(client, '/e/new/deep', () => client.remove('/e/new')),
      await events(client, '/e', () => client.remove('/e/dir')),
      await events(client, '/e/other', () => client.write('/e/old', '2')),
      await events(client, '/', () => client.write('/e/old', '3')),
      await events(client, '/e', () => client.setPermissions('/e/old', [{ domid: 0, access: 'read' }])),
    ];
  },
  'events of a transaction': async (client) => {
    await client.write('/te/a', '1');
    return [
      (
        await events(client, '/te', () =>
          client.transaction(async (tx) => {
            await tx.write('/te/b', '2');
            await tx.write('/te/a', '3');
          }),
        )
      ).sort(),
      await events(client, '/te', () =>
        client
          .transaction(async (tx) => {
            await tx.write('/te/c', '2');
            throw new Error('no');
          })
          .catch(() => undefined),
      ),
    ];
  },
  'transactions in each other’s way': async (client) => {
    await client.write('/t/counter', '0');
    let runs = 0;
    await client.transaction(async (tx) => {
      runs += 1;
      const value = Number(await tx.read('/t/counter'));
      if (runs < 3) await client.write('/t/counter', String(value + 10));
      await tx.write('/t/counter', String(value + 1));
    });
    return [runs, await client.read('/t/counter')];
  },
  'transactions that do not meet': async (client) => {
    let runs = 0;
    await client.transaction(async (tx) => {
      runs += 1;
      await client.write('/u/other', 'x');
      await tx.write('/w/mine', 'y');
    });
    return [runs, await client.read('/w/mine')];
  },
  'domains that were not introduced': async (client) => [
    await client.domainPath(12),
    await client.isIntroduced(12),
    await client.isIntroduced(0),
  ],
};

describe.skipIf(!present)('xenstored', () => {
  let real: Xenstored;
  let client: XenstoreClient;

  beforeAll(async () => {
    real = await Xenstored.start();
    client = await openXenstore({ path: real.path });
  });
  afterAll(async () => {
    client.close();
    await real.stop();
  });

  it('reads what xenstore-write wrote, and the other way round', async () => {
    await real.tool('xenstore-write', '/tools/a', 'from the tool', '/tools/b', '1 2 3');
    expect(await client.read('/tools/a')).toBe('from the tool');
    await client.write('/tools/c/d', 'from the client');
    expect(await real.tool('xenstore-read', '/tools/c/d')).toBe('from the client\n');
    real.setDomain(5, 'running');
    await client.setPermissions('/tools/c', [
      { domid: 5, access: 'none' },
      { domid: 6, access: 'read' },
    ]);
    expect(await real.tool('xenstore-ls', '-f', '-p', '/tools')).toBe(
      [
        '/tools/a = "from the tool"   (n0)',
        '/tools/b = "1 2 3"   (n0)',
        '/tools/c = ""   (n5,r6)',
        '/tools/c/d = "from the client"   (n0)',
        '',
      ].join('\n'),
    );
    await real.tool('xenstore-rm', '/tools/c');
    expect(await client.list('/tools')).toEqual(['a', 'b']);
  });

  it('tells a watch of what the tools do', async () => {
    const watch = await client.watch('/tool-watch');
    expect(await watch.next()).toBe('/tool-watch');
    await real.tool('xenstore-write', '/tool-watch/x', '1');
    expect(await watch.next()).toBe('/tool-watch/x');
    await real.tool('xenstore-rm', '/tool-watch');
    expect(await watch.next()).toBe('/tool-watch');
    await watch.close();
    await expect(real.tool('xenstore-watch', '-n1', '/tool-watch')).resolves.toBe('/tool-watch\n');
  });

  it('wakes waitFor when the value is there', async () => {
    await client.write('/ack', 'suspend');
    const waiting = client.waitFor('/ack', (value) => value !== 'suspend');
    await real.tool('xenstore-write', '/ack', '');
    expect(await waiting).toBe('');
    await expect(client.waitFor('/ack', (value) => value === 'x', { timeoutMs: 20 })).rejects.toThrow(
      TimeoutError,
    );
  });

  it('introduces, resumes and releases a domain, and tells of its shutdown each time', async () => {
    const released = await client.watch('@releaseDomain');
    const introduced = await client.watch('@introduceDomain');
    expect([await released.next(), await introduced.next()]).toEqual(['@releaseDomain', '@introduceDomain']);
    await expect(client.introduce(9, 0xff_000, 2)).rejects.toMatchObject({
      operation: 'XS_INTRODUCE',
      errno: 22,
    });
    real.setDomain(9, 'running');
    await client.introduce(9, 0xff_000, 2);
    expect(await introduced.next()).toBe('@introduceDomain');
    expect(await client.isIntroduced(9)).toBe(true);

    real.setDomain(9, 'shutdown');
    real.event();
    expect(await released.next()).toBe('@releaseDomain');
    // Without XS_RESUME a second shutdown goes unnoticed.
    real.setDomain(9, 'running');
    real.setDomain(9, 'shutdown');
    real.event();
    await expect(released.next({ timeoutMs: 50 })).rejects.toThrow(TimeoutError);
    real.setDomain(9, 'running');
    await client.resume(9);
    real.setDomain(9, 'shutdown');
    real.event();
    expect(await released.next()).toBe('@releaseDomain');

    await client.release(9);
    expect(await released.next()).toBe('@releaseDomain');
    expect(await client.isIntroduced(9)).toBe(false);
    await Promise.all([released.close(), introduced.close()]);
  });

  it('keeps hundreds of requests apart', async () => {
    const numbers = Array.from({ length: 400 }, (_, i) => i);
    await Promise.all(numbers.map((i) => client.write(`/many/${i % 40}/${i}`, `value ${i}`)));
    expect(await Promise.all(numbers.map((i) => client.read(`/many/${i % 40}/${i}`)))).toEqual(
      numbers.map((i) => `value ${i}`),
    );
  });

  it('many clients count without losing one', async () => {
    await client.write('/count', '0');
    // More than xenstored's queue of connections holds.
    const clients = await Promise.all(Array.from({ length: 12 }, () => openXenstore({ path: real.path })));
    await Promise.all(
      clients.map(async (one) => {
        for (let i = 0; i < 5; i++) {
          await one.transaction(async (tx) =>
            tx.write('/count', String(Number(await tx.read('/count')) + 1)),
          );
        }
        one.close();
      }),
    );
    expect(await client.read('/count')).toBe('60');
  });

  it('drops all watches by a reset', async () => {
    const own = await openXenstore({ path: real.path });
    const watch = await own.watch('/reset');
    await watch.next();
    await own.resetWatches();
    await client.write('/reset', 'x');
    expect(await watch.next()).toBeUndefined();
    expect(own.failure).toBeUndefined();
    own.close();
  });

  it('gone, ends everything with one error', async () => {
    const other = await Xenstored.start();
    const lost = await openXenstore({ path: other.path });
    const watch = await lost.watch('/w');
    await watch.next();
    const waiting = watch.next();
    const [error] = await Promise.all([
      waiting.then(
        () => undefined,
        (reason: unknown) => reason,
      ),
      other.stop(),
    ]);
    expect(error).toMatchObject({ code: 'ERR_XEN_XENSTORE', errno: 104 });
    await expect(lost.read('/w')).rejects.toBe(error);
  });

  describe('the fake answers as the real one', () => {
    const dir = mkdtempSync(join(tmpdir(), 'fake-xenstored-'));
    afterAll(() => rmSync(dir, { recursive: true, force: true }));

    it.each(Object.entries(scenarios))('%s', async (_name, scenario) => {
      await using fake = await startFakeXenstored({ dir });
      const fakeClient = await openXenstore({ path: fake.path });
      const expected = await scenario(client);
      expect(await scenario(fakeClient)).toEqual(expected);
      fakeClient.close();
    });
  });
});
