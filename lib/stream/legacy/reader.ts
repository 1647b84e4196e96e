/** Incremental reader of a legacy (v1) libxc image, as Xen 4.0 to 4.5 wrote them. */

import type { StreamFormatError } from '../../errors.js';
import { Collector, HeaderCollector } from '../collect.js';
import { formatError, StreamErrorCode } from '../codes.js';
import type { StreamEvent } from '../events.js';
import { ReaderBase, type ReaderOptions } from '../reader-base.js';
import { LEGACY_BATCH_MAX } from './constants.js';
import { ID_SIZE, LegacyParser, type Ask } from './parser.js';

export interface LegacyReaderOptions extends ReaderOptions {
  /** Refuses an image of another kind of guest. By default what the bytes say. */
  readonly guest?: 'pv' | 'hvm' | undefined;
  /** Refuses an image of a toolstack with words of another size, in bytes. By default what the bytes say. */
  readonly wordSize?: 4 | 8 | undefined;
  /**
   * HVM: the image ends where QEMU's record begins, which is left to the caller or need not be there. Not in an image without
   * LAST_CHECKPOINT, of which another checkpoint may stand behind the record.
   */
  readonly skipQemu?: boolean | undefined;
}

/** Bytes that are taken at once where the state of QEMU, or padding, goes on to the end of the file. */
const UNTIL_EOF_WANT = 64 << 10;

const NO_BYTES = new Uint8Array(0);

/** Pieces that are parsed without a copy. */
const SMALL = LEGACY_BATCH_MAX * 8;

/**
 * Reads a legacy image from its p2m_size to the end of its tail, with QEMU's record for an HVM guest. After
 * LAST_CHECKPOINT that is the end, `done`. Without it another checkpoint may follow (Remus), and the image ends where its
 * bytes do; `end` then throws only within a checkpoint. `checkpoints` says how many are complete. Zeros behind a
 * checkpoint are no other one, but `padding`.
 *
 * Events: `legacy-header`; then `page-data` and `page-bytes` (no `page-data-end`), `legacy-chunk`, `legacy-tmem`; then
 * `legacy-tail`, the last of them with `completes`; and again for each checkpoint. The batches of a compressed checkpoint
 * have `compressed` set and no contents. An image whose QEMU record has no length (QemuDeviceModelRecord) is complete with
 * the event that `end` returns.
 *
 * Holds one piece other than page contents at a time.
 */
export class LegacyReader extends ReaderBase {
  readonly #parser: LegacyParser;
  readonly #steps: Generator<Ask, void, Uint8Array>;
  readonly #small = new HeaderCollector(SMALL);
  readonly #large = new Collector();
  #collector: HeaderCollector | Collector = this.#small;
  #mode: 'collect' | 'skip' | 'pages' | 'until-eof' | 'zeros' | 'done' = 'collect';
  /** Bytes to skip, or page contents: all, and seen. */
  #total = 0;
  #seen = 0;
  #pagesAt = 0;
  /** Bytes that the parser has given back. */
  #carry: Uint8Array = NO_BYTES;
  /** Until the end of the file. */
  #rest: Uint8Array[] = [];
  #restLength = 0;
  /** Bytes in place of a checkpoint; the error that they are if they are not all zeros. */
  #padding = 0;
  #allZeros = true;
  #notPadding: StreamFormatError | undefined;
  /** Events that one feed brought, beside the one it returned. */
  readonly #queue: StreamEvent[] = [];

  constructor(options: LegacyReaderOptions = {}) {
    super(options);
    this.#parser = new LegacyParser({
      guest: options.guest,
      wordSize: options.wordSize,
      skipQemu: options.skipQemu ?? false,
      start: this.position,
      violation: (error) => this.violation(error),
    });
    this.#steps = this.#parser.parse();
    this.#advance(this.#steps.next());
  }

  get want(): number {
    // Events that wait go out with a byte each.
    if (this.#queue.length > 0) return this.done ? 0 : 1;
    switch (this.#mode) {
      case 'collect':
        return this.#collector.missing;
      case 'skip':
      case 'pages':
        return this.#total - this.#seen - this.#carry.length;
      case 'until-eof':
        return UNTIL_EOF_WANT;
      case 'zeros':
        return UNTIL_EOF_WANT - (this.#padding % UNTIL_EOF_WANT);
      case 'done':
        return 0;
    }
  }

  get done(): boolean {
    return this.#mode === 'done';
  }

  get atBoundary(): boolean {
    if (this.done || this.#mode === 'zeros') return true;
    return this.#parser.atChunk && this.#mode === 'collect' && this.#collector.have === 0;
  }

  /** Checkpoints that are complete: 1 for an image that is whole and not one of Remus. */
  get checkpoints(): number {
    return this.#parser.checkpoints;
  }

  /** Zeros behind the last checkpoint: they are read, and are not the image's. */
  get padding(): number {
    return this.#allZeros ? this.#padding : 0;
  }

  protected get reading(): string | undefined {
    return this.#parser.reading;
  }

  protected override endError(): StreamFormatError {
    const reason = this.atBoundary
      ? 'the image ends before its tail'
      : `the image ends ${this.#mode === 'until-eof' ? 'too early' : `${this.missing()} short`}`;
    return formatError(StreamErrorCode.TRUNCATED, reason, { offset: this.position, record: this.reading });
  }

  protected override last(): StreamEvent | undefined {
    if (this.#mode === 'until-eof') {
      const body = new Uint8Array(this.#restLength);
      let at = 0;
      for (const piece of this.#rest) {
        body.set(piece, at);
        at += piece.length;
      }
      this.#rest = [];
      this.#advance(this.#steps.next(body));
      this.#mode = 'done';
      return this.#queue.shift();
    }
    if (this.#mode === 'zeros') this.#checkPadding();
    if (this.#mode === 'zeros' || (this.#parser.mayEnd && this.atBoundary)) {
      this.#mode = 'done';
      return this.#queue.shift();
    }
    return undefined;
  }

  protected step(bytes: Uint8Array): StreamEvent | undefined {
    switch (this.#mode) {
      case 'collect': {
        const piece = this.#collector.feed(bytes);
        if (piece !== undefined) this.#advance(this.#steps.next(piece));
        break;
      }
      case 'skip':
        this.#seen += bytes.length;
        if (this.#seen === this.#total) this.#advance(this.#steps.next());
        break;
      case 'pages':
        this.#pages(bytes);
        break;
      case 'until-eof':
        this.#parser.checkLength(this.#restLength + bytes.length);
        this.#rest.push(bytes.slice());
        this.#restLength += bytes.length;
        break;
      case 'zeros':
        this.#padding += bytes.length;
        this.#allZeros &&= bytes.every((byte) => byte === 0);
        // Not in the midst of a block: whatever the pieces are, as much has been read.
        if (this.#padding % UNTIL_EOF_WANT === 0) this.#checkPadding();
        break;
      case 'done':
        break;
    }
    return this.#queue.shift();
  }

  #checkPadding(): void {
    if (!this.#allZeros) throw this.#notPadding as StreamFormatError;
  }

  #pages(fed: Uint8Array): void {
    const bytes = this.#carry.length === 0 ? fed : Buffer.concat([this.#carry, fed]);
    if (this.#queue.length > 0) {
      // Their turn comes once the events before them are out.
      this.#carry = bytes.slice();
      return;
    }
    this.#carry = NO_BYTES;
    const at = this.#seen;
    this.#seen += bytes.length;
    const last = this.#seen === this.#total;
    this.#queue.push({ kind: 'page-bytes', layer: 'legacy', offset: this.#pagesAt, at, bytes, last });
    if (last) this.#advance(this.#steps.next());
  }

  /** Lets the parser go on until it needs bytes that are not there. */
  #advance(step: IteratorResult<Ask, void>): void {
    for (let now = step; ;) {
      if (now.done === true) {
        this.#mode = 'done';
        return;
      }
      const ask = now.value;
      switch (ask.kind) {
        case 'bytes': {
          const carry = this.#carry;
          if (carry.length >= ask.size) {
            this.#carry = carry.subarray(ask.size);
            now = this.#steps.next(carry.subarray(0, ask.size));
            continue;
          }
          this.#mode = 'collect';
          this.#collector = ask.size <= SMALL ? this.#small : this.#large;
          this.#collector.begin(ask.size);
          if (carry.length > 0) this.#collector.feed(carry);
          this.#carry = NO_BYTES;
          return;
        }
        case 'back':
          this.#carry = ask.bytes.slice();
          now = this.#steps.next();
          continue;
        case 'event':
          this.#queue.push(ask.event);
          now = this.#steps.next();
          continue;
        case 'skip':
          this.#mode = 'skip';
          this.#total = ask.size;
          this.#seen = Math.min(this.#carry.length, ask.size);
          this.#carry = this.#carry.subarray(this.#seen);
          if (this.#seen < this.#total) return;
          now = this.#steps.next();
          continue;
        case 'pages':
          // Of what was given back at most some bytes of the first page are left: #pages takes them.
          this.#mode = 'pages';
          this.#total = ask.size;
          this.#seen = 0;
          this.#pagesAt = ask.offset;
          return;
        case 'until-eof':
          this.#mode = 'until-eof';
          return;
        case 'zeros':
          this.#mode = 'zeros';
          this.#padding = ID_SIZE;
          this.#notPadding = ask.otherwise;
          return;
      }
    }
  }
}
