/** Finds xenstored, where libxenstore finds it. */
import * as fs from 'node:fs';
import { Errno, errnoName } from '../../abi/errno.js';
import { XenMigrationError, XenstoreError, throwIfAborted } from '../../errors.js';
import { XENSTORE_TIMEOUT_MS, XenstoreClient } from './client.js';
import { openDevice, type FdWatch } from './device.js';
import type { XenstoreLink } from './link.js';
import { connectSocket } from './socket.js';

export interface OpenXenstoreOptions {
  /** Path of a socket, or of a xenbus device. Default: where libxenstore looks, see docs/reference/xenstore.md. */
  readonly path?: string | undefined;
  /** Needed to speak through a xenbus device. Without it only sockets are tried. */
  readonly device?: FdWatch | undefined;
  /** Cancels the opening alone. */
  readonly signal?: AbortSignal | undefined;
  /** Time to connect, and default time for each request, in ms. Default 30 s. */
  readonly timeoutMs?: number | undefined;
  /** Default process.env. */
  readonly env?: NodeJS.ProcessEnv | undefined;
}

/** Paths to try, in their order: what the environment says, then the sockets, then the devices. */
export function xenstorePaths(env: NodeJS.ProcessEnv = process.env): string[] {
  if (env['XENSTORED_PATH']) return [env['XENSTORED_PATH']];
  const folders = env['XENSTORED_RUNDIR']
    ? [env['XENSTORED_RUNDIR']]
    : ['/var/run/xenstored', '/run/xenstored'];
  return [...folders.map((folder) => `${folder}/socket`), '/dev/xen/xenbus', '/proc/xen/xenbus'];
}

/**
 * Connects to xenstored.
 *
 * @throws XenstoreError whose `errno` is that of the last path that exists, or ENOENT if there is none, and whose
 *   message tells what was tried; TimeoutError; CancelledError
 */
export async function openXenstore(options: OpenXenstoreOptions = {}): Promise<XenstoreClient> {
  const { timeoutMs = XENSTORE_TIMEOUT_MS } = options;
  const paths = options.path === undefined ? xenstorePaths(options.env) : [options.path];
  const tried: string[] = [];
  let failure: unknown;
  let errno: number = Errno.ENOENT;
  for (const path of paths) {
    throwIfAborted(options.signal, 'xenstore');
    try {
      return new XenstoreClient(await openLink(path, options, timeoutMs), timeoutMs);
    } catch (error) {
      if (XenMigrationError.is(error) && !(error instanceof XenstoreError)) throw error;
      const found = errnoOf(error);
      tried.push(`${path} (${error instanceof XenstoreError ? error.message : errnoName(found)})`);
      failure ??= error;
      if (found === Errno.ENOENT) continue;
      failure = error;
      errno = found;
    }
  }
  const cure =
    errno === Errno.EACCES || errno === Errno.EPERM ? 'only root may speak with it.' : 'is Xen running here?';
  throw new XenstoreError('open', errno, `no connection to xenstored: ${cure} Tried ${tried.join(', ')}`, {
    cause: failure,
  });
}

async function openLink(
  path: string,
  options: OpenXenstoreOptions,
  timeoutMs: number,
): Promise<XenstoreLink> {
  const stat = await fs.promises.stat(path);
  if (stat.isSocket()) return connectSocket(path, { signal: options.signal, timeoutMs });
  if (options.device === undefined) {
    throw new XenstoreError(
      'open',
      Errno.ENODEV,
      'a device; the native addon is needed to speak through it',
      {
        path,
      },
    );
  }
  return openDevice(path, options.device);
}

function errnoOf(error: unknown): number {
  const errno = (error as { errno?: unknown } | null)?.errno;
  return typeof errno === 'number' ? Math.abs(errno) : Errno.EIO;
}
