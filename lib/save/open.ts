/** The beginning of a save: are the options sound, and is this a guest that can be saved? */
import { GuestError, UsageError } from '../errors.js';
import type { JobControl } from '../job.js';
import type { ByteSink } from '../transport/types.js';
import type { SaveResources } from './cleanup.js';
import { SaveErrorCode } from './codes.js';
import { SaveContext } from './context.js';
import type { SaveSteering } from './steering.js';
import { isSuspended } from './suspend.js';
import type { SaveOptions } from './types.js';
import { RecordWriter } from './writer.js';
import { HvmSaveOps } from './x86-hvm.js';
import { PvSaveOps } from './x86-pv.js';

const FORMATS: readonly unknown[] = ['libxc', 'libxl', 'xl', undefined];
const AFTERWARDS: readonly unknown[] = ['destroy', 'resume', 'suspended', undefined];

/** Throws UsageError for options that cannot be. The limits are `SaveSteering`'s to check. */
export function checkOptions(options: SaveOptions): void {
  const { domid, format, afterwards, suspendTimeoutMs } = options;
  if (!Number.isInteger(domid) || domid < 0)
    throw new UsageError(`domid must be a domain's number, not ${String(domid)}`);
  if (!FORMATS.includes(format))
    throw new UsageError(`format must be libxc, libxl or xl, not ${String(format)}`);
  if (!AFTERWARDS.includes(afterwards)) {
    throw new UsageError(`afterwards must be destroy, resume or suspended, not ${String(afterwards)}`);
  }
  if (suspendTimeoutMs !== undefined && !(suspendTimeoutMs > 0 && suspendTimeoutMs < 2 ** 30)) {
    throw new UsageError(`suspendTimeoutMs must be a time in ms, not ${String(suspendTimeoutMs)}`);
  }
}

/** Opens the domain and chooses the steps for its kind. Throws GuestError if there is no guest to save. */
export async function openGuest(
  control: JobControl,
  sink: ByteSink,
  options: SaveOptions,
  steering: SaveSteering,
  resources: SaveResources,
): Promise<SaveContext> {
  const { host, domid } = resources;
  control.enter('setup');
  const domain = await host.openDomain(domid);
  resources.domain = domain;
  control.throwIfCancelled();
  const info = await domain.info();
  control.throwIfCancelled();
  if (info.dying) throw new GuestError(SaveErrorCode.GUEST_GONE, `domain ${domid} is dying`);
  if (info.shutdown && !isSuspended(info)) {
    const why = `domain ${domid} is shut down with reason ${info.shutdownReason}`;
    throw new GuestError(SaveErrorCode.NOT_RUNNING, why);
  }
  const toolstack = options.toolstack ?? host.toolstack;
  // Before the first byte: a guest that cannot be destroyed afterwards would be there twice.
  if ((options.afterwards ?? 'destroy') === 'destroy') await toolstack.assertDestroyable?.(domid);
  control.throwIfCancelled();
  const context = new SaveContext({
    control,
    host,
    toolstack,
    domain,
    info,
    out: new RecordWriter(sink, control),
    options,
    steering,
    makeOps: (self) => (info.hvm ? new HvmSaveOps(self) : new PvSaveOps(self)),
  });
  resources.context = context;
  return context;
}
