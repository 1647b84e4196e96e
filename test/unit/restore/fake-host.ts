/**
 * A host of one domain, just enough to restore into: frames in one buffer, PV frames that are not pfns, every call
 * counted, failing or hooked at will, every mapping accounted for.
 */
import { Errno } from '../../../lib/abi/errno.js';
import { PAGE_SIZE } from '../../../lib/abi/pages.js';
import type { GuestWidth } from '../../../lib/abi/pv.js';
import { HypercallError } from '../../../lib/errors.js';
import type {
  CpuPolicy,
  Domain,
  DomainInfo,
  Host,
  LogDirtyResult,
  MachineToPhys,
  PageMapping,
  TscInfo,
  VcpuStateKind,
  XenVersion,
} from '../../../lib/host/host.js';
import type {
  BackendWiring,
  DeviceModelState,
  MissingStaticData,
  Toolstack,
} from '../../../lib/toolstack/toolstack.js';

export const FAKE_DOMID = 7;
const MFN_BASE = 0x40_000;

export interface FakeOptions {
  readonly hvm: boolean;
  readonly maxPages?: number;
  readonly maxVcpuId?: number;
  readonly paused?: boolean;
  /** Superpages that can be allocated. Default: any number. */
  readonly superpages?: number;
  /** Called before each call of the host, the domain or the toolstack; may throw. */
  readonly onCall?: (index: number, name: string) => void;
}

export class FakeHost implements Host {
  readonly kind = 'simulated';
  readonly options: FakeOptions;
  readonly toolstack: FakeToolstack;
  readonly domain: FakeDomain;
  readonly calls: string[] = [];
  created = false;
  destroyed = false;
  running = false;
  m2pMapped = 0;

  constructor(options: FakeOptions) {
    this.options = options;
    this.domain = new FakeDomain(this);
    this.toolstack = new FakeToolstack(this);
  }

  call(name: string): void {
    const index = this.calls.push(name) - 1;
    this.options.onCall?.(index, name);
  }

  async xenVersion(): Promise<XenVersion> {
    return { major: 4, minor: 17 };
  }

  async listDomains(): Promise<DomainInfo[]> {
    return [];
  }

  async openDomain(domid: number): Promise<Domain> {
    this.call('openDomain');
    if (domid !== FAKE_DOMID)
      throw new HypercallError('XEN_DOMCTL_getdomaininfo', Errno.ESRCH, 'no such domain');
    this.domain.open = true;
    return this.domain;
  }

  async mapMachineToPhys(): Promise<MachineToPhys> {
    this.call('mapMachineToPhys');
    this.m2pMapped++;
    const { domain } = this;
    return {
      maxMfn: MFN_BASE + domain.frames,
      compatFirstMfn: -1,
      pfnOf: (mfn) => domain.m2p.get(mfn) ?? -1,
      release: () => {
        this.m2pMapped--;
      },
    };
  }

  async close(): Promise<void> {
    // Nothing is open.
  }

  /** What must be so after every restore, whatever became of it. */
  leaks(): string[] {
    const leaks: string[] = [];
    if (this.domain.mapped !== 0) leaks.push(`${this.domain.mapped} mappings`);
    if (this.domain.open) leaks.push('the domain is open');
    if (this.m2pMapped !== 0) leaks.push('the M2P is mapped');
    return leaks;
  }
}

export class FakeDomain implements Domain {
  readonly domid = FAKE_DOMID;
  readonly host: FakeHost;
  readonly frames: number;
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
  /** Index of the frame behind each gfn: of a pfn for HVM, of an mfn for PV. */
  readonly frameOf = new Map<number, number>();
  readonly m2p = new Map<number, number>();
  readonly mfnOf = new Map<number, number>();
  readonly params = new Map<number, bigint>();
  readonly vcpus = new Map<string, Uint8Array>();
  readonly pinned = new Map<number, number>();
  readonly cleared: number[] = [];
  readonly populates: { order: number; frames: number[]; done: number }[] = [];
  readonly maps: number[] = [];
  width: GuestWidth = 8;
  mapped = 0;
  open = false;
  supersLeft: number;
  used = 0;
  usedLow = 0;
  tsc: TscInfo | undefined;
  policy: CpuPolicy | undefined;
  context: Uint8Array | undefined;
  seed: Parameters<Domain['seedGrantTable']>[0] | undefined;

  constructor(host: FakeHost) {
    this.host = host;
    this.frames = (host.options.maxPages ?? 64) + 1;
    this.supersLeft = host.options.superpages ?? Infinity;
    this.bytes = new Uint8Array(this.frames * PAGE_SIZE);
    this.words = new Uint32Array(this.bytes.buffer);
    // The last frame is a PV guest's shared info.
    if (!host.options.hvm) this.frameOf.set(this.sharedInfoFrame, this.frames - 1);
  }

  get sharedInfoFrame(): number {
    return MFN_BASE + this.frames - 1;
  }

  async info(): Promise<DomainInfo> {
    this.host.call('info');
    const { hvm, maxPages = 64, maxVcpuId = 1, paused = true } = this.host.options;
    return {
      domid: this.domid,
      hvm,
      paused,
      dying: false,
      shutdown: false,
      shutdownReason: 0,
      maxVcpuId,
      totPages: this.used,
      maxPages,
      sharedInfoFrame: this.sharedInfoFrame,
    };
  }

  /** The page behind a pfn. */
  page(pfn: number): Uint8Array | undefined {
    const gfn = this.host.options.hvm ? pfn : this.mfnOf.get(pfn);
    const frame = gfn === undefined ? undefined : this.frameOf.get(gfn);
    return frame === undefined ? undefined : this.bytes.subarray(frame * PAGE_SIZE, (frame + 1) * PAGE_SIZE);
  }

  async populate(frames: Float64Array, order: 0 | 9 = 0): Promise<number> {
    this.host.call(`populate${order === 9 ? ' 2M' : ''}`);
    const asked = [...frames];
    const size = order === 9 ? 512 : 1;
    let done = 0;
    for (; done < frames.length; done++) {
      if (this.used + size > this.frames - 1) break;
      if (order === 9 && this.supersLeft-- <= 0) break;
      // Small frames come from the top, downwards, so that no mfn follows its pfn; superpages from the bottom.
      const first = order === 9 ? this.usedLow : this.frames - 2 - (this.used - this.usedLow);
      for (let k = 0; k < size; k++) this.#give(frames[done]! + k, first + k);
      this.used += size;
      if (order === 9) this.usedLow += size;
      if (!this.host.options.hvm) frames[done] = MFN_BASE + first;
    }
    this.populates.push({ order, frames: asked, done });
    return done;
  }

  #give(pfn: number, frame: number): void {
    if (this.host.options.hvm) {
      this.frameOf.set(pfn, frame);
      return;
    }
    this.frameOf.set(MFN_BASE + frame, frame);
    this.mfnOf.set(pfn, MFN_BASE + frame);
    this.m2p.set(MFN_BASE + frame, pfn);
  }

  async mapFrames(gfns: Float64Array, access: 'read' | 'write'): Promise<PageMapping> {
    this.host.call(`mapFrames ${access}`);
    if (gfns.length > 1024) throw new HypercallError('xenforeignmemory_map', Errno.E2BIG, 'too many');
    const offsetOf = new Float64Array(gfns.length);
    const errors = new Int32Array(gfns.length);
    gfns.forEach((gfn, i) => {
      const frame = this.frameOf.get(gfn);
      if (frame === undefined) errors[i] = Errno.EINVAL;
      else offsetOf[i] = frame * PAGE_SIZE;
    });
    this.mapped++;
    this.maps.push(gfns.length);
    let released = false;
    return {
      count: gfns.length,
      regions: [this.bytes],
      words: [this.words],
      regionOf: new Uint16Array(gfns.length),
      offsetOf,
      errors,
      release: () => {
        if (!released) this.mapped--;
        released = true;
      },
    };
  }

  async clearPage(gfn: number): Promise<void> {
    this.host.call('clearPage');
    this.cleared.push(gfn);
    this.page(gfn)!.fill(0);
  }

  async setTscInfo(info: TscInfo): Promise<void> {
    this.host.call('setTscInfo');
    this.tsc = info;
  }

  async setCpuPolicy(policy: CpuPolicy): Promise<void> {
    this.host.call('setCpuPolicy');
    this.policy = policy;
  }

  async setHvmContext(context: Uint8Array): Promise<void> {
    this.host.call('setHvmContext');
    this.context = context.slice();
  }

  async setHvmParam(index: number, value: bigint): Promise<void> {
    this.host.call('setHvmParam');
    this.params.set(index, value);
  }

  async guestWidth(): Promise<GuestWidth> {
    this.host.call('guestWidth');
    return this.width;
  }

  async setGuestWidth(width: GuestWidth): Promise<void> {
    this.host.call('setGuestWidth');
    this.width = width;
  }

  async setVcpuState(vcpu: number, kind: VcpuStateKind, state: Uint8Array): Promise<void> {
    this.host.call(`setVcpuState ${vcpu} ${kind}`);
    this.vcpus.set(`${vcpu} ${kind}`, state.slice());
  }

  async pinTables(levels: Uint8Array, mfns: Float64Array): Promise<void> {
    this.host.call('pinTables');
    levels.forEach((level, i) => this.pinned.set(mfns[i]!, level));
  }

  async seedGrantTable(seed: Parameters<Domain['seedGrantTable']>[0]): Promise<void> {
    this.host.call('seedGrantTable');
    this.seed = seed;
  }

  async close(): Promise<void> {
    this.open = false;
    this.host.call('closeDomain');
  }

  maxGpfn = async (): Promise<number> => this.#never();
  pageTypes = async (): Promise<void> => this.#never();
  enableLogDirty = async (): Promise<void> => this.#never();
  disableLogDirty = async (): Promise<void> => this.#never();
  logDirty = async (): Promise<LogDirtyResult> => this.#never();
  tscInfo = async (): Promise<TscInfo> => this.#never();
  cpuPolicy = async (): Promise<CpuPolicy> => this.#never();
  hvmContext = async (): Promise<Uint8Array> => this.#never();
  hvmParam = async (): Promise<bigint> => this.#never();
  vcpuOnline = async (): Promise<boolean> => this.#never();
  vcpuState = async (): Promise<Uint8Array> => this.#never();

  #never(): never {
    throw new Error('a restore does not ask this');
  }
}

export class FakeToolstack implements Toolstack {
  readonly host: FakeHost;
  missing: MissingStaticData | undefined;
  deviceModel: DeviceModelState | undefined;
  rings: { storeGfn: number; consoleGfn: number } | undefined;
  config: string | undefined;

  constructor(host: FakeHost) {
    this.host = host;
  }

  async createDomain(config: string): Promise<number> {
    this.host.call('createDomain');
    this.config = config;
    this.host.created = true;
    return FAKE_DOMID;
  }

  async backendWiring(): Promise<BackendWiring> {
    this.host.call('backendWiring');
    return { storeEvtchn: 3, storeDomid: 0, consoleEvtchn: 4, consoleDomid: 0 };
  }

  async staticDataDone(_domid: number, missing: MissingStaticData): Promise<void> {
    this.host.call('staticDataDone');
    this.missing = missing;
  }

  async loadDeviceModelState(_domid: number, state: DeviceModelState): Promise<void> {
    this.host.call('loadDeviceModelState');
    this.deviceModel = state;
  }

  async finishRestore(_domid: number, rings: { storeGfn: number; consoleGfn: number }): Promise<void> {
    this.host.call('finishRestore');
    this.rings = rings;
  }

  async unpause(): Promise<void> {
    this.host.call('unpause');
    this.host.running = true;
  }

  async destroy(): Promise<void> {
    this.host.destroyed = true;
    this.host.call('destroy');
  }

  suspend = async (): Promise<void> => this.#never();
  resume = async (): Promise<void> => this.#never();
  pause = async (): Promise<void> => this.#never();
  setDeviceModelLogDirty = async (): Promise<void> => this.#never();
  deviceModelState = async (): Promise<DeviceModelState | undefined> => this.#never();
  domainConfig = async (): Promise<string> => this.#never();

  #never(): never {
    throw new Error('a restore does not ask this');
  }
}
