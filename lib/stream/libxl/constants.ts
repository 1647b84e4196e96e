/** Numbers of the libxl stream, under the names of Xen's docs/specs/libxl-migration-stream. */

/** Stream header. */
export const LIBXL_HEADER_SIZE = 16;
/** "LibxlFmt" */
export const LIBXL_IDENT = 0x4c69_6278_6c46_6d74n;
export const LIBXL_VERSION = 2;
/** Bits of the header's options. */
export const LIBXL_OPT_BIG_ENDIAN = 1;
/** Informative: the stream was made by the converter. */
export const LIBXL_OPT_LEGACY = 2;

/** Record types (REC_TYPE_*). */
export const LibxlRecord = {
  END: 0,
  /** A libxc stream follows immediately. */
  LIBXC_CONTEXT: 1,
  EMULATOR_XENSTORE_DATA: 2,
  EMULATOR_CONTEXT: 3,
  CHECKPOINT_END: 4,
  /** COLO only. */
  CHECKPOINT_STATE: 5,
} as const;

export type LibxlRecordName = keyof typeof LibxlRecord;
export type LibxlRecordType = (typeof LibxlRecord)[LibxlRecordName];

const names = new Map<number, string>(Object.entries(LibxlRecord).map(([name, type]) => [type, name]));

/** True for the record types above. */
export function isLibxlRecordType(type: number): type is LibxlRecordType {
  return names.has(type);
}

/** Name of a record type, or `unknown (0x…)`. */
export function libxlRecordName(type: number): string {
  return names.get(type) ?? `unknown (0x${type.toString(16).padStart(8, '0')})`;
}

/** Emulator header, and the emulators it may name. Receivers do not look at the id. */
export const EMULATOR_HEADER_SIZE = 8;
export const EmulatorId = { UNKNOWN: 0, QEMU_TRADITIONAL: 1, QEMU_UPSTREAM: 2 } as const;

/** Ids of CHECKPOINT_STATE. NEW goes from the primary to the secondary, the others back. */
export const CheckpointState = {
  CHECKPOINT_NEW: 0,
  CHECKPOINT_SVM_SUSPENDED: 1,
  CHECKPOINT_SVM_READY: 2,
  CHECKPOINT_SVM_RESUMED: 3,
} as const;
/** What senders write: the id alone, though the specification draws 4 bytes of padding into the body. */
export const CHECKPOINT_STATE_SIZE = 4;

/**
 * Longest libxl record body that a reader takes unless told otherwise: 256 MiB. libxl has no limit; the largest real
 * ones are device-model states of some megabytes.
 */
export const LIBXL_REC_LENGTH_MAX = 256 << 20;

/** Most keys that EMULATOR_XENSTORE_DATA may have. libxl has no limit; QEMU makes three for each of a few regions. */
export const XENSTORE_ENTRIES_MAX = 65_536;
