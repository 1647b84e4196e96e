/** The hypervisor's log-dirty mode, as a save uses it. */
import { errnoName } from '../abi/errno.js';
import { debug } from '../debug.js';
import { GuestError, HypercallError } from '../errors.js';
import { SaveErrorCode } from './codes.js';
import type { SaveContext } from './context.js';

/**
 * Turns log-dirty on. It may be on already, for the video memory of an HVM guest or left by a save that died: then
 * once more after turning it off.
 */
export async function enableLogDirty(context: SaveContext): Promise<void> {
  const { domain } = context;
  let first: unknown;
  try {
    await domain.enableLogDirty();
    return;
  } catch (error) {
    first = error;
  }
  context.control.throwIfCancelled();
  let off: unknown;
  try {
    await domain.disableLogDirty();
  } catch (error) {
    off = error;
  }
  context.control.throwIfCancelled();
  try {
    await domain.enableLogDirty();
  } catch (error) {
    const errno = error instanceof HypercallError ? error.errno : 0;
    const what = `cannot enable log-dirty: ${reason(first)}, then off: ${reason(off)}, then again: ${reason(error)}`;
    throw new HypercallError('XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY', errno, what, { cause: error });
  }
}

/**
 * CLEAN into the context's dirty bitmap. Resolves to the number of dirty pages.
 *
 * @param final The guest is suspended: also pages that Xen keeps mapped writable
 */
export async function cleanLogDirty(context: SaveContext, final: boolean): Promise<number> {
  const { domain, p2mSize } = context;
  const result = await domain.logDirty('clean', context.dirty.words, p2mSize, final);
  context.control.throwIfCancelled();
  if (result.pages !== p2mSize) {
    throw new GuestError(
      SaveErrorCode.PHYSMAP_CHANGED,
      `log-dirty covers ${result.pages} pages instead of ${p2mSize}: the guest's physmap changed`,
    );
  }
  return result.dirtyCount;
}

/** PEEK after a verification, for its statistic alone: how many pages were written while the guest was suspended. */
export async function peekLogDirty(context: SaveContext): Promise<void> {
  const { domain, p2mSize } = context;
  const result = await domain.logDirty('peek', context.dirty.words, p2mSize, false);
  context.control.throwIfCancelled();
  debug(
    'domain %d: %d dirty pages and %d faults after the verification',
    context.domid,
    result.dirtyCount,
    result.faultCount,
  );
}

function reason(error: unknown): string {
  if (error === undefined) return 'ok';
  if (error instanceof HypercallError) return errnoName(error.errno);
  return error instanceof Error ? error.message : 'failed';
}
