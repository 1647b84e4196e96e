/** Sets of guest frames that may lie far apart. */

/** Frames in a block, one bit each: 8 KiB. */
const BLOCK_FRAMES = 65_536;

/** Blocks of both sets together: 128 MiB, which is 2 TiB of guest memory sent twice. */
const BLOCKS_MAX = 16_384;

/** Counts frames that are seen, and those that are seen again, in bounded memory. */
export class SeenFrames {
  readonly #once = new Map<number, Uint32Array>();
  readonly #again = new Map<number, Uint32Array>();
  #blocks = 0;
  /** Distinct frames. */
  frames = 0;
  /** Of them, those that came more than once. */
  framesAgain = 0;
  /** Sightings of frames that there was no room for. */
  untracked = 0;

  add(pfn: number): void {
    const word = (pfn % BLOCK_FRAMES) >>> 5;
    const bit = 1 << (pfn & 31);
    const index = Math.floor(pfn / BLOCK_FRAMES);
    const once = this.#block(this.#once, index);
    if (once === undefined) return;
    if (((once[word] as number) & bit) === 0) {
      once[word] = (once[word] as number) | bit;
      this.frames++;
      return;
    }
    const again = this.#block(this.#again, index);
    if (again === undefined || ((again[word] as number) & bit) !== 0) return;
    again[word] = (again[word] as number) | bit;
    this.framesAgain++;
  }

  #block(set: Map<number, Uint32Array>, index: number): Uint32Array | undefined {
    const block = set.get(index);
    if (block !== undefined) return block;
    if (this.#blocks === BLOCKS_MAX) {
      this.untracked++;
      return undefined;
    }
    this.#blocks++;
    const fresh = new Uint32Array(BLOCK_FRAMES / 32);
    set.set(index, fresh);
    return fresh;
  }
}
