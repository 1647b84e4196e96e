/** Numbers of the libxc stream, under the names of Xen's docs/specs/libxc-migration-stream. */

/** Image header. */
export const IHDR_SIZE = 24;
export const IHDR_MARKER = 0xffff_ffff_ffff_ffffn;
/** "XENF" */
export const IHDR_ID = 0x5845_4e46;
/** Written by Xen 4.6 to 4.13: no static data. */
export const IHDR_VERSION_2 = 2;
/** Written by Xen 4.14 and later: with STATIC_DATA_END and the policy records. */
export const IHDR_VERSION_3 = 3;
/** Bit of the image header's options: the rest is big-endian. */
export const IHDR_OPT_BIG_ENDIAN = 1;

/** Domain header. */
export const DHDR_SIZE = 16;
export const DomainType = { X86_PV: 1, X86_HVM: 2 } as const;
/** xen_major of a stream that was converted from a legacy one. */
export const XEN_MAJOR_CONVERTED = 0;

/** Both headers, one after the other. */
export const HEADERS_SIZE = IHDR_SIZE + DHDR_SIZE;

/** Longest record body: 128 MiB, inclusive. Senders apply it to the length with padding, receivers to that without. */
export const REC_LENGTH_MAX = 128 << 20;

/** Bit 31 of a record's type: a receiver that does not know it may skip it. No such record has been defined. */
export const REC_TYPE_OPTIONAL = 0x8000_0000;

/** Record types (REC_TYPE_*). */
export const LibxcRecord = {
  END: 0x00,
  PAGE_DATA: 0x01,
  X86_PV_INFO: 0x02,
  X86_PV_P2M_FRAMES: 0x03,
  X86_PV_VCPU_BASIC: 0x04,
  X86_PV_VCPU_EXTENDED: 0x05,
  X86_PV_VCPU_XSAVE: 0x06,
  SHARED_INFO: 0x07,
  X86_TSC_INFO: 0x08,
  HVM_CONTEXT: 0x09,
  HVM_PARAMS: 0x0a,
  /** Planned for other toolstacks, never used; no receiver takes it. */
  TOOLSTACK: 0x0b,
  X86_PV_VCPU_MSRS: 0x0c,
  VERIFY: 0x0d,
  CHECKPOINT: 0x0e,
  /** COLO's back channel only. */
  CHECKPOINT_DIRTY_PFN_LIST: 0x0f,
  STATIC_DATA_END: 0x10,
  X86_CPUID_POLICY: 0x11,
  X86_MSR_POLICY: 0x12,
} as const;

export type LibxcRecordName = keyof typeof LibxcRecord;
export type LibxcRecordType = (typeof LibxcRecord)[LibxcRecordName];

const names = new Map<number, string>(Object.entries(LibxcRecord).map(([name, type]) => [type, name]));

/** True for the record types above. */
export function isLibxcRecordType(type: number): type is LibxcRecordType {
  return names.has(type);
}

/** Name of a record type, or `unknown (0x…)`. */
export function libxcRecordName(type: number): string {
  return names.get(type) ?? `unknown (0x${type.toString(16).padStart(8, '0')})`;
}

/** True if a receiver that does not know this type may skip the record. */
export function isOptionalRecord(type: number): boolean {
  return (type & REC_TYPE_OPTIONAL) !== 0;
}

/** PAGE_DATA: its fixed part, one entry of its table, and the parts of an entry's high word. */
export const PAGE_DATA_HEAD_SIZE = 8;
export const PAGE_DATA_ENTRY_SIZE = 8;
/** Highest pfn that an entry can hold: 52 bits. */
export const PAGE_DATA_PFN_MAX = 2 ** 52 - 1;

/** Fixed parts and entries of the other records. */
export const PV_INFO_SIZE = 8;
export const P2M_FRAMES_HEAD_SIZE = 8;
export const P2M_FRAMES_ENTRY_SIZE = 8;
export const VCPU_HEAD_SIZE = 8;
/** Longest EXTENDED blob: sizeof(xen_domctl_ext_vcpucontext.…) of every Xen so far. */
export const VCPU_EXTENDED_MAX = 128;
/** Shortest XSAVE blob: xcr0 and xcr0_accum. */
export const VCPU_XSAVE_MIN = 16;
export const VCPU_MSR_SIZE = 16;
export const TSC_INFO_SIZE = 24;
export const HVM_PARAMS_HEAD_SIZE = 8;
export const HVM_PARAMS_ENTRY_SIZE = 16;
export const CPUID_LEAF_SIZE = 24;
export const MSR_ENTRY_SIZE = 16;
export const DIRTY_PFN_SIZE = 8;

/** Subleaf of a CPUID leaf that has none (XEN_CPUID_NO_SUBLEAF). */
export const CPUID_NO_SUBLEAF = 0xffff_ffff;

/** hvm_save_descriptor: u16 typecode, u16 instance, u32 length. */
export const HVM_SAVE_DESCRIPTOR_SIZE = 8;

/**
 * Most entries of HVM_PARAMS, X86_CPUID_POLICY, X86_MSR_POLICY or X86_PV_VCPU_MSRS that are decoded into objects. Xen
 * has no such limit, but no use for a hundredth of it either (39 parameters, some hundred leaves, a handful of MSRs).
 */
export const TABLE_ENTRIES_MAX = 65_536;

/** Types of the hypervisor's HVM save records (HVM_SAVE_CODE). */
export const HvmSaveCode = {
  END: 0,
  HEADER: 1,
  CPU: 2,
  PIC: 3,
  IOAPIC: 4,
  LAPIC: 5,
  LAPIC_REGS: 6,
  PCI_IRQ: 7,
  ISA_IRQ: 8,
  PCI_LINK: 9,
  PIT: 10,
  RTC: 11,
  HPET: 12,
  PMTIMER: 13,
  MTRR: 14,
  VIRIDIAN_DOMAIN: 15,
  CPU_XSAVE: 16,
  VIRIDIAN_VCPU: 17,
  VMCE_VCPU: 18,
  TSC_ADJUST: 19,
  CPU_MSR: 20,
} as const;

const saveCodeNames = new Map<number, string>(
  Object.entries(HvmSaveCode).map(([name, code]) => [code, name]),
);

/** Name of an HVM save record's type, or `unknown (n)`. */
export function hvmSaveCodeName(typecode: number): string {
  return saveCodeNames.get(typecode) ?? `unknown (${typecode})`;
}
