/** The pfn to mfn table and the page types of a PV guest that is being restored, and where the guest keeps its own. */
import type { GuestWidth } from '../abi/pv.js';
import { fppOf } from '../abi/pv.js';
import { MAX_BATCH } from '../abi/pages.js';
import { HypercallError, StreamFormatError } from '../errors.js';
import { type Domain, INVALID_FRAME } from '../host/host.js';
import { StreamErrorCode } from '../stream/codes.js';

/** pfns of one piece of the table. A power of two, and a multiple of what fits into a leaf of the guest's p2m. */
const PIECE = 4096;
const PIECE_SHIFT = 12;

const NO_FRAMES = new Float64Array(0);
const NO_TYPES = new Uint8Array(0);

/**
 * mfn and type nibble of each pfn up to `maxPfn`. Memory is taken for pfns that have frames, not for what the stream
 * says the guest's size is.
 */
export class LocalP2m {
  #maxPfn = -1;
  // Number of each piece in the arrays below; 0 stands for a piece without frames.
  #pieceOf = new Uint32Array(0);
  readonly #frames: Float64Array[] = [NO_FRAMES];
  readonly #types: Uint8Array[] = [NO_TYPES];

  /** Highest pfn, −1 before `grow`. */
  get maxPfn(): number {
    return this.#maxPfn;
  }

  /** Makes room up to `maxPfn` (below 2^32, inclusive). Never shrinks. */
  grow(maxPfn: number): void {
    if (maxPfn <= this.#maxPfn) return;
    const pieces = Math.floor(maxPfn / PIECE) + 1;
    if (pieces > this.#pieceOf.length) {
      const bigger = new Uint32Array(pieces);
      bigger.set(this.#pieceOf);
      this.#pieceOf = bigger;
    }
    this.#maxPfn = maxPfn;
  }

  /** mfn of a pfn, INVALID_FRAME if it has none or is out of range. */
  mfnOf(pfn: number): number {
    if (pfn > this.#maxPfn) return INVALID_FRAME;
    const piece = this.#pieceOf[pfn >>> PIECE_SHIFT] as number;
    return piece === 0 ? INVALID_FRAME : ((this.#frames[piece] as Float64Array)[pfn & (PIECE - 1)] as number);
  }

  /** Type nibble of a pfn; NOTAB if none was set. */
  typeOf(pfn: number): number {
    if (pfn > this.#maxPfn) return 0;
    const piece = this.#pieceOf[pfn >>> PIECE_SHIFT] as number;
    return piece === 0 ? 0 : ((this.#types[piece] as Uint8Array)[pfn & (PIECE - 1)] as number);
  }

  /** Sets the mfn of a pfn in range. */
  set(pfn: number, mfn: number): void {
    let piece = this.#pieceOf[pfn >>> PIECE_SHIFT] as number;
    if (piece === 0) {
      piece = this.#frames.push(new Float64Array(PIECE).fill(INVALID_FRAME)) - 1;
      this.#types.push(new Uint8Array(PIECE));
      this.#pieceOf[pfn >>> PIECE_SHIFT] = piece;
    }
    (this.#frames[piece] as Float64Array)[pfn & (PIECE - 1)] = mfn;
  }

  /** Sets the type of a pfn in range. Types of pfns far from any frame are not kept: such pages cannot be used. */
  setType(pfn: number, type: number): void {
    const piece = this.#pieceOf[pfn >>> PIECE_SHIFT] as number;
    if (piece !== 0) (this.#types[piece] as Uint8Array)[pfn & (PIECE - 1)] = type;
  }

  /** The same for `count` pfns in a row, all of them in range. */
  setTypeRun(pfn: number, type: number, count: number): void {
    for (let done = 0; done < count;) {
      const at = (pfn + done) & (PIECE - 1);
      const n = Math.min(count - done, PIECE - at);
      const piece = this.#pieceOf[(pfn + done) >>> PIECE_SHIFT] as number;
      if (piece !== 0) (this.#types[piece] as Uint8Array).fill(type, at, at + n);
      done += n;
    }
  }

  /** Calls `visit` for each pfn that has a type other than NOTAB, ascending. */
  forEachTyped(visit: (pfn: number, type: number, mfn: number) => void): void {
    for (let p = 0; p < this.#pieceOf.length; p++) {
      const piece = this.#pieceOf[p] as number;
      if (piece === 0) continue;
      const types = this.#types[piece] as Uint8Array;
      const frames = this.#frames[piece] as Float64Array;
      // Most pages have no type: four at a time.
      const words = new Uint32Array(types.buffer);
      for (let w = 0; w < words.length; w++) {
        if (words[w] === 0) continue;
        for (let k = w * 4; k < w * 4 + 4; k++) {
          if (types[k] !== 0) visit(p * PIECE + k, types[k] as number, frames[k] as number);
        }
      }
    }
  }

  /**
   * Writes the entries `from`…`to`−1 as the guest's words to `words` from index `at` on; pfns without a frame as all
   * ones. All of them lie in one piece of the table, as the entries of a leaf do.
   */
  writeEntries(words: Uint32Array, at: number, from: number, to: number, width: GuestWidth): void {
    const step = width / 4;
    const piece = this.#pieceOf[from >>> PIECE_SHIFT] as number;
    if (piece === 0) {
      words.fill(0xffff_ffff, at, at + (to - from) * step);
      return;
    }
    const frames = this.#frames[piece] as Float64Array;
    const base = from - (from % PIECE);
    for (let k = from - base, i = at; k < to - base; k++, i += step) {
      const mfn = frames[k] as number;
      // INVALID_FRAME is −1, whose low word is all ones.
      words[i] = mfn;
      if (step === 2)
        words[i + 1] = mfn < 0x1_0000_0000 ? (mfn === INVALID_FRAME ? -1 : 0) : mfn / 0x1_0000_0000;
    }
  }
}

/** Most X86_PV_P2M_FRAMES records in a stream. Senders write one; the records allow parts. */
const PARTS_MAX = 256;

interface Part {
  /** Index of the first leaf. */
  readonly first: number;
  /** Record's offset, for errors. */
  readonly offset: number;
  /** pfns of the leaves. */
  readonly frames: Float64Array;
}

/** The pfns of the guest's p2m leaves, from X86_PV_P2M_FRAMES. */
export class P2mLeaves {
  readonly #parts: Part[] = [];

  get empty(): boolean {
    return this.#parts.length === 0;
  }

  /** Takes a record: pfns of the leaves from number `first` on. Throws StreamFormatError if it overlaps another. */
  add(first: number, frames: Float64Array, offset: number): void {
    const record = 'X86_PV_P2M_FRAMES';
    if (this.#parts.length === PARTS_MAX) {
      const reason = `more than ${PARTS_MAX} records`;
      throw new StreamFormatError(StreamErrorCode.LIMIT, reason, { offset, record });
    }
    for (const part of this.#parts) {
      if (first >= part.first + part.frames.length || part.first >= first + frames.length) continue;
      const reason = `the record at offset ${part.offset} has told these frames already`;
      throw new StreamFormatError(StreamErrorCode.DUPLICATE, reason, { offset, record });
    }
    this.#parts.push({ first, offset, frames });
  }

  /**
   * Writes the table into the guest's leaves, and so lets it find its frames. `frameOf` gives the mfn of a leaf's pfn
   * or throws. Throws StreamFormatError if the leaves do not cover all of the table.
   */
  async write(
    domain: Domain,
    p2m: LocalP2m,
    width: GuestWidth,
    frameOf: (pfn: number, offset: number, path: string) => number,
    endOffset: number,
  ): Promise<void> {
    this.#checkCover(p2m, width, endOffset);
    const fpp = fppOf(width);
    const mfns = new Float64Array(MAX_BATCH);
    for (const { first, offset, frames } of this.#parts) {
      const count = frames.length;
      for (let from = 0; from < count; from += MAX_BATCH) {
        const n = Math.min(MAX_BATCH, count - from);
        for (let i = 0; i < n; i++) {
          const index = from + i;
          // Relative to the record's own offset: header, start and end come first.
          mfns[i] = frameOf(frames[index] as number, offset + 16 + index * 8, `frames[${index}]`);
        }
        const mapping = await domain.mapFrames(mfns.subarray(0, n), 'write');
        try {
          for (let i = 0; i < n; i++) {
            const error = mapping.errors[i] as number;
            if (error !== 0) {
              const what = `p2m leaf ${first + from + i}, mfn 0x${(mfns[i] as number).toString(16)}`;
              throw new HypercallError('xenforeignmemory_map', error, `${what} could not be mapped`);
            }
            const words = mapping.words[mapping.regionOf[i] as number] as Uint32Array;
            const at = (mapping.offsetOf[i] as number) / 4;
            const start = (first + from + i) * fpp;
            p2m.writeEntries(words, at, start, Math.min(start + fpp, p2m.maxPfn + 1), width);
          }
        } finally {
          mapping.release();
        }
      }
    }
  }

  #checkCover(p2m: LocalP2m, width: GuestWidth, offset: number): void {
    const need = Math.floor(p2m.maxPfn / fppOf(width)) + 1;
    let next = 0;
    for (const part of [...this.#parts].sort((a, b) => a.first - b.first)) {
      if (part.first > next) break;
      next = part.first + part.frames.length;
    }
    if (next >= need) return;
    throw new StreamFormatError(
      StreamErrorCode.MISSING,
      `nobody told the frame of p2m leaf ${next} of ${need}`,
      { offset, record: 'X86_PV_P2M_FRAMES' },
    );
  }
}
