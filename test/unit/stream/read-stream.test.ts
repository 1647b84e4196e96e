import { describe, expect, test } from 'vitest';
import { CancelledError, TransportError } from '../../../lib/errors.js';
import * as S from '../../../lib/stream/index.js';
import { MemorySource } from '../../../lib/transport/memory.js';
import type { ByteSource } from '../../../lib/transport/types.js';
import { concat, feedAll, PAGE, sampleStreams, xl } from './helpers.js';

const streams = Object.entries(sampleStreams()).map(([name, stream]) => ({ name, stream }));

/** A source that has its bytes only after a wait, a few at a time. */
class SlowSource extends MemorySource {
  #ready = false;
  readonly waits: number[] = [];

  override take(max: number): Uint8Array | undefined {
    if (!this.#ready) return undefined;
    this.#ready = false;
    return super.take(Math.min(max, 100));
  }

  override async wait(want: number, signal?: AbortSignal): Promise<boolean> {
    this.waits.push(want);
    await Promise.resolve();
    this.#ready = await super.wait(want, signal);
    return this.#ready;
  }
}

async function kinds(source: ByteSource, options?: S.ReadStreamOptions): Promise<string[]> {
  const seen: string[] = [];
  for await (const event of S.readStream(source, options)) {
    if (event.kind !== 'page-bytes') seen.push(event.kind === 'record' ? event.name : event.kind);
  }
  return seen;
}

describe('readStream', () => {
  test.each(streams)('$name: gives the events that the reader gives', async ({ stream }) => {
    const expected = feedAll(new S.StreamReader(), stream).events.map(
      (event) => event['name'] ?? event['kind'],
    );
    expect(await kinds(new MemorySource(stream))).toEqual(expected);
    expect(await kinds(new SlowSource(stream))).toEqual(expected);
  });

  test('gives all page contents', async () => {
    let bytes = 0;
    for await (const event of S.readStream(new SlowSource(xl())))
      if (event.kind === 'page-bytes') bytes += event.bytes.length;
    expect(bytes).toBe(PAGE);
  });

  test('takes no byte beyond the end and leaves the source open', async () => {
    const stream = xl();
    const source = new MemorySource(concat(stream, new Uint8Array([1, 2, 3])));
    await kinds(source);
    expect(source.position).toBe(stream.length);
    expect(source.take(10)).toEqual(new Uint8Array([1, 2, 3]));
  });

  test('never asks to wait for bytes of the next piece', async () => {
    const source = new SlowSource(xl());
    await kinds(source);
    expect(Math.min(...source.waits)).toBeGreaterThan(0);
    expect(Math.max(...source.waits)).toBeLessThanOrEqual(PAGE);
  });

  test('a source that ends too early', async () => {
    await expect(kinds(new MemorySource(xl().subarray(0, 100)))).rejects.toMatchObject({
      code: 'ERR_XEN_STREAM_TRUNCATED',
      offset: 100,
    });
  });

  test('a broken stream, counted from a given offset', async () => {
    const run = kinds(new MemorySource(new Uint8Array(64)), { format: 'libxl', offset: 10 });
    await expect(run).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_ID', offset: 10 });
  });

  test('an error of the source comes through', async () => {
    const source = new SlowSource(xl());
    source.wait = () => Promise.reject(new TransportError('gone'));
    await expect(kinds(source)).rejects.toBeInstanceOf(TransportError);
  });

  test('an abort before and during', async () => {
    const before = kinds(new MemorySource(xl()), { signal: AbortSignal.abort('why') });
    await expect(before).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED', cause: 'why' });

    const controller = new AbortController();
    let seen = 0;
    const during = async (): Promise<void> => {
      for await (const _event of S.readStream(new MemorySource(xl()), { signal: controller.signal })) {
        if (++seen === 3) controller.abort();
      }
    };
    await expect(during()).rejects.toBeInstanceOf(CancelledError);
    expect(seen).toBe(3);
  });

  test('leaving the loop early leaves the source where it stands', async () => {
    const source = new MemorySource(xl());
    for await (const event of S.readStream(source)) if (event.kind === 'libxl-header') break;
    expect(source.position).toBe(xl(new Uint8Array(0)).length + S.LIBXL_HEADER_SIZE);
    expect(source.take(1)).toBeDefined();
  });
});
