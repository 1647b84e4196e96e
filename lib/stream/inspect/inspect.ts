import type { ByteSource } from '../../transport/types.js';
import { feedAll } from '../scan.js';
import { Inspector, type InspectorOptions } from './inspector.js';
import type { Inspection } from './report.js';

export interface InspectOptions extends InspectorOptions {
  /** Ends the inspection with a CancelledError whose cause is the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Reads a stream to its end and tells what is in it. Says nothing of whether it is right: that is `verify`'s part; but
 * what the readers could not make sense of is noted in the rows.
 *
 * Does not close the source. A stream that cannot be read to its end gives what was read of it, and `error`; rejects
 * only with what the source rejects with (TransportError), and CancelledError.
 */
export async function inspect(source: ByteSource, options: InspectOptions = {}): Promise<Inspection> {
  const inspector = new Inspector(options);
  await feedAll(source, inspector, options);
  return inspector.end();
}
