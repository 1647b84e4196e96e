/** Where a guest is and what it does: asked from the hypervisor, not concluded. */
import { Errno } from '../abi/errno.js';
import { HypercallError, XenMigrationError, type GuestWhereabouts } from '../errors.js';
import { ShutdownReason, type DomainInfo, type Host } from '../host/host.js';

/** XEN_DOMCTL_getdomaininfo of a domain that is opened for this only. */
export async function readInfo(host: Host, domid: number): Promise<DomainInfo> {
  const domain = await host.openDomain(domid);
  try {
    return await domain.info();
  } finally {
    await domain.close();
  }
}

/** What a domain of the source does now. Never rejects: what cannot be asked is `unknown`. */
export async function whereaboutsOf(host: Host, domid: number): Promise<GuestWhereabouts> {
  try {
    const info = await readInfo(host, domid);
    if (info.dying) return { host: 'none', state: 'gone' };
    if (info.shutdown) {
      const suspended = info.shutdownReason === ShutdownReason.SUSPEND;
      return { host: 'source', state: suspended ? 'suspended' : 'unknown' };
    }
    return { host: 'source', state: info.paused ? 'paused' : 'running' };
  } catch (error) {
    const gone = error instanceof HypercallError && error.errno === Errno.ESRCH;
    return gone ? { host: 'none', state: 'gone' } : { host: 'source', state: 'unknown' };
  }
}

/** Errors of other making are defects; they are wrapped, so that they too can say where the guest is. */
export function asOurs(error: unknown): XenMigrationError {
  if (XenMigrationError.is(error)) return error;
  const text = error instanceof Error ? error.message : String(error);
  return new XenMigrationError('ERR_XEN_INTERNAL', text, { cause: error });
}
