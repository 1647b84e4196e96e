/** Numbers of the legacy (v1) libxc image, under the names of Xen 4.5's xg_save_restore.h (XC_SAVE_ID_*). */

import { HvmParam } from '../../abi/hvm.js';

/** Highest number of pages that a guest may have: pfns have 28 bits, the page type sits above them. */
export const LEGACY_P2M_SIZE_MAX = 0x0fff_ffff;

/** Most pages of one batch. */
export const LEGACY_BATCH_MAX = 1024;

/** Chunk ids. A positive id is a batch of so many pages. */
export const LegacyChunk = {
  END: 0,
  ENABLE_VERIFY_MODE: -1,
  VCPU_INFO: -2,
  HVM_IDENT_PT: -3,
  HVM_VM86_TSS: -4,
  TMEM: -5,
  TMEM_EXTRA: -6,
  TSC_INFO: -7,
  HVM_CONSOLE_PFN: -8,
  LAST_CHECKPOINT: -9,
  HVM_ACPI_IOPORTS_LOCATION: -10,
  HVM_VIRIDIAN: -11,
  COMPRESSED_DATA: -12,
  ENABLE_COMPRESSION: -13,
  HVM_GENERATION_ID_ADDR: -14,
  HVM_PAGING_RING_PFN: -15,
  HVM_ACCESS_RING_PFN: -16,
  HVM_SHARING_RING_PFN: -17,
  TOOLSTACK: -18,
  HVM_IOREQ_SERVER_PFN: -19,
  HVM_NR_IOREQ_SERVER_PAGES: -20,
  HVM_X87_FIP_WIDTH: -21,
} as const;

export type LegacyChunkName = keyof typeof LegacyChunk;

const names = new Map<number, string>(Object.entries(LegacyChunk).map(([name, id]) => [id, name]));

/** Name of a chunk id that is not positive, or `unknown (−n)`. */
export function legacyChunkName(id: number): string {
  return names.get(id) ?? `unknown (${id})`;
}

/** The HVM parameter that a chunk carries. */
export const LEGACY_PARAM_CHUNKS: ReadonlyMap<number, number> = new Map<number, number>([
  [LegacyChunk.HVM_IDENT_PT, HvmParam.IDENT_PT],
  [LegacyChunk.HVM_VM86_TSS, HvmParam.VM86_TSS],
  [LegacyChunk.HVM_CONSOLE_PFN, HvmParam.CONSOLE_PFN],
  [LegacyChunk.HVM_ACPI_IOPORTS_LOCATION, HvmParam.ACPI_IOPORTS_LOCATION],
  [LegacyChunk.HVM_VIRIDIAN, HvmParam.VIRIDIAN],
  [LegacyChunk.HVM_GENERATION_ID_ADDR, HvmParam.VM_GENERATION_ID_ADDR],
  [LegacyChunk.HVM_PAGING_RING_PFN, HvmParam.PAGING_RING_PFN],
  [LegacyChunk.HVM_ACCESS_RING_PFN, HvmParam.MONITOR_RING_PFN],
  [LegacyChunk.HVM_SHARING_RING_PFN, HvmParam.SHARING_RING_PFN],
  [LegacyChunk.HVM_IOREQ_SERVER_PFN, HvmParam.IOREQ_SERVER_PFN],
  [LegacyChunk.HVM_NR_IOREQ_SERVER_PAGES, HvmParam.NR_IOREQ_SERVER_PAGES],
  [LegacyChunk.HVM_X87_FIP_WIDTH, HvmParam.X87_FIP_WIDTH],
]);

/** Pieces of an image that are no chunks: what stands before the chunks, and the tail after them. */
export const LegacyPart = {
  HEADER: 'header',
  EXTENDED_INFO: 'extended info',
  P2M_FRAME_LIST: 'p2m frame list',
  PAGE_BATCH: 'page batch',
  MAGIC_PFNS: 'magic pfns',
  HVM_CONTEXT: 'HVM context',
  UNMAPPED_PFNS: 'unmapped pfns',
  VCPU_BASIC: 'vcpu context',
  VCPU_EXTENDED: 'vcpu extended context',
  VCPU_XSAVE: 'vcpu xsave',
  SHARED_INFO: 'shared info',
  QEMU: 'QEMU record',
} as const;

export type LegacyPartName = (typeof LegacyPart)[keyof typeof LegacyPart];

/** Size of the extended vcpu context in a PV tail. */
export const LEGACY_EXTENDED_SIZE = 128;
/** Before the bytes of a vcpu's xsave area: u64 feature mask, u64 size. */
export const LEGACY_XSAVE_HEAD_SIZE = 16;

/** Longest blocks of extended info; two vcpu contexts would fit. */
export const LEGACY_EXTENDED_INFO_MAX = 16 << 10;
/** Highest vcpu id of VCPU_INFO. */
export const LEGACY_VCPU_ID_MAX = 4095;
/** Longest toolstack chunk that is taken; libxl's has some hundred bytes. */
export const LEGACY_TOOLSTACK_MAX = 1 << 20;
/** Longest COMPRESSED_DATA: senders flush at 8192 pages of 4105 bytes. */
export const LEGACY_COMPRESSED_MAX = 64 << 20;
/** Largest xsave area of a vcpu; of today's processors it has less than 12 KiB. */
export const LEGACY_XSAVE_MAX = 1 << 20;

/** What stands before QEMU's state, 21 characters. */
export const QemuSignature = {
  /** State up to the end of the file. xend, and libxl of Xen 4.0. */
  UNTIL_EOF: 'QemuDeviceModelRecord',
  /** Length and state. libxl of Xen 4.1 and later. */
  LIBXL: 'DeviceModelRecord0002',
  /** Length and state. Remus of xend's days. */
  REMUS: 'RemusDeviceModelState',
} as const;

export const QEMU_SIGNATURE_SIZE = 21;

/** What QEMU's state begins with. */
export const QEMU_MAGIC = 'QEVM';

/** tmem: TMEM_SPEC_VERSION, and pools of a client. */
export const TMEM_VERSION = 1;
export const TMEM_POOLS_MAX = 16;

/** Bits of a tmem client's flags. */
export const TmemClientFlag = { COMPRESS: 1, FROZEN: 2 } as const;

/** Bits of a tmem pool's flags. Bits 4–7: page size, 4096 << n; bits 24–31: version. */
export const TmemPoolFlag = { PERSISTENT: 1, SHARED: 2, PRECOMPRESSED: 4 } as const;

/** Largest page of a tmem pool that is taken; all guests had 4096. */
export const TMEM_PAGE_SIZE_MAX = 64 << 10;
