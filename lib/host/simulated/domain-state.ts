/**
 * One domain as the simulated hypervisor knows it: pauses, shutdown, memory and its map, and the state that hypercalls
 * get and set. Methods are synchronous and refuse by throwing; `SimulatedDomain` is the door through which the ports
 * come in. Tests may look here, and change what a real host's operator or hardware could change.
 */
import { Errno } from '../../abi/errno.js';
import { MAX_BATCH, PAGE_SIZE, PageType } from '../../abi/pages.js';
import {
  INVALID_FRAME,
  MAX_TYPES,
  ShutdownReason,
  type CpuPolicy,
  type DomainInfo,
  type PageMapping,
  type TscInfo,
} from '../host.js';
import { checkPolicy, defaultPolicy, type MissingFeature } from './cpu-policy.js';
import { checkContext, contextRegisters, setContextRax, setContextRegisters } from './hvm-context.js';
import { HvmParams } from './hvm-params.js';
import { LogDirty } from './log-dirty.js';
import { guarded, mappingArrays, NO_REGION, SimulatedMapping } from './mapping.js';
import { REGION_FRAMES } from './machine-frames.js';
import type { MachineMemory } from './memory.js';
import { createPvDomain } from './pv-domain.js';
import type { PvDomain } from './pv-types.js';
import { refusal } from './refuse.js';

/** Guest types as libxl names them. */
export type DomainType = 'hvm' | 'pvh' | 'pv';

/** Values of a physmap entry that are no mfn. */
const HOLE = 0;
const BROKEN = 1;
const MMIO = 2;

/** gfn at which Xen on Intel maps the APIC access page when it makes an HVM domain. */
const APIC_ACCESS_GFN = 0xfee00;
/** pfns that every domain can have, whatever its memory: 8 GiB, so all holes below and above 4 GiB fit. */
const LEAST_PFNS = 0x20_0000;
/** First pfn above the hole below 4 GiB. */
const PFNS_4G = 0x10_0000;
const SUPERPAGE = 512;
const JUNK = 0xa5;
const REGION_SHIFT = Math.log2(REGION_FRAMES);
/** TSC modes: default, always emulate, never emulate. */
const TSC_MODES = 3;
const TSC_NEVER_EMULATE = 2;
/** TSC frequency of every simulated machine. */
const HOST_TSC_KHZ = 2_400_000;

/** A grant-table entry written by `seedGrantTable`. */
export interface GrantEntry {
  readonly frame: number;
  readonly domid: number;
}

export interface DomainStateOptions {
  readonly domid: number;
  readonly type: DomainType;
  readonly maxPages: number;
  readonly maxVcpus: number;
  readonly seed: number;
  readonly memory: MachineMemory;
  readonly guardMappings: boolean;
  readonly unscrubbedMemory: boolean;
  readonly apicAccessPage: boolean;
  readonly missingFeatures: readonly MissingFeature[];
}

export class DomainState {
  readonly domid: number;
  readonly type: DomainType;
  readonly maxVcpus: number;
  readonly seed: number;
  readonly memory: MachineMemory;
  readonly logDirty: LogDirty;
  /** HVM and PVH: mfn of each pfn, in shared memory; 0 where there is no RAM. PV domains have their own p2m. */
  readonly physmap: Uint32Array;
  /** @internal PV domains only. */
  readonly pv: PvDomain | undefined;
  readonly params: HvmParams;
  /** Entries 0 (console) and 1 (xenstore) of the grant table. */
  readonly grants: (GrantEntry | undefined)[] = [undefined, undefined];
  readonly sharedInfoMfn: number;

  maxPages: number;
  totPages = 0;
  /** Pauses of the toolstack. A domain is made paused. */
  pauseCount = 1;
  /** It ran, or could have: its CPU policy is fixed from then on. */
  started = false;
  shutdownReason: number | undefined;
  dying = false;
  policy: CpuPolicy = { cpuid: new Uint8Array(0), msrs: new Uint8Array(0) };
  tsc: TscInfo = { mode: 0, khz: HOST_TSC_KHZ, nsec: 0n, incarnation: 0 };
  context: Uint8Array | undefined;
  /** Page mappings that were not released. While there are any, a destroyed domain keeps its memory. */
  mappings = 0;
  /** Called when the last memory of a destroyed domain is free. */
  onGone: (() => void) | undefined;

  readonly #guardMappings: boolean;
  readonly #unscrubbedMemory: boolean;
  readonly #missing: readonly MissingFeature[];
  /** 0…`#pfns`−1 are the pfns that it can have. */
  readonly #pfns: number;
  #scratch = new Float64Array(MAX_BATCH);
  #maxMapped = 0;

  /** @internal Made by its host. */
  constructor(options: DomainStateOptions) {
    const { domid, memory } = options;
    this.domid = domid;
    this.type = options.type;
    this.maxPages = options.maxPages;
    this.maxVcpus = options.maxVcpus;
    this.seed = options.seed;
    this.memory = memory;
    this.#guardMappings = options.guardMappings;
    this.#unscrubbedMemory = options.unscrubbedMemory;
    this.#missing = options.missingFeatures;
    // A configuration may claim more than any host has; the map need not.
    this.#pfns = Math.max(LEAST_PFNS, 2 * (Math.min(options.maxPages, memory.totalPages) + PFNS_4G));
    this.logDirty = new LogDirty(this.#pfns, domid);
    this.params = new HvmParams(domid, options.type === 'hvm');
    if (options.type !== 'pv') {
      // Untouched parts cost nothing: the system gives memory page by page.
      this.physmap = new Uint32Array(new SharedArrayBuffer(this.#pfns * 4));
      this.sharedInfoMfn = INVALID_FRAME;
      if (options.apicAccessPage) this.#setEntry(APIC_ACCESS_GFN, MMIO);
      return;
    }
    this.physmap = new Uint32Array(0);
    const frame = new Float64Array(1);
    if (memory.allocScattered(domid, 1, frame) === 0) {
      throw refusal('XEN_DOMCTL_createdomain', Errno.ENOMEM, 'no memory for shared info', domid);
    }
    this.sharedInfoMfn = frame[0] as number;
    this.pv = createPvDomain({
      domid,
      memory,
      maxVcpus: options.maxVcpus,
      sharedInfoMfn: this.sharedInfoMfn,
      seed: options.seed,
      allocate: (frames) => this.populate(frames, 0),
      release: (mfn) => {
        memory.free(mfn);
        this.totPages--;
      },
      markDirty: (pfn) => this.logDirty.mark(pfn),
    });
  }

  get hvm(): boolean {
    return this.type !== 'pv';
  }

  get suspended(): boolean {
    return this.shutdownReason === ShutdownReason.SUSPEND;
  }

  info(): DomainInfo {
    return {
      domid: this.domid,
      hvm: this.hvm,
      paused: this.pauseCount > 0,
      dying: this.dying,
      shutdown: this.shutdownReason !== undefined,
      shutdownReason: this.shutdownReason ?? 0,
      maxVcpuId: this.maxVcpus - 1,
      totPages: this.totPages,
      maxPages: this.maxPages,
      sharedInfoFrame: this.sharedInfoMfn,
    };
  }

  maxGpfn(): number {
    return this.pv === undefined ? this.#maxMapped : this.pv.maxGpfn();
  }

  /** Marks the domain as destroyed; its memory goes with the last mapping. */
  destroy(): void {
    this.dying = true;
    this.#freeIfUnused();
  }

  // Memory.

  /** `populate` for the toolstack. */
  populateForToolstack(frames: Float64Array, order: 0 | 9): number {
    const n = this.populate(frames, order);
    if (!this.#unscrubbedMemory) return n;
    for (let i = 0; i < n; i++) {
      const first = this.#mfnOfGfn(frames[i] as number);
      for (let k = 0; k < (order === 9 ? SUPERPAGE : 1); k++) this.memory.page(first + k).fill(JUNK);
    }
    return n;
  }

  populate(frames: Float64Array, order: 0 | 9): number {
    const size = order === 9 ? SUPERPAGE : 1;
    let n = Math.min(frames.length, Math.floor((this.maxPages - this.totPages) / size));
    for (let i = 0; i < n; i++) {
      const pfn = frames[i] as number;
      if (!(pfn >= 0 && pfn + size <= this.#pfns && Number.isInteger(pfn))) n = i;
    }
    if (n <= 0) return 0;
    return order === 9 ? this.#populateSuperpages(frames, n) : this.#populatePages(frames, n);
  }

  #populatePages(frames: Float64Array, n: number): number {
    if (this.#scratch.length < n) this.#scratch = new Float64Array(n);
    const mfns = this.#scratch;
    const got = this.hvm
      ? this.memory.allocRun(this.domid, n, mfns)
      : this.memory.allocScattered(this.domid, n, mfns);
    for (let i = 0; i < got; i++) {
      const mfn = mfns[i] as number;
      this.#addFrame(frames[i] as number, mfn);
      if (!this.hvm) frames[i] = mfn;
    }
    this.totPages += got;
    return got;
  }

  #populateSuperpages(frames: Float64Array, n: number): number {
    for (let i = 0; i < n; i++) {
      const pfn = frames[i] as number;
      const mfn = this.memory.allocSuperpage(this.domid);
      if (mfn === INVALID_FRAME) return i;
      for (let k = 0; k < SUPERPAGE; k++) this.#addFrame(pfn + k, mfn + k);
      if (!this.hvm) frames[i] = mfn;
      this.totPages += SUPERPAGE;
    }
    return n;
  }

  #addFrame(pfn: number, mfn: number): void {
    this.memory.setM2p(mfn, pfn);
    if (this.hvm) this.#setEntry(pfn, mfn);
  }

  #setEntry(pfn: number, entry: number): void {
    this.physmap[pfn] = entry;
    if (pfn > this.#maxMapped) this.#maxMapped = pfn;
  }

  pageTypes(gfns: Float64Array, types: Uint8Array): void {
    const n = gfns.length;
    if (n > MAX_TYPES) throw refusal('XEN_DOMCTL_getpageframeinfo3', Errno.E2BIG, `${n} frames`, this.domid);
    if (types.length < n) {
      throw refusal(
        'XEN_DOMCTL_getpageframeinfo3',
        Errno.EFAULT,
        'room for fewer types than frames',
        this.domid,
      );
    }
    const { physmap, memory, domid } = this;
    if (this.hvm) {
      const first = memory.baseMfn;
      for (let i = 0; i < n; i++) {
        const entry = physmap[gfns[i] as number] ?? HOLE;
        types[i] = entry >= first ? PageType.NOTAB : entry === BROKEN ? PageType.BROKEN : PageType.XTAB;
      }
      return;
    }
    for (let i = 0; i < n; i++) {
      const mfn = gfns[i] as number;
      types[i] = memory.ownerOf(mfn) === domid ? memory.typeOf(mfn) : PageType.XTAB;
    }
  }

  mapFrames(gfns: Float64Array, access: 'read' | 'write'): PageMapping {
    const n = gfns.length;
    if (n > MAX_BATCH) throw refusal('IOCTL_PRIVCMD_MMAPBATCH_V2', Errno.E2BIG, `${n} frames`, this.domid);
    const arrays = mappingArrays(n);
    const { regionOf, offsetOf, errors } = arrays;
    const { physmap, memory, domid, hvm } = this;
    const first = memory.baseMfn;
    for (let i = 0; i < n; i++) {
      const gfn = gfns[i] as number;
      const mfn = hvm ? (physmap[gfn] ?? HOLE) : memory.ownerOf(gfn) === domid ? gfn : HOLE;
      if (mfn < first) {
        regionOf[i] = NO_REGION;
        errors[i] = this.#noFrame(gfn);
        continue;
      }
      const index = mfn - first;
      regionOf[i] = index >>> REGION_SHIFT;
      offsetOf[i] = (index & (REGION_FRAMES - 1)) * PAGE_SIZE;
    }
    this.mappings++;
    const mapping = new SimulatedMapping(memory.regions, memory.words, arrays, () => {
      this.mappings--;
      this.#freeIfUnused();
    });
    return this.#guardMappings ? guarded(mapping, access) : mapping;
  }

  /** As any write of the toolstack, it leaves no dirty mark. */
  clearPage(gfn: number): void {
    const mfn = this.#mfnOfGfn(gfn);
    if (mfn === INVALID_FRAME)
      throw refusal('MMUEXT_CLEAR_PAGE', this.#noFrame(gfn), `no page at ${gfn}`, this.domid);
    this.memory.page(mfn).fill(0);
  }

  /** Why a frame is not the domain's. PV: it is somebody else's, or belongs to a device or the hypervisor. */
  #noFrame(gfn: number): number {
    const { baseMfn, maxMfn } = this.memory;
    if (this.hvm || !(gfn >= 0 && gfn <= maxMfn)) return Errno.EINVAL;
    return gfn < baseMfn ? Errno.EPERM : Errno.EBUSY;
  }

  #mfnOfGfn(gfn: number): number {
    if (!this.hvm) return this.memory.ownerOf(gfn) === this.domid ? gfn : INVALID_FRAME;
    const entry = this.physmap[gfn] ?? HOLE;
    return entry >= this.memory.baseMfn ? entry : INVALID_FRAME;
  }

  #freeIfUnused(): void {
    if (!this.dying || this.mappings > 0 || this.onGone === undefined) return;
    const gone = this.onGone;
    this.onGone = undefined;
    this.memory.forEachOwned(this.domid, (mfn) => this.memory.free(mfn));
    this.totPages = 0;
    gone();
  }

  // What tests may do to a guest's memory.

  /** mfn of a pfn, INVALID_FRAME if it has none. PV: by the M2P, which takes a search; for tests. */
  mfnOf(pfn: number): number {
    if (this.hvm) return this.#mfnOfGfn(pfn);
    let found = INVALID_FRAME;
    this.memory.forEachOwned(this.domid, (mfn) => {
      if (this.memory.pfnOf(mfn) === pfn) found = mfn;
    });
    return found;
  }

  /** Calls `visit` for each page of the guest. HVM: by pfn, ascending. PV: by mfn, ascending. */
  forEachPage(visit: (pfn: number, mfn: number) => void): void {
    const { memory } = this;
    if (this.hvm) {
      for (let pfn = 0; pfn <= this.#maxMapped; pfn++) {
        const entry = this.physmap[pfn] as number;
        if (entry >= memory.baseMfn) visit(pfn, entry);
      }
      return;
    }
    memory.forEachOwned(this.domid, (mfn) => {
      const pfn = memory.pfnOf(mfn);
      if (pfn !== INVALID_FRAME) visit(pfn, mfn);
    });
  }

  /** The page's bytes, shared with the guest, and without a dirty mark. */
  page(pfn: number): Uint8Array {
    const mfn = this.mfnOf(pfn);
    if (mfn === INVALID_FRAME) throw new RangeError(`domain ${this.domid} has no page ${pfn}`);
    return this.memory.page(mfn);
  }

  /** The machine found an uncorrectable error in this page: its type is BROKEN and it cannot be mapped. */
  breakPage(pfn: number): void {
    if (this.hvm) this.#setEntry(pfn, BROKEN);
    else this.memory.setType(this.mfnOf(pfn), PageType.BROKEN);
  }

  // State.

  setTsc(info: TscInfo): void {
    if (!(info.mode >= 0 && info.mode < TSC_MODES)) {
      throw refusal('XEN_DOMCTL_settscinfo', Errno.EINVAL, `no TSC mode ${info.mode}`, this.domid);
    }
    const native = info.mode === TSC_NEVER_EMULATE;
    this.tsc = {
      mode: info.mode,
      khz: native ? 0 : info.khz === 0 ? HOST_TSC_KHZ : info.khz,
      nsec: native ? 0n : info.nsec,
      // Xen counts each time a domain's TSC is set: how often it was restored.
      incarnation: info.incarnation + 1,
    };
  }

  setPolicy(policy: CpuPolicy): void {
    if (this.started) {
      throw refusal('XEN_DOMCTL_set_cpu_policy', Errno.EEXIST, 'the domain has run already', this.domid);
    }
    checkPolicy(policy, this.#missing, this.domid);
    this.policy = {
      cpuid: policy.cpuid.length > 0 ? policy.cpuid.slice() : this.policy.cpuid,
      msrs: policy.msrs.length > 0 ? policy.msrs.slice() : this.policy.msrs,
    };
  }

  /** Gives what the stream did not bring a default. */
  completePolicy(): void {
    const { cpuid, msrs } = defaultPolicy();
    this.policy = {
      cpuid: this.policy.cpuid.length > 0 ? this.policy.cpuid : cpuid,
      msrs: this.policy.msrs.length > 0 ? this.policy.msrs : msrs,
    };
  }

  setContext(context: Uint8Array): void {
    checkContext(context, this.maxVcpus, this.domid);
    this.context = context.slice();
  }

  seedGrant(entry: number, frame: number, domid: number): void {
    if (frame !== INVALID_FRAME && domid !== this.domid) this.grants[entry] = { frame, domid };
  }

  // The guest's own doing.

  /** Registers of the guest program as vcpu 0 holds them. */
  registers(): Uint8Array | undefined {
    if (this.pv !== undefined) return this.pv.registers();
    return this.context === undefined ? undefined : contextRegisters(this.context);
  }

  /** The guest's suspend hypercall. */
  suspend(registers: Uint8Array | undefined): void {
    if (this.pv !== undefined) this.pv.suspend(registers);
    else if (registers !== undefined && this.context !== undefined) {
      setContextRegisters(this.context, registers);
      setContextRax(this.context, 0);
    }
    this.shutdownReason = ShutdownReason.SUSPEND;
  }

  /** xc_domain_resume, the fast way: the suspend hypercall returns 1. PV: the caller tells the kernel. */
  cancelSuspend(): void {
    if (this.context !== undefined) setContextRax(this.context, 1);
    this.shutdownReason = undefined;
  }
}
