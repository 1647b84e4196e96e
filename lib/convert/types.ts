/** What a conversion takes and what it says. */
import type { Readable, Writable } from 'node:stream';
import type { GuestWidth } from '../abi/pv.js';
import type { Job, JobOptions } from '../job.js';
import type { ByteSink, ByteSource } from '../transport/types.js';
import type { TmemChoice, TmemSummary } from './tmem.js';

/** The form of what comes out: xl's save file, a libxl stream, or a bare libxc stream. */
export type ConvertOutput = 'xl' | 'libxl' | 'libxc';

export interface ConvertOptions extends JobOptions {
  /** A path, `-`, a descriptor, a Readable, bytes or a ByteSource. What is given away is closed. */
  readonly from: string | number | Readable | Uint8Array | ByteSource;
  /**
   * A path, `-`, a descriptor, a Writable or a ByteSink; ended when all is there, destroyed if the conversion fails. A file
   * is written beside its place and renamed when it is complete.
   */
  readonly to: string | number | Writable | ByteSink;
  /** What kind of guest it must be. Default: what the image says. */
  readonly guest?: 'pv' | 'hvm' | undefined;
  /** Bits of the words of the toolstack that wrote the image. Default: what the image says. */
  readonly width?: 32 | 64 | undefined;
  /**
   * Opens the input once more, from its beginning, where `from` is a ByteSource: an image of Remus whose pages are compressed
   * needs that, unless the output is a file.
   */
  readonly again?: (() => Promise<ByteSource>) | undefined;
  /** Default: `xl` if the image has xl's or xend's header, else `libxl`. */
  readonly output?: ConvertOutput | undefined;
  /**
   * Of a libxc stream: leaves QEMU's record out, which otherwise follows it as it was. It is not even read, unless the image
   * has no last checkpoint's mark, so that another one may follow. Default false.
   */
  readonly skipQemu?: boolean | undefined;
  /** What becomes of tmem. Default `refuse`. See docs/design/tmem.md. */
  readonly tmem?: TmemChoice | undefined;
  /** Folder for the checkpoints of a Remus image, and the guest's memory if they are compressed. Default: that of the system. */
  readonly temporary?: string | undefined;
  /**
   * ms. An image without a last checkpoint's mark (Remus, and all of Xen 4.0) is over when no more bytes come for so long
   * behind a complete checkpoint. Not one that ends with QEMU's state without its length (HVM, Xen 4.0): its bytes must end.
   * Default: it is over when its bytes end, however long that takes.
   */
  readonly heartbeat?: number | undefined;
}

export interface ConvertResult {
  readonly output: ConvertOutput;
  /** Form of the input: a bare image, or one behind xl's or xend's header. */
  readonly input: 'legacy' | 'xl' | 'xend';
  readonly guest: 'pv' | 'hvm';
  /** Bits of the words of the toolstack that wrote the image. */
  readonly width: 32 | 64;
  /** PV: the guest's word size in bytes. */
  readonly guestWidth: GuestWidth | undefined;
  /** Pages of the guest's pfn space. */
  readonly p2mSize: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  /** PAGE_DATA entries written, and those of them with page contents. */
  readonly pages: number;
  readonly dataPages: number;
  /** Complete checkpoints of the image; more than one in an image of Remus. The last of them came out. */
  readonly checkpoints: number;
  /** Where the next checkpoint was cut off; undefined if the image ended with a checkpoint. */
  readonly cutOffAt: number | undefined;
  /** Pages of checkpoints were compressed. */
  readonly compressed: boolean;
  /** Bytes that temporary files took at most. */
  readonly temporaryBytes: number;
  /** Undefined if the image has no tmem section. */
  readonly tmem: TmemSummary | undefined;
  /** xend's configuration as it stood in the file, and what of it the new one has not; undefined without. */
  readonly xend:
    | { readonly config: Uint8Array; readonly notCarried: readonly string[]; readonly guest: 'pv' | 'hvm' }
    | undefined;
  /** ms. */
  readonly elapsed: number;
}

/** A conversion under way. There is nothing to change about it. */
export type ConvertJob = Job<ConvertResult, Record<string, never>>;
