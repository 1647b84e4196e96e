import type { ByteSource } from '../../transport/types.js';
import { feedAll } from '../scan.js';
import type { VerifyReport } from './report.js';
import { Verifier, type VerifierOptions } from './verifier.js';

export interface VerifyOptions extends VerifierOptions {
  /**
   * True: page contents are not even read where the source can skip them: for a file on a disk many times as fast, but
   * blocks that cannot be read stay unknown. Default false.
   */
  readonly skipPages?: boolean | undefined;
  /** Ends the verification with a CancelledError whose cause is the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Verifies a stream: every check of Xen's verify-stream-v2, and those of docs/design/verifier.md beside them.
 *
 * Reads the source to its end (with `trailing: false`, to the stream's), or to where the framing is lost, and does not
 * close it. What is wrong with the stream is in the report; rejects only with what the source rejects with
 * (TransportError), and CancelledError.
 *
 * @param options.format `libxc`, `libxl`, `xl`, or `auto` (default) to recognise it
 */
export async function verify(source: ByteSource, options: VerifyOptions = {}): Promise<VerifyReport> {
  const verifier = new Verifier(options);
  await feedAll(source, verifier, { ...options, unneeded: options.skipPages === true ? 'skip' : 'touch' });
  return verifier.end();
}
