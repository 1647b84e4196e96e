/** `Toolstack` of a Xen host, over hypercalls, xenstore and QEMU's monitor, without libxl. See docs/design/toolstack.md. */
import { throwIfAborted, UsageError, withCleanupError } from '../../errors.js';
import type {
  BackendWiring,
  DeviceModelState,
  MissingStaticData,
  SuspendOptions,
  Toolstack,
} from '../toolstack.js';
import { lastWords, XlError } from '../xl/error.js';
import { needsXl } from '../xl/needs.js';
import { openXenstore, type XenstoreClient } from '../xenstore/index.js';
import { systemClock, type Clock } from './clock.js';
import { createDomain, type MadeDomain } from './create.js';
import { assertDestroyable, destroyDomain, endProcess } from './destroy.js';
import { DeviceModels } from './device-model.js';
import { completeNodes } from './domain-nodes.js';
import { listNames, resolveDomain } from './domains.js';
import { findDomain, hypercallError, wrapped, type EventChannels, type Hypercalls } from './hypercalls.js';
import type { WatchReadable, WrapError } from './hypercalls.js';
import { LateSuspends } from './late-suspends.js';
import { liveConfig } from './live-config.js';
import { XenNotes } from './notes.js';
import type { Parts } from './parts.js';
import { XEN_FOLDERS, xsPath, type XenFolders } from './paths.js';
import { DROP_IN, planDomain } from './plan.js';
import { renameDomain } from './rename.js';
import { resumeGuest } from './resume.js';
import { runXl, type Ran } from './run.js';
import { SUSPEND_TIMEOUT_MS, suspendGuest } from './suspend.js';

/** What the toolstack works with. */
export interface XenToolstackOptions {
  readonly calls: Hypercalls;
  /** Opens /dev/xen/evtchn; called for each guest with a suspend event channel. */
  readonly openEvtchn: () => EventChannels;
  readonly watchReadable: WatchReadable;
  /** How a failed hypercall becomes an error of this library. Default: plainly. */
  readonly wrapError?: WrapError | undefined;
  /** F_SETLK of a write lock on the first byte of a descriptor. Without it xl is not kept out while a guest is suspended. */
  readonly lockFile?: ((fd: number) => void) | undefined;
  /** Connects to xenstored. Called on first use, and again when the connection was lost. */
  readonly openStore?: (() => Promise<XenstoreClient>) | undefined;
  readonly folders?: Partial<XenFolders> | undefined;
  /**
   * Streams of Xen 4.13 and older carry no CPUID policy. With this, a guest restored from one gets the policy that Xen gives to
   * a new domain; by default it is refused, as what the guest knows of its CPU may change under it.
   */
  readonly acceptDefaultCpuPolicy?: boolean | undefined;
  /** @internal For tests: HVM guests are built, without a device model. */
  readonly hvmWithoutDeviceModel?: boolean | undefined;
  /** @internal For tests. */
  readonly clock?: Clock | undefined;
  /** @internal For tests. */
  readonly runXl?: ((args: readonly string[]) => Promise<Ran | undefined>) | undefined;
  /** @internal For tests. */
  readonly endDeviceModel?: ((pid: number, domid: number) => Promise<void>) | undefined;
}

export class XenToolstack implements Toolstack, AsyncDisposable {
  readonly notes: XenNotes;
  readonly #parts: Parts;
  readonly #options: XenToolstackOptions;
  readonly #models: DeviceModels;
  readonly #late: LateSuspends;
  /** Built here, and not yet destroyed here. */
  readonly #made = new Map<number, MadeDomain>();
  #store: Promise<XenstoreClient> | undefined;
  #closed = false;

  /** Opens nothing yet. `close` it. */
  constructor(options: XenToolstackOptions) {
    this.#options = options;
    const { wrapError = hypercallError } = options;
    this.#parts = {
      calls: wrapped(options.calls, wrapError),
      wrapError,
      store: () => this.#openStore(),
      openEvtchn: options.openEvtchn,
      watchReadable: options.watchReadable,
      lockFile: options.lockFile,
      clock: options.clock ?? systemClock,
      folders: { ...XEN_FOLDERS, ...options.folders },
      runXl: options.runXl ?? runXl,
      endDeviceModel: options.endDeviceModel ?? endProcess,
    };
    this.notes = new XenNotes(() => this.#openStore());
    this.#models = new DeviceModels(this.#parts);
    this.#late = new LateSuspends(this.#parts, (domid) => resumeGuest(this.#parts, this.#models, domid));
  }

  async suspend(domid: number, options: SuspendOptions): Promise<void> {
    const { signal, timeoutMs = SUSPEND_TIMEOUT_MS, live } = options;
    throwIfAborted(signal, 'suspend', domid);
    await this.#late.drop(domid);
    const resume = (): Promise<void> => resumeGuest(this.#parts, this.#models, domid);
    const { error, mayFollow } = await suspendGuest(this.#parts, domid, { signal, timeoutMs, resume });
    if (error !== undefined) {
      if (mayFollow && !this.#closed) this.#late.add(domid);
      // eslint-disable-next-line @typescript-eslint/only-throw-error -- as it came
      throw error;
    }
    try {
      await this.#models.save(await this.#parts.calls.domainInfo(domid), live, signal);
    } catch (cause) {
      const failure = signal?.aborted === true ? cancelled(signal, domid) : cause;
      try {
        await resume();
      } catch (later) {
        withCleanupError(failure, later);
      }
      throw failure;
    }
  }

  async resume(domid: number): Promise<void> {
    await resumeGuest(this.#parts, this.#models, domid);
  }

  async setDeviceModelLogDirty(domid: number, enable: boolean): Promise<void> {
    await this.#models.setLogDirty(await this.#parts.calls.domainInfo(domid), enable);
  }

  async deviceModelState(domid: number): Promise<DeviceModelState | undefined> {
    return this.#models.state(await this.#parts.calls.domainInfo(domid));
  }

  /** Always rejects: a device model that takes a state has to be started with it, which only libxl does. */
  async loadDeviceModelState(domid: number, _state: DeviceModelState): Promise<void> {
    throw new UsageError(`guest ${domid} needs a device model (QEMU), which only libxl starts: ${DROP_IN}`, {
      domid,
    });
  }

  async domainConfig(domid: number): Promise<string> {
    return liveConfig(this.#parts, this.#models, await this.#parts.calls.domainInfo(domid));
  }

  /** Of PV and PVH guests without devices; UsageError for all others says what to use. */
  async createDomain(
    config: string,
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<number> {
    const plan = planDomain(config, { hvmWithoutDeviceModel: this.#options.hvmWithoutDeviceModel });
    const { domid, made } = await createDomain(this.#parts, this.#models, plan, options.signal);
    this.#made.set(domid, made);
    return domid;
  }

  async backendWiring(domid: number): Promise<BackendWiring> {
    return this.#madeHere(domid).wiring;
  }

  async staticDataDone(domid: number, missing: MissingStaticData): Promise<void> {
    // libxl, too, leaves missing MSRs as they are.
    if (!missing.cpuid || this.#options.acceptDefaultCpuPolicy === true) return;
    throw new UsageError(
      'the stream has no CPUID policy, as Xen 4.13 and older wrote them: restore it by `xl restore`, which makes one ' +
        'up from the configuration, or accept the policy of a new domain (acceptDefaultCpuPolicy)',
      { domid, phase: 'static-data' },
    );
  }

  async finishRestore(
    domid: number,
    rings: { readonly storeGfn: number; readonly consoleGfn: number },
  ): Promise<void> {
    const { plan, wiring } = this.#madeHere(domid);
    await completeNodes(await this.#parts.store(), domid, plan, wiring, rings);
  }

  async unpause(domid: number): Promise<void> {
    await this.#parts.calls.unpause(domid);
  }

  /** xl knows of the device model of what xl built, and lets it go on too. */
  async unpauseLeftBehind(domid: number): Promise<void> {
    const config = await this.domainConfig(domid).catch(() => '{}');
    const ran = needsXl(config) ? await this.#parts.runXl(['unpause', String(domid)]) : undefined;
    if (ran === undefined) return this.unpause(domid);
    if (ran.code === 0) return;
    const command = `xl unpause ${domid}`;
    const { code: exitCode, stderr } = ran;
    throw new XlError('ERR_XEN_XL', command, `${command}: ${lastWords(stderr)}`, {
      exitCode,
      stderr,
    });
  }

  async pause(domid: number): Promise<void> {
    await this.#parts.calls.pause(domid);
  }

  async assertDestroyable(domid: number): Promise<void> {
    await assertDestroyable(this.#parts, domid);
  }

  async destroy(domid: number): Promise<void> {
    await this.#late.drop(domid);
    await destroyDomain(this.#parts, this.#models, domid);
    this.#made.delete(domid);
  }

  async rename(domid: number, name: string): Promise<void> {
    await renameDomain(this.#parts, domid, name);
  }

  async nameOf(domid: number): Promise<string | undefined> {
    const name = await (await this.#parts.store()).read(xsPath.name(domid));
    return name === '' ? undefined : name;
  }

  async findByName(name: string): Promise<number | undefined> {
    for (const [domid, other] of await listNames(this.#parts)) {
      if (other === name && (await findDomain(this.#parts.calls, domid)) !== undefined) return domid;
    }
    return undefined;
  }

  /** The domain that a number in digits, or a name, means. Rejects with UsageError if there is none, or several. */
  resolveDomain(nameOrId: string): Promise<number> {
    return resolveDomain(this.#parts, nameOrId);
  }

  /** Names of domains, by domid in rising order. Domains without a name are not there. */
  listNames(): Promise<Map<number, string>> {
    return listNames(this.#parts);
  }

  /**
   * Has a last look at guests that were asked to suspend in vain, and resumes those that did since; then closes the
   * connection to xenstored. Close it before the hypercall interface. Idempotent.
   */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#late.close();
    const store = this.#store;
    this.#store = undefined;
    (await store?.catch(() => undefined))?.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #openStore(): Promise<XenstoreClient> {
    const open = this.#options.openStore ?? openXenstore;
    const store = this.#store;
    if (store !== undefined) {
      const client = await store.catch(() => undefined);
      if (client !== undefined && client.failure === undefined) return client;
      // Another caller may have opened one anew meanwhile.
      if (this.#store !== store) return this.#openStore();
    }
    if (this.#closed) throw new UsageError('the toolstack is closed');
    this.#store = open();
    return this.#store;
  }

  #madeHere(domid: number): MadeDomain {
    const made = this.#made.get(domid);
    if (made === undefined)
      throw new UsageError(`domain ${domid} was not built by this toolstack`, { domid });
    return made;
  }
}

/** What `throwIfAborted` throws for an aborted signal. */
function cancelled(signal: AbortSignal, domid: number): unknown {
  try {
    throwIfAborted(signal, 'suspend', domid);
  } catch (error) {
    return error;
  }
  return signal.reason;
}
