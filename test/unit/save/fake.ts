/** A small host with one guest, for tests of the save algorithm: every call can be watched, made to fail, or cancel. */
import { Errno } from '../../../lib/abi/errno.js';
import { HvmParam } from '../../../lib/abi/hvm.js';
import { MAX_BATCH, PAGE_SIZE, PageType } from '../../../lib/abi/pages.js';
import { SHARED_INFO, VCPU_CONTEXT, type GuestWidth } from '../../../lib/abi/pv.js';
import { GuestError, HypercallError } from '../../../lib/errors.js';
import {
  INVALID_FRAME,
  MAX_TYPES,
  ShutdownReason,
  type Domain,
  type DomainInfo,
  type Host,
  type MachineToPhys,
  type PageMapping,
  type VcpuStateKind,
} from '../../../lib/host/host.js';
import type { DeviceModelState, SuspendOptions, Toolstack } from '../../../lib/toolstack/toolstack.js';
import type { ByteSink } from '../../../lib/transport/types.js';
import { PvImage, type PvLayout } from './fake-pv.js';

export const DOMID = 7;

export interface FakeOptions {
  readonly kind?: 'hvm' | 'pvh' | 'pv' | undefined;
  /** HVM: pages of the physmap. */
  readonly pages?: number | undefined;
  readonly pv?: Partial<PvLayout> | undefined;
  /** HVM: type of single pfns. */
  readonly types?: ReadonlyMap<number, number> | undefined;
  /** pfns that CLEAN finds, call by call; the last one stays. */
  readonly dirty?: readonly (readonly number[])[] | undefined;
  readonly vcpus?: number | undefined;
  readonly state?: 'running' | 'suspended' | 'crashed' | 'dying' | undefined;
  readonly paused?: boolean | undefined;
}

/** Everything that the tests look at. */
export class FakeWorld {
  readonly calls: string[] = [];
  /** Runs before each call; may throw or reject. */
  before: (name: string, index: number) => void | Promise<void> = () => undefined;
  readonly memory: Uint8Array;
  readonly words: Uint32Array;
  readonly pv: PvImage | undefined;
  readonly host: Host;
  readonly toolstack: Toolstack;
  readonly domain: Domain;
  readonly types: Uint8Array;
  dirty: readonly (readonly number[])[];
  state: NonNullable<FakeOptions['state']>;
  shutdownReason: number = ShutdownReason.SUSPEND;
  logDirty = false;
  deviceModelLogDirty = false;
  destroyed = false;
  openMappings = 0;
  openDomains = 0;
  m2pOpen = false;
  /** Pauses of the toolstack. */
  pauses = 0;
  cleans = 0;
  finalCleans = 0;
  /** Pages that CLEAN says it copied, less than asked for by so many. */
  missingPages = 0;
  /** gfns that cannot be mapped. */
  readonly unmappable = new Set<number>();
  deviceModel: DeviceModelState | undefined;
  params = new Map<number, bigint>([
    [HvmParam.STORE_PFN, 0xfeffcn],
    [HvmParam.CONSOLE_PFN, 0xfefffn],
    [HvmParam.MCA_CAP, 1n],
    [HvmParam.STORE_EVTCHN, 3n],
  ]);
  readonly options: FakeOptions;
  readonly hvm: boolean;
  readonly p2mSize: number;
  readonly vcpus: number;
  suspendOptions: SuspendOptions | undefined;
  offline = new Set<number>();

  constructor(options: FakeOptions = {}) {
    this.options = options;
    this.hvm = options.kind !== 'pv';
    this.state = options.state ?? 'running';
    this.pauses = options.paused === true ? 1 : 0;
    this.dirty = options.dirty ?? [[]];
    this.vcpus = options.vcpus ?? 1;
    if (this.hvm) {
      this.p2mSize = options.pages ?? 40;
      this.memory = new Uint8Array(this.p2mSize * PAGE_SIZE);
      this.words = new Uint32Array(this.memory.buffer);
      this.types = new Uint8Array(this.p2mSize);
      for (const [pfn, type] of options.types ?? []) this.types[pfn] = type;
      for (let pfn = 0; pfn < this.p2mSize; pfn++) this.stamp(pfn, pfn + 1);
      if (options.kind === 'hvm') {
        const xenstore = new TextEncoder().encode('physmap/f0/name\0vga\0');
        this.deviceModel = { emulator: 2, xenstore, context: Uint8Array.of(1, 2, 3) };
      }
    } else {
      this.pv = new PvImage(options.pv ?? {});
      this.p2mSize = this.pv.p2mSize;
      this.memory = this.pv.memory;
      this.words = this.pv.words;
      this.types = this.pv.types;
    }
    this.domain = this.#makeDomain();
    this.toolstack = this.#makeToolstack();
    this.host = this.#makeHost();
  }

  /** Fills an HVM page so that it can be told from others. */
  stamp(pfn: number, value: number): void {
    this.words.fill(value, pfn * 1024, (pfn + 1) * 1024);
  }

  /** What must hold after every failed save. */
  get quiet(): object {
    const { logDirty, deviceModelLogDirty, openMappings, openDomains, m2pOpen, state, destroyed } = this;
    return { logDirty, deviceModelLogDirty, openMappings, openDomains, m2pOpen, state, destroyed };
  }

  async step(name: string): Promise<void> {
    const index = this.calls.push(name) - 1;
    await this.before(name, index);
  }

  info(): DomainInfo {
    const { state, hvm } = this;
    return {
      domid: DOMID,
      hvm,
      paused: this.pauses > 0,
      dying: state === 'dying',
      shutdown: state === 'suspended' || state === 'crashed',
      shutdownReason: state === 'crashed' ? ShutdownReason.CRASH : this.shutdownReason,
      maxVcpuId: this.vcpus - 1,
      totPages: this.pv?.pages ?? this.p2mSize,
      maxPages: this.pv?.pages ?? this.p2mSize,
      sharedInfoFrame: this.pv?.sharedInfoMfn ?? 0,
    };
  }

  #index(gfn: number): number {
    return gfn - (this.pv?.baseMfn ?? 0);
  }

  #map(gfns: Float64Array): PageMapping {
    if (gfns.length > MAX_BATCH) throw new HypercallError('map', Errno.E2BIG, 'too many');
    this.openMappings++;
    const errors = new Int32Array(gfns.length);
    const offsetOf = new Float64Array(gfns.length);
    const regionOf = new Uint16Array(gfns.length);
    gfns.forEach((gfn, i) => {
      const index = this.#index(gfn);
      const there = index >= 0 && index < this.types.length && !this.unmappable.has(gfn);
      const type = there ? (this.types[index] as number) : PageType.XTAB;
      const special = gfn === this.pv?.sharedInfoMfn;
      if (!there || (type >= PageType.BROKEN && !special)) errors[i] = Errno.EINVAL;
      else offsetOf[i] = index * PAGE_SIZE;
    });
    let open = true;
    const mapping = {
      count: gfns.length,
      regions: [this.memory],
      words: [this.words],
      regionOf,
      offsetOf,
      errors,
      release: (): void => {
        if (!open) return;
        open = false;
        this.openMappings--;
        // Whoever goes on reading after the release shall notice.
        mapping.regions.length = 0;
        mapping.words.length = 0;
      },
    };
    return mapping;
  }

  #makeDomain(): Domain {
    const unused = (): never => {
      throw new Error('a save does not call this');
    };
    return {
      domid: DOMID,
      info: async () => {
        await this.step('info');
        return this.info();
      },
      maxGpfn: async () => {
        await this.step('maxGpfn');
        return this.p2mSize - 1;
      },
      pageTypes: async (gfns, types) => {
        await this.step('pageTypes');
        if (gfns.length > MAX_TYPES) throw new HypercallError('types', Errno.E2BIG, 'too many');
        gfns.forEach((gfn, i) => {
          const index = this.#index(gfn);
          const there = gfn !== INVALID_FRAME && index >= 0 && index < this.types.length;
          types[i] = there ? (this.types[index] as number) : PageType.XTAB;
        });
      },
      mapFrames: async (gfns) => {
        await this.step('mapFrames');
        return this.#map(gfns);
      },
      enableLogDirty: async () => {
        await this.step('enableLogDirty');
        if (this.logDirty) throw new HypercallError('ENABLE_LOGDIRTY', Errno.EINVAL, 'already on');
        this.logDirty = true;
      },
      disableLogDirty: async () => {
        await this.step('disableLogDirty');
        this.logDirty = false;
      },
      logDirty: async (op, bitmap, pages, final = false) => {
        await this.step(`logDirty ${op}${final ? ' final' : ''}`);
        if (!this.logDirty) throw new HypercallError('CLEAN', Errno.EINVAL, 'log-dirty is off');
        if (final && this.state !== 'suspended') throw new HypercallError('CLEAN', Errno.EINVAL, 'runs');
        bitmap.fill(0);
        const round = this.dirty[Math.min(this.cleans, this.dirty.length - 1)] ?? [];
        if (op === 'clean') this.cleans++;
        if (final) this.finalCleans++;
        for (const pfn of round) bitmap[pfn >>> 5] = (bitmap[pfn >>> 5] as number) | (1 << (pfn & 31));
        return { pages: pages - this.missingPages, dirtyCount: round.length, faultCount: 0 };
      },
      tscInfo: async () => {
        await this.step('tscInfo');
        return { mode: 0, khz: 2_500_000, nsec: 12n, incarnation: 1 };
      },
      cpuPolicy: async () => {
        await this.step('cpuPolicy');
        return { cpuid: new Uint8Array(48).fill(1), msrs: new Uint8Array(16).fill(2) };
      },
      hvmContext: async () => {
        await this.step('hvmContext');
        return new Uint8Array(41).fill(9);
      },
      hvmParam: async (index) => {
        await this.step(`hvmParam ${index}`);
        return this.params.get(index) ?? 0n;
      },
      guestWidth: async () => {
        await this.step('guestWidth');
        return this.pv?.width ?? 8;
      },
      vcpuOnline: async (vcpu) => {
        await this.step(`vcpuOnline ${vcpu}`);
        return !this.offline.has(vcpu);
      },
      vcpuState: async (vcpu, kind) => {
        await this.step(`vcpuState ${vcpu} ${kind}`);
        return this.vcpuState(vcpu, kind);
      },
      close: async () => {
        this.openDomains--;
      },
      populate: unused,
      clearPage: unused,
      setTscInfo: unused,
      setCpuPolicy: unused,
      setHvmContext: unused,
      setHvmParam: unused,
      setGuestWidth: unused,
      setVcpuState: unused,
      pinTables: unused,
      seedGrantTable: unused,
    };
  }

  /** May be replaced by a test. */
  vcpuState = (vcpu: number, kind: VcpuStateKind): Uint8Array => {
    if (kind === 'basic') return this.pv?.vcpuContext(vcpu) ?? new Uint8Array(0);
    if (kind === 'extended') return new Uint8Array(64).fill(vcpu);
    if (kind === 'xsave') return new Uint8Array(32).fill(vcpu);
    return new Uint8Array(0);
  };

  #makeToolstack(): Toolstack {
    const unused = (): never => {
      throw new Error('a save does not call this');
    };
    return {
      suspend: async (_domid, options) => {
        this.suspendOptions = options;
        await this.step('toolstack.suspend');
        if (this.state !== 'running' || this.pauses > 0)
          throw new GuestError('ERR_XEN_TEST', 'the guest does not run');
        this.state = 'suspended';
      },
      resume: async () => {
        await this.step('toolstack.resume');
        if (this.state === 'suspended') this.state = 'running';
      },
      setDeviceModelLogDirty: async (_domid, enable) => {
        await this.step(`toolstack.setDeviceModelLogDirty ${enable}`);
        this.deviceModelLogDirty = enable;
      },
      deviceModelState: async () => {
        await this.step('toolstack.deviceModelState');
        return this.deviceModel;
      },
      domainConfig: async () => {
        await this.step('toolstack.domainConfig');
        return '{"c_info":{"name":"fake"}}';
      },
      destroy: async () => {
        await this.step('toolstack.destroy');
        this.destroyed = true;
      },
      loadDeviceModelState: unused,
      createDomain: unused,
      backendWiring: unused,
      staticDataDone: unused,
      finishRestore: unused,
      unpause: async () => {
        await this.step('toolstack.unpause');
        this.pauses--;
      },
      pause: async () => {
        await this.step('toolstack.pause');
        this.pauses++;
      },
    };
  }

  #makeHost(): Host {
    const m2p: MachineToPhys = {
      maxMfn: this.pv?.maxMfn ?? 0,
      compatFirstMfn: this.pv?.compatFirstMfn ?? INVALID_FRAME,
      pfnOf: (mfn) => this.pv?.m2p(mfn) ?? INVALID_FRAME,
      release: () => {
        this.m2pOpen = false;
      },
    };
    return {
      kind: 'simulated',
      toolstack: this.toolstack,
      xenVersion: async () => {
        await this.step('host.xenVersion');
        return { major: 4, minor: 17 };
      },
      listDomains: async () => [this.info()],
      openDomain: async (domid) => {
        await this.step('host.openDomain');
        if (domid !== DOMID) throw new HypercallError('getdomaininfo', Errno.ESRCH, 'no such domain');
        this.openDomains++;
        return this.domain;
      },
      mapMachineToPhys: async () => {
        await this.step('host.mapMachineToPhys');
        this.m2pOpen = true;
        return m2p;
      },
      close: async () => undefined,
    };
  }
}

/** Collects what is written; every call is a step of the world. */
export class FakeSink implements ByteSink {
  readonly chunks: Buffer[] = [];
  bytesWritten = 0;
  ended = false;
  aborted: { readonly reason: unknown } | undefined;
  /** Sizes of the views of each write. */
  readonly writes: number[][] = [];
  /** While set, writes resolve only when it does. */
  gate: Promise<void> | undefined;
  inFlight = 0;
  maxInFlight = 0;
  readonly #world: FakeWorld;
  readonly #waiting = new Set<(reason: unknown) => void>();

  constructor(world: FakeWorld) {
    this.#world = world;
  }

  get bytes(): Uint8Array {
    return Buffer.concat(this.chunks);
  }

  async write(views: readonly Uint8Array[]): Promise<void> {
    this.#throwIfAborted();
    this.inFlight++;
    this.maxInFlight = Math.max(this.maxInFlight, this.inFlight);
    try {
      await this.#world.step('sink.write');
      if (this.gate !== undefined) {
        const { gate } = this;
        await new Promise<void>((resolve, reject) => {
          this.#waiting.add(reject);
          void gate.then(resolve);
        });
      }
      this.#throwIfAborted();
      // Only now: the views must stay what they are until the promise settles.
      const chunk = Buffer.concat(views);
      this.writes.push(views.map((view) => view.length));
      this.chunks.push(chunk);
      this.bytesWritten += chunk.length;
    } finally {
      this.inFlight--;
    }
  }

  async end(): Promise<void> {
    await this.#world.step('sink.end');
    this.#throwIfAborted();
    this.ended = true;
  }

  #throwIfAborted(): void {
    if (this.aborted !== undefined) throw this.aborted.reason as Error;
  }

  abort(reason: unknown): void {
    this.aborted ??= { reason };
    for (const reject of this.#waiting) reject(reason);
    this.#waiting.clear();
  }
}

/** Offsets of shared info and of a vcpu context, for tests that write to them. */
export function layouts(width: GuestWidth): {
  readonly sharedInfo: (typeof SHARED_INFO)[4];
  readonly vcpu: (typeof VCPU_CONTEXT)[4];
} {
  return { sharedInfo: SHARED_INFO[width], vcpu: VCPU_CONTEXT[width] };
}
