import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as net from 'node:net';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CancelledError, TransportError } from '../../../lib/errors.js';
import { openExactSource } from '../../../lib/transport/exact.js';
import { drain, openFds, pattern } from './helpers.js';

let dir: string;
beforeEach(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-'));
});
afterEach(() => fs.rmSync(dir, { recursive: true, force: true }));

/** A pipe with both ends here. What is left in it can be read from `rest`, non-blocking. */
function pipe(): { from: number; to: number; rest: number } {
  const name = path.join(dir, 'fifo');
  expect(spawnSync('mkfifo', [name]).status).toBe(0);
  const { O_RDONLY, O_NONBLOCK, O_WRONLY } = fs.constants;
  const rest = fs.openSync(name, O_RDONLY | O_NONBLOCK);
  const to = fs.openSync(name, O_WRONLY | O_NONBLOCK);
  return { from: fs.openSync(name, O_RDONLY), to, rest };
}

function readRest(fd: number): string {
  const bytes = Buffer.alloc(100);
  try {
    return bytes.toString('latin1', 0, fs.readSync(fd, bytes));
  } catch (error) {
    return String((error as NodeJS.ErrnoException).code);
  }
}

const blocking = (fd: number): boolean => {
  const flags = /^flags:\s+(\d+)$/m.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];
  return (parseInt(flags!, 8) & fs.constants.O_NONBLOCK) === 0;
};

describe('a pipe', () => {
  it('gives what was asked for, and keeps the rest', async () => {
    const { from, to, rest } = pipe();
    fs.writeSync(to, 'headerbodyhandover');
    const source = openExactSource(from);
    expect(source.take(6)).toBeUndefined();
    expect(await source.wait(6)).toBe(true);
    expect(Buffer.from(source.take(100)!).toString()).toBe('header');
    expect(source.take(100)).toBeUndefined();
    expect(await source.wait(1)).toBe(true);
    expect(Buffer.from(source.take(1)!).toString()).toBe('b');
    expect(await source.wait(3)).toBe(true);
    // Not all at once.
    expect(Buffer.from(source.take(1)!).toString()).toBe('o');
    expect(await source.wait(100)).toBe(true);
    expect(Buffer.from(source.take(100)!).toString()).toBe('dy');
    expect(source.position).toBe(10);
    await source.close();
    expect(readRest(rest)).toBe('handover');
    for (const fd of [to, rest]) fs.closeSync(fd);
  });

  it('is not touched before somebody waits, nor after', async () => {
    const { from, to, rest } = pipe();
    const source = openExactSource(from);
    fs.writeSync(to, 'ab');
    for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
    expect(await source.wait(1)).toBe(true);
    for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
    await source.close();
    expect(readRest(rest)).toBe('b');
    for (const fd of [to, rest]) fs.closeSync(fd);
  });

  it('loses nothing to a wait that was given up', async () => {
    const { from, to, rest } = pipe();
    const source = openExactSource(from);
    const stop = new AbortController();
    const waiting = source.wait(4, stop.signal);
    setImmediate(() => stop.abort());
    await expect(waiting).rejects.toBeInstanceOf(CancelledError);
    fs.writeSync(to, 'next');
    for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
    expect(readRest(rest)).toBe('next');
    // And it can go on.
    fs.writeSync(to, 'more');
    expect(await source.wait(4)).toBe(true);
    expect(Buffer.from(source.take(4)!).toString()).toBe('more');
    await source.close();
    for (const fd of [to, rest]) fs.closeSync(fd);
  });

  it('stays blocking for those that share it', async () => {
    const { from, to, rest } = pipe();
    // Shares the description of `from`, as a parent does.
    const child = spawnSync('sleep', ['0'], { stdio: [from, 'ignore', 'ignore'] });
    expect(child.status).toBe(0);
    expect(blocking(from)).toBe(true);
    const parents = fs.openSync(path.join(dir, 'fifo'), 'r');
    const source = openExactSource(from);
    fs.writeSync(to, 'a');
    expect(await source.wait(1)).toBe(true);
    expect(blocking(parents)).toBe(true);
    await source.close();
    for (const fd of [to, rest, parents]) fs.closeSync(fd);
  });

  it('ends where its writers do, and leaves no descriptor', async () => {
    const before = openFds();
    const { from, to, rest } = pipe();
    const bytes = pattern(40_000);
    fs.writeSync(to, bytes);
    fs.closeSync(to);
    const source = openExactSource(from);
    expect((await drain(source)).equals(bytes)).toBe(true);
    expect(await source.wait(1)).toBe(false);
    await source.close();
    await source.close();
    fs.closeSync(rest);
    await new Promise((resolve) => setImmediate(resolve));
    expect(openFds()).toBe(before);
    await expect(source.wait(1)).rejects.toBeInstanceOf(TransportError);
  });
});

describe('a socket', () => {
  it('gives what was asked for, and no byte of what follows is read', async () => {
    const server = net.createServer().listen(path.join(dir, 'socket'));
    await once(server, 'listening');
    const accepted = once(server, 'connection') as Promise<[net.Socket]>;
    // Paused, so that nothing is read here.
    const near = net.connect(path.join(dir, 'socket')).pause();
    const [far] = await accepted;
    const bytes = pattern(3_000_000);
    far.write(bytes);
    far.write('handover');
    const { fd } = (near as unknown as { _handle: { fd: number } })._handle;
    const program = `
      import { openExactSource } from ${JSON.stringify(compiled('transport/exact.js'))};
      import fs from 'node:fs';
      import { createHash } from 'node:crypto';
      const source = openExactSource(3);
      const hash = createHash('sha256');
      for (let left = ${bytes.length}; left > 0;) {
        const view = source.take(left);
        if (view === undefined) { await source.wait(left); continue; }
        hash.update(view);
        left -= view.length;
      }
      // What comes now nobody has read. It may still be on its way.
      const rest = Buffer.alloc(100);
      for (let n = 0; n < 8;) {
        try { n += fs.readSync(3, rest, n, 100 - n, null); } catch (e) { if (e.code !== 'EAGAIN') throw e; }
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      console.log(hash.digest('hex'), rest.toString('latin1', 0, 8));
      process.exit(0);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'inherit', fd],
    });
    let said = '';
    child.stdout!.on('data', (chunk) => (said += String(chunk)));
    await once(child, 'close');
    expect(said.trim()).toBe(`${createHash('sha256').update(bytes).digest('hex')} handover`);
    near.destroy();
    far.destroy();
    server.close();
  });
});

it('refuses what it cannot wait for', () => {
  const file = path.join(dir, 'file');
  fs.writeFileSync(file, 'a');
  const fd = fs.openSync(file, 'r');
  expect(() => openExactSource(fd)).toThrow(TransportError);
  fs.closeSync(fd);
});

/** Compiled by test/setup. */
function compiled(module: string): string {
  return new URL(`../../../node_modules/.cache/xen-migration/lib/${module}`, import.meta.url).href;
}
