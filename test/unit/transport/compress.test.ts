import { randomFillSync } from 'node:crypto';
import { PassThrough } from 'node:stream';
import * as zlib from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { u32 } from '../../../lib/bytes/le.js';
import {
  COMPRESSIONS,
  compressionsHere,
  compressSink,
  decompressSource,
} from '../../../lib/transport/compress.js';
import { MemorySink, MemorySource } from '../../../lib/transport/index.js';
import { SocketSource } from '../../../lib/transport/socket.js';
import type { ByteSink, ByteSource } from '../../../lib/transport/types.js';
import { drain, pattern } from './helpers.js';

const here = compressionsHere();

async function compressed(algorithm: string, ...views: Uint8Array[]): Promise<Buffer> {
  const below = new MemorySink();
  const sink = compressSink(below, algorithm);
  await sink.write(views);
  await sink.end();
  return Buffer.from(below.bytes);
}

/** One block and the mark of the end, around data that an engine made. */
function wire(data: Uint8Array, total: number): Buffer {
  const head = Buffer.alloc(4);
  head.writeUInt32LE(data.length);
  const mark = Buffer.alloc(12);
  mark.writeBigUInt64LE(BigInt(total), 4);
  return Buffer.concat([head, data, mark]);
}

/** The same bytes in pieces of these lengths, over and over. */
function pieces(bytes: Uint8Array, lengths: readonly number[]): Uint8Array[] {
  const list = [];
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const n = lengths[i % lengths.length] ?? 1;
    list.push(bytes.subarray(at, at + n));
    at += n;
  }
  return list;
}

/** A source that never says `end`: the connection stays open. */
function open(bytes: Uint8Array): ByteSource {
  const stream = new PassThrough();
  stream.write(bytes);
  return new SocketSource(stream);
}

test('gzip and brotli are in every Node, zstd in newer ones', () => {
  expect(COMPRESSIONS).toEqual(['zstd', 'brotli', 'gzip']);
  expect(here).toEqual('createZstdCompress' in zlib ? ['zstd', 'brotli', 'gzip'] : ['brotli', 'gzip']);
  expect(() => compressSink(new MemorySink(), 'lzma')).toThrow(/"lzma" is unknown; here are .*brotli, gzip/);
  expect(() => decompressSource(new MemorySource([]), 'constructor')).toThrow(/is unknown/);
  if (!here.includes('zstd'))
    expect(() => compressSink(new MemorySink(), 'zstd')).toThrow(/is not in this Node/);
});

describe.each(here)('%s', (algorithm) => {
  test('what goes in comes out, however it is cut', async () => {
    const size = fc.integer({ min: 0, max: 300_000 });
    const cut = fc.array(fc.integer({ min: 1, max: 70_000 }), { minLength: 1, maxLength: 5 });
    await fc.assert(
      fc.asyncProperty(size, fc.boolean(), cut, cut, cut, async (length, random, views, chunks, takes) => {
        const bytes = random ? randomFillSync(Buffer.alloc(length)) : pattern(length);
        const below = new MemorySink();
        const sink = compressSink(below, algorithm);
        for (const view of pieces(bytes, views)) await sink.write([view]);
        await sink.end();
        expect(sink.bytesWritten).toBe(length);
        expect(sink.compressedBytes).toBe(below.bytes.length);
        expect(below.ended).toBe(false);
        const source = decompressSource(
          new MemorySource(pieces(Buffer.from(below.bytes), chunks)),
          algorithm,
        );
        const out = [];
        for (let i = 0; ; i++) {
          const view = source.take(takes[i % takes.length] ?? 1);
          if (view !== undefined) out.push(Buffer.from(view));
          else if (!(await source.wait(1))) break;
        }
        expect(Buffer.concat(out).equals(bytes)).toBe(true);
        expect(source.position).toBe(length);
        expect(source.compressedBytes).toBe(below.bytes.length);
        await source.finish();
        await source.close();
      }),
      { numRuns: 40 },
    );
  });

  test('the form on the wire is the documented one', async () => {
    const bytes = pattern(2_000_000);
    const stream = await compressed(algorithm, bytes);
    const blocks = [];
    let at = 0;
    for (;;) {
      const n = u32(stream, at);
      at += 4;
      if (n === 0) break;
      expect(n).toBeLessThanOrEqual(1 << 20);
      blocks.push(stream.subarray(at, at + n));
      at += n;
    }
    expect(stream.readBigUInt64LE(at)).toBe(2_000_000n);
    expect(stream.length).toBe(at + 8);
    const whole = Buffer.concat(blocks);
    const { zstdDecompressSync } = zlib as unknown as { zstdDecompressSync: (b: Buffer) => Buffer };
    const plain =
      algorithm === 'gzip'
        ? zlib.gunzipSync(whole)
        : algorithm === 'brotli'
          ? zlib.brotliDecompressSync(whole)
          : zstdDecompressSync(whole);
    expect(plain.equals(bytes)).toBe(true);
    expect(stream.length).toBeLessThan(bytes.length);
  });

  test('memory behind the views may change once a write has resolved, also shared memory', async () => {
    const shared = new Uint8Array(new SharedArrayBuffer(300_000));
    const expected = [];
    const below = new MemorySink();
    const sink = compressSink(below, algorithm);
    for (let round = 0; round < 10; round++) {
      randomFillSync(shared);
      expected.push(Buffer.from(shared));
      await sink.write([shared.subarray(0, 100_000), shared.subarray(100_000)]);
      shared.fill(0);
    }
    await sink.end();
    const out = await drain(decompressSource(new MemorySource(below.bytes), algorithm));
    expect(out.equals(Buffer.concat(expected))).toBe(true);
  });

  test('writes keep their order without being waited for, and end waits for them', async () => {
    const below = new MemorySink();
    const sink = compressSink(below, algorithm);
    const bytes = pattern(3_000_000);
    const writes = pieces(bytes, [700_000, 1, 5000]).map((view) => sink.write([view]));
    await sink.end();
    await Promise.all(writes);
    expect((await drain(decompressSource(new MemorySource(below.bytes), algorithm))).equals(bytes)).toBe(
      true,
    );
    await expect(sink.write([bytes])).rejects.toThrow(/write after end/);
    await sink.end();
  });

  test('what was written leaves although nothing follows', async () => {
    const stream = new PassThrough();
    const sent = compressSink(
      {
        write: async (views) => void stream.write(Buffer.concat(views)),
        bytesWritten: 0,
        end: async () => undefined,
        abort: () => undefined,
      },
      algorithm,
    );
    const source = decompressSource(new SocketSource(stream), algorithm);
    for (const text of ['one', 'two']) {
      await sent.write([Buffer.from(text)]);
      expect(await source.wait(1)).toBe(true);
      expect(Buffer.from(source.take(10) ?? []).toString()).toBe(text);
    }
    await sent.end();
    await source.finish();
  });

  test('nothing beyond the end is read', async () => {
    const bytes = pattern(50_000);
    const below = open(Buffer.concat([await compressed(algorithm, bytes), Buffer.from('a frame')]));
    const source = decompressSource(below, algorithm);
    expect((await drain(source)).equals(bytes)).toBe(true);
    await source.finish();
    await source.close();
    expect(Buffer.from(below.take(100) ?? []).toString()).toBe('a frame');
    await below.close();
  });

  test('a stream that goes on where its reader thought it ended', async () => {
    const source = decompressSource(new MemorySource(await compressed(algorithm, pattern(1000))), algorithm);
    await source.wait(1);
    source.take(999);
    await expect(source.finish()).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_TRAILING', offset: 999 });
  });

  test('cut anywhere it is an error that says so', async () => {
    const whole = await compressed(algorithm, randomFillSync(Buffer.alloc(3000)));
    for (
      let length = 0;
      length < whole.length;
      length += length < 64 || length > whole.length - 64 ? 1 : 97
    ) {
      const source = decompressSource(new MemorySource(whole.subarray(0, length)), algorithm);
      await expect(drain(source)).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_TRUNCATED', offset: length });
      // It stays an error.
      await expect(source.wait(1)).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_TRUNCATED' });
    }
  });

  test('any changed byte is an error, or changes nothing', async () => {
    const bytes = pattern(5000);
    const whole = await compressed(algorithm, bytes);
    let errors = 0;
    for (let at = 0; at < whole.length; at += at < 40 ? 1 : 13) {
      const bad = Buffer.from(whole);
      bad[at] = (bad[at] ?? 0) ^ 0x41;
      try {
        const out = await drain(decompressSource(new MemorySource(bad), algorithm));
        // brotli has no checksum: another literal is as good as the right one.
        if (algorithm === 'gzip') expect(out.equals(bytes), `byte ${at}`).toBe(true);
      } catch (error) {
        expect(error).toMatchObject({
          code: expect.stringMatching(/^ERR_XEN_STREAM_(COMPRESSION|TRUNCATED)$/) as string,
        });
        errors++;
      }
    }
    expect(errors).toBeGreaterThan(5);
  });

  test('blocks that are too large, bytes behind the data, a wrong length', async () => {
    const data = await compressed(algorithm, pattern(100));
    const blocks = [];
    for (let at = 0; u32(data, at) > 0;) {
      blocks.push(data.subarray(at + 4, at + 4 + u32(data, at)));
      at += 4 + u32(data, at);
    }
    const inner = Buffer.concat(blocks);
    const failing: [Buffer, RegExp][] = [
      [Buffer.from([1, 0, 16, 0]), /a block of 1048577 bytes/],
      [Buffer.from([255, 255, 255, 255]), /a block of 4294967295 bytes/],
      [wire(Buffer.concat([inner, Buffer.from('more')]), 100), /more bytes follow|is broken/],
      [
        Buffer.concat([wire(inner, 0).subarray(0, -12), wire(Buffer.from('more'), 100)]),
        /more bytes follow|is broken/,
      ],
      [wire(inner, 99), /100 bytes came out of the compressed data, its sender gave 99 in/],
      [wire(inner, 101), /its sender gave 101 in/],
    ];
    for (const [bytes, message] of failing) {
      const source = decompressSource(open(bytes), algorithm);
      await expect(drain(source)).rejects.toMatchObject({
        code: 'ERR_XEN_STREAM_COMPRESSION',
        message: expect.stringMatching(message) as string,
      });
    }
  });

  test('a bomb costs what is asked of it', async () => {
    // 256 MiB of zeros; some 100 KiB on the wire at most.
    const below = new MemorySink();
    const sink = compressSink(below, algorithm);
    const zeros = new Uint8Array(1 << 22);
    for (let i = 0; i < 64; i++) await sink.write([zeros]);
    await sink.end();
    const source = decompressSource(new MemorySource(below.bytes), algorithm);
    let largest = 0;
    let total = 0;
    for (let i = 0; i < 20; i++) {
      await source.wait(1);
      const view = source.take(Infinity);
      largest = Math.max(largest, view?.length ?? 0);
      total += view?.length ?? 0;
    }
    expect(largest).toBeLessThanOrEqual(512 * 1024);
    expect(source.position).toBe(total);
    await source.close();
    await expect(source.wait(1)).rejects.toThrow(/closed/);
  });

  test('a sink that is slow makes the writer wait', async () => {
    const release: (() => void)[] = [];
    let taken = 0;
    const slow: ByteSink = {
      bytesWritten: 0,
      write: (views) => {
        for (const view of views) taken += view.length;
        return new Promise((resolve) => release.push(resolve));
      },
      end: async () => undefined,
      abort: () => undefined,
    };
    const sink = compressSink(slow, algorithm);
    const noise = randomFillSync(Buffer.alloc(1 << 20));
    let written = 0;
    const writing = (async () => {
      for (let i = 0; i < 16; i++) {
        await sink.write([noise]);
        written++;
      }
      await sink.end();
    })();
    // As long as nothing is released, nothing more is taken than fits.
    while (release.length < 2) await new Promise((resolve) => setTimeout(resolve, 1));
    for (let i = 0; i < 50; i++) await new Promise((resolve) => setTimeout(resolve, 1));
    expect(release.length).toBe(2);
    expect(taken).toBeLessThan(1 << 20);
    expect(written).toBeLessThan(5);
    let over = false;
    void writing.then(() => (over = true));
    while (!over) {
      release.splice(0).forEach((go) => go());
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(written).toBe(16);
    expect(sink.compressedBytes).toBe(taken);
  });

  test('abort at any moment rejects what is pending with its reason, once', async () => {
    const noise = randomFillSync(Buffer.alloc(3 << 20));
    for (let turns = 0; turns < 12; turns++) {
      const reason = new Error(`stop ${turns}`);
      let aborted: unknown;
      const stuck: ByteSink = {
        bytesWritten: 0,
        write: () =>
          turns % 2 === 0
            ? new Promise(() => undefined)
            : new Promise((resolve) => setImmediate(() => resolve())),
        end: async () => undefined,
        abort: (why) => (aborted = why),
      };
      const sink = compressSink(stuck, algorithm);
      const calls = [sink.write([noise]), sink.write([noise]), sink.end()];
      const settled = Promise.allSettled(calls);
      for (let i = 0; i < turns; i++) await new Promise((resolve) => setImmediate(resolve));
      sink.abort(reason);
      sink.abort(new Error('too late'));
      const outcomes = await settled;
      expect(outcomes.at(-1)).toEqual({ status: 'rejected', reason });
      for (const outcome of outcomes) {
        if (outcome.status === 'rejected') expect(outcome.reason).toBe(reason);
      }
      expect(aborted).toBeDefined();
      await expect(sink.write([noise])).rejects.toBeDefined();
    }
  });

  test('a failure of the sink below is told to who writes and who ends', async () => {
    const broken = new Error('no route');
    const sink = compressSink(new MemorySink({ limit: 100_000 }), algorithm);
    const noise = randomFillSync(Buffer.alloc(4 << 20));
    await expect(
      (async () => {
        await sink.write([noise]);
        await sink.end();
      })(),
    ).rejects.toThrow(/no room beyond 100000 bytes/);
    await expect(sink.write([noise])).rejects.toThrow(/no room/);
    const rejecting = compressSink(
      {
        bytesWritten: 0,
        write: () => Promise.reject(broken),
        end: async () => undefined,
        abort: () => undefined,
      },
      algorithm,
    );
    await expect(rejecting.end()).rejects.toThrow(/no route/);
  });

  test('a wait can be aborted, and gone on with', async () => {
    const whole = await compressed(algorithm, pattern(1000));
    const stream = new PassThrough();
    const source = decompressSource(new SocketSource(stream), algorithm);
    for (let at = 0; at < whole.length; at += 7) {
      const stop = new AbortController();
      const waiting = source.wait(1, stop.signal);
      if (source.position === 0 && at < 4) {
        stop.abort(new Error('enough'));
        await expect(waiting).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
      } else waiting.catch(() => undefined);
      stop.abort();
      await waiting.catch(() => undefined);
      stream.write(whole.subarray(at, at + 7));
    }
    stream.end();
    expect((await drain(source)).equals(pattern(1000))).toBe(true);
    await expect(source.wait(1, AbortSignal.abort())).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
  });

  test('closing while its engine works wakes who waits, and waits for the engine', async () => {
    const whole = await compressed(algorithm, randomFillSync(Buffer.alloc(500_000)));
    const source = decompressSource(open(whole.subarray(0, 300_000)), algorithm);
    const draining = expect(drain(source)).rejects.toThrow(/closed/);
    await new Promise((resolve) => setImmediate(resolve));
    await source.close();
    await source.close();
    await draining;
    expect(source.take(1)).toBeUndefined();
  });
});
