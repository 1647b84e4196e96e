/** The lock that keeps two toolstacks from using one guest's suspend event channel: libxc's, so that it holds off xl too. */
import * as fs from 'node:fs/promises';
import { GuestError, TransportError } from '../../errors.js';
import { suspendLock, type XenFolders } from './paths.js';

const LOCK_MODE = 0o600;

/**
 * Takes the lock, if there is a way to: a POSIX record lock, which Node has no call for.
 *
 * @param lockFile F_SETLK of a write lock on the first byte of a descriptor; throws if another process has it
 * @returns releases the lock, and removes its file
 * @throws GuestError BUSY if somebody else has it; TransportError if the file cannot be made
 */
export async function lockSuspend(
  folders: XenFolders,
  domid: number,
  lockFile: ((fd: number) => void) | undefined,
): Promise<() => Promise<void>> {
  if (lockFile === undefined) return async () => undefined;
  const path = suspendLock(folders, domid);
  for (;;) {
    const file = await open(path);
    try {
      try {
        lockFile(file.fd);
      } catch (cause) {
        throw busy(domid, `${path} is locked`, cause);
      }
      const ours = await file.stat();
      const theirs = await fs.stat(path).catch(() => undefined);
      // Whoever had the lock before may have removed the file after we opened it: then ours is not the one that counts.
      if (theirs?.ino === ours.ino && theirs.dev === ours.dev) {
        return async () => {
          await fs.unlink(path).catch(() => undefined);
          await file.close();
        };
      }
    } catch (error) {
      await file.close();
      throw error;
    }
    await file.close();
  }
}

async function open(path: string): Promise<fs.FileHandle> {
  try {
    return await fs.open(path, 'a+', LOCK_MODE);
  } catch (cause) {
    const text = cause instanceof Error ? cause.message : String(cause);
    throw new TransportError(`locking the guest's suspend event channel: ${text}`, { cause });
  }
}

/** Somebody else has the guest's suspend event channel. */
export function busy(domid: number, why: string, cause: unknown): GuestError {
  const what = `guest ${domid} is being suspended by another toolstack, or was a moment ago (${why})`;
  return new GuestError('ERR_XEN_GUEST_BUSY', what, { cause, domid });
}
