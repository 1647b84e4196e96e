import * as child_process from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as net from 'node:net';
import * as os from 'node:os';
import * as path from 'node:path';
import { Duplex, PassThrough, Readable, Writable } from 'node:stream';
import * as tls from 'node:tls';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { CancelledError, PeerError, TransportError, UsageError } from '../../../lib/errors.js';
import {
  type ByteSink,
  openConnection,
  openSink,
  openSource,
  SocketSink,
  SocketSource,
} from '../../../lib/transport/index.js';
import { drain, openFds, pattern } from './helpers.js';

const stray: unknown[] = [];
const onStray = (error: unknown): void => {
  stray.push(error);
};

let dir: string;
let server: net.Server;
beforeAll(async () => {
  process.on('unhandledRejection', onStray);
  process.on('uncaughtException', onStray);
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-'));
  server = net.createServer({ allowHalfOpen: true });
  server.listen(path.join(dir, 's'));
  await once(server, 'listening');
});
afterAll(async () => {
  process.off('unhandledRejection', onStray);
  process.off('uncaughtException', onStray);
  server.close();
  fs.rmSync(dir, { recursive: true, force: true });
});
beforeEach(() => {
  stray.length = 0;
});
afterEach(async () => {
  await turn();
  expect(stray).toEqual([]);
});

/** Lets events that are due happen. */
async function turn(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Two ends of a Unix socket. */
async function pair(): Promise<[net.Socket, net.Socket]> {
  const accepted = once(server, 'connection') as Promise<[net.Socket]>;
  const a = net.connect({ path: path.join(dir, 's'), allowHalfOpen: true });
  await once(a, 'connect');
  const [b] = await accepted;
  return [a, b];
}

/** Fills the way to a peer that does not read, until writes stay pending. */
function fill(sink: ByteSink): Promise<unknown>[] {
  const block = Buffer.alloc(1024 * 1024);
  return Array.from({ length: 8 }, () => sink.write([block]).catch((e: unknown) => e));
}

describe('SocketSource', () => {
  it('gives every byte once, whatever the peer writes at a time', async () => {
    const [a, b] = await pair();
    const bytes = pattern(3_000_000);
    const source = new SocketSource(a);
    for (let at = 0, n = 1; at < bytes.length; at += n, n = (n * 7 + 1) % 100_003)
      b.write(bytes.subarray(at, at + n));
    b.end();
    expect((await drain(source, undefined, 777)).equals(bytes)).toBe(true);
    expect(source.position).toBe(bytes.length);
    expect(await source.wait(1)).toBe(false);
    await source.close();
    expect(a.destroyed).toBe(true);
    b.destroy();
  });

  it('pauses the stream when the reader is slow: memory stays bounded', async () => {
    const [a, b] = await pair();
    const source = new SocketSource(a, { highWaterMark: 65536 });
    const sink = new SocketSink(b);
    const writes = fill(sink);
    expect(await source.wait(1)).toBe(true);
    for (let i = 0; i < 50; i++) await turn();
    // What is on the way: our queue, the stream's own buffer and the kernel's. 8 MiB were written.
    expect(a.isPaused()).toBe(true);
    expect(a.bytesRead).toBeLessThan(2 * 1024 * 1024);
    const ending = sink.end();
    expect(await drain(source)).toHaveLength(8 * 1024 * 1024);
    await Promise.all([...writes, ending]);
    await source.close();
    a.destroy();
  });

  it('reads nothing before the first wait', async () => {
    const [a, b] = await pair();
    b.write('abc');
    const source = new SocketSource(a);
    await turn();
    expect(source.take(10)).toBeUndefined();
    expect(await source.wait(1)).toBe(true);
    expect(source.take(10)).toEqual(Buffer.from('abc'));
    await source.close();
    b.destroy();
  });

  it('says ERR_XEN_PEER_LOST when the socket is destroyed in the middle, after what came before', async () => {
    const [a, b] = await pair();
    const source = new SocketSource(a);
    b.write('abc');
    expect(await source.wait(1)).toBe(true);
    const cause = Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' });
    a.destroy(cause);
    await turn();
    expect(source.take(10)).toEqual(Buffer.from('abc'));
    for (let i = 0; i < 2; i++) {
      const error = await source.wait(1).catch((e: unknown) => e);
      expect(error).toBeInstanceOf(PeerError);
      expect(error).toMatchObject({ code: 'ERR_XEN_PEER_LOST', cause });
    }
    await source.close();
    b.destroy();
  });

  it('wakes a waiting reader when the stream closes without end or error', async () => {
    const [a, b] = await pair();
    const source = new SocketSource(a);
    const waiting = source.wait(1);
    a.destroy();
    await expect(waiting).rejects.toMatchObject({ code: 'ERR_XEN_PEER_LOST' });
    await source.close();
    b.destroy();
  });

  it('takes streams that are over already', async () => {
    const ended = Readable.from([Buffer.from('x')]);
    ended.resume();
    await once(ended, 'end');
    expect(await new SocketSource(ended).wait(1)).toBe(false);
    const destroyed = new PassThrough();
    destroyed.destroy();
    await once(destroyed, 'close');
    await expect(new SocketSource(destroyed).wait(1)).rejects.toBeInstanceOf(PeerError);
    const failed = new PassThrough();
    failed.on('error', () => undefined);
    failed.destroy(new Error('broken'));
    await turn();
    await expect(new SocketSource(failed).wait(1)).rejects.toMatchObject({
      code: 'ERR_XEN_TRANSPORT',
      message: 'reading the peer: broken',
    });
  });

  it('an error that comes while nobody waits is kept, also after close', async () => {
    const stream = new PassThrough();
    const source = new SocketSource(stream);
    stream.emit('error', new Error('early'));
    await expect(source.wait(1)).rejects.toThrow('early');
    await source.close();
    stream.emit('error', new Error('late'));
  });

  it('obeys a signal before and during a wait, and loses no byte by it', async () => {
    const [a, b] = await pair();
    const source = new SocketSource(a);
    await expect(source.wait(1, AbortSignal.abort(new Error('x')))).rejects.toBeInstanceOf(CancelledError);
    const controller = new AbortController();
    const waiting = source.wait(1, controller.signal);
    await expect(source.wait(1)).rejects.toBeInstanceOf(UsageError);
    const reason = new TransportError('one of ours');
    controller.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    b.end('still here');
    expect(await drain(source)).toEqual(Buffer.from('still here'));
    await source.close();
    a.destroy();
  });

  it('rejects a wait that is outstanding at close', async () => {
    const [a, b] = await pair();
    const source = new SocketSource(a);
    const waiting = source.wait(1);
    const closing = source.close();
    await expect(waiting).rejects.toBeInstanceOf(TransportError);
    await closing;
    await expect(source.wait(1)).rejects.toBeInstanceOf(TransportError);
    b.destroy();
  });

  it('gives back what was not taken when it is told to detach', async () => {
    const [a, b] = await pair();
    const source = new SocketSource(a, { onClose: 'detach' });
    b.write('streamTAIL');
    expect(await source.wait(1)).toBe(true);
    expect(source.take(6)).toEqual(Buffer.from('stream'));
    await source.close();
    expect(a.destroyed).toBe(false);
    const next = new SocketSource(a);
    b.end('!');
    expect(await drain(next)).toEqual(Buffer.from('TAIL!'));
    a.destroy();
  });

  it('refuses streams that are not of bytes', async () => {
    const objects = new SocketSource(Readable.from([{ not: 'bytes' }]));
    await expect(objects.wait(1)).rejects.toBeInstanceOf(TransportError);
    const text = new PassThrough();
    text.setEncoding('utf8');
    expect(() => new SocketSource(text)).toThrow(UsageError);
  });

  it('1000 sources on one stream and one signal leave no listener', async () => {
    const [a, b] = await pair();
    const warnings: Error[] = [];
    const onWarning = (w: Error): void => void warnings.push(w);
    process.on('warning', onWarning);
    const before = a.eventNames().map((name) => [name, a.listenerCount(name)]);
    const controller = new AbortController();
    for (let i = 0; i < 1000; i++) {
      const source = new SocketSource(a, { onClose: 'detach' });
      const waiting = source.wait(1, controller.signal).catch(() => undefined);
      await source.close();
      await waiting;
    }
    await turn();
    expect(a.eventNames().map((name) => [name, a.listenerCount(name)])).toEqual(before);
    expect(warnings).toEqual([]);
    process.off('warning', onWarning);
    a.destroy();
    b.destroy();
  });
});

describe('SocketSink', () => {
  it('writes in order, joins neighbours, writes shared memory', async () => {
    const [a, b] = await pair();
    const shared = new Uint8Array(new SharedArrayBuffer(1 << 20));
    shared.set(pattern(1 << 20));
    const sink = new SocketSink(a);
    const views: Uint8Array[] = [];
    for (let at = 0; at < shared.length; at += 4096) views.push(shared.subarray(at, at + 4096));
    const writes = [
      sink.write(views),
      sink.write([]),
      sink.write([pattern(10), new Uint8Array(0), pattern(20)]),
    ];
    const got = drain(new SocketSource(b));
    await Promise.all(writes);
    expect(sink.bytesWritten).toBe((1 << 20) + 30);
    await sink.end();
    expect((await got).equals(Buffer.concat([pattern(1 << 20), pattern(10), pattern(20)]))).toBe(true);
    await expect(sink.write([pattern(1)])).rejects.toBeInstanceOf(TransportError);
  });

  it('resolves a write only when the memory may change', async () => {
    const [a, b] = await pair();
    const sink = new SocketSink(a);
    const block = pattern(4 * 1024 * 1024);
    let done = false;
    const writing = sink.write([block]).then(() => {
      done = true;
      block.fill(0xee);
    });
    for (let i = 0; i < 20; i++) await turn();
    expect(done).toBe(false);
    const got = drain(new SocketSource(b));
    await writing;
    await sink.end();
    expect((await got).equals(pattern(4 * 1024 * 1024))).toBe(true);
  });

  it('copies for streams that may keep what they are given', async () => {
    const through = new PassThrough({ highWaterMark: 1 << 20 });
    const sink = new SocketSink(through);
    const block = pattern(1000);
    await sink.write([block]);
    block.fill(0);
    await sink.end();
    expect(await drain(new SocketSource(through))).toEqual(pattern(1000));
  });

  it('a write under way when the socket is destroyed never counts as done', async () => {
    const [a, b] = await pair();
    const sink = new SocketSink(a);
    const writes = fill(sink);
    await turn();
    const before = sink.bytesWritten;
    a.destroy();
    for (const result of (await Promise.all(writes)).filter((r) => r !== undefined)) {
      expect(result).toMatchObject({ code: 'ERR_XEN_PEER_LOST' });
    }
    expect(sink.bytesWritten).toBe(before);
    expect(before).toBeLessThan(8 * 1024 * 1024);
    await expect(sink.write([pattern(1)])).rejects.toBeInstanceOf(PeerError);
    await expect(sink.end()).rejects.toBeInstanceOf(PeerError);
    b.destroy();
  });

  it('a peer that vanishes rejects pending writes, later ones and end', async () => {
    const [a, b] = await pair();
    const sink = new SocketSink(a);
    const writes = fill(sink);
    const ending = sink.end().catch((e: unknown) => e);
    await turn();
    b.destroy();
    const results = await Promise.all(writes);
    expect(results.at(-1)).toBeInstanceOf(PeerError);
    expect(results.at(-1)).toMatchObject({ code: 'ERR_XEN_PEER_LOST' });
    expect(await ending).toBeInstanceOf(PeerError);
  });

  it('abort rejects with the reason, pending and later', async () => {
    const [a, b] = await pair();
    const sink = new SocketSink(a);
    const writes = fill(sink);
    const reason = new Error('stop');
    sink.abort(reason);
    sink.abort(new Error('later'));
    expect((await Promise.all(writes)).at(-1)).toBe(reason);
    await expect(sink.write([pattern(1)])).rejects.toBe(reason);
    await expect(sink.end()).rejects.toBe(reason);
    expect(a.destroyed).toBe(true);
    b.destroy();
  });

  it('settles writes of a stream that never calls back', async () => {
    const deaf = new Writable({ write: () => undefined });
    const sink = new SocketSink(deaf);
    const writing = sink.write([pattern(5)]).catch((e: unknown) => e);
    const reason = new Error('stop');
    sink.abort(reason);
    expect(await writing).toBe(reason);
    const other = new SocketSink(new Writable({ write: () => undefined }), { copy: false });
    const second = other.write([pattern(5)]).catch((e: unknown) => e);
    other.abort(reason);
    expect(await second).toBe(reason);
  });

  it('half-closes: the other direction goes on', async () => {
    const [a, b] = await pair();
    const near = openConnection(a);
    const far = openConnection(b);
    await near.sink.write([pattern(100)]);
    await near.sink.end();
    expect(await drain(far.source)).toEqual(pattern(100));
    await far.source.close();
    await far.sink.write([Buffer.from('thanks')]);
    await far.sink.end();
    expect(await drain(near.source)).toEqual(Buffer.from('thanks'));
    await near.source.close();
  });

  it('a destroyed connection rejects what waits on either direction', async () => {
    const [a, b] = await pair();
    const near = openConnection(a);
    const waiting = near.source.wait(1).catch((e: unknown) => e);
    const writes = fill(near.sink);
    near.destroy(new Error('over'));
    expect(await waiting).toBeInstanceOf(PeerError);
    expect((await Promise.all(writes)).at(-1)).toMatchObject({ message: 'over' });
    b.destroy();
  });

  it('detach leaves the stream to others, without listeners', async () => {
    const [a, b] = await pair();
    const before = a.listenerCount('error') + a.listenerCount('close');
    const sink = new SocketSink(a);
    await sink.write([Buffer.from('1')]);
    sink.detach();
    await expect(sink.write([Buffer.from('2')])).rejects.toBeInstanceOf(TransportError);
    expect(a.listenerCount('error') + a.listenerCount('close')).toBe(before);
    a.end('3');
    expect(await drain(new SocketSource(b))).toEqual(Buffer.from('13'));
  });

  it('an error that comes while nothing is written is kept', async () => {
    const stream = new Duplex({ read: () => undefined, write: (_c, _e, cb) => cb() });
    const sink = new SocketSink(stream);
    stream.destroy(Object.assign(new Error('gone'), { code: 'EPIPE' }));
    await turn();
    await expect(sink.write([pattern(1)])).rejects.toMatchObject({ code: 'ERR_XEN_PEER_LOST' });
  });
});

describe('FIFOs, descriptors and standard streams', () => {
  function fifo(name: string): string {
    const p = path.join(dir, name);
    child_process.execFileSync('mkfifo', [p]);
    return p;
  }

  it('joins the two ends of a FIFO, in either order of opening', async () => {
    const p = fifo('f1');
    const opening = openSink(p);
    const source = await openSource(p);
    const sink = await opening;
    const got = drain(source);
    await sink.write([pattern(500_000)]);
    await sink.end();
    expect((await got).equals(pattern(500_000))).toBe(true);
    await source.close();
  });

  it('stops waiting for the reader of a FIFO when aborted', async () => {
    const controller = new AbortController();
    const opening = openSink(fifo('f2'), { signal: controller.signal });
    setTimeout(() => controller.abort(new Error('enough')), 20);
    await expect(opening).rejects.toBeInstanceOf(CancelledError);
  });

  it('waits for the writer of a FIFO without a thread of the pool, and is not taken for ended', async () => {
    const p = fifo('f3');
    const source = await openSource(p);
    const waiting = source.wait(1);
    await turn();
    fs.writeFileSync(p, 'late');
    expect(await waiting).toBe(true);
    expect(await drain(source)).toEqual(Buffer.from('late'));
    await source.close();
  });

  it('leaves no descriptor open', async () => {
    const p = fifo('f4');
    const before = openFds();
    for (let i = 0; i < 20; i++) {
      const source = await openSource(p);
      const sink = await openSink(p);
      await sink.write([pattern(10)]);
      sink.abort(new Error('stop'));
      await source.close();
      await turn();
    }
    expect(openFds()).toBe(before);
  });
});

describe('TLS and child processes', () => {
  it('carries a stream through TLS, from shared memory, and reports a peer that vanishes', async () => {
    const psk = Buffer.alloc(16, 7);
    const common = {
      ciphers: 'PSK-AES128-GCM-SHA256:PSK',
      minVersion: 'TLSv1.2',
      maxVersion: 'TLSv1.2',
    } as const;
    const tlsServer = tls.createServer({ ...common, pskCallback: () => psk });
    tlsServer.listen(path.join(dir, 'tls'));
    await once(tlsServer, 'listening');
    const accepted = once(tlsServer, 'secureConnection') as Promise<[tls.TLSSocket]>;
    const a = tls.connect({
      ...common,
      path: path.join(dir, 'tls'),
      pskCallback: () => ({ psk, identity: 'x' }),
      checkServerIdentity: () => undefined,
    });
    const [b] = await accepted;
    const shared = new Uint8Array(new SharedArrayBuffer(1 << 20));
    shared.set(pattern(1 << 20));
    const sink = await openSink(a);
    const source = await openSource(b);
    const writing = sink.write([shared]).then(() => shared.fill(0));
    const got: Buffer[] = [];
    for (let n = 0; n < 1 << 20;) {
      const view = source.take(1 << 20);
      if (view === undefined) expect(await source.wait(1)).toBe(true);
      else {
        got.push(Buffer.from(view));
        n += view.length;
      }
    }
    await writing;
    expect(Buffer.concat(got).equals(pattern(1 << 20))).toBe(true);
    const waiting = source.wait(1).catch((e: unknown) => e);
    const writes = fill(sink);
    await source.close();
    expect(await waiting).toBeInstanceOf(TransportError);
    expect((await Promise.all(writes)).at(-1)).toBeInstanceOf(PeerError);
    tlsServer.close();
  });

  it('reads from and writes to a child process; one that is killed is a lost peer', async () => {
    const cat = child_process.spawn('cat', { stdio: ['pipe', 'pipe', 'ignore'] });
    const sink = await openSink(cat.stdin);
    const source = await openSource(cat.stdout);
    const got = drain(source);
    await sink.write([pattern(300_000)]);
    await sink.end();
    expect((await got).equals(pattern(300_000))).toBe(true);

    const sleeper = child_process.spawn('sleep', ['600'], { stdio: ['pipe', 'ignore', 'ignore'] });
    const stalled = await openSink(sleeper.stdin);
    const writes = fill(stalled);
    sleeper.kill('SIGKILL');
    expect((await Promise.all(writes)).at(-1)).toMatchObject({ code: 'ERR_XEN_PEER_LOST' });
  });

  it('a refused connection rejects the first wait and the first write', async () => {
    const absent = path.join(dir, 'nobody');
    const source = await openSource(net.connect(absent));
    await expect(source.wait(1)).rejects.toMatchObject({ cause: { code: 'ENOENT' } });
    const sink = await openSink(net.connect(absent));
    await expect(sink.write([pattern(3)])).rejects.toMatchObject({ cause: { code: 'ENOENT' } });
  });
});
