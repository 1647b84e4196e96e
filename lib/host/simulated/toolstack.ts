/** `Toolstack` of a simulated host: what libxl does around the hypervisor, with the simulator's guests. */
import { Errno } from '../../abi/errno.js';
import { HvmParam } from '../../abi/hvm.js';
import { GuestError, throwIfAborted, TimeoutError, UsageError } from '../../errors.js';
import type {
  BackendWiring,
  DeviceModelState,
  MissingStaticData,
  SuspendOptions,
  Toolstack,
} from '../../toolstack/toolstack.js';
import { configWithName, makeConfig, parseConfig } from './config.js';
import type { DomainState, DomainType } from './domain-state.js';
import type { Faults, SimulatedCall } from './faults.js';
import type { GuestKind, SimulatedGuest } from './guest.js';
import { DEFAULT_RATE, type Workload } from './guest/workload.js';
import { hvmLayout } from './hvm-layout.js';
import { newContext } from './hvm-context.js';
import type { DmaPages } from './device-model.js';
import type { SimulatedNotes } from './notes.js';
import { refusal } from './refuse.js';

/** Peculiarities of the kernel of a simulated PV guest. */
export interface PvPeculiarities {
  /** Linear p2m: at an address inside of what a level 2 entry maps, so that it spans two of them. Default false. */
  readonly unalignedP2m?: boolean | undefined;
  /** Entries after the end of the p2m, 0…16, that all name one empty table, as Linux has them. Default 0. */
  readonly p2mTail?: number | undefined;
  /** The kernel's processes change their page tables while the guest runs. Default true. */
  readonly changesPageTables?: boolean | undefined;
  /** The kernel changes its p2m while the guest runs: a live migration has to fail. Default false. */
  readonly changesP2m?: boolean | undefined;
}

/** What kind of guest to make. */
export interface CreateGuestOptions {
  /** Default `pvh`. */
  readonly kind?: GuestKind | undefined;
  /** Bytes, a multiple of 4096. Default 64 MiB. */
  readonly memory?: number | undefined;
  /** Default 1. */
  readonly vcpus?: number | undefined;
  /** Default: hot set at 20 000 pages a second. */
  readonly workload?: Workload | undefined;
  /** Decides what is in its memory and which pages it writes. Default 1. */
  readonly seed?: number | undefined;
  /** Default `guest<domid>`. */
  readonly name?: string | undefined;
  /** PV: how the guest tells its p2m. Default `linear`. */
  readonly p2m?: 'linear' | 'tree' | undefined;
  /** PV: peculiarities of the guest's kernel. */
  readonly pv?: PvPeculiarities | undefined;
  /** Leaves the guest paused before its first step. */
  readonly paused?: boolean | undefined;
}

/** What the toolstack keeps of a domain. */
export interface DomainRecord {
  readonly state: DomainState;
  readonly guest: SimulatedGuest;
  name: string;
  readonly config: string;
  readonly wiring: BackendWiring;
  /** What `finishRestore` was given. */
  rings: { readonly storeGfn: number; readonly consoleGfn: number } | undefined;
  /** What `staticDataDone` was given. */
  missing: MissingStaticData | undefined;
  /** `live` of the last suspend. */
  suspendedLive: boolean | undefined;
}

/** @internal What the toolstack needs of the host that it belongs to. */
export interface DomainTable {
  find(domid: number): DomainRecord | undefined;
  all(): readonly DomainRecord[];
  make(options: {
    readonly type: DomainType;
    readonly maxPages: number;
    readonly maxVcpus: number;
    readonly seed: number | undefined;
    readonly dma: DmaPages | undefined;
    readonly describe: (domid: number) => { readonly name: string; readonly config: string };
  }): DomainRecord;
  remove(domid: number): Promise<void>;
}

const DEFAULT_MEMORY = 64 << 20;
const DEFAULT_TIMEOUT_MS = 60_000;
/** Slack of a guest's maximum over its memory: special pages, as libxl gives. */
const SLACK_PAGES = 256;
const POPULATE_BATCH = 1024;

export class SimulatedToolstack implements Toolstack {
  readonly #table: DomainTable;
  readonly #faults: Faults;

  readonly notes: SimulatedNotes;

  /** @internal Made by its host. */
  constructor(table: DomainTable, faults: Faults, notes: SimulatedNotes) {
    this.#table = table;
    this.#faults = faults;
    this.notes = notes;
  }

  /** Makes a guest with a workload and starts it. Rejects with HypercallError ENOMEM if the host is too small. */
  async createGuest(options: CreateGuestOptions = {}): Promise<SimulatedGuest> {
    const kind = options.kind ?? 'pvh';
    const memory = options.memory ?? DEFAULT_MEMORY;
    const vcpus = options.vcpus ?? 1;
    const workload = options.workload ?? { kind: 'hot-set' };
    const pages = memory / 4096;
    if (!Number.isInteger(pages) || pages < 256 || !Number.isInteger(vcpus) || vcpus < 1) {
      throw new UsageError('a guest needs whole pages, at least 1 MiB, and at least one vcpu');
    }
    const type: DomainType = kind === 'pv32' ? 'pv' : kind;
    const layout = type === 'pv' ? undefined : hvmLayout(type, pages);
    const record = this.#table.make({
      type,
      maxPages: pages + SLACK_PAGES,
      maxVcpus: vcpus,
      seed: options.seed,
      dma: layout?.dma,
      describe: (domid) => {
        const name = options.name ?? `guest${String(domid)}`;
        const cmdline = `workload=${workload.kind} rate=${String(workload.rate ?? DEFAULT_RATE)}`;
        const seed = options.seed ?? domid;
        return { name, config: makeConfig({ type, name, vcpus, memkb: memory / 1024, cmdline, seed }) };
      },
    });
    const { state, guest, wiring } = record;
    try {
      state.setTsc({ mode: 0, khz: 0, nsec: 0n, incarnation: 0 });
      state.completePolicy();
      if (layout !== undefined) {
        for (const range of layout.ram) populateRange(state, range.first, range.count);
        for (const [index, value] of layout.params) state.params.set(index, value);
        state.params.set(HvmParam.STORE_EVTCHN, BigInt(wiring.storeEvtchn));
        state.params.set(HvmParam.CONSOLE_EVTCHN, BigInt(wiring.consoleEvtchn));
        state.setContext(newContext(vcpus, state.seed));
        await guest.install(layout.program, state.physmap, undefined, workload);
      } else if (state.pv !== undefined) {
        const width = kind === 'pv32' ? 4 : 8;
        state.pv.setWidth(width);
        const map = state.pv.construct({
          width,
          pages,
          vcpus,
          p2m: options.p2m ?? 'linear',
          seed: state.seed,
          storeEvtchn: wiring.storeEvtchn,
          consoleEvtchn: wiring.consoleEvtchn,
          ...options.pv,
        });
        await guest.install(map.free, map.physmap, map.kernel, workload);
      }
      if (options.paused !== true) {
        state.pauseCount = 0;
        state.started = true;
        await guest.start();
      }
    } catch (error) {
      await this.#table.remove(state.domid);
      throw error;
    }
    return guest;
  }

  async suspend(domid: number, options: SuspendOptions): Promise<void> {
    const { state, guest } = await this.#enter('toolstack.suspend', domid);
    const { signal, timeoutMs = DEFAULT_TIMEOUT_MS, live } = options;
    throwIfAborted(signal, 'suspend', domid);
    if (state.suspended) return;
    if (state.shutdownReason !== undefined) throw shutDown(state);
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(), timeoutMs);
    try {
      await guest.suspend(signal === undefined ? limit.signal : AbortSignal.any([limit.signal, signal]));
    } catch (error) {
      throwIfAborted(signal, 'suspend', domid);
      if (!limit.signal.aborted) throw error;
      throw new TimeoutError('suspend', timeoutMs, `guest ${domid} did not suspend within ${timeoutMs} ms`, {
        domid,
        cause: error,
      });
    } finally {
      clearTimeout(timer);
    }
    this.#record(domid).suspendedLive = live;
  }

  async resume(domid: number): Promise<void> {
    const { state, guest } = await this.#enter('toolstack.resume', domid);
    if (state.shutdownReason === undefined) return;
    if (!state.suspended) throw shutDown(state);
    guest.cancelSuspend();
    if (state.pauseCount === 0) await guest.start();
  }

  async setDeviceModelLogDirty(domid: number, enable: boolean): Promise<void> {
    const { guest } = await this.#enter('toolstack.setDeviceModelLogDirty', domid, String(enable));
    if (guest.deviceModel !== undefined) guest.deviceModel.logDirty = enable;
  }

  async deviceModelState(domid: number): Promise<DeviceModelState | undefined> {
    const { guest } = await this.#enter('toolstack.deviceModelState', domid);
    if (guest.deviceModel?.running === true) {
      throw new UsageError(`the device model of guest ${domid} runs: suspend the guest first`, { domid });
    }
    return guest.deviceModel?.state();
  }

  async loadDeviceModelState(domid: number, state: DeviceModelState): Promise<void> {
    const { guest } = await this.#enter('toolstack.loadDeviceModelState', domid);
    if (guest.deviceModel === undefined)
      throw new UsageError(`guest ${domid} has no device model`, { domid });
    guest.deviceModel.load(state);
  }

  async domainConfig(domid: number): Promise<string> {
    const { config, name } = await this.#enter('toolstack.domainConfig', domid);
    return configWithName(config, name);
  }

  async createDomain(
    config: string,
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<number> {
    await this.#faults.before('toolstack.createDomain');
    throwIfAborted(options.signal, 'create');
    const { type, name, maxPages, maxVcpus } = parseConfig(config);
    this.#refuseTaken(name);
    const { state } = this.#table.make({
      type,
      maxPages,
      maxVcpus,
      seed: undefined,
      dma: undefined,
      describe: (domid) => ({ name: name === '' ? `domain${String(domid)}` : name, config }),
    });
    return state.domid;
  }

  async backendWiring(domid: number): Promise<BackendWiring> {
    return (await this.#enter('toolstack.backendWiring', domid)).wiring;
  }

  async staticDataDone(domid: number, missing: MissingStaticData): Promise<void> {
    const record = await this.#enter('toolstack.staticDataDone', domid);
    record.missing = missing;
    record.state.completePolicy();
  }

  async finishRestore(
    domid: number,
    rings: { readonly storeGfn: number; readonly consoleGfn: number },
  ): Promise<void> {
    (await this.#enter('toolstack.finishRestore', domid)).rings = rings;
  }

  async unpause(domid: number): Promise<void> {
    const { state, guest } = await this.#enter('toolstack.unpause', domid);
    if (state.pauseCount === 0) throw refusal('XEN_DOMCTL_unpausedomain', Errno.EINVAL, 'not paused', domid);
    state.pauseCount--;
    if (state.pauseCount > 0) return;
    state.started = true;
    await guest.start();
  }

  async pause(domid: number): Promise<void> {
    const { state, guest } = await this.#enter('toolstack.pause', domid);
    state.pauseCount++;
    await guest.halt();
  }

  async destroy(domid: number): Promise<void> {
    await this.#faults.before('toolstack.destroy', domid);
    if (this.#table.find(domid) !== undefined) await this.#table.remove(domid);
  }

  async rename(domid: number, name: string): Promise<void> {
    const record = await this.#enter('toolstack.rename', domid, name);
    if (record.name === name) return;
    this.#refuseTaken(name);
    record.name = name;
  }

  async nameOf(domid: number): Promise<string | undefined> {
    await this.#faults.before('toolstack.nameOf', domid);
    const name = this.#table.find(domid)?.name;
    return name === '' ? undefined : name;
  }

  async findByName(name: string): Promise<number | undefined> {
    await this.#faults.before('toolstack.findByName', undefined, name);
    return this.#named(name)?.state.domid;
  }

  #named(name: string): DomainRecord | undefined {
    return name === '' ? undefined : this.#table.all().find((record) => record.name === name);
  }

  #refuseTaken(name: string): void {
    const other = this.#named(name);
    if (other === undefined) return;
    throw new UsageError(`domain ${other.state.domid} has the name ${JSON.stringify(name)} already`);
  }

  async #enter(call: SimulatedCall, domid: number, detail?: string): Promise<DomainRecord> {
    await this.#faults.before(call, domid, detail);
    return this.#record(domid);
  }

  #record(domid: number): DomainRecord {
    const record = this.#table.find(domid);
    if (record === undefined) throw refusal('XEN_DOMCTL_getdomaininfo', Errno.ESRCH, 'no such domain', domid);
    return record;
  }
}

function shutDown(state: DomainState): GuestError {
  const { domid, shutdownReason } = state;
  return new GuestError(
    'ERR_XEN_GUEST_CRASHED',
    `guest ${domid} is shut down, reason ${String(shutdownReason)}`,
    {
      domid,
    },
  );
}

/** Batches end at multiples of 1024 pfns, as a restore's do, so that a batch lies side by side in machine memory. */
function populateRange(state: DomainState, first: number, count: number): void {
  for (let pfn = first; pfn < first + count;) {
    const end = Math.min(first + count, (Math.floor(pfn / POPULATE_BATCH) + 1) * POPULATE_BATCH);
    const pfns = Float64Array.from({ length: end - pfn }, (_, i) => pfn + i);
    if (state.populate(pfns, 0) !== pfns.length) {
      throw refusal('XENMEM_populate_physmap', Errno.ENOMEM, 'the host has too little memory', state.domid);
    }
    pfn = end;
  }
}
