import { describe, expect, it } from 'vitest';
import { CancelledError, TransportError } from '../../../lib/errors.js';
import { MemorySink, MemorySource } from '../../../lib/transport/index.js';
import { drain, pattern } from './helpers.js';

describe('MemorySource', () => {
  it('gives the pieces as they are, never joined, never more than asked', async () => {
    const source = new MemorySource([pattern(3), new Uint8Array(0), pattern(10)]);
    expect(source.take(100)).toHaveLength(3);
    expect(source.take(4)).toHaveLength(4);
    expect(source.take(100)).toHaveLength(6);
    expect(source.take(100)).toBeUndefined();
    expect(await source.wait(1)).toBe(false);
    expect(source.position).toBe(13);
  });

  it('ends when closed, and obeys a signal', async () => {
    const source = new MemorySource(pattern(5));
    await expect(source.wait(1, AbortSignal.abort())).rejects.toBeInstanceOf(CancelledError);
    expect(await drain(source)).toEqual(pattern(5));
    const other = new MemorySource(pattern(5));
    await other.close();
    expect(await other.wait(1)).toBe(false);
  });
});

describe('MemorySink', () => {
  it('copies what it is given', async () => {
    const sink = new MemorySink();
    const bytes = pattern(100);
    await sink.write([bytes.subarray(0, 40), bytes.subarray(40)]);
    bytes.fill(0);
    await sink.end();
    expect(sink.bytes).toEqual(new Uint8Array(pattern(100)));
    expect(sink.ended).toBe(true);
    await expect(sink.write([bytes])).rejects.toBeInstanceOf(TransportError);
  });

  it('is full at its limit, and rejects with the reason after abort', async () => {
    const sink = new MemorySink({ limit: 10 });
    await sink.write([pattern(10)]);
    await expect(sink.write([pattern(1)])).rejects.toBeInstanceOf(TransportError);
    expect(sink.bytesWritten).toBe(10);
    const reason = new Error('stop');
    sink.abort(reason);
    await expect(sink.write([pattern(0)])).rejects.toBe(reason);
    await expect(sink.end()).rejects.toBe(reason);
  });
});
