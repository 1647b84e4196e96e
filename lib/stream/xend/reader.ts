/** Incremental reader of a file of `xm save` (xend of Xen 4.4 and before). */

import { Collector } from '../collect.js';
import type { StreamEvent } from '../events.js';
import { LegacyReader, type LegacyReaderOptions } from '../legacy/reader.js';
import { ReaderBase } from '../reader-base.js';
import { XEND_HEADER_SIZE } from './constants.js';
import { decodeXendFixedHeader, XEND_HEADER } from './header.js';

/** Reads xend's header, an event of kind `xend-header`, and the legacy image behind it. */
export class XendReader extends ReaderBase {
  readonly #options: LegacyReaderOptions;
  readonly #start: number;
  readonly #collector = new Collector();
  #fixed: Uint8Array | undefined;
  #legacy: LegacyReader | undefined;

  constructor(options: LegacyReaderOptions = {}) {
    super(options);
    this.#options = options;
    this.#start = this.position;
    this.#collector.begin(XEND_HEADER_SIZE);
  }

  get want(): number {
    return this.#legacy?.want ?? this.#collector.missing;
  }

  get done(): boolean {
    return this.#legacy?.done ?? false;
  }

  /** Complete checkpoints of the image. */
  get checkpoints(): number {
    return this.#legacy?.checkpoints ?? 0;
  }

  /** Zeros behind them. */
  get padding(): number {
    return this.#legacy?.padding ?? 0;
  }

  get atBoundary(): boolean {
    return this.#legacy?.atBoundary ?? (this.#fixed === undefined && this.#collector.have === 0);
  }

  protected get reading(): string | undefined {
    return XEND_HEADER;
  }

  protected override last(): StreamEvent | undefined {
    return this.#legacy?.end();
  }

  protected step(bytes: Uint8Array): StreamEvent | undefined {
    if (this.#legacy !== undefined) return this.#legacy.feed(bytes);
    const piece = this.#collector.feed(bytes);
    if (piece === undefined) return undefined;
    if (this.#fixed === undefined) {
      this.#fixed = piece;
      this.#collector.begin(decodeXendFixedHeader(piece, { offset: this.#start }));
      return undefined;
    }
    const raw = new Uint8Array(XEND_HEADER_SIZE + piece.length);
    raw.set(this.#fixed);
    raw.set(piece, XEND_HEADER_SIZE);
    this.#legacy = new LegacyReader({ ...this.#options, offset: this.#start + raw.length });
    return { kind: 'xend-header', layer: 'xend', offset: this.#start, config: piece, raw };
  }
}
