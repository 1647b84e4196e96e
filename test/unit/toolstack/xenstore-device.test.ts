/** The client through a character device that behaves as the kernel's xenbus: a pseudo-terminal before a fake xenstored. */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { CancelledError, XenstoreError } from '../../../lib/errors.js';
import { openXenstore, type FdWatch, type XenstoreClient } from '../../../lib/toolstack/xenstore/index.js';
import {
  MessageReader,
  XenstoreType,
  encodeMessage,
  typeName,
} from '../../../lib/toolstack/xenstore/wire.js';
import type { XenstoreMessage, XenstoreOperation } from '../../../lib/toolstack/xenstore/wire.js';
import { startFakeXenstored, type FakeXenstored } from './fake-xenstored.js';

/** Stands for the native one: says "readable" again and again, mostly without cause. */
class PollingWatch implements FdWatch {
  open = 0;
  watchReadable(_fd: number, onReadable: () => void): { rearm(): void; close(): void } {
    let armed = true;
    this.open += 1;
    const timer = setInterval(() => {
      if (!armed) return;
      armed = false;
      onReadable();
    }, 1);
    return {
      rearm: () => void (armed = true),
      close: () => {
        clearInterval(timer);
        this.open -= 1;
      },
    };
  }
}

describe('a xenbus device', () => {
  let dir: string;
  let fake: FakeXenstored;
  let upstream: Socket;
  let bridge: ChildProcess;
  let client: XenstoreClient;
  const watch = new PollingWatch();
  /** Requests that came before the one before was answered. The kernel would take them; we do not rely on it. */
  let overtaking: number;

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'xenstore-'));
    fake = await startFakeXenstored({ dir });
    overtaking = 0;
    bridge = spawn('/usr/bin/python3', [join(import.meta.dirname, 'xenbus-bridge.py')], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    upstream = connect(fake.path);
    const path = await play(bridge, upstream, () => overtaking++);
    client = await openXenstore({ path, device: watch });
  });
  afterEach(async () => {
    client.close();
    upstream.destroy();
    bridge.kill();
    await fake.close();
    await rm(dir, { recursive: true, force: true });
    expect(watch.open).toBe(0);
  });

  it('is asked one thing at a time, however much is asked', async () => {
    const numbers = Array.from({ length: 30 }, (_, i) => i);
    await Promise.all(numbers.map((i) => client.write(`/n/${i}`, `value ${i}`)));
    expect(await Promise.all(numbers.map((i) => client.read(`/n/${i}`)))).toEqual(
      numbers.map((i) => `value ${i}`),
    );
    expect(await client.read('/none')).toBeUndefined();
    expect(overtaking).toBe(0);
  });

  it('answers watch requests without their number, in between others', async () => {
    const [a, , b] = await Promise.all([client.watch('/a'), client.write('/x', '1'), client.watch('/b')]);
    expect([await a.next(), await b.next()]).toEqual(['/a', '/b']);
    fake.write('/b/c', '1');
    expect(await b.next()).toBe('/b/c');
    await Promise.all([a.close(), client.read('/x'), b.close()]);
    expect(fake.watched).toEqual([]);
    expect(overtaking).toBe(0);
  });

  it('carries transactions', async () => {
    fake.conflict(2);
    await client.transaction(async (tx) => {
      await Promise.all([tx.write('/t/a', '1'), tx.write('/t/b', '2')]);
    });
    expect(await client.list('/t')).toEqual(['a', 'b']);
    expect(overtaking).toBe(0);
  });

  it('forgets a request that was given up before its turn, and drops a late answer', async () => {
    const release = fake.hold('XS_READ');
    const abort = new AbortController();
    const first = client.read('/a', { signal: abort.signal });
    const second = client.write('/never', 'x', { signal: abort.signal });
    const third = client.write('/third', 'x');
    await vi.waitFor(() => expect(fake.requests).toEqual(['XS_READ /a']));
    abort.abort();
    await expect(first).rejects.toThrow(CancelledError);
    await expect(second).rejects.toThrow(CancelledError);
    release();
    await third;
    expect(fake.requests).toEqual(['XS_READ /a', 'XS_WRITE /third']);
  });

  it('has less room than xenstored', async () => {
    const path = '/big';
    const room = 4096 - 16 - path.length - 1;
    await client.write(path, 'x'.repeat(room));
    await expect(client.write(path, 'y'.repeat(room + 1))).rejects.toMatchObject({ errno: 7, path });
    expect(await client.read(path)).toBe('x'.repeat(room));
  });

  it('keeps the watches that the kernel has set over the same connection', async () => {
    const one = await client.watch('/w');
    await expect(client.resetWatches()).rejects.toMatchObject({ operation: 'XS_RESET_WATCHES', errno: 95 });
    expect(fake.watched).toEqual(['/w']);
    await one.close();
  });

  it('gone, ends everything', async () => {
    const release = fake.hold('XS_READ');
    const pending = client.read('/a');
    await vi.waitFor(() => expect(fake.requests).toHaveLength(1));
    bridge.kill();
    await expect(pending).rejects.toMatchObject({ errno: 104 });
    release();
  });
});

it('a device that refuses a message refuses that one alone', async () => {
  // /dev/full answers each write with ENOSPC.
  const client = await openXenstore({
    path: '/dev/full',
    device: { watchReadable: () => ({ rearm: () => undefined, close: () => undefined }) },
  });
  const [first, second] = await Promise.allSettled([client.read('/a'), client.write('/b', 'x')]);
  expect(first).toMatchObject({
    status: 'rejected',
    reason: { operation: 'XS_READ', path: '/a', errno: 28 },
  });
  expect(second).toMatchObject({ status: 'rejected', reason: { operation: 'XS_WRITE', path: '/b' } });
  expect(client.failure).toBeUndefined();
  client.close();
  await expect(client.read('/a')).rejects.toThrow(XenstoreError);
});

it('a device at its end is a lost connection', async () => {
  let readable = (): void => undefined;
  const client = await openXenstore({
    path: '/dev/null',
    device: {
      watchReadable: (_fd, onReadable) => {
        readable = onReadable;
        return { rearm: () => expect.fail('rearmed'), close: () => undefined };
      },
    },
  });
  const pending = client.read('/a');
  readable();
  await expect(pending).rejects.toMatchObject({ operation: 'connection', errno: 104 });
});

/**
 * Carries messages between the device and a xenstored as the kernel does: its answers to watch requests have req_id 0.
 *
 * @returns path of the device
 */
async function play(bridge: ChildProcess, upstream: Socket, onOvertaking: () => void): Promise<string> {
  const { stdin, stdout } = bridge;
  if (stdin === null || stdout === null) throw new Error('no pipes');
  const reencode = ({ type, reqId, txId, body }: XenstoreMessage): Uint8Array =>
    encodeMessage(typeName(type) as XenstoreOperation, reqId, txId, [body]);
  let outstanding = 0;
  const requests = new MessageReader();
  const answers = new MessageReader();
  upstream.on('error', () => undefined);
  stdin.on('error', () => undefined);
  upstream.on('data', (chunk: Uint8Array) => {
    answers.push(chunk, (message) => {
      if (message.type !== XenstoreType.XS_WATCH_EVENT) outstanding -= 1;
      const own = message.type === XenstoreType.XS_WATCH || message.type === XenstoreType.XS_UNWATCH;
      stdin.write(reencode(own ? { ...message, reqId: 0 } : message));
    });
  });
  return new Promise((resolve) => {
    stdout.once('data', (line: Buffer) => {
      stdout.on('data', (chunk: Uint8Array) => {
        requests.push(chunk, (message) => {
          if (++outstanding > 1) onOvertaking();
          upstream.write(reencode(message));
        });
      });
      resolve(line.toString().trim());
    });
  });
}
