/** Temporary files that nobody else can open. */
import { constants } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { join } from 'node:path';

/**
 * Creates a file without a name in a folder, open for reading and writing. It goes when the process goes, however that
 * happens. Loads what it needs only now: most who might want one do not. Rejects with Node's error.
 */
export async function createNameless(directory: string): Promise<FileHandle> {
  const [{ randomBytes }, { open, unlink }] = await Promise.all([
    import('node:crypto'),
    import('node:fs/promises'),
  ]);
  const path = join(directory, `xen-migration-${randomBytes(12).toString('hex')}`);
  const { O_RDWR, O_CREAT, O_EXCL } = constants;
  const file = await open(path, O_RDWR | O_CREAT | O_EXCL, 0o600);
  await unlink(path);
  return file;
}
