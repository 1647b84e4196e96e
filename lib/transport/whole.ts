/** Files that come into being whole or not at all. */
import { randomBytes } from 'node:crypto';
import { rename, stat, unlink } from 'node:fs/promises';
import path from 'node:path';
import { TransportError, UsageError, withCleanupError } from '../errors.js';

/**
 * Lets `write` fill the file `target`. A regular or new file is written beside its place under a name of its own and
 * renamed when all is there, so that nothing is left of a failure and an old file is kept until then. Pipes and
 * devices are written as they are.
 *
 * @param write Given the path to write to
 * @throws what `write` throws; TransportError if the file cannot be renamed; UsageError for a directory
 */
export async function wholeFile<T>(target: string, write: (to: string) => Promise<T>): Promise<T> {
  if (!(await isPlainFile(target))) return write(target);
  const partial = path.join(
    path.dirname(target),
    `.${path.basename(target)}.${randomBytes(4).toString('hex')}.partial`,
  );
  try {
    const result = await write(partial);
    try {
      await rename(partial, target);
    } catch (cause) {
      throw new TransportError(`renaming ${partial} to ${target}: ${(cause as Error).message}`, { cause });
    }
    return result;
  } catch (error) {
    await unlink(partial).catch((later: unknown) => {
      if ((later as NodeJS.ErrnoException).code !== 'ENOENT') withCleanupError(error, later);
    });
    throw error;
  }
}

/** True for a regular file and for a name that is free. */
async function isPlainFile(target: string): Promise<boolean> {
  try {
    const stats = await stat(target);
    if (stats.isDirectory()) throw new UsageError(`${target} is a directory`);
    return stats.isFile();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return true;
    throw error;
  }
}
