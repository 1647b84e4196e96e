/** Stopping the guest, and making sure that it stands still. */
import { GuestError, TimeoutError, withCleanupError } from '../errors.js';
import { ShutdownReason, type DomainInfo } from '../host/host.js';
import type { SuspendOptions } from '../toolstack/toolstack.js';
import { SaveErrorCode } from './codes.js';
import type { SaveContext } from './context.js';

/** Time that a guest has to acknowledge, where it does, and again to suspend, ms: libxl's. */
export const SUSPEND_TIMEOUT_MS = 60_000;

/**
 * What the toolstack may take beyond the guest's time, ms. Only a toolstack that hangs meets this limit: one that is still
 * at work would resume the guest beside the save. XenToolstack's device model takes up to 100 s (30 s to connect, 10 s to
 * stop, 60 s to save its state), and, if that fails, 40 s more to go on; a guest that is given up is waited for 10 s.
 */
const TOOLSTACK_GRACE_MS = 150_000;

/** The longest delay that a timer of Node can have; beyond it fires at once. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** True if the domain is shut down with reason SUSPEND. */
export function isSuspended(info: DomainInfo): boolean {
  return info.shutdown && info.shutdownReason === ShutdownReason.SUSPEND;
}

/**
 * Asks the toolstack to suspend the guest, and the hypervisor whether it is. A guest found suspended when the save
 * began is left as it is, unless `alwaysAskToSuspend`.
 *
 * Throws TimeoutError, GuestError, what the toolstack throws, or the job's reason.
 */
export async function suspendGuest(context: SaveContext): Promise<void> {
  const { control, options, live } = context;
  if (options.alwaysAskToSuspend === true || !isSuspended(context.info)) {
    const timeoutMs = options.suspendTimeoutMs ?? SUSPEND_TIMEOUT_MS;
    const guard = new AbortController();
    // The guest has its time twice: until it acknowledges, and until it stands.
    const longest = Math.min(2 * timeoutMs + TOOLSTACK_GRACE_MS, LONGEST_TIMER);
    const timer = setTimeout(() => {
      guard.abort(new TimeoutError('suspend', longest, 'the toolstack did not suspend the guest in time'));
    }, longest);
    try {
      const signal = AbortSignal.any([control.signal, guard.signal]);
      const suspending = suspendPausedOrNot(context, { signal, timeoutMs, live });
      await Promise.race([suspending, rejection(guard.signal)]);
    } catch (error) {
      control.throwIfCancelled();
      if (guard.signal.aborted) throw guard.signal.reason;
      throw error;
    } finally {
      clearTimeout(timer);
    }
    control.throwIfCancelled();
  }
  await confirmSuspended(context);
  context.guestSuspended = true;
}

/**
 * Rejects when the signal is aborted, for a toolstack that does not look at it. When the job is cancelled the toolstack
 * is waited for: a guest that suspends after it was resumed would stand for ever.
 */
function rejection(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
  });
}

/** A paused guest cannot answer: it runs for as long as its own suspend takes, and not a moment longer. */
async function suspendPausedOrNot(context: SaveContext, options: SuspendOptions): Promise<void> {
  const { toolstack, domid, info } = context;
  if (!info.paused) return toolstack.suspend(domid, options);
  await toolstack.unpause(domid);
  try {
    await toolstack.suspend(domid, options);
  } catch (error) {
    await toolstack.pause(domid).catch((later: unknown) => withCleanupError(error, later));
    throw error;
  }
  await toolstack.pause(domid);
}

/** Throws GuestError unless the guest is suspended now. */
export async function confirmSuspended(context: SaveContext): Promise<void> {
  const info = await context.domain.info();
  context.control.throwIfCancelled();
  if (isSuspended(info)) return;
  const how = info.shutdown ? `it is shut down with reason ${info.shutdownReason}` : 'it runs';
  throw new GuestError(SaveErrorCode.NOT_SUSPENDED, `the domain has not been suspended: ${how}`);
}
