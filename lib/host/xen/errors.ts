/**
 * The addon's errors in the library's words. Native code throws Node-like errors (`code`, `errno`, `syscall`);
 * callers of the port `Host` get HypercallError with the domain, and with what to do where the errno alone misleads.
 */
import { Errno } from '../../abi/errno.js';
import { AddonError, HypercallError, UsageError, XenMigrationError } from '../../errors.js';

/** How the addon is built anew. */
export const REBUILD =
  '`npm rebuild xen-migration`, or, where it is installed globally, `npm rebuild --global xen-migration`';

/** What a domctl that Xen does not even look at means. */
const OTHER_VERSION =
  'the hypervisor speaks another version of its control interface than the Xen libraries that the addon was built ' +
  `with (rebuild it with this release of them: ${REBUILD}), or its security policy (XSM) refuses`;
const NOT_ALLOWED = 'not allowed: run as root in the control domain; a security policy (XSM) may refuse, too';

/** set_address_size means a domain that has memory already. */
const EACCES_OF_ITS_OWN: ReadonlySet<string> = new Set(['set_address_size']);
/** These mean a machine frame of somebody else. */
const EPERM_OF_THEIR_OWN: ReadonlySet<string> = new Set(['xc_clear_domain_page', 'xc_mmuext_op']);

/**
 * An error of the native addon as one of this library's, the original kept as its cause. Bad arguments become
 * UsageError. Errors of this library stay what they are.
 */
export function hostError(cause: unknown, domid?: number): XenMigrationError {
  if (XenMigrationError.is(cause)) return cause;
  if (!(cause instanceof Error)) {
    return new HypercallError('xen', Errno.EIO, `failed with ${String(cause)}`, { cause, domid });
  }
  const { message } = cause;
  const errno = 'errno' in cause && typeof cause.errno === 'number' ? cause.errno : undefined;
  if (errno === undefined) return new UsageError(message, { cause, domid });
  const syscall = 'syscall' in cause && typeof cause.syscall === 'string' ? cause.syscall : 'xen';
  // The native message begins with the call's name, and so does HypercallError's.
  const said = message.startsWith(`${syscall}: `) ? message.slice(syscall.length + 2) : message;
  const hint = explain(syscall, errno);
  const what = hint === undefined ? said : `${said}: ${hint}`;
  return new HypercallError(syscall, errno, what, { cause, domid });
}

function explain(syscall: string, errno: number): string | undefined {
  if (errno === Errno.EPERM && !EPERM_OF_THEIR_OWN.has(syscall)) return NOT_ALLOWED;
  if (errno === Errno.EACCES && !EACCES_OF_ITS_OWN.has(syscall)) return OTHER_VERSION;
  return undefined;
}

/** Why the hypercall interface could not be opened. */
export function openError(cause: unknown): XenMigrationError {
  const error = hostError(cause);
  if (!(error instanceof HypercallError)) return error;
  const { errno, message } = error;
  if (errno === Errno.EACCES || errno === Errno.EPERM) {
    const what = `no permission to use Xen's interfaces: run as root (${message})`;
    return new AddonError('ERR_XEN_PERMISSION', what, { cause });
  }
  return noPrivcmd(message, cause);
}

/** There is no interface to a hypervisor. */
export function noPrivcmd(message: string, cause: unknown): AddonError {
  const what =
    `no Xen to speak to: this system does not run as a Xen control domain (${message}); boot Xen and run this in its ` +
    `control domain, dom0, whose kernel needs xen-privcmd (\`modprobe xen-privcmd\`)`;
  return new AddonError('ERR_XEN_NO_PRIVCMD', what, { cause });
}
