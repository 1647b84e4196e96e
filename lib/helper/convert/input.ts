/** The image, as libxl hands it over: a file that xl has read its header from, a pipe or a socket. */
import * as fs from 'node:fs';
import { TransportError } from '../../errors.js';
import { openExactSource } from '../../transport/exact.js';
import { transportFailure } from '../../transport/failure.js';
import { FileSource } from '../../transport/file.js';
import type { ByteSource } from '../../transport/types.js';

export interface ConvertInput {
  readonly source: ByteSource;
  /** Of a regular file: opens it once more where the image begins. */
  readonly again?: (() => Promise<ByteSource>) | undefined;
}

/**
 * Opens the input. A regular file is read from where the descriptor stands, whose own offset stays; of anything else not a
 * byte is read that was not asked for, since xl's hand-over may follow there.
 *
 * @param from A descriptor, which is given away, or a path
 * @throws TransportError
 */
export function openConvertInput(from: number | string): ConvertInput {
  const name = typeof from === 'number' ? `fd ${from}` : from;
  const { O_RDONLY, O_NONBLOCK } = fs.constants;
  try {
    // O_NONBLOCK: a FIFO that nobody writes to yet would hold this process in open(2).
    const fd = typeof from === 'number' ? from : fs.openSync(from, O_RDONLY | O_NONBLOCK);
    const stat = fs.fstatSync(fd);
    if (stat.isFIFO() || stat.isSocket()) return { source: openExactSource(fd, { name }) };
    if (stat.isDirectory()) throw new TransportError(`reading ${name}: it is a directory`);
    const start = stat.isFile() ? offsetOf(fd) : undefined;
    if (start === undefined) return { source: new FileSource(fd, { name, readAhead: false }) };
    const { size } = stat;
    return {
      source: new FileSource(fd, { name, start, size }),
      again: async () => new FileSource(fd, { name, start, size, autoClose: false }),
    };
  } catch (error) {
    throw transportFailure(error, `opening ${name}`);
  }
}

/** Where a descriptor stands; undefined if the kernel does not tell. */
function offsetOf(fd: number): number | undefined {
  let text: string;
  try {
    text = fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1');
  } catch {
    return undefined;
  }
  const pos = Number(/^pos:\s*(\d+)$/m.exec(text)?.[1]);
  return Number.isSafeInteger(pos) ? pos : undefined;
}
