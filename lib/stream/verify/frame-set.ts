/** Sets of guest frames that may lie far apart. */

/** Frames in a block, one bit each: 8 KiB. */
const BLOCK_FRAMES = 65_536;

/** A set of frames, in memory that grows with those that are in it: at most a bit for each frame up to the highest. */
export class FrameSet {
  readonly #blocks = new Map<number, Uint32Array>();
  // Frames come in order: mostly the block is that of the one before.
  #index = -1;
  #block: Uint32Array = new Uint32Array(0);

  add(pfn: number): void {
    const index = Math.floor(pfn / BLOCK_FRAMES);
    if (index !== this.#index) {
      let block = this.#blocks.get(index);
      if (block === undefined) {
        block = new Uint32Array(BLOCK_FRAMES / 32);
        this.#blocks.set(index, block);
      }
      this.#index = index;
      this.#block = block;
    }
    const word = (pfn % BLOCK_FRAMES) >>> 5;
    this.#block[word] = (this.#block[word] as number) | (1 << (pfn & 31));
  }

  has(pfn: number): boolean {
    const word = this.#blocks.get(Math.floor(pfn / BLOCK_FRAMES))?.[(pfn % BLOCK_FRAMES) >>> 5] ?? 0;
    return (word & (1 << (pfn & 31))) !== 0;
  }
}
