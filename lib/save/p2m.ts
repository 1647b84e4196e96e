/**
 * A PV guest's p2m, mapped: pseudo-physical to machine frames from the guest's own table, and back with the host's
 * M2P. The table is the live one; the guest writes to it while it is read.
 */
import { MAX_BATCH } from '../abi/pages.js';
import { fppOf, type GuestWidth } from '../abi/pv.js';
import { GuestError } from '../errors.js';
import {
  INVALID_FRAME,
  type Domain,
  type DomainInfo,
  type MachineToPhys,
  type PageMapping,
} from '../host/host.js';
import { SaveErrorCode } from './codes.js';
import { hex, mapGuestFrames, p2mError } from './guest-frames.js';
import type { NormaliseContext } from './normalise.js';
import type { P2mFrames } from './p2m-linear.js';

const ALL_ONES = 0xffff_ffff;

export class P2m implements NormaliseContext {
  readonly width: GuestWidth;
  readonly maxPfn: number;
  readonly maxMfn: number;
  /** mfns of the leaf frames, in order. */
  readonly leaves: Float64Array;
  // Entries of a leaf: 2^leafShift; words of an entry: 2^entryShift.
  readonly #leafShift: number;
  readonly #leafMask: number;
  readonly #entryShift: number;
  readonly #m2p: MachineToPhys;
  readonly #mappings: PageMapping[] = [];
  /** Leaf i is `#words[#wordsOf[i]]` from word `#at[i]` on. */
  readonly #words: Uint32Array[] = [];
  readonly #wordsOf: Uint32Array;
  readonly #at: Uint32Array;

  /** Maps the leaves. What `frames` says has been checked but for its leaves being the guest's. */
  static async open(domain: Domain, width: GuestWidth, frames: P2mFrames, m2p: MachineToPhys): Promise<P2m> {
    const p2m = new P2m(width, frames, m2p);
    try {
      await p2m.#map(domain);
    } catch (error) {
      p2m.release();
      throw error;
    }
    return p2m;
  }

  private constructor(width: GuestWidth, frames: P2mFrames, m2p: MachineToPhys) {
    this.width = width;
    this.maxPfn = frames.maxPfn;
    this.maxMfn = m2p.maxMfn;
    this.leaves = frames.leaves;
    this.#leafShift = 31 - Math.clz32(fppOf(width));
    this.#leafMask = fppOf(width) - 1;
    this.#entryShift = width === 8 ? 1 : 0;
    this.#m2p = m2p;
    this.#wordsOf = new Uint32Array(frames.leaves.length);
    this.#at = new Uint32Array(frames.leaves.length);
  }

  /**
   * mfn of a pfn (0…maxPfn) as the guest has it now; INVALID_FRAME for its INVALID_MFN. Anything else may come out,
   * also numbers above every mfn: kernels mark foreign and identity frames with high bits.
   */
  mfnOf(pfn: number): number {
    const leaf = pfn >>> this.#leafShift;
    const words = this.#words[this.#wordsOf[leaf] as number] as Uint32Array;
    const at = (this.#at[leaf] as number) + ((pfn & this.#leafMask) << this.#entryShift);
    const low = words[at] as number;
    if (this.width === 4) return low === ALL_ONES ? INVALID_FRAME : low;
    const high = words[at + 1] as number;
    if (high === 0) return low;
    return low === ALL_ONES && high === ALL_ONES ? INVALID_FRAME : high * 0x1_0000_0000 + low;
  }

  /** pfn of a machine frame, if M2P and p2m agree that it is the guest's; else INVALID_FRAME. Takes any number. */
  pfnOf(mfn: number): number {
    if (!(mfn >= 0 && mfn <= this.maxMfn)) return INVALID_FRAME;
    const pfn = this.#m2p.pfnOf(mfn);
    if (!(pfn >= 0 && pfn <= this.maxPfn)) return INVALID_FRAME;
    return this.mfnOf(pfn) === mfn ? pfn : INVALID_FRAME;
  }

  get compatFirstMfn(): number {
    return this.#m2p.compatFirstMfn;
  }

  /** pfns of the leaf frames, for X86_PV_P2M_FRAMES. Throws GuestError if one is not the guest's. */
  leafPfns(): Float64Array {
    return this.leaves.map((mfn, i) => {
      const pfn = this.pfnOf(mfn);
      if (pfn === INVALID_FRAME)
        throw p2mError(`p2m frame ${i}: mfn ${hex(mfn)} is not in the guest's own p2m`);
      return pfn;
    });
  }

  release(): void {
    for (const mapping of this.#mappings) mapping.release();
    this.#mappings.length = 0;
    this.#words.length = 0;
  }

  async #map(domain: Domain): Promise<void> {
    for (let from = 0; from < this.leaves.length; from += MAX_BATCH) {
      const mapping = await mapGuestFrames(domain, this.leaves.subarray(from, from + MAX_BATCH), 'p2m frame');
      this.#mappings.push(mapping);
      const base = this.#words.length;
      this.#words.push(...mapping.words);
      for (let i = 0; i < mapping.count; i++) {
        this.#wordsOf[from + i] = base + (mapping.regionOf[i] as number);
        this.#at[from + i] = (mapping.offsetOf[i] as number) / 4;
      }
    }
  }
}

/**
 * Throws GuestError if a p2m up to this pfn is more than the guest can really have. A p2m holds `fpp` entries in each
 * of its pages, so a guest that fills its p2m honestly has at least a page for each; page counts that a guest can
 * claim for nothing must not decide how much memory this process takes.
 */
export function checkP2mSize(maxPfn: number, width: GuestWidth, info: DomainInfo): void {
  const pages = Math.max(info.maxPages, info.totPages);
  if (maxPfn < pages * fppOf(width)) return;
  throw new GuestError(
    SaveErrorCode.TOO_BIG,
    `the guest claims ${maxPfn + 1} frames in its p2m, more than a guest of ${pages} pages can have`,
  );
}
