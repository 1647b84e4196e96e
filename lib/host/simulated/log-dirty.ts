/** Log-dirty of one simulated domain: a bitmap in shared memory that the guest's worker marks while it runs. */
import { Errno } from '../../abi/errno.js';
import type { LogDirtyResult } from '../host.js';
import { refusal } from './refuse.js';

const SYSCALL = 'XEN_DOMCTL_SHADOW_OP';

function popCount(v: number): number {
  v -= (v >>> 1) & 0x5555_5555;
  v = (v & 0x3333_3333) + ((v >>> 2) & 0x3333_3333);
  return (((v + (v >>> 4)) & 0x0f0f_0f0f) * 0x0101_0101) >>> 24;
}

export class LogDirty {
  /** Bit n of word n/32 is pfn n. Marked whether log-dirty is on or not: enabling clears it. */
  readonly bitmap: Uint32Array;
  /** Pages that Xen itself keeps mapped writable: marked by FINAL only. */
  readonly writable = new Set<number>();
  /** A device is passed through: Xen cannot see its DMA and refuses log-dirty. */
  passthrough = false;
  #enabled = false;

  readonly domid: number;

  constructor(pfns: number, domid: number) {
    this.domid = domid;
    this.bitmap = new Uint32Array(new SharedArrayBuffer(Math.ceil(pfns / 32) * 4));
  }

  get enabled(): boolean {
    return this.#enabled;
  }

  enable(): void {
    if (this.passthrough)
      throw refusal(`${SYSCALL}_ENABLE_LOGDIRTY`, Errno.EINVAL, 'a device is passed through', this.domid);
    if (this.#enabled)
      throw refusal(`${SYSCALL}_ENABLE_LOGDIRTY`, Errno.EINVAL, 'log-dirty is on', this.domid);
    this.bitmap.fill(0);
    this.#enabled = true;
  }

  disable(): void {
    this.#enabled = false;
  }

  /** After the write, never before it. */
  mark(pfn: number): void {
    if (pfn >= 0 && pfn >>> 5 < this.bitmap.length) Atomics.or(this.bitmap, pfn >>> 5, 1 << (pfn & 31));
  }

  read(op: 'clean' | 'peek', into: Uint32Array, pages: number, final: boolean): LogDirtyResult {
    const syscall = `${SYSCALL}_${op === 'clean' ? 'CLEAN' : 'PEEK'}`;
    const words = Math.ceil(pages / 32);
    if (into.length < words)
      throw refusal(syscall, Errno.EFAULT, 'the bitmap is shorter than asked for', this.domid);
    if (!this.#enabled) {
      // As Xen: no refusal, and nothing found. Whoever relies on log-dirty has to look at how enabling it went.
      into.fill(0, 0, words);
      return { pages, dirtyCount: 0, faultCount: 0 };
    }
    if (final) for (const pfn of this.writable) this.mark(pfn);
    const { bitmap } = this;
    const known = Math.min(words, bitmap.length);
    const inLast = pages % 32 === 0 ? 0xffff_ffff : (1 << (pages & 31)) - 1;
    let dirty = 0;
    for (let w = 0; w < known; w++) {
      let bits = bitmap[w] as number;
      if (bits !== 0) {
        const wanted = w === words - 1 ? inLast : 0xffff_ffff;
        // An exchange, not a read and a write: a mark set in between would be lost.
        bits = (op === 'clean' ? Atomics.and(bitmap, w, ~wanted) : Atomics.load(bitmap, w)) & wanted;
        dirty += popCount(bits);
      }
      into[w] = bits;
    }
    into.fill(0, known, words);
    return { pages, dirtyCount: dirty, faultCount: dirty };
  }
}
