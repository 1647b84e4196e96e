/** What an inspection says. Plain data: numbers, strings, arrays; u64 values as strings. */

import type { Layer } from '../events.js';
import type { TmemPoolEnd } from '../legacy/events.js';
import type { ScannedFormat } from '../scan.js';

/** A header or record; or, unless told otherwise, PAGE_DATA records that follow each other, as one row. */
export interface RecordRow {
  readonly offset: number;
  readonly layer: Layer;
  readonly name: string;
  /** Record type, id of a legacy chunk; undefined for headers, page batches and the parts of a legacy tail. */
  readonly type: number | undefined;
  /** Bytes of the body without padding, or of the header; of all records of the row together. */
  length: number;
  /** Records in this row. */
  records: number;
  /** A few words on its contents. */
  about: string;
  /** Why a receiver would refuse it, if the reader saw that. `verify` sees more. */
  problem?: string | undefined;
}

/** One pass over guest memory. */
export interface Iteration {
  /** What it is part of: the first transfer, the VERIFY pass, or checkpoint n (1 for what follows the first). */
  readonly part: 'transfer' | 'verify' | 'checkpoint';
  readonly offset: number;
  records: number;
  /** Entries of its PAGE_DATA records, with and without data. */
  entries: number;
  dataPages: number;
  zeroPages: number;
  /** Of `entries`, pages of a compressed checkpoint: only what changed in them was sent. Not in `dataPages`. */
  compressedPages: number;
}

/** Pages of the whole stream. The VERIFY pass, which sends all of them again, is counted by itself. */
export interface PageCounts {
  /** Entries of PAGE_DATA records, or of a legacy image's page batches. */
  entries: number;
  /** Entries with page contents. */
  data: number;
  /** Pages of compressed checkpoints: only what changed in them was sent. Not in `data`, but in `frames`. */
  compressed: number;
  /** Of them, those whose contents are all zero. */
  zero: number;
  /** Entries by page type. */
  byType: Record<string, number>;
  /** Frames whose contents were sent, and those of them whose contents were sent more than once. */
  frames: number;
  framesSentAgain: number;
  /** Entries with data whose frames are too many, or too far apart, to be followed. */
  untracked: number;
  /** Highest frame with contents. */
  highestPfn: number | undefined;
  /** Entries with data in the VERIFY pass. */
  verified: number;
}

/** One vcpu of a PV guest, as its last records have it: bytes of each blob. */
export interface VcpuRow {
  readonly vcpuId: number;
  basic: number;
  extended: number;
  xsave: number;
  msrs: number;
}

/** What a legacy (v1) image says of itself. */
export interface LegacyFacts {
  /** Bytes of an `unsigned long` of the toolstack that wrote it. */
  readonly wordSize: 4 | 8;
  readonly guest: 'pv' | 'hvm';
  /** Pages of the guest's pfn space. */
  readonly p2mSize: number;
  /** PV: the tail has extended contexts. */
  readonly extendedContexts: boolean;
  /** PV: bytes of each vcpu's xsave area with its 16 bytes of header, 0 without. */
  readonly xsaveSize: number;
  /** There is a LAST_CHECKPOINT. Without it another checkpoint may follow. */
  readonly lastCheckpoint: boolean;
  /** Of the last VCPU_INFO. */
  readonly onlineVcpus: number | undefined;
  readonly maxVcpuId: number | undefined;
  /** PV: of the last tail. */
  readonly unmappedPfns: number | undefined;
  /** Regions of QEMU's memory in libxl's toolstack chunk. */
  readonly physmap: readonly {
    readonly name: string;
    readonly physOffset: string;
    readonly startAddr: string;
    readonly size: string;
  }[];
  /** Compressed checkpoints; undefined if compression was never enabled. */
  readonly compression:
    | {
        /** Pages of batches whose contents come as changes. */
        pages: number;
        /** COMPRESSED_DATA chunks and their bytes. */
        chunks: number;
        bytes: number;
        /** Changes of pages in them; of those, the ones that change nothing, and those that are a whole page. */
        changes: number;
        unchanged: number;
        whole: number;
      }
    | undefined;
  /** The last QEMU record. */
  readonly qemu: { readonly signature: string; readonly length: number } | undefined;
}

/** A tmem pool. */
export interface TmemPoolRow {
  readonly poolId: number;
  readonly flags: number;
  readonly persistent: boolean;
  readonly shared: boolean;
  readonly precompressed: boolean;
  readonly pageSize: number;
  /** As text, in groups. */
  readonly uuid: string;
  /** Pages that it says it has at most, and those that were there. */
  readonly declared: number;
  readonly present: number;
  /** How its list of pages ended; undefined if the image ended in it. */
  readonly end: TmemPoolEnd | undefined;
}

/** What a legacy image's tmem sections say. */
export interface TmemFacts {
  /** Sections: 1, or the image is odd. What follows is the last one's, except `pools`. */
  readonly sections: number;
  readonly version: number | undefined;
  readonly maxPools: number | undefined;
  readonly flags: number | undefined;
  readonly weight: number | undefined;
  readonly cap: number | undefined;
  /** Pages of all pools. */
  readonly pages: number;
  /** Pages that were invalidated after they had been sent (TMEM_EXTRA). */
  readonly invalidated: number;
  readonly pools: readonly TmemPoolRow[];
}

export interface Inspection {
  readonly format: ScannedFormat;
  /** Bytes read. */
  readonly bytes: number;
  /** True if the stream was read to its last END record, a legacy image to the end of its tail. */
  readonly complete: boolean;
  /** Why the reading ended before. */
  readonly error:
    | {
        readonly code: string;
        readonly offset: number;
        readonly record: string | undefined;
        readonly path: string | undefined;
        readonly message: string;
      }
    | undefined;
  /** Headers and records that a receiver would refuse. */
  readonly problems: number;
  readonly trailingBytes: number;
  readonly xl:
    | {
        readonly mandatoryFlags: number;
        readonly optionalFlags: number;
        /** Bytes of the configuration's text. */
        readonly configLength: number;
        readonly name: string | undefined;
        readonly type: string | undefined;
        readonly maxVcpus: number | undefined;
        readonly maxMemoryKib: number | undefined;
      }
    | undefined;
  /** xend's header. */
  readonly xend: { readonly configLength: number } | undefined;
  /** A legacy image, bare or behind xl's or xend's header. */
  readonly legacy: LegacyFacts | undefined;
  /** tmem sections of a legacy image. */
  readonly tmem: TmemFacts | undefined;
  readonly libxl: { readonly version: number; readonly options: number } | undefined;
  readonly image: { readonly version: number; readonly options: number } | undefined;
  readonly domain:
    | {
        /** `x86 PV`, `x86 HVM` (PVH too), or `unknown (n)`. */
        readonly guest: string;
        readonly pageShift: number;
        /** Version of the Xen that wrote it; undefined if it was converted from a legacy stream. */
        readonly xenVersion: string | undefined;
        readonly converted: boolean;
      }
    | undefined;
  readonly pv:
    | {
        readonly guestWidth: number | undefined;
        readonly ptLevels: number | undefined;
        readonly maxPfn: number | undefined;
        readonly p2mFrames: number;
        readonly vcpus: readonly VcpuRow[];
      }
    | undefined;
  readonly hvm:
    | {
        readonly params: readonly { readonly index: number; readonly name: string; readonly value: string }[];
        /** The hypervisor's save records, by type. */
        readonly context: readonly {
          readonly name: string;
          readonly records: number;
          readonly bytes: number;
        }[];
        readonly vcpus: number;
      }
    | undefined;
  readonly tsc:
    | {
        readonly mode: number;
        readonly khz: number;
        readonly nsec: string;
        readonly incarnation: number;
      }
    | undefined;
  /** Entries of the policies. */
  readonly cpuidLeaves: number;
  readonly msrs: number;
  readonly emulator:
    | {
        readonly name: string;
        /** Bytes of the last device-model state. */
        readonly contextLength: number;
        readonly xenstoreEntries: number;
      }
    | undefined;
  readonly pages: PageCounts;
  /**
   * Passes over guest memory. The format does not mark them: a new one is taken to begin where a record's first frame
   * is not above the last one of the record before, since senders go upwards.
   */
  readonly iterations: readonly Iteration[];
  readonly iterationsOmitted: number;
  /** Offsets of CHECKPOINT records; of a checkpointed legacy image, where each complete checkpoint ends. */
  readonly checkpoints: readonly number[];
  /** CHECKPOINT records, complete checkpoints of a legacy image; `checkpoints` keeps no more than 10 000 of them. */
  readonly checkpointCount: number;
  /** Records by name. */
  readonly counts: Readonly<Record<string, number>>;
  readonly records: readonly RecordRow[];
  /** Rows that there was no room for. */
  readonly recordsOmitted: number;
}
