/**
 * What the incremental readers give out. A reader is fed bytes and returns events; it does no I/O, keeps no page data
 * and never asks for bytes beyond the piece it is reading, so that a source shared with another process is read
 * exactly.
 *
 * Loop of every consumer:
 *
 *     for (;;) {
 *       const bytes = source.take(reader.want);
 *       if (bytes === undefined) { if (await source.wait(reader.want)) continue; reader.end(); break; }
 *       const event = reader.feed(bytes);
 *       if (event !== undefined) …handle it, synchronously or with await…
 *     }
 *
 * Strict and lenient readers. Whatever makes the framing itself unreadable (marker, id, version, byte order, a length
 * above the limits) is always thrown. What a receiver has to refuse although the framing could go on (a record's length
 * against its type's rule, a wrong guest type, a PAGE_DATA table that does not fit) is thrown by a strict reader, the
 * default; a lenient one (`{ lenient: true }`, for verifiers) puts the same error into the event's `violation` and goes
 * on. What a receiver must ignore (padding, reserved fields, unknown records) is handed on by both.
 */

import type { StreamFormatError } from '../errors.js';
import type { LegacyEvent } from './legacy/events.js';

/** libxc image header (IHDR), decoded. */
export interface ImageHeader {
  readonly version: number;
  /** Bit 0: big-endian. */
  readonly options: number;
  /** The 6 reserved bytes as one big-endian number. Always set by the decoder. */
  readonly reserved?: number;
}

/** libxc domain header (DHDR), decoded. */
export interface DomainHeader {
  /** 1 x86 PV, 2 x86 HVM. */
  readonly type: number;
  readonly pageShift: number;
  /** 0 if converted from a legacy stream. */
  readonly xenMajor: number;
  readonly xenMinor: number;
  /** The 2 reserved bytes. Always set by the decoder. */
  readonly reserved?: number;
}

/** libxl stream header, decoded. */
export interface LibxlHeader {
  readonly version: number;
  /** Bit 0: big-endian; bit 1: converted from a legacy stream. */
  readonly options: number;
}

/** xl save header, decoded. */
export interface XlHeader {
  /** 1: config is JSON; 2: the stream is v2. */
  readonly mandatoryFlags: number;
  readonly optionalFlags: number;
  /** All optional data, as it stands in the file (config length, config, what follows). */
  readonly optionalData: Uint8Array;
  /** The configuration's text without its NUL; undefined if there is none. */
  readonly config: string | undefined;
}

/** Which format a piece belongs to. */
export type Layer = 'xl' | 'xend' | 'libxl' | 'libxc' | 'legacy';

interface Piece {
  readonly layer: Layer;
  /** Offset of the header or record from the start of the stream. */
  readonly offset: number;
}

export interface XlHeaderEvent extends Piece {
  readonly kind: 'xl-header';
  readonly layer: 'xl';
  readonly header: XlHeader;
  /** The header's bytes as they came (48 + n). */
  readonly raw: Uint8Array;
}

/** What xend wrote before a legacy image. */
export interface XendHeaderEvent extends Piece {
  readonly kind: 'xend-header';
  readonly layer: 'xend';
  /** The domain's configuration, an S-expression. Owned by the receiver of the event. */
  readonly config: Uint8Array;
  /** The header's bytes as they came (20 + n). */
  readonly raw: Uint8Array;
}

export interface LibxlHeaderEvent extends Piece {
  readonly kind: 'libxl-header';
  readonly layer: 'libxl';
  readonly header: LibxlHeader;
  readonly raw: Uint8Array;
}

export interface ImageHeaderEvent extends Piece {
  readonly kind: 'image-header';
  readonly layer: 'libxc';
  readonly header: ImageHeader;
  readonly raw: Uint8Array;
}

export interface DomainHeaderEvent extends Piece {
  readonly kind: 'domain-header';
  readonly layer: 'libxc';
  readonly header: DomainHeader;
  readonly raw: Uint8Array;
  /** Lenient readers only: why a strict one would have thrown here. */
  readonly violation?: StreamFormatError | undefined;
}

/** A whole record other than PAGE_DATA, after its padding. */
export interface RecordEvent extends Piece {
  readonly kind: 'record';
  readonly layer: 'libxl' | 'libxc';
  readonly type: number;
  /** Name, or `unknown (0x…)`. */
  readonly name: string;
  /** The body, without padding. Owned by the receiver of the event. */
  readonly body: Uint8Array;
  /** Padding bytes as they came: a view of 0…7 bytes. Not looked at by the reader. */
  readonly padding: Uint8Array;
  /** Lenient readers only: why a strict one would have thrown here, at the record's header. */
  readonly violation?: StreamFormatError | undefined;
}

/**
 * A PAGE_DATA record up to and including its pfn array. Its page contents follow as `page-bytes` events and then one
 * `page-data-end`, also if there are none. The arrays are reused by the next PAGE_DATA record: borrowed until then.
 *
 * With a `violation` (lenient readers only) the table is good up to `count`, which then may be less than the record says;
 * the rest of the record is skipped: no `page-bytes` follow, `page-data-end` does.
 */
export interface PageDataEvent extends Piece {
  readonly kind: 'page-data';
  /** `legacy`: a page batch of a legacy image. */
  readonly layer: 'libxc' | 'legacy';
  /** Body length as the record header says; of a batch all bytes. */
  readonly length: number;
  readonly count: number;
  /** pfns, bits 51–0 of each entry; the first `count` are valid. */
  readonly pfns: Float64Array;
  /** Type nibbles, bits 63–60; the first `count` are valid. */
  readonly types: Uint8Array;
  /** Entries whose type carries data. */
  readonly dataPages: number;
  /**
   * True if the pfns follow each other and all have one type: then nobody needs to look at each. False says nothing.
   */
  readonly run: boolean;
  /** First entry with bits 59–52 not zero, or −1. */
  readonly reservedBitsAt: number;
  /** The reserved word of the record's header. */
  readonly reserved: number;
  /** A batch of a compressed checkpoint: its contents come in COMPRESSED_DATA. */
  readonly compressed?: boolean | undefined;
  /** Lenient readers only: why a strict one would have thrown here. */
  readonly violation?: StreamFormatError | undefined;
}

/** A piece of a PAGE_DATA record's page contents: any length, page boundaries anywhere in it. */
export interface PageBytesEvent extends Piece {
  readonly kind: 'page-bytes';
  readonly layer: 'libxc' | 'legacy';
  /** Bytes of page contents of this record before this piece. */
  readonly at: number;
  /** A view of what was fed: valid until the next `feed`. */
  readonly bytes: Uint8Array;
  /** True for the piece that completes the record's page contents. */
  readonly last: boolean;
}

/**
 * The end of a PAGE_DATA record. Comes with the first bytes of the next record's header, since a `feed` returns no more
 * than one event; who must not wait for those looks at `last`, or at `dataPages === 0`.
 */
export interface PageDataEndEvent extends Piece {
  readonly kind: 'page-data-end';
  readonly layer: 'libxc';
  /** Padding bytes of a record with a `violation`; always empty in a good one. */
  readonly padding: Uint8Array;
}

export type StreamEvent =
  | XlHeaderEvent
  | LibxlHeaderEvent
  | ImageHeaderEvent
  | DomainHeaderEvent
  | RecordEvent
  | PageDataEvent
  | PageBytesEvent
  | PageDataEndEvent
  | XendHeaderEvent
  | LegacyEvent;

/** The incremental readers' common form. */
export interface IncrementalReader {
  /** Most bytes that `feed` can take now; ≥ 1 until `done`, then 0. */
  readonly want: number;
  /**
   * Bytes, at least `want`, that certainly belong to this stream: what a source that must not read beyond its end may
   * read. They are still fed in pieces of at most `want`.
   */
  readonly ahead: number;
  /** Offset from the start of the stream of the next byte. */
  readonly position: number;
  /** True once the format's last byte has been fed. */
  readonly done: boolean;
  /** True if the next byte begins a header or a record, or `done`. */
  readonly atBoundary: boolean;
  /** Feeds 1…want bytes. Throws StreamFormatError; then the reader is dead. */
  feed(bytes: Uint8Array): StreamEvent | undefined;
  /**
   * Says that no bytes will follow. Throws StreamFormatError (ERR_XEN_STREAM_TRUNCATED) unless `done`. A legacy image may
   * end with its bytes: then it becomes `done`, and what is returned is its last event, if there is one left.
   */
  end(): StreamEvent | undefined;
}
