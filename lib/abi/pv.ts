/**
 * Structures of the PV guest ABI, by offset, for both guest widths. From Xen's public xen.h and arch-x86 headers;
 * identical from Xen 4.14 to 4.22.
 */

/** Guest word size in bytes: 4 (32-bit PAE) or 8. */
export type GuestWidth = 4 | 8;

/** Page-table levels that go with a width. */
export function levelsOf(width: GuestWidth): 3 | 4 {
  return width === 8 ? 4 : 3;
}

/** p2m entries in one frame: 512 or 1024. */
export function fppOf(width: GuestWidth): 512 | 1024 {
  return width === 8 ? 512 : 1024;
}

/**
 * vcpu_guest_context.
 *
 *     field             x86_32  x86_64
 *     flags                512     512   unsigned long, bit 5 = VGCF_online
 *     user_regs            516     520
 *     user_regs.edx/rdx    524     616   start_info mfn while suspended (3rd argument of the suspend hypercall)
 *     ldt_base, ldt_ents  2632    4816   (ents at +4 / +8)
 *     gdt_frames[16]      2640    4832
 *     gdt_ents            2704    4960
 *     ctrlreg[8]          2716    4984
 *     debugreg[8]         2748    5048
 *     vm_assist           2796    5136
 *     (size)              2800    5168
 */
export interface VcpuContextLayout {
  readonly size: number;
  readonly flags: number;
  readonly rax: number;
  readonly rdx: number;
  readonly gdtFrames: number;
  readonly gdtEnts: number;
  readonly ctrlreg: number;
}

export const VCPU_CONTEXT: Readonly<Record<GuestWidth, VcpuContextLayout>> = {
  // cpu_user_regs_x86_32: ebx, ecx, edx, esi, edi, ebp, eax, …
  4: { size: 2800, flags: 512, rax: 540, rdx: 524, gdtFrames: 2640, gdtEnts: 2704, ctrlreg: 2716 },
  // cpu_user_regs_x86_64: r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx …
  8: { size: 5168, flags: 512, rax: 600, rdx: 616, gdtFrames: 4832, gdtEnts: 4960, ctrlreg: 4984 },
};

/** Bit of vcpu_guest_context.flags: the vcpu is up. */
export const VGCF_ONLINE = 1 << 5;
/** Most GDT entries a PV guest can have (FIRST_RESERVED_GDT_ENTRY). */
export const MAX_GDT_ENTS = 7168;
/** GDT entries in one frame. */
export const GDT_ENTS_PER_FRAME = 512;

/**
 * shared_info.
 *
 *     field                            x86_32  x86_64
 *     vcpu_info[32], 64 bytes each          0       0   evtchn_pending_sel at +4 / +8
 *     evtchn_pending                     2048    2048   128 / 512 bytes
 *     evtchn_mask                        2176    2560   128 / 512 bytes
 *     wc_version                         2304    3072
 *     arch                               2316    3088   28 / 48 bytes
 *     arch.max_pfn                       2316    3088   number of pfns
 *     arch.pfn_to_mfn_frame_list_list    2320    3096
 *     arch.nmi_reason                    2324    3104
 *     arch.p2m_cr3                       2328    3112
 *     arch.p2m_vaddr                     2332    3120
 *     arch.p2m_generation                2336    3128
 */
export interface SharedInfoLayout {
  readonly pendingSel: number;
  readonly evtchnPending: number;
  readonly evtchnMask: number;
  /** Bytes of evtchn_pending, and of evtchn_mask. */
  readonly evtchnBytes: number;
  readonly arch: number;
  readonly archBytes: number;
  readonly maxPfn: number;
  readonly frameListList: number;
  readonly p2mCr3: number;
  readonly p2mVaddr: number;
  readonly p2mGeneration: number;
}

export const SHARED_INFO: Readonly<Record<GuestWidth, SharedInfoLayout>> = {
  4: {
    pendingSel: 4,
    evtchnPending: 2048,
    evtchnMask: 2176,
    evtchnBytes: 128,
    arch: 2316,
    archBytes: 28,
    maxPfn: 2316,
    frameListList: 2320,
    p2mCr3: 2328,
    p2mVaddr: 2332,
    p2mGeneration: 2336,
  },
  8: {
    pendingSel: 8,
    evtchnPending: 2048,
    evtchnMask: 2560,
    evtchnBytes: 512,
    arch: 3088,
    archBytes: 48,
    maxPfn: 3088,
    frameListList: 3096,
    p2mCr3: 3112,
    p2mVaddr: 3120,
    p2mGeneration: 3128,
  },
};

/** vcpu_info slots in shared_info, and bytes of each. */
export const LEGACY_MAX_VCPUS = 32;
export const VCPU_INFO_SIZE = 64;

/**
 * start_info.
 *
 *     field                          x86_32  x86_64
 *     nr_pages                           32      32
 *     shared_info (machine address)      36      40
 *     flags                              40      48
 *     store_mfn, store_evtchn        44, 48  56, 64
 *     console.domU.mfn, .evtchn      52, 56  72, 80
 */
export interface StartInfoLayout {
  readonly size: number;
  readonly nrPages: number;
  readonly sharedInfo: number;
  readonly flags: number;
  readonly storeMfn: number;
  readonly storeEvtchn: number;
  readonly consoleMfn: number;
  readonly consoleEvtchn: number;
}

export const START_INFO: Readonly<Record<GuestWidth, StartInfoLayout>> = {
  4: {
    size: 1112,
    nrPages: 32,
    sharedInfo: 36,
    flags: 40,
    storeMfn: 44,
    storeEvtchn: 48,
    consoleMfn: 52,
    consoleEvtchn: 56,
  },
  8: {
    size: 1168,
    nrPages: 32,
    sharedInfo: 40,
    flags: 48,
    storeMfn: 56,
    storeEvtchn: 64,
    consoleMfn: 72,
    consoleEvtchn: 80,
  },
};

/** Bits of a page-table entry. The frame is in bits 12–51. */
export const PTE_PRESENT = 0x1;
export const PTE_PSE = 0x80;
export const PTE_FRAME_MASK = 0x000f_ffff_ffff_f000n;
/** Entries in one page table. */
export const PTES = 512;

/** L4 slots of a 64-bit PV guest that belong to Xen: 256…271. */
export const XEN_L4_FIRST = 256;
export const XEN_L4_LAST = 271;
/** First L2 slot of a 32-bit PV guest's last L2 that belongs to Xen: (0xF5800000 >> 21) & 511. */
export const XEN_L2_COMPAT_FIRST = 428;
/** The hypervisor's hole in a guest's address space, inclusive. */
export const XEN_HOLE: Readonly<Record<GuestWidth, readonly [bigint, bigint]>> = {
  4: [0xf580_0000n, 0xffff_ffffn],
  8: [0xffff_8000_0000_0000n, 0xffff_87ff_ffff_ffffn],
};

/** A frame number that stands for "no frame". In 32-bit tables 0xFFFFFFFF is the same. */
export const INVALID_MFN = 0xffff_ffff_ffff_ffffn;

/** Frame of a CR3 value. 64-bit: cr3 >> 12. 32-bit (extended-cr3): a 32-bit rotation by 12. */
export function cr3ToFrame(cr3: bigint, width: GuestWidth): number {
  if (width === 8) return Number((cr3 & PTE_FRAME_MASK) >> 12n);
  const v = Number(cr3 & 0xffff_ffffn);
  return ((v >>> 12) | (v << 20)) >>> 0;
}

/** The CR3 value of a frame; inverse of `cr3ToFrame`. */
export function frameToCr3(frame: number, width: GuestWidth): bigint {
  if (width === 8) return BigInt(frame) << 12n;
  return BigInt(((frame << 12) | (frame >>> 20)) >>> 0);
}
