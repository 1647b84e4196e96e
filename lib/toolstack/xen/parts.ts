/** What the steps of the toolstack share. */
import { GuestError } from '../../errors.js';
import type { XenstoreClient } from '../xenstore/index.js';
import type { Clock } from './clock.js';
import type {
  EventChannels,
  Hypercalls,
  ToolstackDomainInfo,
  WatchReadable,
  WrapError,
} from './hypercalls.js';
import { xsPath, type XenFolders } from './paths.js';
import type { Ran } from './run.js';

export interface Parts {
  readonly calls: Hypercalls;
  /** The connection to xenstored: opened on first use, anew if it was lost. */
  readonly store: () => Promise<XenstoreClient>;
  readonly openEvtchn: () => EventChannels;
  readonly watchReadable: WatchReadable;
  /** For what the two above throw; `calls` have it done. */
  readonly wrapError: WrapError;
  readonly lockFile: ((fd: number) => void) | undefined;
  readonly clock: Clock;
  readonly folders: XenFolders;
  readonly runXl: (args: readonly string[]) => Promise<Ran | undefined>;
  readonly endDeviceModel: (pid: number, domid: number) => Promise<void>;
}

/** SHUTDOWN_* of Xen's public sched.h. */
export const Shutdown = { POWEROFF: 0, REBOOT: 1, SUSPEND: 2, CRASH: 3, WATCHDOG: 4, SOFT_RESET: 5 } as const;

const SHUTDOWN_TEXT: Readonly<Record<number, string>> = {
  [Shutdown.POWEROFF]: 'powered off',
  [Shutdown.REBOOT]: 'rebooted',
  [Shutdown.SUSPEND]: 'suspended',
  [Shutdown.CRASH]: 'crashed',
  [Shutdown.WATCHDOG]: 'was stopped by its watchdog',
  [Shutdown.SOFT_RESET]: 'asked for a soft reset',
};

export function isSuspended(info: ToolstackDomainInfo): boolean {
  return info.shutdown && info.shutdownReason === Shutdown.SUSPEND;
}

/**
 * Throws GuestError if the domain cannot go on: it is gone or dying, or shut down for another reason than suspend.
 *
 * @param when Ends the sentence, for instance `while it was asked to suspend`
 */
export function assertAlive(
  domid: number,
  info: ToolstackDomainInfo | undefined,
  when: string,
): asserts info is ToolstackDomainInfo {
  if (info === undefined || info.dying) {
    const guest = { host: 'none', state: 'gone' } as const;
    const what = `domain ${domid} was destroyed ${when}`;
    throw new GuestError('ERR_XEN_GUEST_GONE', what, { domid, guest });
  }
  if (!info.shutdown || isSuspended(info)) return;
  const { shutdownReason } = info;
  const how = SHUTDOWN_TEXT[shutdownReason] ?? `is shut down for reason ${shutdownReason}`;
  const crashed = shutdownReason === Shutdown.CRASH || shutdownReason === Shutdown.WATCHDOG;
  const code = crashed ? 'ERR_XEN_GUEST_CRASHED' : 'ERR_XEN_GUEST_NOT_RUNNING';
  throw new GuestError(code, `guest ${domid} ${how} ${when}`, { domid });
}

/** Kinds of guests as libxl counts them. */
export type GuestKind = 'pv' | 'pvh' | 'hvm';

/** What kind of guest a domain is. Of a domain that libxl did not make, HVM are those with a device model. */
export async function guestKind(parts: Parts, info: ToolstackDomainInfo): Promise<GuestKind> {
  if (!info.hvm) return 'pv';
  const store = await parts.store();
  const type = await store.read(`${xsPath.libxl(info.domid)}/type`);
  if (type === 'pvh' || type === 'hvm') return type;
  return (await store.read(xsPath.deviceModel(info.domid))) === undefined ? 'pvh' : 'hvm';
}
