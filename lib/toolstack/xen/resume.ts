/** Letting a suspended guest go on where it was (libxl_domain_resume with suspend_cancel). */
import { Errno } from '../../abi/errno.js';
import { XenstoreError } from '../../errors.js';
import type { DeviceModels } from './device-model.js';
import { xsPath } from './paths.js';
import { assertAlive, isSuspended, type Parts } from './parts.js';

/** What xenstored answers for a domain that it was never introduced to. */
const NOT_INTRODUCED: readonly number[] = [Errno.ENOENT, Errno.EINVAL];

/**
 * Resumes the guest: its suspend hypercall returns 1. The device model goes first, as it must serve the guest from its first
 * step on. Nothing happens to a guest that runs, but that its device model, if it was stopped here, goes on.
 */
export async function resumeGuest(parts: Parts, models: DeviceModels, domid: number): Promise<void> {
  const info = await parts.calls.domainInfo(domid);
  assertAlive(domid, info, 'before it could be resumed');
  if (isSuspended(info) || models.isStopped(domid)) await models.resume(info);
  if (!isSuspended(info)) return;
  await parts.calls.resume(domid, true);
  const store = await parts.store();
  try {
    // Else xenstored would not report the guest's next shutdown.
    await store.resume(domid);
  } catch (error) {
    if (!(error instanceof XenstoreError) || !NOT_INTRODUCED.includes(error.errno)) throw error;
  }
  // A guest that was suspended by other means than this node never looked at it.
  await store.transaction(async (tx) => {
    if ((await tx.read(xsPath.shutdown(domid))) === 'suspend') await tx.write(xsPath.shutdown(domid), '');
  });
}
