/** Events of a legacy image, beside the `page-data` and `page-bytes` that it shares with the other formats. */

import type { GuestWidth } from '../../abi/pv.js';
import type { StreamFormatError } from '../../errors.js';
import type { LegacyPartName } from './constants.js';

/** What an image says of itself before its first chunk. */
export interface LegacyHeader {
  /** Bytes of an `unsigned long` of the toolstack that wrote it. */
  readonly wordSize: 4 | 8;
  readonly guest: 'pv' | 'hvm';
  /** Pages of the guest's pfn space. */
  readonly p2mSize: number;
  /** PV: the guest's word size; undefined for HVM. */
  readonly guestWidth: GuestWidth | undefined;
  /** PV: each vcpu of the tail has 128 bytes of extended context (block `extv`). */
  readonly extendedContexts: boolean;
  /** PV: bytes of each vcpu's xsave area with its 16 bytes of header (block `xcnt`), 0 without. */
  readonly xsaveSize: number;
  /** PV: pfns of the p2m's leaf frames; undefined for HVM. */
  readonly p2mFrames: Float64Array | undefined;
}

/** What all pieces of a legacy image have in common. */
export interface LegacyPiece {
  readonly layer: 'legacy';
  /** Offset from the start of the stream. */
  readonly offset: number;
}

/** p2m_size, extended info and p2m frame list. */
export interface LegacyHeaderEvent extends LegacyPiece {
  readonly kind: 'legacy-header';
  readonly header: LegacyHeader;
  /** Bytes of all of it. */
  readonly length: number;
  /** Lenient readers only: why a strict one would have thrown here. */
  readonly violation?: StreamFormatError | undefined;
}

/** A chunk that is neither a page batch nor tmem's. */
export interface LegacyChunkEvent extends LegacyPiece {
  readonly kind: 'legacy-chunk';
  readonly id: number;
  readonly name: string;
  /** What follows the id. Owned by the receiver of the event. */
  readonly body: Uint8Array;
  readonly violation?: StreamFormatError | undefined;
}

/** A piece of the tail. */
export interface LegacyTailEvent extends LegacyPiece {
  readonly kind: 'legacy-tail';
  readonly part: LegacyPartName;
  /**
   * Owned by the receiver of the event. Magic pfns: 3 × u64; HVM context without its length; the list of unmapped pfns is
   * not kept (empty); a vcpu's xsave with its 16 bytes of header; QEMU's state without signature and length.
   */
  readonly body: Uint8Array;
  /** Of a vcpu's part. */
  readonly vcpuId?: number | undefined;
  /** Of QEMU's: its signature. Of the unmapped pfns: how many. */
  readonly signature?: string | undefined;
  readonly count?: number | undefined;
  /** With this piece the checkpoint is complete: what was read so far is a whole guest. */
  readonly completes: boolean;
  readonly violation?: StreamFormatError | undefined;
}

/** The head of a tmem section. */
export interface TmemSection {
  readonly version: number;
  readonly maxPools: number;
  /** Bits of TmemClientFlag. */
  readonly flags: number;
  readonly weight: number;
  readonly cap: number;
}

/** A tmem pool. */
export interface TmemPool {
  readonly poolId: number;
  /** Bits of TmemPoolFlag, page size and version. */
  readonly flags: number;
  readonly persistent: boolean;
  readonly shared: boolean;
  readonly pageSize: number;
  /** Pages that the pool says it has; 0 for every ephemeral one. */
  readonly pages: number;
  readonly uuid: readonly [bigint, bigint];
}

/** A page's place in its pool. */
export interface TmemHandle {
  readonly poolId: number;
  readonly oid: readonly [bigint, bigint, bigint];
  readonly index: number;
}

/** Why a pool's list of pages ended: all came, its terminator came, or the next pool or the section's end did. */
export type TmemPoolEnd = 'count' | 'terminator' | 'missing terminator';

/** A piece of a tmem section (chunks −5 and −6). */
export type LegacyTmemEvent = LegacyPiece & {
  readonly kind: 'legacy-tmem';
  readonly violation?: StreamFormatError | undefined;
} & (
    | { readonly part: 'section'; readonly section: TmemSection }
    | { readonly part: 'pool'; readonly pool: TmemPool }
    /** `bytes` is owned by the receiver of the event. */
    | { readonly part: 'page'; readonly handle: TmemHandle; readonly bytes: Uint8Array }
    | {
        readonly part: 'pool-end';
        readonly pool: TmemPool;
        /** Pages that were there. */
        readonly pages: number;
        readonly end: TmemPoolEnd;
      }
    /** `pools` were in the section. */
    | { readonly part: 'section-end'; readonly pools: number }
    /** Chunk −6: a page that was invalidated after it had been sent. */
    | { readonly part: 'flush'; readonly handle: TmemHandle }
    | { readonly part: 'flush-end'; readonly pages: number }
  );

export type LegacyEvent = LegacyHeaderEvent | LegacyChunkEvent | LegacyTailEvent | LegacyTmemEvent;
