/** Ways to feed the legacy reader, for its tests. */

import { StreamFormatError } from '../../../../lib/errors.js';
import { LegacyReader, type LegacyReaderOptions } from '../../../../lib/stream/legacy/reader.js';
import type { IncrementalReader, StreamEvent } from '../../../../lib/stream/events.js';
import { toHex } from '../helpers.js';

/** An event in plain values that stay; page contents are left to `Seen.contents`. */
function plain(event: StreamEvent): unknown {
  const form = (value: unknown): unknown => {
    if (value instanceof Uint8Array) return toHex(value);
    if (value instanceof Float64Array) return Array.from(value);
    if (typeof value === 'bigint') return `${value}n`;
    if (value instanceof StreamFormatError) return brief(value);
    if (Array.isArray(value)) return value.map(form);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, of]) => [key, form(of)]));
  };
  if (event.kind !== 'page-data') return form(event);
  const { count } = event;
  const [pfns, types] = [event.pfns, event.types].map((of) => Array.from(of.slice(0, count)));
  return form({ ...event, pfns, types });
}

/** Code without its prefix, record, field, offset. */
export function brief(error: StreamFormatError): string {
  const place = [error.record, error.path].filter((part) => part !== undefined).join('.');
  return `${error.code.replace('ERR_XEN_STREAM_', '')} ${place} @${error.offset}`;
}

export interface Seen {
  /** Events, without those of page contents. */
  readonly events: unknown[];
  /** Page contents by the offset of their batch. */
  readonly contents: Record<number, string>;
  /** What was thrown. */
  readonly error: string | undefined;
  readonly checkpoints: number;
  readonly done: boolean;
  /** Bytes that were not wanted. */
  readonly left: number;
}

/** Feeds all bytes, in pieces of at most what `size` says, and says that there are no more. */
export function feed(
  bytes: Uint8Array,
  options: LegacyReaderOptions = {},
  size: () => number = () => Infinity,
): Seen {
  const reader = new LegacyReader(options);
  return { ...feedTo(reader, bytes, size), checkpoints: reader.checkpoints };
}

/** As `feed`, for any reader. */
export function feedTo(
  reader: IncrementalReader,
  bytes: Uint8Array,
  size: () => number = () => Infinity,
): Omit<Seen, 'checkpoints'> {
  const events: unknown[] = [];
  const contents: Record<number, string> = {};
  let error: string | undefined;
  let at = 0;
  const take = (event: StreamEvent | undefined): void => {
    if (event?.kind === 'page-bytes') {
      const text = contents[event.offset] ?? '';
      if (event.at !== text.length / 2) throw new Error(`page-bytes at ${event.at}, not ${text.length / 2}`);
      contents[event.offset] = text + toHex(event.bytes);
    } else if (event !== undefined) events.push(plain(event));
  };
  try {
    while (at < bytes.length && !reader.done) {
      const n = Math.min(Math.max(1, size()), reader.want, bytes.length - at);
      const piece = bytes.subarray(at, at + n);
      at += n;
      if (reader.position + n !== at) throw new Error(`position ${reader.position} at ${at - n}`);
      take(reader.feed(piece));
    }
    take(reader.end());
  } catch (thrown) {
    if (!(thrown instanceof StreamFormatError)) throw thrown;
    error = brief(thrown);
  }
  return { events, contents, error, done: reader.done, left: bytes.length - at };
}
