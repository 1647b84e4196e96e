/** Parts of a file that are read for nothing but to know that they can be. */
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { TransportError } from '../../../lib/errors.js';
import { FileSource } from '../../../lib/transport/file.js';
import { verify } from '../../../lib/stream/verify/verify.js';
import * as T from '../verify/streams.js';

const MIB = 1 << 20;
const SIZE = 9 * MIB + 123;
let folder: string;
let file: string;

beforeAll(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'xen-migration-touch-'));
  file = join(folder, 'file');
  fs.writeFileSync(file, new Uint8Array(SIZE));
});
afterAll(() => fs.rmSync(folder, { recursive: true }));

const open = (path = file): FileSource =>
  new FileSource(fs.openSync(path, 'r'), { start: 0, size: fs.statSync(path).size });

async function takeByte(source: FileSource): Promise<number | undefined> {
  await source.wait(1);
  return source.take(1)?.length;
}

/** Bytes that this process has read from files, /proc/self/io itself included. */
function bytesRead(): number {
  return Number(/^rchar: (\d+)$/m.exec(fs.readFileSync('/proc/self/io', 'latin1'))?.[1]);
}

function skipAll(source: FileSource, bytes: number, touch: boolean): void {
  for (let left = bytes; left > 0;) {
    const n = source.skip(left, touch);
    expect(n).toBeGreaterThan(0);
    left -= n;
  }
}

test.each([true, false])('skipped bytes are read if they are to be touched: %s', async (touch) => {
  const source = open();
  expect(await takeByte(source)).toBe(1);
  const before = bytesRead();
  skipAll(source, 8 * MIB, touch);
  expect(source.position).toBe(8 * MIB + 1);
  await source.touched(4 * MIB);
  await source.touched(0);
  if (touch) expect(bytesRead() - before).toBeGreaterThan(7 * MIB);
  else expect(bytesRead() - before).toBeLessThan(MIB);
  expect(await takeByte(source)).toBe(1);
  await source.close();
});

test('a file that has lost its end is found out', async () => {
  const path = join(folder, 'cut');
  fs.writeFileSync(path, new Uint8Array(SIZE));
  const source = open(path);
  expect(await takeByte(source)).toBe(1);
  fs.truncateSync(path, 3 * MIB);
  skipAll(source, 8 * MIB, true);
  await expect(source.touched(0)).rejects.toBeInstanceOf(TransportError);
  await expect(source.touched(0)).rejects.toThrow(/has become shorter/);
  await source.close();
});

test('closing ends who waits, and leaves no read behind', async () => {
  const source = open();
  expect(await takeByte(source)).toBe(1);
  skipAll(source, 9 * MIB, true);
  const waiting = source.touched(0);
  const failed = expect(waiting).rejects.toThrow(/closed/);
  await source.close();
  await failed;
});

test('verify finds a file that loses page contents while it reads, unless it is told to skip them', async () => {
  const pieces = T.samples()[0]!.pieces;
  const all = T.join(pieces);
  const pages = T.offsetOf(pieces, 'PAGE_DATA');
  expect(pages).toBeGreaterThan(0);
  const path = join(folder, 'stream');
  fs.writeFileSync(path, all);
  const source = open(path);
  // A source that skips as a file does, and one of whose skipped bytes cannot be read.
  const broken = Object.create(source, {
    touched: { value: async () => Promise.reject(new TransportError('EIO')) },
    skip: { value: (max: number) => source.skip(max) },
    take: { value: (max: number) => source.take(Math.min(max, 64)) },
    wait: { value: async (want: number) => source.wait(want) },
  }) as FileSource;
  await expect(verify(broken)).rejects.toThrow('EIO');
  await source.close();
  const again = open(path);
  expect((await verify(again, { skipPages: true })).bytes).toBe(all.length);
  await again.close();
});
