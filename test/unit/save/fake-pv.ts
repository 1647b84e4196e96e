/**
 * Memory of a small PV guest: machine frames in an order of their own, page tables, p2m as list or tree, shared info,
 * vcpu registers. Everything may be written to by tests.
 */
import { PAGE_SIZE, PageType } from '../../../lib/abi/pages.js';
import { fppOf, frameToCr3, SHARED_INFO, VCPU_CONTEXT, type GuestWidth } from '../../../lib/abi/pv.js';
import { setU32, setU64, setU64n } from '../../../lib/bytes/le.js';
import { INVALID_FRAME } from '../../../lib/host/host.js';

export interface PvLayout {
  readonly width: GuestWidth;
  /** pfns in use; each has a frame but the holes. */
  readonly pages: number;
  /** pfns that the p2m has room for; default: pages. */
  readonly p2mSize: number;
  readonly p2m: 'linear' | 'tree';
  /** Where the linear p2m begins. */
  readonly vaddr: bigint;
  /** pfns without a frame. */
  readonly holes: readonly number[];
}

const BASE_MFN = 0x1_0000;

export class PvImage {
  readonly width: GuestWidth;
  readonly pages: number;
  readonly p2mSize: number;
  readonly baseMfn = BASE_MFN;
  readonly maxMfn: number;
  readonly compatFirstMfn = 0x500;
  readonly memory: Uint8Array;
  readonly words: Uint32Array;
  /** Type of each frame, from baseMfn on. */
  readonly types: Uint8Array;
  readonly sharedInfoMfn: number;
  /** mfn of each pfn. */
  readonly mfnOf: Float64Array;
  readonly vaddr: bigint;
  /** mfns of the p2m leaf frames and of the root of what leads to them. */
  readonly leaves: number[] = [];
  readonly #m2p = new Map<number, number>();
  #nextPfn: number;

  constructor(options: Partial<PvLayout>) {
    const width = options.width ?? 8;
    this.width = width;
    this.pages = options.pages ?? 64;
    this.p2mSize = options.p2mSize ?? this.pages;
    this.vaddr = options.vaddr ?? (width === 8 ? 0xffff_c900_0000_0000n : 0xe000_0000n);
    const frames = this.pages + 1;
    this.memory = new Uint8Array(frames * PAGE_SIZE);
    this.words = new Uint32Array(this.memory.buffer);
    this.types = new Uint8Array(frames);
    this.maxMfn = BASE_MFN + frames - 1;
    this.sharedInfoMfn = this.maxMfn;
    this.types[frames - 1] = PageType.XTAB;
    this.mfnOf = new Float64Array(this.pages);
    const holes = new Set(options.holes);
    for (let pfn = 0; pfn < this.pages; pfn++) {
      // Backwards: neighbours in one order are none in the other.
      const mfn = BASE_MFN + (this.pages - 1 - pfn);
      this.mfnOf[pfn] = holes.has(pfn) ? INVALID_FRAME : mfn;
      if (!holes.has(pfn)) this.#m2p.set(mfn, pfn);
      this.words.fill(0xa000_0000 + pfn, this.at(mfn), this.at(mfn) + 1024);
    }
    // Tables and p2m are at the top of the guest, the rest is data.
    this.#nextPfn = this.pages - 1;
    this.#writeP2m();
    const layout = SHARED_INFO[width];
    this.setShared(layout.maxPfn, this.p2mSize);
    if ((options.p2m ?? 'linear') === 'linear') this.#linear();
    else this.#tree();
  }

  /** First word of a frame. */
  at(mfn: number): number {
    return (mfn - BASE_MFN) * 1024;
  }

  m2p(mfn: number): number {
    return this.#m2p.get(mfn) ?? INVALID_FRAME;
  }

  /** The next frame for a table: zeroed. */
  take(type: number = PageType.NOTAB): number {
    const pfn = this.#nextPfn--;
    const mfn = this.mfnOf[pfn] as number;
    this.words.fill(0, this.at(mfn), this.at(mfn) + 1024);
    this.types[mfn - BASE_MFN] = type;
    return mfn;
  }

  /** Writes a field of shared info, as wide as the guest's words. */
  setShared(offset: number, value: number | bigint): void {
    const page = this.memory.subarray((this.sharedInfoMfn - BASE_MFN) * PAGE_SIZE);
    if (this.width === 8) setU64(page, offset, BigInt(value));
    else setU32(page, offset, Number(value));
  }

  /** Writes a page-table entry. */
  setPte(mfn: number, index: number, target: number, flags = 0x7, high = 0): void {
    const at = this.at(mfn) + index * 2;
    this.words[at] = ((target % 0x10_0000) << 12) | flags;
    this.words[at + 1] = high | Math.floor(target / 0x10_0000);
  }

  /** Writes entry `i` of a frame of frame numbers. */
  setFrame(mfn: number, i: number, value: number): void {
    const at = this.at(mfn) + i * (this.width / 4);
    this.words[at] = value === INVALID_FRAME ? 0xffff_ffff : value % 0x1_0000_0000;
    if (this.width === 8)
      this.words[at + 1] = value === INVALID_FRAME ? 0xffff_ffff : Math.floor(value / 0x1_0000_0000);
  }

  setP2m(pfn: number, mfn: number): void {
    const fpp = fppOf(this.width);
    this.setFrame(this.leaves[Math.floor(pfn / fpp)] as number, pfn % fpp, mfn);
  }

  /** A table whose first entries are these frames. */
  table(level: number, targets: readonly number[], pinned = false): number {
    const mfn = this.take(level | (pinned ? PageType.PINNED : 0));
    targets.forEach((target, i) => this.setPte(mfn, i, target));
    return mfn;
  }

  vcpuContext(vcpu: number): Uint8Array {
    const layout = VCPU_CONTEXT[this.width];
    const context = new Uint8Array(layout.size).fill(0x40 + vcpu);
    const set = (at: number, value: number | bigint): void => {
      if (this.width === 8) setU64(context, at, BigInt(value));
      else setU32(context, at, Number(value));
    };
    set(layout.rdx, this.mfnOf[1] as number);
    set(layout.gdtEnts, 513);
    set(layout.gdtFrames, this.mfnOf[2] as number);
    set(layout.gdtFrames + this.width, this.mfnOf[3] as number);
    set(layout.ctrlreg + 3 * this.width, frameToCr3(this.mfnOf[4] as number, this.width));
    if (this.width === 8) setU64n(context, layout.ctrlreg + 8, (this.mfnOf[5] as number) * 4096);
    return context;
  }

  #writeP2m(): void {
    const fpp = fppOf(this.width);
    for (let i = 0; i < Math.ceil(this.p2mSize / fpp); i++) {
      const leaf = this.take();
      this.leaves.push(leaf);
      for (let k = 0; k < fpp; k++) {
        const pfn = i * fpp + k;
        this.setFrame(leaf, k, pfn < this.pages ? (this.mfnOf[pfn] as number) : INVALID_FRAME);
      }
    }
  }

  #linear(): void {
    const layout = SHARED_INFO[this.width];
    const start = this.vaddr & 0xffff_ffff_ffffn;
    let frames: number[] = this.leaves;
    let shift = 12n;
    const levels = this.width === 8 ? 4 : 3;
    for (let level = 1; level <= levels; level++) {
      const from = Number(start >> shift);
      const tables: number[] = [];
      frames.forEach((frame, i) => {
        const n = Math.floor((from + i) / 512) - Math.floor(from / 512);
        tables[n] ??= this.take(level);
        this.setPte(tables[n], (from + i) % 512, frame);
      });
      frames = tables;
      shift += 9n;
    }
    this.setShared(layout.p2mCr3, frameToCr3(frames[0] as number, this.width));
    this.setShared(layout.p2mVaddr, this.vaddr);
    this.setShared(layout.p2mGeneration, 4);
  }

  #tree(): void {
    const fpp = fppOf(this.width);
    const root = this.take();
    for (let i = 0; i < Math.ceil(this.leaves.length / fpp); i++) {
      const list = this.take();
      this.leaves.slice(i * fpp, (i + 1) * fpp).forEach((leaf, k) => this.setFrame(list, k, leaf));
      this.setFrame(root, i, list);
    }
    this.setShared(SHARED_INFO[this.width].frameListList, root);
  }
}
