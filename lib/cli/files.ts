/** Files that come into being whole or not at all. */
import type { Writable } from 'node:stream';
import { UsageError } from '../errors.js';
import { wholeFile } from '../transport/whole.js';
import type { CommandIo } from './command.js';

/**
 * `wholeFile`, with `-` for the standard output.
 *
 * @param write Given where to write: a path, or the standard output
 */
export async function writeWhole<T>(
  target: string,
  io: CommandIo,
  write: (to: string | Writable) => Promise<T>,
): Promise<T> {
  if (target === '-') {
    if (io.stdout.isTTY === true) throw new UsageError('a guest is not written to a terminal; name a file');
    return write(io.stdout);
  }
  return wholeFile(target, write);
}
