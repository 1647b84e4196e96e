import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CancelledError, TransportError, UsageError } from '../../../lib/errors.js';
import { FileSink, FileSource, openSink, openSource } from '../../../lib/transport/index.js';
import { drain, openFds, pattern } from './helpers.js';

let dir: string;
beforeEach(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-'));
});
afterEach(() => {
  fs.rmSync(dir, { recursive: true, force: true });
});

function file(bytes: Uint8Array, name = 'in'): string {
  const p = path.join(dir, name);
  fs.writeFileSync(p, bytes);
  return p;
}

describe('FileSource', () => {
  it.each([
    { size: 0, chunk: 16 },
    { size: 1, chunk: 16 },
    { size: 16, chunk: 16 },
    { size: 17, chunk: 16 },
    { size: 1000, chunk: 7 },
    { size: 3 * 1024 * 1024 + 5, chunk: undefined },
  ])('gives every byte once: $size bytes by $chunk', async ({ size, chunk }) => {
    const bytes = pattern(size);
    for (const readAhead of [true, false]) {
      const source = new FileSource(fs.openSync(file(bytes), 'r'), { chunk, readAhead });
      expect((await drain(source)).equals(bytes)).toBe(true);
      expect(source.position).toBe(size);
      expect(await source.wait(1)).toBe(false);
      await source.close();
    }
  });

  it('never gives more than asked, and a view stays as it is until the next call', async () => {
    const bytes = pattern(64);
    const source = new FileSource(fs.openSync(file(bytes), 'r'), { chunk: 16 });
    expect(source.take(5)).toBeUndefined();
    expect(await source.wait(5)).toBe(true);
    const view = source.take(5);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(view).toEqual(Buffer.from(bytes.subarray(0, 5)));
    expect(source.take(100)).toHaveLength(11);
    expect(source.take(1)).toBeUndefined();
    await source.close();
  });

  it('without read-ahead leaves a shared descriptor exactly behind what was wanted', async () => {
    const fd = fs.openSync(file(pattern(100)), 'r');
    const source = new FileSource(fd, { readAhead: false, autoClose: false });
    for (const n of [10, 1, 30]) {
      expect(await source.wait(n)).toBe(true);
      expect(source.take(n)).toHaveLength(n);
    }
    await source.close();
    const next = Buffer.alloc(1);
    fs.readSync(fd, next, 0, 1, null);
    expect(next[0]).toBe(pattern(100)[41]);
    fs.closeSync(fd);
  });

  it('starts where it is told', async () => {
    const source = new FileSource(fs.openSync(file(pattern(100)), 'r'), { start: 90 });
    expect(await drain(source)).toEqual(pattern(100).subarray(90));
    await source.close();
  });

  it('reports a read that fails, each time it is asked', async () => {
    const source = new FileSource(fs.openSync(dir, 'r'), { name: 'a directory' });
    for (let i = 0; i < 2; i++) {
      const error = await source.wait(1).catch((e: unknown) => e);
      expect(error).toBeInstanceOf(TransportError);
      expect(error).toMatchObject({
        message: expect.stringMatching(/^reading a directory: EISDIR/) as string,
      });
      expect((error as Error).cause).toMatchObject({ code: 'EISDIR' });
    }
    await source.close();
  });

  it('obeys a signal, before and during a wait, and can go on afterwards', async () => {
    const source = new FileSource(fs.openSync(file(pattern(100)), 'r'));
    const reason = new Error('enough');
    await expect(source.wait(1, AbortSignal.abort(reason))).rejects.toBeInstanceOf(CancelledError);
    const controller = new AbortController();
    const waiting = source.wait(1, controller.signal);
    controller.abort(reason);
    await expect(waiting).rejects.toMatchObject({ cause: reason });
    expect(await drain(source)).toEqual(pattern(100));
    await source.close();
  });

  it('rejects a wait that is outstanding at close, and every later one', async () => {
    const source = new FileSource(fs.openSync(file(pattern(100)), 'r'));
    const waiting = source.wait(1);
    await expect(source.wait(1)).rejects.toBeInstanceOf(UsageError);
    const closing = source.close();
    await expect(waiting).rejects.toBeInstanceOf(TransportError);
    await closing;
    await source.close();
    await expect(source.wait(1)).rejects.toBeInstanceOf(TransportError);
    expect(source.take(1)).toBeUndefined();
  });

  it('skips to any place, whatever is at hand, read ahead or being read', async () => {
    const bytes = pattern(10_000);
    let seed = 1;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
      return (seed >>> 8) % below;
    };
    for (let round = 0; round < 200; round++) {
      const chunk = 1 + random(300);
      const fd = fs.openSync(file(bytes), 'r');
      const source = new FileSource(fd, { chunk, start: 0, size: bytes.length, readAhead: round % 5 !== 0 });
      let at = 0;
      for (;;) {
        const what = random(3);
        if (what === 0) {
          const n = random(700);
          const skipped = source.skip(n);
          expect(skipped).toBe(Math.min(n, bytes.length - at));
          at += skipped;
        } else if (what === 1) {
          // A wait that nobody waits for: its read is under way, or its bytes have come, at what follows.
          const abort = new AbortController();
          source.wait(1, abort.signal).catch(() => undefined);
          abort.abort();
          if (random(2) === 0) await new Promise((resolve) => setImmediate(resolve));
        } else {
          const view = source.take(1 + random(500)) as Buffer | undefined;
          if (view !== undefined) {
            expect(view.equals(bytes.subarray(at, at + view.length))).toBe(true);
            at += view.length;
          } else if (!(await source.wait(100))) break;
        }
        expect(source.position).toBe(at);
      }
      expect(at).toBe(bytes.length);
      expect(source.skip(1)).toBe(0);
      await source.close();
      expect(source.skip(1)).toBe(0);
    }
  });

  it('skips only what is at hand where it does not know its place', async () => {
    const source = new FileSource(fs.openSync(file(pattern(100)), 'r'), { chunk: 16 });
    expect(source.skip(10)).toBe(0);
    await source.wait(1);
    expect(source.skip(50)).toBe(16);
    expect(await drain(source)).toEqual(pattern(100).subarray(16));
    await source.close();
  });

  it('1000 sources, closed at any moment, leave no descriptor open', async () => {
    const p = file(pattern(5000));
    const before = openFds();
    const controller = new AbortController();
    for (let i = 0; i < 1000; i++) {
      const source = await openSource(p, { signal: controller.signal });
      if (i % 4 === 1) await source.wait(1, controller.signal);
      if (i % 4 === 2) source.wait(1, controller.signal).catch(() => undefined);
      if (i % 4 === 3) await drain(source, controller.signal);
      await source.close();
    }
    expect(openFds()).toBe(before);
  });
});

describe('FileSink', () => {
  it('writes in order, also writes started before the first resolved and more views than IOV_MAX', async () => {
    const p = path.join(dir, 'out');
    const sink = new FileSink(fs.openSync(p, 'w'));
    const bytes = pattern(10_000);
    const views: Uint8Array[] = [];
    for (let i = 0; i < 2500; i++) views.push(bytes.subarray(i * 4, i * 4 + 4));
    await Promise.all([
      sink.write(views),
      sink.write([]),
      sink.write([new Uint8Array(0)]),
      sink.write([bytes]),
    ]);
    expect(sink.bytesWritten).toBe(20_000);
    await sink.end();
    await sink.released;
    expect(fs.readFileSync(p)).toEqual(Buffer.concat([bytes, bytes]));
    await expect(sink.write([bytes])).rejects.toBeInstanceOf(TransportError);
  });

  it('writes shared memory', async () => {
    const shared = new Uint8Array(new SharedArrayBuffer(8192));
    shared.set(pattern(8192));
    const p = path.join(dir, 'out');
    const sink = await openSink(p);
    await sink.write([shared.subarray(0, 4096), shared.subarray(4096)]);
    await sink.end();
    expect(fs.readFileSync(p).equals(pattern(8192))).toBe(true);
  });

  it('makes a file that only its owner may read, truncates an old one, or refuses it', async () => {
    const p = path.join(dir, 'out');
    await (await openSink(p)).end();
    expect(fs.statSync(p).mode & 0o777).toBe(0o600);
    fs.writeFileSync(p, 'old');
    fs.chmodSync(p, 0o640);
    await (await openSink(p)).end();
    expect(fs.readFileSync(p)).toHaveLength(0);
    expect(fs.statSync(p).mode & 0o777).toBe(0o640);
    await expect(openSink(p, { exclusive: true })).rejects.toMatchObject({
      code: 'ERR_XEN_TRANSPORT',
      cause: { code: 'EEXIST' },
    });
    await (await openSink(path.join(dir, 'other'), { mode: 0o644 })).end();
    expect(fs.statSync(path.join(dir, 'other')).mode & 0o700).toBe(0o600);
  });

  it('reports a full disk to the write, to those behind it and to end', async () => {
    const sink = await openSink('/dev/full');
    const one = sink.write([pattern(10)]);
    const two = sink.write([pattern(10)]);
    for (const settled of await Promise.allSettled([one, two])) {
      expect(settled).toMatchObject({
        status: 'rejected',
        reason: {
          code: 'ERR_XEN_TRANSPORT',
          message: expect.stringMatching(/^writing \/dev\/full: ENOSPC/) as string,
        },
      });
    }
    await expect(sink.write([pattern(10)])).rejects.toMatchObject({ cause: { code: 'ENOSPC' } });
    await expect(sink.end()).rejects.toMatchObject({ cause: { code: 'ENOSPC' } });
    expect(sink.bytesWritten).toBe(0);
  });

  it('abort rejects all pending writes with the reason and closes the descriptor', async () => {
    const before = openFds();
    const sink = new FileSink(fs.openSync(path.join(dir, 'out'), 'w'));
    const big = Buffer.alloc(8 * 1024 * 1024);
    const writes = [sink.write([big]), sink.write([big]), sink.write([big])];
    const reason = new Error('stop');
    sink.abort(reason);
    sink.abort(new Error('later'));
    for (const settled of await Promise.allSettled(writes))
      expect(settled).toEqual({ status: 'rejected', reason });
    await expect(sink.write([big])).rejects.toBe(reason);
    await expect(sink.end()).rejects.toBe(reason);
    await sink.released;
    expect(openFds()).toBe(before);
  });
});

describe('openSource and openSink', () => {
  it('name what cannot be opened', async () => {
    await expect(openSource(path.join(dir, 'absent'))).rejects.toMatchObject({
      code: 'ERR_XEN_TRANSPORT',
      cause: { code: 'ENOENT' },
    });
    await expect(openSource(dir)).rejects.toThrow(/it is a directory/);
    await expect(openSink(path.join(dir, 'absent', 'x'))).rejects.toMatchObject({
      cause: { code: 'ENOENT' },
    });
    await expect(openSource({} as never)).rejects.toBeInstanceOf(UsageError);
    await expect(openSink({} as never)).rejects.toBeInstanceOf(UsageError);
    await expect(openSource('x', { signal: AbortSignal.abort() })).rejects.toBeInstanceOf(CancelledError);
    await expect(openSink('x', { signal: AbortSignal.abort() })).rejects.toBeInstanceOf(CancelledError);
  });

  it('take descriptors, bytes, and what is a source already', async () => {
    const p = file(pattern(50));
    const byFd = await openSource(fs.openSync(p, 'r'));
    expect(byFd).toBeInstanceOf(FileSource);
    expect(await drain(byFd)).toEqual(pattern(50));
    expect(await openSource(byFd)).toBe(byFd);
    await byFd.close();
    const memory = await openSource(pattern(9));
    expect(await drain(memory)).toEqual(pattern(9));
    const sink = await openSink(fs.openSync(path.join(dir, 'o'), 'w'));
    expect(sink).toBeInstanceOf(FileSink);
    expect(await openSink(sink)).toBe(sink);
    await sink.end();
  });
});
