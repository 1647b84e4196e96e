/** A stream read to its very end for its own sake, as `verify` and `inspect` do: errors end the reading, not the caller. */

import { PAGE_SIZE } from '../abi/pages.js';
import { StreamFormatError, throwIfAborted } from '../errors.js';
import type { ByteSource } from '../transport/types.js';
import type { RecordEvent, StreamEvent } from './events.js';
import { CHECKPOINT_STATE_SIZE, LibxlRecord, libxlRecordName } from './libxl/constants.js';
import { recogniseFormat, RECOGNISE_SIZE, type RecognisedFormat } from './recognise.js';
import { StreamReader, type StreamReaderOptions } from './stream-reader.js';
import { XL_HANDOVER } from './xl/constants.js';

export interface ScanOptions extends Pick<StreamReaderOptions, 'format' | 'maxRecordLength'> {
  /** False: the end of the stream is the end; what follows it is neither read nor counted. Default true. */
  readonly trailing?: boolean | undefined;
}

/** What `verify` and `inspect` say of a stream's format. */
export type ScannedFormat = RecognisedFormat | 'unknown';

/** First bytes after the end of the stream, kept to be recognised. */
const TAIL_SIZE = 64;

/** Of xl's hand-over after a legacy image without LAST_CHECKPOINT, what its reader takes for a chunk's id at first. */
const HANDOVER_SEEN = 4;

/** Stands for page contents that nobody looks at. Never written to. */
const UNREAD = new Uint8Array(1 << 20);

/** Bytes that may be passed over before they have been read. */
const UNTOUCHED_MAX = 32 << 20;

/** Bytes that are welcome after the end of the stream, where they are only counted. */
const TRAILING_WANT = 1 << 20;

/**
 * Feeds a lenient reader and hands on its events, until the stream's end or an error that makes the rest unreadable.
 * No method throws for what is in the stream.
 */
export class Scan {
  readonly #reader: StreamReader;
  readonly #onEvent: (event: StreamEvent) => void;
  readonly #wantsTrailing: boolean;
  readonly #first = new Uint8Array(RECOGNISE_SIZE);
  readonly #tail = new Uint8Array(TAIL_SIZE);
  #bytes = 0;
  #trailing = 0;
  #error: StreamFormatError | undefined;
  /** True if the last record was CHECKPOINT_END. */
  #afterCheckpoint = false;
  /** Bytes of page contents that come next. */
  #contents = 0;

  constructor(options: ScanOptions, onEvent: (event: StreamEvent) => void) {
    const { format, maxRecordLength } = options;
    this.#reader = new StreamReader({ format, maxRecordLength, lenient: true, legacy: true });
    this.#onEvent = onEvent;
    this.#wantsTrailing = options.trailing ?? true;
  }

  /** Bytes that are of use now: for a source that must not be read beyond the stream. 0 once nothing more is. */
  get want(): number {
    if (this.#error !== undefined) return 0;
    if (this.#reader.done) return this.#wantsTrailing ? TRAILING_WANT : 0;
    return this.#reader.want;
  }

  /** Why the reading ended before the end of the stream. */
  get error(): StreamFormatError | undefined {
    return this.#error;
  }

  /** Bytes looked at, trailing ones too. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Offset of the next byte of the stream proper. */
  get position(): number {
    return this.#reader.position - this.#handover - this.#reader.padding;
  }

  /** True once the stream's last byte was there. */
  get complete(): boolean {
    return this.#reader.done;
  }

  /** Bytes after the end of the stream. */
  get trailing(): number {
    return this.#trailing + this.#handover + this.#reader.padding;
  }

  /** Bytes after the end of the stream are xl's hand-over, as in a captured migration, and no others. */
  get handover(): boolean {
    const text = String.fromCharCode(...this.#tail.subarray(0, Math.min(this.#trailing, TAIL_SIZE)));
    return text === XL_HANDOVER.slice(this.#handover);
  }

  /** A legacy image without LAST_CHECKPOINT ends where its reader has seen the first word of xl's hand-over: so many bytes. */
  get #handover(): number {
    if (this.#reader.checkpoints === undefined) return 0;
    const rest = XL_HANDOVER.slice(HANDOVER_SEEN);
    if (this.#trailing !== rest.length) return 0;
    return Buffer.from(this.#tail.subarray(0, rest.length)).toString('latin1') === rest ? HANDOVER_SEEN : 0;
  }

  /** The format as told or recognised. */
  get format(): ScannedFormat {
    return (
      this.#reader.format ?? recogniseFormat(this.#first.subarray(0, Math.min(this.#bytes, 8))) ?? 'unknown'
    );
  }

  /** Takes bytes, any number; what is of no use any more is not looked at. */
  feed(bytes: Uint8Array): void {
    const reader = this.#reader;
    if (this.#bytes < RECOGNISE_SIZE) {
      this.#first.set(bytes.subarray(0, RECOGNISE_SIZE - this.#bytes), this.#bytes);
    }
    let at = 0;
    try {
      while (at < bytes.length && !reader.done) {
        if (this.#error !== undefined) return;
        const n = Math.min(reader.want, bytes.length - at);
        const piece = n === bytes.length ? bytes : bytes.subarray(at, at + n);
        at += n;
        this.#bytes += n;
        const event = reader.feed(piece);
        if (event !== undefined) this.#give(event);
      }
    } catch (error) {
      this.#fail(error);
      return;
    }
    if (at < bytes.length && this.#wantsTrailing) this.#trail(bytes.subarray(at));
  }

  /** Bytes of page contents that come next. */
  get contents(): number {
    return this.#contents;
  }

  /** Passes over 1…`contents` bytes of page contents, whatever they are. Events tell of other bytes in their place. */
  pass(count: number): void {
    for (let left = count; left > 0; left -= UNREAD.length) {
      this.feed(left < UNREAD.length ? UNREAD.subarray(0, left) : UNREAD);
    }
  }

  /** Says that no bytes follow. A legacy image may have an event left for that. */
  end(): void {
    if (this.#error !== undefined) return;
    try {
      const event = this.#reader.end();
      if (event !== undefined) this.#give(event);
    } catch (error) {
      this.#fail(error);
    }
  }

  #give(event: StreamEvent): void {
    if (event.kind === 'page-bytes') this.#contents -= event.bytes.length;
    else if (event.kind === 'page-data') {
      this.#contents = event.violation || event.compressed ? 0 : event.dataPages * PAGE_SIZE;
    }
    this.#onEvent(event.kind === 'record' ? this.#colo(event) : event);
  }

  /**
   * After CHECKPOINT_END libxc's records go on, except in COLO, whose primary first writes a libxl CHECKPOINT_STATE. As a
   * libxc record that would be a PV vcpu's, too short, in the stream of an HVM guest: there is no doubt about it.
   */
  #colo(event: RecordEvent): RecordEvent {
    const { layer, type, body } = event;
    const expected = this.#afterCheckpoint && layer === 'libxc';
    this.#afterCheckpoint = layer === 'libxl' && type === LibxlRecord.CHECKPOINT_END;
    if (!expected || type !== LibxlRecord.CHECKPOINT_STATE || body.length !== CHECKPOINT_STATE_SIZE)
      return event;
    const { kind, offset, padding } = event;
    return { kind, layer: 'libxl', offset, type, name: libxlRecordName(type), body, padding };
  }

  #trail(bytes: Uint8Array): void {
    if (this.#trailing < TAIL_SIZE) {
      this.#tail.set(bytes.subarray(0, TAIL_SIZE - this.#trailing), this.#trailing);
    }
    this.#trailing += bytes.length;
    this.#bytes += bytes.length;
  }

  #fail(error: unknown): void {
    if (!(error instanceof StreamFormatError)) throw error;
    this.#error = error;
  }
}

/** What `feedAll` feeds. */
export interface Fed {
  readonly want: number;
  feed(bytes: Uint8Array): void;
  /** Bytes that come next and need not be read. */
  readonly unneeded?: number;
  /** Passes over some of them. */
  pass?(count: number): void;
}

/** Feeds all of a source to something that scans. Rejects with what the source rejects with, and CancelledError. */
export async function feedAll(
  source: ByteSource,
  to: Fed,
  options: {
    readonly trailing?: boolean | undefined;
    /** What need not be looked at: `take` it (default), pass over it, or pass over it but see that it can be read. */
    readonly unneeded?: 'take' | 'skip' | 'touch' | undefined;
    readonly signal?: AbortSignal | undefined;
  },
): Promise<void> {
  // Who wants all bytes of the source anyway need not ask for them piece by piece.
  const whole = options.trailing ?? true;
  const touch = options.unneeded === 'touch';
  const skips = touch || options.unneeded === 'skip';
  const touched = async (limit: number): Promise<void> => {
    await source.touched?.(limit);
    throwIfAborted(options.signal, 'reading');
  };
  for (let want = to.want; want > 0; want = to.want) {
    const unneeded = skips ? (to.unneeded ?? 0) : 0;
    const passed = unneeded === 0 ? 0 : (source.skip?.(unneeded, touch) ?? 0);
    if (passed > 0) {
      to.pass?.(passed);
      if (touch) await touched(UNTOUCHED_MAX);
      continue;
    }
    const max = whole ? TRAILING_WANT : want;
    const bytes = source.take(max);
    if (bytes !== undefined) to.feed(bytes);
    else if (!(await source.wait(max, options.signal))) break;
  }
  if (touch) await touched(0);
}

/** Formats that `--format` and the like may name. */
export const SCAN_FORMATS: readonly (RecognisedFormat | 'auto')[] = [
  'auto',
  'libxc',
  'libxl',
  'xl',
  'legacy',
  'xend',
];
