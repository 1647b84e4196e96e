/** The jobs as users hold them: arguments, what a job does before it begins, hostile peers. */
import fc from 'fast-check';
import { Duplex, PassThrough } from 'node:stream';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { CancelledError, PeerError, UsageError, XenMigrationError } from '../../../lib/errors.js';
import { encodeFrame, encodePreamble, FrameType } from '../../../lib/migrate/frames.js';
import { MigrationBudget } from '../../../lib/migrate/budget.js';
import { migrate, receive, startMigrate, startReceive } from '../../../lib/migrate/migrate.js';
import type { MigrateOptions, ReceiveOptions } from '../../../lib/migrate/types.js';
import { SOFTWARE } from '../../../lib/version.js';
import { duplexPair, FakeHost, World } from './fakes.js';
import { ID } from './scene.js';

afterEach(() => {
  vi.useRealTimers();
});

function hostWithGuest(): { host: FakeHost; domid: number } {
  const host = new FakeHost(new World());
  const { domid } = host.add({ suspended: false, paused: false, memory: new Uint8Array(8), config: '{}' });
  return { host, domid };
}

describe('arguments', () => {
  const peer = new PassThrough();
  test.each<[string, Partial<MigrateOptions>]>([
    ['no peer', { peer: undefined as unknown as Duplex }],
    ['a peer that is none', { peer: 'socket' as unknown as Duplex }],
    ['no domid', { domid: -1 }],
    ['half a domid', { domid: 1.5 }],
    ['an id that is none', { id: 'x' }],
    ['no time', { timeouts: { helloMs: 0 } }],
    ['less than no time', { timeouts: { totalMs: -1 } }],
    ['a time that is none', { timeouts: { stallMs: NaN } }],
    ['no passes', { maxIterations: 0 }],
  ])('startMigrate: %s', (_what, options) => {
    const { host, domid } = hostWithGuest();
    expect(() => startMigrate(host, { domid, peer, ...options })).toThrow(UsageError);
  });

  test.each<[string, Partial<ReceiveOptions>]>([
    ['no peer', { from: undefined as unknown as Duplex }],
    ['no time', { timeouts: { releaseMs: 0 } }],
  ])('startReceive: %s', (_what, options) => {
    expect(() => startReceive(new FakeHost(new World()), { from: peer, ...options })).toThrow(UsageError);
  });

  test('streams of objects are refused, and closed', async () => {
    const { host, domid } = hostWithGuest();
    const objects = new PassThrough({ objectMode: true });
    await expect(migrate(host, { domid, peer: objects })).rejects.toBeInstanceOf(UsageError);
    expect(objects.destroyed).toBe(true);
  });
});

test('cancelled before it began: nothing is done, the peer is closed, the guest is named', async () => {
  const { host, domid } = hostWithGuest();
  const [peer, from] = duplexPair();
  const signal = AbortSignal.abort('not today');
  await expect(migrate(host, { domid, peer, signal })).rejects.toMatchObject({
    name: 'CancelledError',
    guest: { host: 'source', state: 'running' },
  });
  await expect(receive(host, { from, signal })).rejects.toBeInstanceOf(CancelledError);
  expect([peer.destroyed, from.destroyed]).toEqual([true, true]);
  expect(host.calls).toEqual([]);
});

test('the jobs tell of themselves and can be stopped', async () => {
  const { host, domid } = hostWithGuest();
  const [peer] = duplexPair();
  const job = startMigrate(host, { domid, peer, id: ID });
  expect(job.status).toMatchObject({ operation: 'migrate', state: 'active', domid });
  expect(() => job.update({ maxIterations: -1 })).toThrow(UsageError);
  job.update({ maxDowntimeMs: 20 });
  job.switchover();
  job.cancel(new PeerError('ERR_XEN_PEER_REFUSED', 'my own reason'));
  await expect(job.result).rejects.toMatchObject({ message: 'my own reason' });
  expect(job.status).toMatchObject({ state: 'failed' });
  job.cancel();
});

describe('hostile peers', () => {
  /** What a peer says before it goes away. */
  async function hear(
    bytes: Uint8Array,
    listen: (end: Duplex) => Promise<unknown>,
  ): Promise<XenMigrationError> {
    const [mine, theirs] = duplexPair();
    theirs.resume();
    theirs.end(bytes);
    const error: unknown = await listen(mine).then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    expect(mine.destroyed).toBe(true);
    if (!XenMigrationError.is(error)) expect.unreachable(`no error of the library: ${String(error)}`);
    return error;
  }

  const beginnings = [
    Buffer.alloc(0),
    Buffer.from(encodePreamble()),
    Buffer.concat([
      encodePreamble(),
      encodeFrame({
        type: FrameType.HELLO,
        offer: {
          id: ID,
          software: 'x',
          name: undefined,
          hvm: true,
          memory: 1,
          paused: false,
          compression: [],
        },
      }),
    ]),
    Buffer.concat([
      encodePreamble(),
      encodeFrame({
        type: FrameType.READY,
        id: ID,
        version: 1,
        software: SOFTWARE,
        compression: undefined,
        host: undefined,
      }),
    ]),
  ];

  test('any bytes after any beginning: an error of the library, no domain, the guest as it was', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...beginnings),
        fc.uint8Array({ maxLength: 200 }),
        async (start, bytes) => {
          const receiver = new FakeHost(new World());
          await hear(Buffer.concat([start, bytes]), (from) => receive(receiver, { from }));
          expect(receiver.domains.size).toBe(0);
          const { host, domid } = hostWithGuest();
          const error = await hear(Buffer.concat([start, bytes]), (peer) =>
            migrate(host, { domid, peer, id: ID }),
          );
          expect(host.get(domid)).toMatchObject({ suspended: false, paused: false });
          expect(error.guest).toEqual({ host: 'source', state: 'running' });
        },
      ),
      { numRuns: 150 },
    );
  });

  test('a configuration that is too long is refused before it is read', async () => {
    const header = Buffer.alloc(52);
    header.write('Xen saved domain, xl format\n \0 \r', 'latin1');
    header.writeUInt32LE(0x01020304, 32);
    header.writeUInt32LE(3, 36);
    header.writeUInt32LE(0x7fff_fff0, 44);
    header.writeUInt32LE(0x7fff_ffec, 48);
    const receiver = new FakeHost(new World());
    const error = await hear(Buffer.concat([beginnings[2]!, header]), (from) => receive(receiver, { from }));
    expect(error).toMatchObject({ name: 'StreamFormatError', guest: { host: 'source' } });
    expect(receiver.calls).toEqual([]);
  });

  test('nothing at all: refused within the time for it', async () => {
    vi.useFakeTimers();
    const { host, domid } = hostWithGuest();
    const [peer] = duplexPair();
    const [, from] = duplexPair();
    const results = Promise.allSettled([
      migrate(host, { domid, peer, timeouts: { helloMs: 3000 } }),
      receive(host, { from, timeouts: { helloMs: 4000 } }),
    ]);
    await vi.advanceTimersByTimeAsync(20_000);
    const [sent, received] = await results;
    expect(sent).toMatchObject({
      reason: {
        name: 'TimeoutError',
        phase: 'hello',
        ms: 3000,
        message: 'the receiver did not greet within 3 s',
        guest: { host: 'source', state: 'running' },
      },
    });
    expect(received).toMatchObject({
      reason: {
        name: 'TimeoutError',
        phase: 'hello',
        message: 'the sender did not say what it wants within 4 s',
      },
    });
  });

  test('a receiver that ssh has to start first may take its time', async () => {
    vi.useFakeTimers();
    const { host, domid } = hostWithGuest();
    const [peer, there] = duplexPair();
    let over = false;
    const sent = migrate(host, { domid, peer }).catch((error: unknown) => error);
    void sent.then(() => (over = true));
    await vi.advanceTimersByTimeAsync(55_000);
    expect(over).toBe(false);
    there.write('SSH-2.0-OpenSSH_9.2p1\r\n');
    await vi.advanceTimersByTimeAsync(100);
    expect(await sent).toMatchObject({ code: 'ERR_XEN_PEER_PROTOCOL', guest: { host: 'source' } });
  });

  test('a connection that never comes about', async () => {
    vi.useFakeTimers();
    const { host, domid } = hostWithGuest();
    class Connecting extends Duplex {
      readonly connecting = true;
      override _read(): void {
        // Nothing comes.
      }
    }
    const result = Promise.allSettled([migrate(host, { domid, peer: new Connecting() })]);
    await vi.advanceTimersByTimeAsync(10_000);
    expect((await result)[0]).toMatchObject({
      reason: { name: 'TimeoutError', phase: 'connect', guest: { host: 'source', state: 'running' } },
    });
  });
});

describe('a peer that is a function', () => {
  test('is called when the job has its slot, and asked again after a lost answer', async () => {
    const { host, domid } = hostWithGuest();
    const there = new FakeHost(new World());
    const budget = new MigrationBudget({ slots: 0 });
    let calls = 0;
    const received: Promise<unknown>[] = [];
    const peer = async (): Promise<Duplex> => {
      calls++;
      const [mine, from] = duplexPair();
      received.push(receive(there, { from }));
      return mine;
    };
    const job = startMigrate(host, { domid, peer, budget });
    await new Promise((resolve) => setImmediate(resolve));
    expect([calls, job.status.phase]).toEqual([0, 'queued']);
    budget.update({ slots: 1 });
    // The fake host's memory is none that a real save could read.
    await expect(job.result).rejects.toMatchObject({ guest: { host: 'source' } });
    await Promise.allSettled(received);
    expect(calls).toBe(1);
  });

  test.each<[string, () => Promise<Duplex>, object]>([
    ['fails', () => Promise.reject(new Error('no route')), { code: 'ERR_XEN_TRANSPORT' }],
    [
      'gives something else',
      () => Promise.resolve(undefined as unknown as Duplex),
      { code: 'ERR_XEN_INVALID_ARGUMENT' },
    ],
    ['takes too long', () => new Promise(() => undefined), { code: 'ERR_XEN_TIMEOUT', phase: 'connect' }],
  ])('%s: the guest is where it was', async (_what, peer, error) => {
    const { host, domid } = hostWithGuest();
    const sent = migrate(host, { domid, peer, timeouts: { connectMs: 20 } });
    await expect(sent).rejects.toMatchObject({ ...error, guest: { host: 'source', state: 'running' } });
  });

  test('cancelled while it connects: what comes late is closed', async () => {
    const { host, domid } = hostWithGuest();
    const [late] = duplexPair();
    let give: ((peer: Duplex) => void) | undefined;
    const job = startMigrate(host, { domid, peer: () => new Promise((resolve) => (give = resolve)) });
    await new Promise((resolve) => setImmediate(resolve));
    job.cancel('enough');
    await expect(job.result).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
    give?.(late);
    await expect.poll(() => late.destroyed).toBe(true);
  });
});
