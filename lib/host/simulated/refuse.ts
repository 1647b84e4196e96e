/** How the simulator refuses: the same error class and errno as a hypercall that Xen refuses. */
import { errnoName } from '../../abi/errno.js';
import { HypercallError } from '../../errors.js';

/**
 * A refusal, to be thrown.
 *
 * @param syscall name of the hypercall that it stands for, for instance `XENMEM_populate_physmap`
 * @param errno positive, from `Errno`
 */
export function refusal(syscall: string, errno: number, why: string, domid?: number): HypercallError {
  return new HypercallError(syscall, errno, `${errnoName(errno)}: ${why}`, { domid });
}
