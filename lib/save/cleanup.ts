/**
 * The end of a save, good or bad: log-dirty off, everything released, and after a failure the guest running again.
 * Every step is taken, whatever the ones before it did; what fails is collected.
 */
import {
  HypercallError,
  withCleanupError,
  XenMigrationError,
  type GuestState,
  type GuestWhereabouts,
} from '../errors.js';
import { Errno } from '../abi/errno.js';
import type { Domain, Host } from '../host/host.js';
import type { PageSender } from './batch.js';
import type { SaveContext } from './context.js';
import { isSuspended } from './suspend.js';

/** What a save has in hand; members appear as it goes on. */
export interface SaveResources {
  readonly host: Host;
  readonly domid: number;
  domain?: Domain;
  context?: SaveContext;
  sender?: PageSender;
  /** The toolstack was asked to suspend the guest, which ran: it has to be resumed if the save fails. */
  suspendAsked: boolean;
}

/** Runs steps one after the other; returns what they threw. */
async function all(...steps: readonly (() => Promise<unknown> | undefined)[]): Promise<unknown[]> {
  const errors: unknown[] = [];
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      errors.push(error);
    }
  }
  return errors;
}

/** After a complete image. The guest is still suspended. Returns what failed. */
export function cleanUpAfterSuccess({ context, sender }: SaveResources): Promise<unknown[]> {
  return all(
    () => context?.domain.disableLogDirty(),
    () => context?.ops.cleanup(),
    () => sender?.settle(),
  );
}

/**
 * After a failure; the sink has been aborted. First what lets the guest go on, then what is only memory of this
 * process. The errors of the steps are kept beside `error`.
 */
export async function cleanUpAfterFailure(resources: SaveResources, error: XenMigrationError): Promise<void> {
  const { context, sender, suspendAsked } = resources;
  const errors = await all(
    () => context?.domain.disableLogDirty(),
    () => context?.ops.cleanup(),
    () => (suspendAsked && context !== undefined ? resumeGuest(context) : undefined),
    () => sender?.settle(),
  );
  for (const later of errors) withCleanupError(error, later);
  // Only if nothing could be said against it: a guest that ran, and that was resumed if it had to be.
  const ran = context !== undefined && !context.info.shutdown && !context.info.paused;
  error.guest = await whereabouts(resources, ran && errors.length === 0 ? 'running' : 'unknown');
  for (const later of await all(() => resources.domain?.close())) withCleanupError(error, later);
}

/** A guest that did something else than suspend, crash for instance, must not be resumed. */
async function resumeGuest({ domain, domid, toolstack }: SaveContext): Promise<void> {
  const info = await domain.info().catch(() => undefined);
  if (info?.dying === true || (info?.shutdown === true && !isSuspended(info))) return;
  await toolstack.resume(domid);
}

/** Where the guest is, as the hypervisor says now; if it says nothing, `assumed`. Opens the domain if need be. */
export async function whereabouts(resources: SaveResources, assumed: GuestState): Promise<GuestWhereabouts> {
  try {
    resources.domain ??= await resources.host.openDomain(resources.domid);
    const info = await resources.domain.info();
    if (info.dying) return { host: 'none', state: 'gone' };
    if (isSuspended(info)) return { host: 'source', state: 'suspended' };
    if (info.shutdown) return { host: 'source', state: 'unknown' };
    return { host: 'source', state: info.paused ? 'paused' : 'running' };
  } catch (error) {
    const gone = error instanceof HypercallError && error.errno === Errno.ESRCH;
    return gone ? { host: 'none', state: 'gone' } : { host: 'source', state: assumed };
  }
}
