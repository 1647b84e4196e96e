/** Blocking descriptors over real pipes and files: exact, interruptible at any moment, and never more than asked for. */
import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { loadAddon } from '../../lib/host/xen/addon.js';
import type { NativeBlockingFd } from '../../lib/host/xen/native.js';
import { BlockingSink, BlockingSource } from '../../lib/transport/blocking.js';
import { expectPlayed } from './child.js';

const addon = loadAddon();
const { BlockingFd, PageMap } = addon;

let folder: string;
let count = 0;
beforeAll(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-fd-'));
});
afterAll(() => fs.rmSync(folder, { recursive: true }));

/** Both ends of a pipe of 64 KiB. */
function pipe(): { read: number; write: number } {
  const name = path.join(folder, `pipe${count++}`);
  expect(spawnSync('mkfifo', [name]).status).toBe(0);
  const both = fs.openSync(name, 'r+');
  const ends = { read: fs.openSync(name, 'r'), write: fs.openSync(name, 'w') };
  fs.closeSync(both);
  return ends;
}

const bytes = (n: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length: n }, (_, i) => (i * 31 + seed) & 255);

const codeOf = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'done',
    (error: unknown) => (error as NodeJS.ErrnoException).code,
  );

/** Runs until the thread is inside the system call, as far as can be told from outside. */
const soon = (ms = 20): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

describe('blocking writes and reads', () => {
  it('carry megabytes through a pipe of 64 KiB', async () => {
    const { read, write } = pipe();
    const [from, to] = [new BlockingFd(read), new BlockingFd(write)];
    const data = bytes(3_000_001);
    const into = new Uint8Array(data.length);
    const [, n] = await Promise.all([
      to.write([
        data.subarray(0, 5),
        data.subarray(5, 5),
        data.subarray(5, 2_000_000),
        data.subarray(2_000_000),
      ]),
      from.read(into),
    ]);
    expect(n).toBe(data.length);
    expect(Buffer.compare(into, data)).toBe(0);
    from.close();
    to.close();
  });

  it('take more views than one system call does', async () => {
    const { read, write } = pipe();
    const [from, to] = [new BlockingFd(read), new BlockingFd(write)];
    const data = bytes(5000);
    const into = new Uint8Array(5000);
    const views = Array.from(data, (_, i) => data.subarray(i, i + 1));
    await Promise.all([to.write(views), from.read(into)]);
    expect(into).toEqual(data);
  });

  it('keep their order, started all at once', async () => {
    const file = path.join(folder, 'order');
    const fd = fs.openSync(file, 'w');
    const to = new BlockingFd(fd);
    await Promise.all(Array.from({ length: 200 }, (_, i) => to.write([Uint8Array.of(i)])));
    expect([...fs.readFileSync(file)]).toEqual(Array.from({ length: 200 }, (_, i) => i));
    fs.closeSync(fd);
  });

  it('keep the views alive that nobody else has', async () => {
    const { read, write } = pipe();
    const [from, to] = [new BlockingFd(read), new BlockingFd(write)];
    const writing = to.write(Array.from({ length: 64 }, (_, i) => bytes(65536, i)));
    for (let i = 0; i < 20; i++) {
      globalThis.gc?.();
      // What is freed shall be used for something else.
      Array.from({ length: 64 }, () => new Uint8Array(65536).fill(0xee));
      await soon(1);
    }
    const into = new Uint8Array(64 * 65536);
    await from.read(into);
    await writing;
    for (let i = 0; i < 64; i++) {
      expect(Buffer.compare(into.subarray(i * 65536, (i + 1) * 65536), bytes(65536, i))).toBe(0);
    }
  });

  it('take views of shared memory and of mapped pages', async () => {
    const file = path.join(folder, 'views');
    const fd = fs.openSync(file, 'w');
    const map = new PageMap(2);
    const pages = new Uint8Array(map.buffer()).fill(0x42);
    await new BlockingFd(fd).write([new Uint8Array(new SharedArrayBuffer(3)).fill(0x41), pages]);
    const written = fs.readFileSync(file);
    expect(written.length).toBe(3 + 8192);
    expect([written[2], written[3], written.at(-1)]).toEqual([0x41, 0x42, 0x42]);
    map.release();
  });

  it('resolve to what there is before the end', async () => {
    const file = path.join(folder, 'short');
    fs.writeFileSync(file, 'abc');
    const from = new BlockingFd(fs.openSync(file, 'r'));
    expect(await from.read(new Uint8Array(2))).toBe(2);
    expect(await from.read(new Uint8Array(5))).toBe(1);
    expect(await from.read(new Uint8Array(5))).toBe(0);
    expect(await from.read(new Uint8Array(0))).toBe(0);
  });

  it('wait also where somebody made the descriptor non-blocking', async () => {
    const name = path.join(folder, `pipe${count++}`);
    spawnSync('mkfifo', [name]);
    const fd = fs.openSync(name, fs.constants.O_RDWR | fs.constants.O_NONBLOCK);
    const [from, to] = [new BlockingFd(fd), new BlockingFd(fd)];
    const into = new Uint8Array(200_000);
    const reading = from.read(into);
    await soon();
    await to.write([bytes(200_000)]);
    expect(await reading).toBe(200_000);
    expect(Buffer.compare(into, bytes(200_000))).toBe(0);
  });

  it('fail as the system says', async () => {
    expect(await codeOf(new BlockingFd(fs.openSync('/dev/full', 'w')).write([bytes(1)]))).toBe('ENOSPC');
    expect(await codeOf(new BlockingFd(fs.openSync('/dev/null', 'r')).write([bytes(1)]))).toBe('EBADF');
    expect(await codeOf(new BlockingFd(fs.openSync(folder, 'r')).read(bytes(1)))).toBe('EISDIR');
    const { read, write } = pipe();
    fs.closeSync(read);
    expect(await codeOf(new BlockingFd(write).write([bytes(1)]))).toBe('EPIPE');
  });

  it('write nothing behind a write that failed', async () => {
    // A size limit that the first write exceeds and the second would not.
    const script = `
      const fs = require('node:fs');
      const { BlockingFd } = require(process.argv[1]);
      process.on('SIGXFSZ', () => {});
      const fd = new BlockingFd(fs.openSync(process.argv[2], 'w'));
      const code = (p) => p.then(() => 'done', (e) => e.code);
      Promise.all([code(fd.write([new Uint8Array(1 << 20)])), code(fd.write([new Uint8Array(0)])), code(fd.write([new Uint8Array(10)]))])
        .then((codes) => console.log(codes.join()));`;
    const addon = path.resolve('build/Release/xen_migration.node');
    const file = path.join(folder, 'limited');
    const child = spawnSync(
      'bash',
      ['-c', 'ulimit -f 512; exec "$@"', 'x', process.execPath, '-e', script, addon, file],
      { encoding: 'utf8' },
    );
    expect(child.stdout).toBe('EFBIG,EFBIG,EFBIG\n');
    expect(fs.statSync(file).size).toBe(512 * 1024);
  });

  it('refuse bad arguments', () => {
    const fd = new BlockingFd(1);
    const bad: [() => unknown, string][] = [
      [() => new BlockingFd(-1), 'ERR_OUT_OF_RANGE'],
      [() => new BlockingFd('1' as unknown as number), 'ERR_INVALID_ARG_TYPE'],
      [() => new BlockingFd(4000), 'EBADF'],
      [() => fd.write(bytes(1) as unknown as Uint8Array[]), 'ERR_INVALID_ARG_TYPE'],
      [() => fd.write([new Uint16Array(1) as unknown as Uint8Array]), 'ERR_INVALID_ARG_TYPE'],
      [() => fd.read('' as unknown as Uint8Array), 'ERR_INVALID_ARG_TYPE'],
      [() => fd.interrupt(1 as unknown as boolean), 'ERR_INVALID_ARG_TYPE'],
      [() => addon.unblockSignal(0), 'ERR_OUT_OF_RANGE'],
      [() => addon.watchReadable(4000, () => undefined), 'EBADF'],
      [() => addon.watchReadable(0, 5 as unknown as () => void), 'ERR_INVALID_ARG_TYPE'],
    ];
    for (const [call, code] of bad) expect(call).toThrow(expect.objectContaining({ code }));
  });
});

describe('a read on the spot', () => {
  /** A pipe whose reader does not block. */
  function nonBlocking(): { read: number; write: number } {
    const name = path.join(folder, `pipe${count++}`);
    expect(spawnSync('mkfifo', [name]).status).toBe(0);
    const read = fs.openSync(name, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    return { read, write: fs.openSync(name, 'w') };
  }

  const caught = (call: () => unknown): unknown => {
    try {
      return call();
    } catch (error) {
      return error;
    }
  };

  it('takes what is there, and not a byte more than it was given room for', () => {
    const { read, write } = pipe();
    const from = new BlockingFd(read);
    fs.writeSync(write, 'abcdef');
    const room = new Uint8Array(8).fill(0x2e);
    expect(from.readNow(room.subarray(2, 6))).toBe(4);
    expect(Buffer.from(room).toString()).toBe('..abcd..');
    // Less than asked for is an answer, too: it is one read and no more.
    expect(from.readNow(room)).toBe(2);
    expect(Buffer.from(room).toString()).toBe('efabcd..');
    expect(from.readNow(new Uint8Array(0))).toBe(0);
    from.close();
  });

  it('waits for the first byte where the descriptor blocks', () => {
    const name = path.join(folder, `pipe${count++}`);
    expect(spawnSync('mkfifo', [name]).status).toBe(0);
    const read = fs.openSync(name, 'r+');
    const from = new BlockingFd(read);
    const child = spawn('sh', ['-c', `sleep 0.2; printf late > ${name}`], { stdio: 'ignore' });
    const into = new Uint8Array(10);
    expect(from.readNow(into)).toBe(4);
    expect(Buffer.from(into.subarray(0, 4)).toString()).toBe('late');
    from.close();
    child.unref();
  });

  it('says −1 where it would have to wait and the descriptor does not block', () => {
    const { read, write } = nonBlocking();
    const from = new BlockingFd(read);
    const into = new Uint8Array(4);
    expect(from.readNow(into)).toBe(-1);
    fs.writeSync(write, 'ab');
    expect(from.readNow(into)).toBe(2);
    expect(from.readNow(into)).toBe(-1);
    expect([...into]).toEqual([0x61, 0x62, 0, 0]);
    from.close();
  });

  it('says 0 at the end, as often as it is asked, and what was left comes before', () => {
    const { read, write } = pipe();
    const from = new BlockingFd(read);
    fs.writeSync(write, 'rest');
    fs.closeSync(write);
    const into = new Uint8Array(3);
    expect([0, 1, 2, 3].map(() => from.readNow(into))).toEqual([3, 1, 0, 0]);
    from.close();
  });

  it('reads into shared memory and mapped pages', () => {
    const file = path.join(folder, 'now');
    fs.writeFileSync(file, bytes(8192));
    const from = new BlockingFd(fs.openSync(file, 'r'));
    const map = new PageMap(1);
    const page = new Uint8Array(map.buffer());
    const shared = new Uint8Array(new SharedArrayBuffer(4096));
    expect([from.readNow(page), from.readNow(shared)]).toEqual([4096, 4096]);
    expect(Buffer.compare(page, bytes(8192).subarray(0, 4096))).toBe(0);
    expect(Buffer.compare(shared, bytes(8192).subarray(4096))).toBe(0);
    map.release();
    from.close();
  });

  it('keeps to the memory that it was given', () => expectPlayed('reads on the spot'));

  it('takes turns with reads on the thread: no byte is lost or comes twice', async () => {
    const file = path.join(folder, 'turns');
    const data = bytes(100_000, 7);
    fs.writeFileSync(file, data);
    const from = new BlockingFd(fs.openSync(file, 'r'));
    const into = new Uint8Array(data.length);
    let at = 0;
    for (let i = 0; at < data.length; i++) {
      const piece = into.subarray(at, Math.min(data.length, at + 997));
      at += i % 2 === 0 ? from.readNow(piece) : await from.read(piece);
    }
    expect(Buffer.compare(into, data)).toBe(0);
    from.close();
  });

  it('fails as the system says', () => {
    const directory = new BlockingFd(fs.openSync(folder, 'r'));
    expect(caught(() => directory.readNow(bytes(1)))).toMatchObject({ code: 'EISDIR', syscall: 'read' });
    const writer = new BlockingFd(fs.openSync('/dev/null', 'w'));
    expect(caught(() => writer.readNow(bytes(1)))).toMatchObject({ code: 'EBADF', syscall: 'read' });
    // A failed read spoils nothing.
    const file = path.join(folder, 'again');
    fs.writeFileSync(file, 'ok');
    const reader = new BlockingFd(fs.openSync(file, 'r'));
    for (const wrong of [undefined, null, 'x', 4, {}, new Uint16Array(4), new ArrayBuffer(4)]) {
      const call = (): unknown => reader.readNow(wrong as Uint8Array);
      expect(call).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARG_TYPE' }));
    }
    expect(reader.readNow(new Uint8Array(4))).toBe(2);
    for (const fd of [directory, writer, reader]) fd.close();
  });

  it.each<[string, (fd: NativeBlockingFd) => void]>([
    ['close', (fd) => fd.close()],
    ['interrupt', (fd) => fd.interrupt(false)],
    ['interrupt that spoils', (fd) => fd.interrupt(true)],
  ])('takes nothing after %s', (_name, stop) => {
    const { read, write } = nonBlocking();
    const from = new BlockingFd(read);
    fs.writeSync(write, 'left');
    stop(from);
    const into = new Uint8Array(4);
    // A spoiled descriptor is at its end: that is no end of the stream, and must not be told as one.
    expect(caught(() => from.readNow(into))).toMatchObject({ code: 'ECANCELED', syscall: 'read' });
    expect(caught(() => from.readNow(into))).toMatchObject({ code: 'ECANCELED' });
    expect([...into]).toEqual([0, 0, 0, 0]);
    if (_name !== 'interrupt that spoils') {
      expect(fs.readSync(read, into)).toBe(4);
      expect(Buffer.from(into).toString()).toBe('left');
    }
  });
});

describe('interruption', () => {
  it.each([
    ['a write to a full pipe', false],
    ['a write to a full pipe, spoiled', true],
  ])('ends %s, and all later ones', async (_name, spoil) => {
    const { read, write } = pipe();
    const to = new BlockingFd(write);
    const first = codeOf(to.write([bytes(1 << 20)]));
    const second = codeOf(to.write([bytes(10)]));
    await soon();
    to.interrupt(spoil);
    expect(await first).toBe('ECANCELED');
    expect(await second).toBe('ECANCELED');
    expect(await codeOf(to.write([bytes(1)]))).toBe('ECANCELED');
    expect(fs.readlinkSync(`/proc/self/fd/${write}`) === '/dev/null').toBe(spoil);
    fs.closeSync(read);
  });

  it('ends a read of an empty pipe, though others have it open', async () => {
    const { read } = pipe();
    const from = new BlockingFd(read);
    const reading = codeOf(from.read(bytes(10)));
    await soon();
    from.interrupt(false);
    expect(await reading).toBe('ECANCELED');
  });

  it('is never lost, at whatever moment it comes', async () => {
    // The moment between the look at the flag and the system call is the dangerous one.
    for (let i = 0; i < 300; i++) {
      const { read, write } = pipe();
      const from = new BlockingFd(read);
      const reading = codeOf(from.read(bytes(10)));
      if (i % 3 === 1) await Promise.resolve();
      if (i % 3 === 2) await new Promise(setImmediate);
      from.interrupt(i % 2 === 0);
      expect(await reading).toBe('ECANCELED');
      from.close();
      fs.closeSync(read);
      fs.closeSync(write);
    }
  });

  it('by close() leaves the descriptor open and as it was', async () => {
    const { read, write } = pipe();
    const from = new BlockingFd(read);
    const reading = codeOf(from.read(bytes(10)));
    await soon();
    from.close();
    from.close();
    expect(await reading).toBe('ECANCELED');
    expect(await codeOf(from.read(bytes(1)))).toBe('ECANCELED');
    fs.writeSync(write, 'x');
    expect(fs.readSync(read, Buffer.alloc(1))).toBe(1);
  });

  it('does not hurt what was complete', async () => {
    const to = new BlockingFd(fs.openSync('/dev/null', 'w'));
    await to.write([bytes(10)]);
    to.interrupt(true);
    to.interrupt(true);
    expect(await codeOf(to.write([bytes(1)]))).toBe('ECANCELED');
  });
});

describe('watching', () => {
  it('calls once until it is armed again, and never after close', async () => {
    const { read, write } = pipe();
    let calls = 0;
    const watch = addon.watchReadable(read, () => calls++, true);
    await soon();
    expect(calls).toBe(0);
    fs.writeSync(write, 'x');
    await vi.waitFor(() => expect(calls).toBe(1), { timeout: 10_000 });
    await soon();
    expect(calls).toBe(1);
    watch.rearm();
    await vi.waitFor(() => expect(calls).toBe(2), { timeout: 10_000 });
    watch.rearm();
    watch.close();
    watch.close();
    watch.rearm();
    await soon();
    expect(calls).toBe(2);
    expect(fs.readSync(read, Buffer.alloc(1))).toBe(1);
  });
});

describe('source and sink over descriptors', () => {
  function both(): {
    source: BlockingSource;
    sink: BlockingSink;
    read: number;
    write: number;
    to: NativeBlockingFd;
  } {
    const { read, write } = pipe();
    const to = new BlockingFd(write);
    const source = new BlockingSource(new BlockingFd(read), { name: 'pipe' });
    return { source, sink: new BlockingSink(to, { name: 'pipe' }), read, write, to };
  }

  it('never read a byte that nobody wants', async () => {
    const { source, sink, read } = both();
    await sink.write([Buffer.from('headerbody and what follows')]);
    expect(await source.wait(6)).toBe(true);
    expect(String(Buffer.from(source.take(100)!))).toBe('header');
    expect(source.take(1)).toBeUndefined();
    expect(await source.wait(4)).toBe(true);
    expect(String(Buffer.from(source.take(100)!))).toBe('body');
    expect(source.position).toBe(10);
    await source.close();
    const rest = Buffer.alloc(100);
    expect(rest.toString('utf8', 0, fs.readSync(read, rest))).toBe(' and what follows');
  });

  it('read on within what is wanted, and not beyond', async () => {
    const { source, sink, read } = both();
    const data = bytes(3_000_000);
    const writing = sink.write([data, Buffer.from('rest')]);
    const parts: Buffer[] = [];
    let want = data.length;
    while (want > 0) {
      expect(await source.wait(want)).toBe(true);
      for (let view = source.take(want); view !== undefined; view = source.take(want)) {
        parts.push(Buffer.from(view));
        want -= view.length;
        if (want === 0) break;
        await soon(1);
      }
    }
    expect(Buffer.compare(Buffer.concat(parts), data)).toBe(0);
    await writing;
    const rest = Buffer.alloc(100);
    expect(rest.toString('utf8', 0, fs.readSync(read, rest))).toBe('rest');
    expect(sink.bytesWritten).toBe(data.length + 4);
    await sink.end();
  });

  it('read straight into memory of the caller, where nothing is at hand', async () => {
    const { source, sink, write, to } = both();
    const data = bytes(300_000);
    const writing = sink.write([data]);
    expect(await source.wait(100_000)).toBe(true);
    // A piece is at hand: it comes first.
    expect(source.readInto(new Uint8Array(10))).toBeUndefined();
    expect(Buffer.compare(source.take(100_000)!, data.subarray(0, 100_000))).toBe(0);
    const into = new Uint8Array(new SharedArrayBuffer(200_000));
    expect(await source.readInto(into)).toBe(200_000);
    expect(Buffer.compare(into, data.subarray(100_000))).toBe(0);
    expect(source.position).toBe(300_000);
    await writing;
    await sink.write([Buffer.from('abc')]);
    to.close();
    fs.closeSync(write);
    expect(await source.readInto(into)).toBe(3);
    expect(source.readInto(into)).toBeUndefined();
    expect(await source.wait(1)).toBe(false);
  });

  it('stop reading into memory only when nothing more is written there', async () => {
    const { source, write } = both();
    const stop = new AbortController();
    const into = new Uint8Array(100_000);
    const reading = source.readInto(into, stop.signal);
    await soon();
    stop.abort(new Error('enough'));
    await expect(reading).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
    fs.writeSync(write, bytes(1000));
    await soon();
    expect(into.every((byte) => byte === 0)).toBe(true);
    await expect(source.wait(1)).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
  });

  it('tell the end and the failure', async () => {
    const { source, sink, write, to } = both();
    await sink.write([Buffer.from('abc')]);
    to.close();
    fs.closeSync(write);
    expect(await source.wait(10)).toBe(true);
    expect(source.take(10)!.length).toBe(3);
    expect(await source.wait(10)).toBe(false);
    await expect(sink.write([bytes(1)])).rejects.toMatchObject({ code: 'ERR_XEN_TRANSPORT' });
    const bad = new BlockingSource(new BlockingFd(fs.openSync(folder, 'r')), { name: 'folder' });
    await expect(bad.wait(1)).rejects.toThrow(/reading folder: .*EISDIR/);
    await bad.close();
    await expect(bad.wait(1)).rejects.toThrow(/closed/);
  });

  it('stop a wait by its signal, and a write by abort', async () => {
    const { source, sink } = both();
    const stop = new AbortController();
    const waiting = source.wait(5, stop.signal);
    stop.abort(new Error('enough'));
    await expect(waiting).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
    await source.close();
    const writing = sink.write([bytes(1 << 20)]);
    writing.catch(() => undefined);
    await soon();
    sink.abort(new Error('enough'));
    await expect(writing).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
    await expect(sink.write([bytes(1)])).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
    await expect(sink.end()).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
  });
});
