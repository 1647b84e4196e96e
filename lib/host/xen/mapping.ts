/** `PageMapping` over the addon's pages: one region for all of them, page i at i · 4096. */
import { MAX_BATCH, PAGE_SIZE } from '../../abi/pages.js';
import { debug } from '../../debug.js';
import type { PageMapping } from '../host.js';
import { LeasedMap } from './leases.js';
import type { NativePageMap } from './native.js';

// The same for every mapping, so that a batch of pages costs no work for each page. They are never written to.
const REGION_OF = new Uint16Array(MAX_BATCH);
const OFFSET_OF = Float64Array.from({ length: MAX_BATCH }, (_, i) => i * PAGE_SIZE);

/** Errors of a batch that was mapped whole. */
const NO_ERRORS = new Uint8Array(MAX_BATCH * 4);

const NO_BYTES: readonly Uint8Array[] = [];
const NO_WORDS: readonly Uint32Array[] = [];

/** Pages that could not be taken back yet. The next release, or the end of the domain's use, tries again. */
export class StuckMaps {
  readonly #maps = new Set<LeasedMap>();

  /** Releases what is left of earlier failures. Never throws. */
  retry(): void {
    for (const map of this.#maps) {
      this.#maps.delete(map);
      this.release(map);
    }
  }

  /** Releases a map, or keeps it for later. */
  release(map: LeasedMap): void {
    try {
      map.release();
    } catch (error) {
      // No room for zero pages in the place of the guest's. Whoever releases has no use for this, and no cure.
      this.#maps.add(map);
      debug('%d bytes of guest memory stay mapped for now: %s', map.bytes.length, error);
    }
  }
}

/** Frames of a guest, mapped. */
export class XenMapping implements PageMapping {
  readonly count: number;
  readonly errors: Int32Array;
  readonly plain: boolean;
  readonly regionOf = REGION_OF;
  readonly offsetOf = OFFSET_OF;
  regions: readonly Uint8Array[];
  words: readonly Uint32Array[];
  #map: LeasedMap | undefined;
  readonly #stuck: StuckMaps;

  /** Takes over `map`. */
  constructor(map: NativePageMap, errors: Int32Array, stuck: StuckMaps) {
    const leased = new LeasedMap(map);
    this.count = errors.length;
    this.errors = errors;
    const bytes = new Uint8Array(errors.buffer, errors.byteOffset, errors.byteLength);
    // Compared by the C library: a loop would take longer than the rest of this.
    this.plain = Buffer.compare(bytes, NO_ERRORS.subarray(0, bytes.length)) === 0;
    this.regions = [leased.bytes];
    this.words = [leased.words];
    this.#map = leased;
    this.#stuck = stuck;
  }

  release(): void {
    const map = this.#map;
    if (map === undefined) return;
    this.#map = undefined;
    this.regions = NO_BYTES;
    this.words = NO_WORDS;
    this.#stuck.retry();
    this.#stuck.release(map);
  }
}

/** What mapping no frames at all gives. */
export const NO_PAGES: PageMapping = {
  count: 0,
  errors: new Int32Array(0),
  regionOf: new Uint16Array(0),
  offsetOf: new Float64Array(0),
  regions: NO_BYTES,
  words: NO_WORDS,
  release: () => undefined,
};
