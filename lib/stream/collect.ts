/** Collects a piece of known length from chunks of any size. */

// Up to here a buffer is allocated at once; beyond, it grows with the bytes that have really come, so that a length
// that lies costs its sender the bytes.
const AT_ONCE = 64 * 1024;

/** One piece after the other: `begin`, then `feed` until it returns the piece. */
export class Collector {
  #need = 0;
  #have = 0;
  #buffer = new Uint8Array(0);

  /** Bytes of the piece that are still to come. */
  get missing(): number {
    return this.#need - this.#have;
  }

  /** Bytes of the piece that are here. */
  get have(): number {
    return this.#have;
  }

  /** Starts a piece of `size` bytes. */
  begin(size: number): void {
    this.#need = size;
    this.#have = 0;
  }

  /**
   * Adds 1…missing bytes. Returns the piece once it is whole, in memory that nobody else holds; the collector does not
   * touch it again.
   */
  feed(bytes: Uint8Array): Uint8Array | undefined {
    const have = this.#have + bytes.length;
    if (have > this.#buffer.length) {
      const size = Math.min(this.#need, Math.max(2 * have, AT_ONCE));
      const bigger = new Uint8Array(size);
      bigger.set(this.#buffer.subarray(0, this.#have));
      this.#buffer = bigger;
    }
    this.#buffer.set(bytes, this.#have);
    this.#have = have;
    if (have < this.#need) return undefined;
    const whole = this.#buffer.subarray(0, have);
    this.#buffer = new Uint8Array(0);
    return whole;
  }
}

/** As Collector, for small pieces that nobody keeps: a view of what was fed where that holds all of the piece. */
export class HeaderCollector {
  readonly #scratch: Uint8Array;
  #need = 0;
  #have = 0;

  /** `max` is the longest piece. */
  constructor(max: number) {
    this.#scratch = new Uint8Array(max);
  }

  get missing(): number {
    return this.#need - this.#have;
  }

  get have(): number {
    return this.#have;
  }

  begin(size: number): void {
    this.#need = size;
    this.#have = 0;
  }

  /** Adds 1…missing bytes. The piece that it returns is good until the next `feed`. */
  feed(bytes: Uint8Array): Uint8Array | undefined {
    if (bytes.length === this.#need) {
      this.#have = this.#need;
      return bytes;
    }
    this.#scratch.set(bytes, this.#have);
    this.#have += bytes.length;
    return this.#have < this.#need ? undefined : this.#scratch.subarray(0, this.#need);
  }
}
