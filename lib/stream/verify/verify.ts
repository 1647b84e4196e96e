import type { ByteSource } from '../../transport/types.js';
import { feedAll } from '../scan.js';
import type { VerifyReport } from './report.js';
import { Verifier, type VerifierOptions } from './verifier.js';

export interface VerifyOptions extends VerifierOptions {
  /**
   * True: read page contents too, though they are not looked at, so that a file with unreadable blocks is found out.
   * Default: a source that can skip them does, which for a file on a disk is many times as fast.
   */
  readonly readPages?: boolean | undefined;
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
  await feedAll(source, verifier, { ...options, skip: options.readPages !== true });
  return verifier.end();
}
