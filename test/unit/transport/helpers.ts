import * as fs from 'node:fs';
import type { ByteSource } from '../../../lib/transport/index.js';

/** Bytes that differ from their neighbours and from those a block away. */
export function pattern(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) bytes[i] = (i * 31 + (i >>> 8) * 7 + (i >>> 16)) & 0xff;
  return bytes;
}

/** All bytes of a source, by the consumer's loop. */
export async function drain(source: ByteSource, signal?: AbortSignal, max = 1 << 20): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for (;;) {
    const view = source.take(max);
    if (view !== undefined) pieces.push(Buffer.from(view));
    else if (!(await source.wait(max, signal))) return Buffer.concat(pieces);
  }
}

/** Number of descriptors of this process. */
export function openFds(): number {
  return fs.readdirSync('/proc/self/fd').length;
}
