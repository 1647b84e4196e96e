/** Restore: a guest out of a Migration v2 stream into a domain. */
import type { Readable } from 'node:stream';
import { debug } from '../debug.js';
import { UsageError, withCleanupError, XenMigrationError } from '../errors.js';
import type { Host } from '../host/host.js';
import { JobControl } from '../job.js';
import { openSource } from '../transport/open.js';
import type { ByteSource } from '../transport/types.js';
import { RestoreSession } from './session.js';
import type { RestoreJob, RestoreOptions, RestoreResult } from './types.js';

/** Where a restore takes its stream from: a path, `-`, a descriptor, a Readable, bytes, or a ByteSource. */
export type RestoreFrom = string | number | Readable | Uint8Array | ByteSource;

/**
 * Starts a restore. The stream may be of Xen 4.6 or later: libxc, libxl, or a file of `xl save`; it is never read beyond
 * its end. The source is closed when the job is over, whatever becomes of it.
 *
 * The domain is `options.domid`, empty and paused as its toolstack made it, or built from the configuration in xl's
 * header or `options.config`. If the restore fails, a domain built here is destroyed, one of the caller's is left paused,
 * and the guest is still in the stream.
 *
 * `result` rejects with StreamFormatError (the stream's fault; it has `offset`, `record`, `path`), HypercallError (Xen
 * refused), TransportError or PeerError (the source failed), CancelledError, UsageError.
 */
export function startRestore(
  host: Host,
  options: RestoreOptions & { readonly from: RestoreFrom },
): RestoreJob {
  const { from, ...rest } = options;
  const control = new JobControl('restore', options.domid, rest);
  const result = control
    .run(() => restoreFrom(control, host, from, rest).catch(sayWhere))
    // Again, for a job that was cancelled before it began.
    .catch(sayWhere);
  return {
    result,
    get status() {
      return control.status;
    },
    update(changes) {
      const [name] = Object.keys(changes);
      if (name !== undefined) throw new UsageError(`a restore has no limit '${name}' to change`);
    },
    cancel(reason) {
      control.cancel(reason);
    },
  };
}

/** As `startRestore`, for those who only want the end of it. */
export async function restore(
  host: Host,
  options: RestoreOptions & { readonly from: RestoreFrom },
): Promise<RestoreResult> {
  return startRestore(host, options).result;
}

/** Whatever guest was meant: no host has it. It is in the stream, if that was kept, and nowhere else. */
function sayWhere(error: unknown): never {
  if (XenMigrationError.is(error)) error.guest ??= { host: 'none', state: 'gone' };
  throw error;
}

async function restoreFrom(
  control: JobControl,
  host: Host,
  from: RestoreFrom,
  options: RestoreOptions,
): Promise<RestoreResult> {
  const source = await openSource(from, { signal: control.signal });
  let result: RestoreResult;
  try {
    result = await runRestore(control, host, source, options);
  } catch (error) {
    await source.close().catch((later: unknown) => withCleanupError(error, later));
    throw error;
  }
  // The guest runs: a source that cannot be closed does not change that.
  await source.close().catch((error: unknown) => {
    debug('restore: closing the source: %o', error);
  });
  return result;
}

/**
 * A restore as part of another operation, whose job it runs under. The source stays the caller's: it stands behind the
 * stream's last byte if this resolves, anywhere if it rejects. Where the guest is after a failure is for the caller to
 * say: `error.guest` is not set.
 */
export async function runRestore(
  control: JobControl,
  host: Host,
  source: ByteSource,
  options: RestoreOptions,
): Promise<RestoreResult> {
  return new RestoreSession(control, host, source, options).run();
}
