/**
 * Bitmaps of guest frames, bit n of word n/32 for pfn n, as Xen's log-dirty bitmap on a little-endian host.
 * Words are 32 bits, so JavaScript's integer operators work on them; several gigabytes of guest cost 32 KiB each GiB.
 */

/** A growable set of frame numbers. */
export class Bitmap {
  #words: Uint32Array;
  #bits: number;

  constructor(bits: number) {
    this.#bits = bits;
    this.#words = new Uint32Array(Math.ceil(bits / 32));
  }

  /** Number of bits. */
  get bits(): number {
    return this.#bits;
  }

  /** The words, shared, not copied. Replaced by `grow`. */
  get words(): Uint32Array {
    return this.#words;
  }

  /** Makes room for `bits` bits; new ones are clear. Never shrinks. */
  grow(bits: number): void {
    if (bits <= this.#bits) return;
    const need = Math.ceil(bits / 32);
    if (need > this.#words.length) {
      const bigger = new Uint32Array(Math.max(need, this.#words.length * 2));
      bigger.set(this.#words);
      this.#words = bigger;
    }
    this.#bits = bits;
  }

  has(n: number): boolean {
    return n < this.#bits && ((this.#words[n >>> 5] as number) & (1 << (n & 31))) !== 0;
  }

  set(n: number): void {
    const w = n >>> 5;
    this.#words[w] = (this.#words[w] as number) | (1 << (n & 31));
  }

  clear(n: number): void {
    const w = n >>> 5;
    this.#words[w] = (this.#words[w] as number) & ~(1 << (n & 31));
  }

  /** Sets every bit. */
  fill(): void {
    this.#words.fill(0xffff_ffff);
    this.#trim();
  }

  /** Clears every bit. */
  reset(): void {
    this.#words.fill(0);
  }

  /** Adds every member of another bitmap of at most the same size. */
  or(other: Bitmap): void {
    const o = other.#words;
    const w = this.#words;
    const n = Math.min(o.length, w.length);
    for (let i = 0; i < n; i++) w[i] = (w[i] as number) | (o[i] as number);
    this.#trim();
  }

  /** Number of set bits. */
  count(): number {
    let total = 0;
    for (const word of this.#words) {
      let v = word - ((word >>> 1) & 0x5555_5555);
      v = (v & 0x3333_3333) + ((v >>> 2) & 0x3333_3333);
      total += (((v + (v >>> 4)) & 0x0f0f_0f0f) * 0x0101_0101) >>> 24;
    }
    return total;
  }

  /**
   * Writes up to `out.length` set bits at or after `from`, ascending, into `out`.
   * Returns how many; the scan is finished when that is less than `out.length`.
   */
  collect(from: number, out: Float64Array | Uint32Array): number {
    const words = this.#words;
    const end = Math.ceil(this.#bits / 32);
    let n = 0;
    let w = from >>> 5;
    if (w >= end) return 0;
    let word = (words[w] as number) & (0xffff_ffff << (from & 31));
    for (;;) {
      // A pass over all memory is made of full words.
      if ((word | 0) === -1 && n + 32 <= out.length) {
        const base = w * 32;
        for (let bit = 0; bit < 32; bit++) out[n + bit] = base + bit;
        n += 32;
        word = 0;
      }
      while (word !== 0) {
        if (n === out.length) return n;
        const bit = 31 - Math.clz32(word & -word);
        out[n++] = w * 32 + bit;
        word &= word - 1;
      }
      if (++w >= end) return n;
      word = words[w] as number;
    }
  }

  #trim(): void {
    const w = this.#bits >>> 5;
    if (w < this.#words.length) {
      this.#words[w] = (this.#words[w] as number) & ~(0xffff_ffff << (this.#bits & 31));
      this.#words.fill(0, w + 1);
    }
  }
}
