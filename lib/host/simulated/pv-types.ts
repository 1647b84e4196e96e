/**
 * What the core of the simulated host and its PV part know of each other.
 *
 * The core has domains, ownership of frames, pauses, shutdown, log-dirty and the worker in which a guest runs. The PV
 * part (`pv-*.ts`) has what only PV guests have: vcpu contexts, page-table validation and pinning, and the model of a
 * PV kernel that builds, leaves and re-enters a guest. `pv-domain.ts` exports `createPvDomain: CreatePvDomain`.
 *
 * All methods are synchronous and refuse by throwing `refusal(…)`; the core turns that into a rejection. The core has
 * checked before that the domain lives, and counts, delays and injects faults outside.
 */
import type { GuestWidth } from '../../abi/pv.js';
import type { VcpuStateKind } from '../host.js';
import type { MachineMemory } from './memory.js';
import type { PvKernelHandle } from './pv-kernel.js';

/** What the PV part may ask of the core, for one domain. */
export interface PvDomainCore {
  readonly domid: number;
  /** Owners, M2P and page types are in here; `memory.typeOf(mfn)` is what `pageTypes` answers. */
  readonly memory: MachineMemory;
  /** Highest vcpu number + 1. */
  readonly maxVcpus: number;
  /**
   * The shared info frame: allocated by the core when the domain is made, owned by it, without an M2P entry, not
   * counted among its pages.
   */
  readonly sharedInfoMfn: number;
  /** Seed of the domain. */
  readonly seed: number;
  /**
   * XENMEM_populate_physmap with 4 KiB extents: pfns in, mfns out, M2P set. Returns how many there were; fewer when
   * the host or the domain's maximum is exhausted.
   */
  allocate(frames: Float64Array): number;
  /** XENMEM_decrease_reservation of one of the domain's frames. */
  release(mfn: number): void;
  /** The guest wrote to this pfn: bytes first, then this. */
  markDirty(pfn: number): void;
}

/** Pages of the guest that its kernel leaves to the workload: pfns `first`…`first + count − 1`, all NOTAB. */
export interface FrameRange {
  readonly first: number;
  readonly count: number;
}

/** A PV guest as its workload sees it. */
export interface PvGuestMap {
  /**
   * The kernel's p2m in shared memory, for the worker: mfn of each pfn, 0 where there is none. Bytes of pfn p are
   * page `memory.offsetOf(mfn)` of region `memory.regionOf(mfn)`.
   */
  readonly physmap: Uint32Array;
  /** Plain pages for the workload, ascending. The same on every host: they depend on guest memory alone. */
  readonly free: readonly FrameRange[];
  /**
   * The guest's kernel, for `openPvKernel` in the worker, which has it tick every `KERNEL_TICK` steps of the program.
   * Can be posted. It ends when the guest is suspended; `resume` gives the next one.
   */
  readonly kernel: PvKernelHandle;
}

/** What kind of PV guest to build. */
export interface PvGuestOptions {
  readonly width: GuestWidth;
  readonly pages: number;
  readonly vcpus: number;
  /** How the guest tells its p2m: a virtually mapped list, or the three-level tree. */
  readonly p2m: 'linear' | 'tree';
  readonly seed: number;
  /** For start_info, as the toolstack would pass them. */
  readonly storeEvtchn: number;
  readonly consoleEvtchn: number;
  /** Linear p2m: at an address inside of what a level 2 entry maps, so that it spans two of them. Default false. */
  readonly unalignedP2m?: boolean | undefined;
  /**
   * Entries after the end of the p2m, 0…16, that all name one empty table, as Linux has them up to the most memory
   * that it could get; shared info then tells far more pfns than the guest has. Default 0.
   */
  readonly p2mTail?: number | undefined;
  /** The kernel's processes change their page tables while the guest runs. Default true. */
  readonly changesPageTables?: boolean | undefined;
  /** The kernel changes its p2m while the guest runs: a live migration has to fail. Default false. */
  readonly changesP2m?: boolean | undefined;
}

/** Steps of the guest's program between two ticks of its kernel. */
export const KERNEL_TICK = 256;

/**
 * Where the guest program's registers are in the state of vcpu 0: the XMM registers 0…7 of fpu_ctxt (PV, both widths)
 * and of the CPU record's fpu_regs (HVM), the same 128 bytes at the same offset of an FXSAVE image. They are the only
 * state of a running guest that is not in its memory.
 */
export const REGISTERS_OFFSET = 160;
export const REGISTERS_SIZE = 128;

/** The PV part of one domain. */
export interface PvDomain {
  /** 8 until `setWidth`. */
  readonly width: GuestWidth;
  /** XEN_DOMCTL_set_address_size. The core has checked that the domain has no memory. */
  setWidth(width: GuestWidth): void;
  /** XENMEM_maximum_gpfn of a PV domain: shared_info.arch.max_pfn − 1. */
  maxGpfn(): number;
  vcpuOnline(vcpu: number): boolean;
  /** A copy. `vcpu` is below `maxVcpus`. */
  vcpuState(vcpu: number, kind: VcpuStateKind): Uint8Array;
  setVcpuState(vcpu: number, kind: VcpuStateKind, state: Uint8Array): void;
  /** At most 1024. Validates the tables and sets `memory.setType`. */
  pinTables(levels: Uint8Array, mfns: Float64Array): void;

  /**
   * Builds a guest in the empty domain, up to the point where its workload may start. Throws UsageError if there is
   * no such guest.
   */
  construct(options: PvGuestOptions): PvGuestMap;
  /**
   * The guest kernel suspends: what it and the suspend hypercall do to memory and vcpu 0 (pfns in start_info, rdx).
   * `registers` are REGISTERS_SIZE bytes to leave in vcpu 0, undefined for a guest without a program.
   */
  suspend(registers: Uint8Array | undefined): void;
  /**
   * The guest kernel comes back from the suspend hypercall, on the host where it called (`cancelled`: it returns 1)
   * or on another one (`restored`): puts start_info, shared info and p2m in order. Undefined for a guest whose kernel
   * is not this model's: it has no program to run. Throws GuestError if it is, and finds its state broken.
   */
  resume(how: 'cancelled' | 'restored'): PvGuestMap | undefined;
  /** REGISTERS_SIZE bytes of vcpu 0; zeros before it has a context. */
  registers(): Uint8Array;
  /**
   * The running guest's kernel gives `pages` of its balloon area back to the host, or takes them again (negative).
   * Only while its worker stands still. Returns the pfns, which may be fewer than asked for.
   */
  balloon(pages: number): number[];
}

/** Makes the PV part of a new, empty domain. */
export type CreatePvDomain = (core: PvDomainCore) => PvDomain;
