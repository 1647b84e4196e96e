/** Streams read from a source, as an async iterable of events. */

import { throwIfAborted } from '../errors.js';
import type { ByteSource } from '../transport/types.js';
import type { StreamEvent } from './events.js';
import { StreamReader, type StreamReaderOptions } from './stream-reader.js';

export interface ReadStreamOptions extends StreamReaderOptions {
  /** Ends the reading with a CancelledError whose cause is the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Reads a stream to its end and yields its events, page contents in pieces as they come:
 *
 *     for await (const event of readStream(source)) {
 *       if (event.kind === 'page-bytes') hash.update(event.bytes);
 *     }
 *
 * Borrowed: the `bytes` of a `page-bytes` event until the next step of the loop, the `pfns` and `types` of a `page-data`
 * event until the next one. Everything else belongs to who gets it.
 *
 * Takes no byte beyond the stream's end from the source, and does not close it. Offsets count from where the source
 * stands, or from `offset`. Throws StreamFormatError for what the readers refuse and for a stream that ends too early,
 * TransportError from the source, CancelledError.
 */
export async function* readStream(
  source: ByteSource,
  options: ReadStreamOptions = {},
): AsyncGenerator<StreamEvent, void, undefined> {
  const { signal } = options;
  const reader = new StreamReader(options);
  while (!reader.done) {
    throwIfAborted(signal, 'read-stream');
    const bytes = source.take(reader.want);
    if (bytes === undefined) {
      if (await source.wait(reader.want, signal)) continue;
      const last = reader.end();
      if (last !== undefined) yield last;
      return;
    }
    const event = reader.feed(bytes);
    if (event !== undefined) yield event;
  }
}
