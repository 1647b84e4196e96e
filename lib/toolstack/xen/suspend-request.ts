/**
 * The three ways to ask a guest to suspend (libxl_dom_suspend.c): its suspend event channel, the hypervisor on its
 * behalf, and the node control/shutdown.
 */
import { HvmParam } from '../../abi/hvm.js';
import { Errno } from '../../abi/errno.js';
import { HypercallError } from '../../errors.js';
import type { XenstoreWatch } from '../xenstore/index.js';
import type { EventChannels, ToolstackDomainInfo } from './hypercalls.js';
import { suspendLock, xsPath } from './paths.js';
import { guestKind, Shutdown, type Parts } from './parts.js';
import { busy, lockSuspend } from './suspend-lock.js';

/** One request to one guest. `close` it, whatever happened. */
export interface SuspendRequest {
  /** How the guest is asked, for messages: `by its suspend event channel`. */
  readonly how: string;
  send(): Promise<void>;
  /** Looks whether the guest has taken notice, where that can be seen; called whenever something may have happened. */
  look(): Promise<void>;
  /** What is known of the guest's answer; `unknown` where it does not give one before it suspends. */
  readonly answer: 'none' | 'taken' | 'unknown';
  /** Takes the request back. True if the guest will not suspend because of it any more. */
  withdraw(): Promise<boolean>;
  close(): Promise<void>;
}

/** Value of control/shutdown that asks for a suspend. */
const SUSPEND = 'suspend';

/**
 * Chooses the way as libxl does, with one difference: a PVH guest that has set up no event channel callback cannot answer
 * through xenstore either, and is suspended by the hypervisor, as an HVM guest without PV drivers is.
 *
 * @param ring Called whenever the guest may have done something
 */
export async function suspendRequest(
  parts: Parts,
  info: ToolstackDomainInfo,
  ring: () => void,
): Promise<SuspendRequest> {
  const { domid } = info;
  const kind = await guestKind(parts, info);
  const callback = kind === 'pv' ? 0n : await param(parts, domid, HvmParam.CALLBACK_IRQ);
  const sleeping = kind !== 'pv' && (await param(parts, domid, HvmParam.ACPI_S_STATE)) !== 0n;
  const store = await parts.store();
  const port = Number((await store.read(xsPath.suspendPort(domid))) ?? '');
  if (!sleeping && Number.isInteger(port) && port > 0) return openEventChannel(parts, domid, port, ring);
  if (kind !== 'pv' && (callback === 0n || sleeping)) return new HypervisorRequest(parts, domid);
  return new XenstoreRequest(parts, domid, ring);
}

/** A parameter that a domain without it has as 0. */
async function param(parts: Parts, domid: number, index: number): Promise<bigint> {
  try {
    return await parts.calls.hvmParam(domid, index);
  } catch (error) {
    if (error instanceof HypercallError && error.errno === Errno.EINVAL) return 0n;
    throw error;
  }
}

/** XEN_DOMCTL shutdown on the guest's behalf: it stands at once. */
class HypervisorRequest implements SuspendRequest {
  readonly how = 'through the hypervisor';
  readonly answer = 'unknown';
  readonly #parts: Parts;
  readonly #domid: number;

  constructor(parts: Parts, domid: number) {
    this.#parts = parts;
    this.#domid = domid;
  }

  async send(): Promise<void> {
    await this.#parts.calls.shutdown(this.#domid, Shutdown.SUSPEND);
  }
  async look(): Promise<void> {}
  async withdraw(): Promise<boolean> {
    return false;
  }
  async close(): Promise<void> {}
}

async function openEventChannel(
  parts: Parts,
  domid: number,
  port: number,
  ring: () => void,
): Promise<SuspendRequest> {
  const unlock = await lockSuspend(parts.folders, domid, parts.lockFile);
  let channels: EventChannels | undefined;
  try {
    channels = parts.openEvtchn();
    const local = bind(parts, channels, domid, port);
    await parts.calls.subscribe(domid, port);
    return new EventChannelRequest(parts, { domid, channels, local, unlock, ring });
  } catch (error) {
    channels?.close();
    await unlock();
    throw parts.wrapError(error, domid);
  }
}

function bind(parts: Parts, channels: EventChannels, domid: number, port: number): number {
  try {
    return channels.bindInterdomain(domid, port);
  } catch (cause) {
    // Xen binds a port to one other end only, so a toolstack that takes no lock shows here.
    const { errno } = cause as { errno?: unknown };
    if (errno !== Errno.EINVAL) throw cause;
    throw busy(domid, `its port ${port} is bound; ${suspendLock(parts.folders, domid)} is not locked`, cause);
  }
}

interface BoundChannel {
  readonly domid: number;
  readonly channels: EventChannels;
  readonly local: number;
  readonly unlock: () => Promise<void>;
  readonly ring: () => void;
}

/** The guest's event channel for this very purpose. It says nothing until it has suspended. */
class EventChannelRequest implements SuspendRequest {
  readonly how = 'by its suspend event channel';
  readonly answer = 'unknown';
  readonly #parts: Parts;
  readonly #domid: number;
  readonly #channels: EventChannels;
  readonly #local: number;
  readonly #unlock: () => Promise<void>;
  readonly #watch: { rearm(): void; close(): void };

  constructor(parts: Parts, of: BoundChannel) {
    this.#parts = parts;
    this.#domid = of.domid;
    this.#channels = of.channels;
    this.#local = of.local;
    this.#unlock = of.unlock;
    this.#watch = parts.watchReadable(of.channels.fd, of.ring, true);
  }

  async send(): Promise<void> {
    this.#try(() => this.#channels.notify(this.#local));
  }

  async look(): Promise<void> {
    // A port is pending right after it is bound, so an event says no more than "look".
    while (this.#try(() => this.#channels.pending()) >= 0);
    this.#watch.rearm();
  }

  async withdraw(): Promise<boolean> {
    return false;
  }

  async close(): Promise<void> {
    this.#watch.close();
    this.#channels.close();
    await this.#unlock();
  }

  #try<T>(call: () => T): T {
    try {
      return call();
    } catch (cause) {
      throw this.#parts.wrapError(cause, this.#domid);
    }
  }
}

/** control/shutdown: the guest empties or removes the node when it begins to suspend. */
class XenstoreRequest implements SuspendRequest {
  readonly how = 'through xenstore';
  readonly #parts: Parts;
  readonly #path: string;
  readonly #ring: () => void;
  #watch: XenstoreWatch | undefined;
  answer: 'none' | 'taken' = 'none';

  constructor(parts: Parts, domid: number, ring: () => void) {
    this.#parts = parts;
    this.#path = xsPath.shutdown(domid);
    this.#ring = ring;
  }

  async send(): Promise<void> {
    const store = await this.#parts.store();
    await store.write(this.#path, SUSPEND);
    this.#watch = await store.watch(this.#path, { onChange: this.#ring });
  }

  async look(): Promise<void> {
    if (this.answer === 'taken' || this.#watch === undefined) return;
    const value = await (await this.#parts.store()).read(this.#path);
    if (value !== SUSPEND) this.answer = 'taken';
  }

  /** In a transaction: the guest may take the request at this very moment. */
  async withdraw(): Promise<boolean> {
    if (this.answer === 'taken') return false;
    const store = await this.#parts.store();
    const withdrawn = await store.transaction(async (tx) => {
      if ((await tx.read(this.#path)) !== SUSPEND) return false;
      await tx.write(this.#path, '');
      return true;
    });
    if (!withdrawn) this.answer = 'taken';
    return withdrawn;
  }

  async close(): Promise<void> {
    await this.#watch?.close();
  }
}
