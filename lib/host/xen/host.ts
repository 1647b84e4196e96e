/** `Host` on the machine that this process controls: real Xen, through the native addon. */
import { debug } from '../../debug.js';
import { UsageError } from '../../errors.js';
import type { Toolstack } from '../../toolstack/toolstack.js';
import { XenToolstack } from '../../toolstack/xen/toolstack.js';
import { openXenstore } from '../../toolstack/xenstore/index.js';
import type { Domain, DomainInfo, Host, MachineToPhys, XenVersion } from '../host.js';
import { builtWithoutXen, loadAddonWithXen } from './addon.js';
import { XenDomain, domainInfo } from './domain.js';
import { hostError, openError } from './errors.js';
import { Gate } from './gate.js';
import { XenMachineToPhys } from './machine-to-phys.js';
import type { HypervisorVersion, NativeAddon, NativeXen } from './native.js';

/** Domains that one hypercall lists. */
const LIST_CHUNK = 1024;

/** Levels of xentoollog: everything, and nothing at all. */
const XTL_DEBUG = 1;
const XTL_NEVER = 10;

export interface XenHostOptions {
  /** The toolstack to work with, instead of the one over xenstore and QMP. It stays the caller's to close. */
  readonly toolstack?: Toolstack | undefined;
  /**
   * Gets the messages of the Xen libraries with their level (`XTL_…`: 1 debug … 5 info … 8 error). Without it they go
   * to `NODE_DEBUG=xen-migration`.
   */
  readonly log?: ((level: number, message: string) => void) | undefined;
  /**
   * Streams of Xen 4.13 and older carry no CPUID policy. With this, a guest restored from one gets the policy that Xen
   * gives to a new domain; by default it is refused, as what the guest knows of its CPU may change under it.
   */
  readonly acceptDefaultCpuPolicy?: boolean | undefined;
  /**
   * Makes most calls on the thread of JavaScript instead of the thread pool. For a process that does nothing else than to
   * save or restore, like the save helper: the way over the pool costs more than most hypercalls. Each of these calls
   * blocks the event loop for as long as it takes. Log-dirty, destruction and paging memory stay on the pool.
   */
  readonly inline?: boolean | undefined;
  /** @internal For tests: `createDomain` makes HVM domains, without the device model that only libxl starts. */
  readonly hvmWithoutDeviceModel?: boolean | undefined;
  /** @internal For tests. */
  readonly addon?: NativeAddon | undefined;
}

/**
 * The Xen host that this process runs on, as its control domain. Needs the native addon, built with Xen, and root.
 *
 * Everything that was opened through it is closed with it; mappings stay valid until their own `release()`.
 */
export class XenHost implements Host, AsyncDisposable {
  readonly kind = 'xen';
  readonly toolstack: Toolstack;
  /** The running hypervisor. */
  readonly hypervisor: HypervisorVersion;
  readonly #xen: NativeXen;
  /** The toolstack, if it was made here. */
  readonly #ownToolstack: XenToolstack | undefined;
  readonly #domains = new Set<XenDomain>();
  readonly #gate = new Gate('the Xen host');
  #closing: Promise<void> | undefined;

  /**
   * Opens the interfaces.
   *
   * @throws AddonError if the addon cannot be loaded or there is no Xen that this process may control.
   */
  constructor(options: XenHostOptions = {}) {
    const { addon, hypervisor } = loaded(options.addon);
    const log = options.log ?? ((level, message) => debug('xen (level %d): %s', level, message));
    const minLevel = options.log !== undefined || debug.enabled ? XTL_DEBUG : XTL_NEVER;
    this.hypervisor = hypervisor;
    this.#xen = openXen(addon, log, minLevel, options.inline);
    if (options.toolstack === undefined) {
      this.#ownToolstack = makeToolstack(addon, this.#xen, options);
      this.toolstack = this.#ownToolstack;
    } else this.toolstack = options.toolstack;
  }

  async xenVersion(): Promise<XenVersion> {
    const { major, minor } = this.hypervisor;
    return { major, minor };
  }

  /** All domains, the control domain among them. */
  listDomains(): Promise<DomainInfo[]> {
    return this.#call(async () => {
      const list: DomainInfo[] = [];
      for (let first = 0; ;) {
        const chunk = await this.#xen.listDomains(first, LIST_CHUNK);
        for (const info of chunk) list.push(domainInfo(info));
        const last = chunk.at(-1);
        if (last === undefined || chunk.length < LIST_CHUNK) return list;
        first = last.domid + 1;
      }
    });
  }

  openDomain(domid: number): Promise<Domain> {
    return this.#call(async () => {
      const info = await this.#xen.domainInfo(domid);
      if (this.#gate.closed) throw new UsageError('the Xen host was closed meanwhile', { domid });
      const domain = new XenDomain(this.#xen, info, (closed) => this.#domains.delete(closed));
      this.#domains.add(domain);
      return domain;
    }, domid);
  }

  /**
   * The domain that a number in digits, or a name, means. A number that no domain has may be a name.
   *
   * @throws UsageError if there is no such domain, if several have the name, or if the host was given its toolstack
   */
  resolveDomain(nameOrDomid: string): Promise<number> {
    return this.#call(() => this.#names().resolveDomain(nameOrDomid));
  }

  /**
   * Names of domains, by domid in rising order. Domains without a name are not there.
   *
   * @throws XenstoreError; UsageError if the host was given its toolstack
   */
  listNames(): Promise<ReadonlyMap<number, string>> {
    return this.#call(() => this.#names().listNames());
  }

  mapMachineToPhys(): Promise<MachineToPhys> {
    return this.#call(async () => new XenMachineToPhys(await this.#xen.mapMachineToPhys()));
  }

  /** How often each hypercall was made so far, and each kind of mapping. */
  get calls(): Readonly<Record<string, number>> {
    return this.#xen.calls;
  }

  /** Lets no new call in, waits for those under way, closes its domains and then the interfaces. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Names are the toolstack's, not the hypervisor's. */
  #names(): XenToolstack {
    if (this.#ownToolstack !== undefined) return this.#ownToolstack;
    throw new UsageError('this host was given its toolstack, which knows the names of the domains');
  }

  async #close(): Promise<void> {
    try {
      await this.#gate.close();
      await Promise.all([...this.#domains].map((domain) => domain.close()));
      // It may have to resume guests that were asked to suspend in vain.
      await this.#ownToolstack?.close();
    } finally {
      this.#xen.close();
    }
  }

  async #call<T>(call: () => Promise<T>, domid?: number): Promise<T> {
    this.#gate.enter();
    try {
      return await call();
    } catch (error) {
      throw hostError(error, domid);
    } finally {
      this.#gate.leave();
    }
  }
}

/** Opens the Xen host that this process runs on; short for `new XenHost(options)`. */
export function openXenHost(options: XenHostOptions = {}): XenHost {
  return new XenHost(options);
}

function loaded(given: NativeAddon | undefined): { addon: NativeAddon; hypervisor: HypervisorVersion } {
  if (given === undefined) return loadAddonWithXen();
  if (given.hypervisor === undefined) throw new UsageError('this addon has no Xen');
  return { addon: given, hypervisor: given.hypervisor() };
}

function openXen(
  addon: NativeAddon,
  log: (level: number, message: string) => void,
  minLevel: number,
  inline?: boolean,
): NativeXen {
  const { Xen } = addon;
  if (Xen === undefined) throw builtWithoutXen();
  try {
    return new Xen(log, minLevel, inline);
  } catch (cause) {
    throw openError(cause);
  }
}

function makeToolstack(addon: NativeAddon, calls: NativeXen, options: XenHostOptions): XenToolstack {
  const { acceptDefaultCpuPolicy, hvmWithoutDeviceModel } = options;
  return new XenToolstack({
    calls,
    openEvtchn: () => {
      if (addon.Evtchn === undefined) throw builtWithoutXen();
      return new addon.Evtchn();
    },
    watchReadable: (fd, callback, keepAlive) => addon.watchReadable(fd, callback, keepAlive),
    lockFile: (fd) => addon.lockFile(fd),
    openStore: () => openXenstore({ device: addon }),
    wrapError: hostError,
    acceptDefaultCpuPolicy,
    hvmWithoutDeviceModel,
  });
}
