/**
 * The port `Host`: everything that save and restore ask of a hypervisor.
 *
 * Two adapters keep this contract: `XenHost` (the native addon, libxenctrl and the stable Xen libraries) and
 * `SimulatedHost` (pure TypeScript). One contract test suite runs against both.
 *
 * Frame numbers are JavaScript numbers; arrays of them are Float64Array (exact to 2^53). `gfn` means what hypercalls
 * take for a guest: the pfn for HVM/PVH, the mfn for PV. -1 (`INVALID_FRAME`) stands for Xen's all-ones INVALID_MFN.
 * All methods reject with HypercallError when the hypervisor refuses, with the errno that Xen gives.
 */
import type { GuestWidth } from '../abi/pv.js';
import type { Toolstack } from '../toolstack/toolstack.js';

/** Stands for INVALID_MFN / INVALID_GFN in arrays of frame numbers. */
export const INVALID_FRAME = -1;

/** Frames whose types one `Domain.pageTypes` may ask for. */
export const MAX_TYPES = 65536;

/** What XENVER_version tells. */
export interface XenVersion {
  readonly major: number;
  readonly minor: number;
}

/** Reason of a shut-down domain (SHUTDOWN_*). */
export const ShutdownReason = {
  POWEROFF: 0,
  REBOOT: 1,
  SUSPEND: 2,
  CRASH: 3,
  WATCHDOG: 4,
  SOFT_RESET: 5,
} as const;

/** XEN_DOMCTL_getdomaininfo. */
export interface DomainInfo {
  readonly domid: number;
  /** HVM or PVH. */
  readonly hvm: boolean;
  /** Pause count of the toolstack is not zero. A suspended guest is shut down, not paused. */
  readonly paused: boolean;
  readonly dying: boolean;
  readonly shutdown: boolean;
  /** One of `ShutdownReason`; meaningful only if `shutdown`. */
  readonly shutdownReason: number;
  /** Highest possible vcpu number: count − 1. */
  readonly maxVcpuId: number;
  /** Pages that the domain has. */
  readonly totPages: number;
  /** Pages that it may have. */
  readonly maxPages: number;
  /** gfn of the shared info page (PV: its mfn). */
  readonly sharedInfoFrame: number;
  /** What only people look at. A host need not tell it. */
  readonly use?: DomainUse | undefined;
}

/** What a domain does at this moment, and what it has done. */
export interface DomainUse {
  /** One of its vcpus runs now. */
  readonly running: boolean;
  /** All of its vcpus wait for events. */
  readonly blocked: boolean;
  readonly onlineVcpus: number;
  /** Time that its vcpus have run, ms. */
  readonly cpuMs: number;
}

/**
 * Frames mapped into this process, described by arrays so that no object stands for a page: page i is
 * `regions[regionOf[i]]` at byte `offsetOf[i]`, 4096 bytes, aligned. Pages that lie side by side in one region can be
 * taken as one view. Views are dead after `release()`: they read as zeros or have length 0.
 */
export interface PageMapping {
  /** Pages mapped. */
  readonly count: number;
  readonly regions: readonly Uint8Array[];
  /** The same memory as `regions`, in 32-bit words, for page tables and p2m. */
  readonly words: readonly Uint32Array[];
  readonly regionOf: Uint16Array;
  readonly offsetOf: Float64Array;
  /** 0, or the errno with which this frame could not be mapped. */
  readonly errors: Int32Array;
  /**
   * True if every frame was mapped and page i is at byte i · 4096 of the only region: then nobody needs to look at the
   * arrays. Absent: not known.
   */
  readonly plain?: boolean;
  release(): void;
}

/** Machine-to-physical table of the host, for PV guests. */
export interface MachineToPhys {
  /** XENMEM_maximum_ram_page: highest mfn. */
  readonly maxMfn: number;
  /** First mfn of the table that 32-bit guests see, or INVALID_FRAME if the host has none. */
  readonly compatFirstMfn: number;
  /** pfn of a machine frame in its owner, INVALID_FRAME if none. `mfn` in 0…maxMfn. */
  pfnOf(mfn: number): number;
  release(): void;
}

/** Result of a log-dirty CLEAN or PEEK. */
export interface LogDirtyResult {
  /** Pages copied into the bitmap; equals the pages asked for unless the domain is smaller. */
  readonly pages: number;
  readonly dirtyCount: number;
  readonly faultCount: number;
}

/** XEN_DOMCTL_gettscinfo, and X86_TSC_INFO's fields. */
export interface TscInfo {
  readonly mode: number;
  readonly khz: number;
  readonly nsec: bigint;
  readonly incarnation: number;
}

/** CPU policy, serialised as X86_CPUID_POLICY (24 bytes a leaf) and X86_MSR_POLICY (16 bytes an MSR) carry it. */
export interface CpuPolicy {
  readonly cpuid: Uint8Array;
  readonly msrs: Uint8Array;
}

/** The four kinds of PV vcpu state, as the X86_PV_VCPU_* records carry them (without vcpu_id and reserved). */
export type VcpuStateKind = 'basic' | 'extended' | 'xsave' | 'msrs';

/** Access to one domain. Many may be open at once; none owns the domain. */
export interface Domain {
  readonly domid: number;

  info(): Promise<DomainInfo>;

  /** XENMEM_maximum_gpfn: highest gfn of the physmap. The p2m size of a save is this + 1. */
  maxGpfn(): Promise<number>;

  /**
   * XEN_DOMCTL_getpageframeinfo3. Writes the type nibble of each gfn into `types`. At most 65536 (E2BIG), which takes
   * a hypercall for every 1024. A gfn without RAM, also INVALID_FRAME, is XTAB.
   */
  pageTypes(gfns: Float64Array, types: Uint8Array): Promise<void>;

  /**
   * Maps frames, at most 1024 in one call (E2BIG). Resolves even if some could not be mapped: look at `errors`. Only
   * populated frames can be mapped.
   */
  mapFrames(gfns: Float64Array, access: 'read' | 'write'): Promise<PageMapping>;

  /**
   * XENMEM_populate_physmap. `frames` holds pfns and gets, PV: the mfns; HVM: the same gfns. order 0 = 4 KiB extents, 9 = 2 MiB (pfns
   * aligned to 512). Resolves to how many extents, from the front, were allocated; fewer means that memory or the
   * domain's maximum is exhausted. What the pages hold is not specified: Xen scrubs only what was a dead domain's.
   */
  populate(frames: Float64Array, order?: 0 | 9): Promise<number>;

  /** Zeroes a page of the guest. */
  clearPage(gfn: number): Promise<void>;

  /** XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY. From now on, every page written by the guest or its device model is marked. */
  enableLogDirty(): Promise<void>;
  /** XEN_DOMCTL_SHADOW_OP_OFF. Harmless when log-dirty is off. */
  disableLogDirty(): Promise<void>;
  /**
   * CLEAN copies the bitmap and clears it, PEEK only copies. Bit n of word n/32 is pfn n; `bitmap` has at least
   * `pages` bits and is overwritten; with log-dirty off it is empty, and that is no error. `final` (LOGDIRTY_FINAL): mark also pages that Xen keeps mapped writable; only
   * when the guest is suspended.
   */
  logDirty(
    op: 'clean' | 'peek',
    bitmap: Uint32Array,
    pages: number,
    final?: boolean,
  ): Promise<LogDirtyResult>;

  tscInfo(): Promise<TscInfo>;
  setTscInfo(info: TscInfo): Promise<void>;
  cpuPolicy(): Promise<CpuPolicy>;
  /** Empty arrays leave that half as it is. Rejects if the host cannot honour the policy. */
  setCpuPolicy(policy: CpuPolicy): Promise<void>;

  /** HVM only: the whole context, a sequence of HVM save records. */
  hvmContext(): Promise<Uint8Array>;
  setHvmContext(context: Uint8Array): Promise<void>;
  hvmParam(index: number): Promise<bigint>;
  setHvmParam(index: number, value: bigint): Promise<void>;

  /** PV only (EOPNOTSUPP). */
  guestWidth(): Promise<GuestWidth>;
  /** XEN_DOMCTL_set_address_size: to 4 only before the domain has memory (EACCES), never back to 8 (EINVAL). */
  setGuestWidth(width: GuestWidth): Promise<void>;
  vcpuOnline(vcpu: number): Promise<boolean>;
  /** One kind of state of one vcpu, with machine frames in it. Empty if the vcpu has none of this kind. */
  vcpuState(vcpu: number, kind: VcpuStateKind): Promise<Uint8Array>;
  setVcpuState(vcpu: number, kind: VcpuStateKind, state: Uint8Array): Promise<void>;
  /** MMUEXT_PIN_L1…L4_TABLE for each mfn; level 1…4. Xen checks the tables. At most 1024. */
  pinTables(levels: Uint8Array, mfns: Float64Array): Promise<void>;

  /** Writes entries 0 (console) and 1 (xenstore) of the guest's grant table. Frame INVALID_FRAME, or a back end that is the guest itself: skipped. */
  seedGrantTable(seed: {
    readonly consoleGfn: number;
    readonly consoleDomid: number;
    readonly storeGfn: number;
    readonly storeDomid: number;
  }): Promise<void>;

  /** Gives up this access; the domain stays. */
  close(): Promise<void>;
}

/** A hypervisor with its toolstack. */
export interface Host {
  readonly kind: 'xen' | 'simulated';
  readonly toolstack: Toolstack;
  xenVersion(): Promise<XenVersion>;
  listDomains(): Promise<DomainInfo[]>;
  /** Rejects with HypercallError ESRCH if there is no such domain. */
  openDomain(domid: number): Promise<Domain>;
  /** Maps the M2P. Rejects with EOPNOTSUPP on hosts without PV support. */
  mapMachineToPhys(): Promise<MachineToPhys>;
  close(): Promise<void>;
}
