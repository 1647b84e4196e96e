/** After the last byte: the image is complete, and the guest becomes what the caller wanted. */
import { pageTypeName } from '../abi/pages.js';
import { GuestError, withCleanupError } from '../errors.js';
import type { JobControl } from '../job.js';
import type { DowntimeSplit, IterationStats } from '../progress.js';
import type { PageSender } from './batch.js';
import { cleanUpAfterSuccess, whereabouts, type SaveResources } from './cleanup.js';
import { SaveErrorCode } from './codes.js';
import type { SaveContext } from './context.js';
import type { SaveOptions, SaveResult } from './types.js';

/** A complete image, as it came about. */
export interface SavedImage {
  readonly context: SaveContext;
  readonly sender: PageSender;
  readonly iterations: readonly IterationStats[];
  readonly suspendRequestedAt: number;
  readonly downtime: DowntimeSplit;
}

/**
 * Cleans up, and destroys or resumes the guest. It must not be resumed because one of these failed: from here on it
 * exists in the image.
 *
 * @throws GuestError NOT_DESTROYED or NOT_RESUMED; the image is good all the same
 */
export async function finishSave(
  control: JobControl,
  options: SaveOptions,
  resources: SaveResources,
  image: SavedImage,
): Promise<SaveResult> {
  const { context, sender } = image;
  const { toolstack, domid } = context;
  const cleanupErrors = await cleanUpAfterSuccess(resources);
  const afterwards = options.afterwards ?? 'destroy';
  try {
    if (afterwards === 'destroy') await toolstack.destroy(domid);
    else if (afterwards === 'resume') await toolstack.resume(domid);
  } catch (cause) {
    const [code, verb] =
      afterwards === 'destroy'
        ? [SaveErrorCode.NOT_DESTROYED, 'destroyed']
        : [SaveErrorCode.NOT_RESUMED, 'resumed'];
    const what = `the image of domain ${domid} is complete, but the guest could not be ${verb}`;
    const guest = await whereabouts(resources, 'unknown');
    const error = new GuestError(code, `${what}: it is ${guest.state} on this host`, { cause, guest });
    for (const later of cleanupErrors) withCleanupError(error, later);
    await resources.domain?.close().catch((later: unknown) => withCleanupError(error, later));
    throw error;
  }
  await resources.domain?.close().catch((later: unknown) => cleanupErrors.push(later));

  return {
    domid,
    bytes: context.out.bytes,
    pages: sender.dataPages,
    entriesByType: entriesByName(sender.entriesByType),
    p2mSize: context.p2mSize,
    iterations: image.iterations,
    downtime: image.downtime,
    elapsed: control.status.elapsed,
    suspendRequestedAt: image.suspendRequestedAt,
    cleanupErrors,
  };
}

function entriesByName(entriesByType: Float64Array): Record<string, number> {
  const named: Record<string, number> = {};
  entriesByType.forEach((count, type) => {
    if (count > 0) named[pageTypeName(type)] = count;
  });
  return named;
}
