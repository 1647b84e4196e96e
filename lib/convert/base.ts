/**
 * What compressed checkpoints of a Remus image change: the pages of the first one, which has gone by. It is read again, from
 * the input or from what was written.
 */
import { MAX_BATCH, PAGE_SIZE, pageTypeHasData } from '../abi/pages.js';
import { UsageError } from '../errors.js';
import { StreamReader } from '../stream/stream-reader.js';
import { openSource } from '../transport/open.js';
import type { ByteSource } from '../transport/types.js';
import { offsetOf, runs, type GuestMemory } from './guest-memory.js';
import type { ConvertOptions } from './types.js';

/** Where the first checkpoint can be had. */
export interface Base {
  readonly options: ConvertOptions;
  /** For the input. */
  readonly reader: StreamReader;
  /** Path of the output, if it has one: the v2 stream as far as it was written. */
  readonly written: string | undefined;
  readonly signal: AbortSignal;
}

/** Puts the pages of the first checkpoint into memory. Rejects with UsageError if nothing of it can be read again. */
export async function loadBase(memory: GuestMemory, base: Base): Promise<void> {
  const { signal, written } = base;
  const again = await openAgain(base);
  if (again !== undefined) return replay(again, base.reader, memory, signal);
  if (written === undefined) {
    throw new UsageError(
      'the pages of this Remus image are compressed: to convert it, give it as a file, or let the output be one',
    );
  }
  await replay(await openSource(written, { signal }), new StreamReader(), memory, signal);
}

/** The input from its first byte; undefined if it can be read but once. */
async function openAgain({ options, signal }: Base): Promise<ByteSource | undefined> {
  const { from, again } = options;
  if (from instanceof Uint8Array) return openSource(from);
  const source =
    typeof from === 'string' && from !== '-'
      ? await openSource(from, { signal }).catch(() => undefined)
      : await again?.();
  // A file can be skipped through; a pipe cannot, and has nothing left.
  if (source === undefined || source.skip !== undefined) return source;
  await source.close();
  return undefined;
}

/** Reads up to the end of the first checkpoint; closes the source. */
async function replay(
  source: ByteSource,
  reader: StreamReader,
  memory: GuestMemory,
  signal: AbortSignal,
): Promise<void> {
  try {
    const data = new Float64Array(MAX_BATCH);
    let ranges: (readonly [number, number])[] = [];
    while (!reader.done) {
      const bytes = source.take(reader.want);
      if (bytes === undefined) {
        if (!(await source.wait(reader.want, signal))) return;
        continue;
      }
      const event = reader.feed(bytes);
      if (event?.kind === 'page-data') {
        const { count, pfns, types } = event;
        let n = 0;
        for (let i = 0; i < count; i++) {
          if (pageTypeHasData(types[i] as number)) data[n++] = pfns[i] as number;
        }
        ranges = [...runs(data, n)];
      } else if (event?.kind === 'page-bytes') {
        await writeAt(memory, data, ranges, event.at, event.bytes);
      } else if (event?.kind === 'legacy-tail' && event.completes) {
        return;
      }
    }
  } finally {
    await source.close();
  }
}

/** Writes a piece of a batch's contents, which begins at byte `at` of them, to where its pages are. */
async function writeAt(
  memory: GuestMemory,
  pfns: Float64Array,
  ranges: readonly (readonly [from: number, n: number])[],
  at: number,
  bytes: Uint8Array,
): Promise<void> {
  for (const [from, n] of ranges) {
    const begin = Math.max(at, from * PAGE_SIZE);
    const end = Math.min(at + bytes.length, (from + n) * PAGE_SIZE);
    if (begin >= end) continue;
    const offset = offsetOf(pfns[from] as number) + begin - from * PAGE_SIZE;
    await memory.write(bytes.subarray(begin - at, end - at), offset);
  }
}
