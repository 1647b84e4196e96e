/**
 * The host's M2P: 8 bytes for each machine frame, its pfn in the domain that owns it. All ones, INVALID_M2P_ENTRY, and
 * all ones but the last bit, SHARED_M2P_ENTRY, are no pfns.
 */
import { INVALID_FRAME, type MachineToPhys } from '../host.js';
import { LeasedMap } from './leases.js';
import type { NativeMachineToPhys } from './native.js';

const HIGH_WORD = 2 ** 32;
/** Larger pfns than a page-table entry can hold (40 bits): high words from here on. */
const HIGH_LIMIT = 1 << 8;

export class XenMachineToPhys implements MachineToPhys {
  readonly maxMfn: number;
  readonly compatFirstMfn: number;
  readonly #map: LeasedMap;
  #words: Uint32Array;

  /** Takes over the table's map. */
  constructor({ maxMfn, compatFirstMfn, map }: NativeMachineToPhys) {
    this.#map = new LeasedMap(map);
    this.#words = this.#map.words;
    this.maxMfn = maxMfn;
    this.compatFirstMfn = compatFirstMfn;
  }

  pfnOf(mfn: number): number {
    // Frames outside the table, fractions and NaN are undefined here.
    const low = this.#words[2 * mfn];
    const high = this.#words[2 * mfn + 1];
    if (low === undefined || high === undefined || high >= HIGH_LIMIT || mfn > this.maxMfn)
      return INVALID_FRAME;
    // Whole numbers nearly always, and every entry of every page table comes here.
    return high === 0 ? low : high * HIGH_WORD + low;
  }

  release(): void {
    this.#words = new Uint32Array(0);
    this.#map.release();
  }
}
