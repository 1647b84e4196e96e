/** From an error to the one line and the exit code that a shell gets. docs/reference/exit-codes.md is the table. */
import { printable } from '../bytes/printable.js';
import {
  AddonError,
  CancelledError,
  PeerError,
  TimeoutError,
  UsageError,
  XenMigrationError,
  XenstoreError,
  type GuestWhereabouts,
} from '../errors.js';
import { ExitCode } from './command.js';

/** The reason with which SIGINT and SIGTERM abort a command. */
export class Interrupted extends CancelledError {
  readonly exitCode: number;

  constructor(signal: 'SIGINT' | 'SIGTERM') {
    super(`stopped by ${signal}`);
    this.exitCode = ExitCode[signal];
  }
}

/** The exit code for an error. */
export function exitCodeOf(error: unknown, signal: AbortSignal): number {
  if (!XenMigrationError.is(error)) return ExitCode.FAILED;
  if (error.guest?.host === 'unknown') return ExitCode.GUEST_UNKNOWN;
  if (error.code === 'ERR_XEN_GUEST_NOT_DESTROYED') return ExitCode.NOT_RELEASED;
  if (error instanceof CancelledError && signal.reason instanceof Interrupted) return signal.reason.exitCode;
  if (error instanceof AddonError) return ExitCode.NO_HYPERVISOR;
  if (error instanceof XenstoreError && error.operation === 'open' && error.guest === undefined) {
    return ExitCode.NO_HYPERVISOR;
  }
  if (error instanceof PeerError) return ExitCode.PEER;
  if (error instanceof TimeoutError) return ExitCode.TIMEOUT;
  // Inside an operation (it has a phase then) an argument of ours may be wrong because of what a stream says.
  if (error instanceof UsageError && error.phase === undefined) return ExitCode.USAGE;
  return ExitCode.FAILED;
}

/** The one line for an error: what failed, and where the guest is now. */
export function errorLine(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  if (!XenMigrationError.is(error)) return printable(`unexpected error: ${text}`);
  const parts = [text, whereText(error.guest)];
  if (error.cleanupErrors.length > 0) {
    const failures = error.cleanupErrors.map((e) => (e instanceof Error ? e.message : String(e)));
    parts.push(`while cleaning up: ${failures.join('; ')}`);
  }
  return printable(parts.filter((part) => part !== '').join('; '));
}

/** Where the guest is, for the end of an error line; empty if that says nothing. */
function whereText(guest: GuestWhereabouts | undefined): string {
  switch (guest?.host) {
    case 'source':
      return guest.state === 'unknown'
        ? 'the guest is still at the source'
        : `the guest is ${guest.state} at the source`;
    case 'destination':
      return `the guest is ${guest.state} at the destination`;
    case 'unknown':
    case 'none':
    case undefined:
      return '';
  }
}
