/** What an inspection says. Plain data: numbers, strings, arrays; u64 values as strings. */

import type { Layer } from '../events.js';
import type { ScannedFormat } from '../scan.js';

/** A header or record; or, unless told otherwise, PAGE_DATA records that follow each other, as one row. */
export interface RecordRow {
  readonly offset: number;
  readonly layer: Layer;
  readonly name: string;
  /** Record type; undefined for headers. */
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
}

/** Pages of the whole stream. The VERIFY pass, which sends all of them again, is counted by itself. */
export interface PageCounts {
  /** Entries of PAGE_DATA records. */
  entries: number;
  /** Entries with page contents. */
  data: number;
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

export interface Inspection {
  readonly format: ScannedFormat;
  /** Bytes read. */
  readonly bytes: number;
  /** True if the stream was read to its last END record. */
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
  /** Offsets of CHECKPOINT records. */
  readonly checkpoints: readonly number[];
  /** CHECKPOINT records; `checkpoints` keeps no more than 10 000 of them. */
  readonly checkpointCount: number;
  /** Records by name. */
  readonly counts: Readonly<Record<string, number>>;
  readonly records: readonly RecordRow[];
  /** Rows that there was no room for. */
  readonly recordsOmitted: number;
}
