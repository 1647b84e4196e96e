/** Guest pages mapped from a simulated host: views of its shared memory, described by arrays. */
import { PAGE_SIZE } from '../../abi/pages.js';
import type { PageMapping } from '../host.js';

const NO_BYTES: readonly Uint8Array[] = [];
const NO_WORDS: readonly Uint32Array[] = [];

/** `regionOf` of a page that could not be mapped: there is no such region, so using it fails loudly. */
export const NO_REGION = 0xffff;

/** Arrays of a mapping of `count` pages, in one allocation. */
export function mappingArrays(count: number): Pick<PageMapping, 'regionOf' | 'offsetOf' | 'errors'> {
  const memory = new ArrayBuffer(count * 14);
  return {
    offsetOf: new Float64Array(memory, 0, count),
    errors: new Int32Array(memory, count * 8, count),
    regionOf: new Uint16Array(memory, count * 12, count),
  };
}

/** Direct views: what the guest writes shows in them at once. */
export class SimulatedMapping implements PageMapping {
  readonly regionOf: Uint16Array;
  readonly offsetOf: Float64Array;
  readonly errors: Int32Array;
  regions: readonly Uint8Array[];
  words: readonly Uint32Array[];
  #onRelease: (() => void) | undefined;

  constructor(
    regions: readonly Uint8Array[],
    words: readonly Uint32Array[],
    arrays: Pick<PageMapping, 'regionOf' | 'offsetOf' | 'errors'>,
    onRelease: () => void,
  ) {
    this.regions = regions;
    this.words = words;
    this.regionOf = arrays.regionOf;
    this.offsetOf = arrays.offsetOf;
    this.errors = arrays.errors;
    this.#onRelease = onRelease;
  }

  get count(): number {
    return this.errors.length;
  }

  release(): void {
    const done = this.#onRelease;
    this.#onRelease = undefined;
    this.regions = NO_BYTES;
    this.words = NO_WORDS;
    done?.();
  }
}

/**
 * Puts a private copy between the caller and the guest, so that views used after the release read zeros, as they do
 * with real mappings, and writes through them are lost. Costs a copy of each page; for tests.
 */
export function guarded(inner: SimulatedMapping, access: 'read' | 'write'): PageMapping {
  const { count, errors } = inner;
  const memory = new ArrayBuffer(count * PAGE_SIZE);
  const bytes = new Uint8Array(memory);
  const arrays = mappingArrays(count);
  arrays.errors.set(errors);
  const { regions, regionOf, offsetOf } = inner;
  for (let i = 0; i < count; i++) {
    const bad = errors[i] !== 0;
    arrays.regionOf[i] = bad ? NO_REGION : 0;
    arrays.offsetOf[i] = i * PAGE_SIZE;
    if (!bad) copy(regions, regionOf[i] as number, offsetOf[i] as number, bytes, i * PAGE_SIZE, 'out');
  }
  return new SimulatedMapping([bytes], [new Uint32Array(memory)], arrays, () => {
    for (let i = 0; access === 'write' && i < count; i++) {
      if (errors[i] === 0)
        copy(regions, regionOf[i] as number, offsetOf[i] as number, bytes, i * PAGE_SIZE, 'in');
    }
    bytes.fill(0);
    inner.release();
  });
}

function copy(
  regions: readonly Uint8Array[],
  region: number,
  offset: number,
  bytes: Uint8Array,
  at: number,
  direction: 'in' | 'out',
): void {
  const page = (regions[region] as Uint8Array).subarray(offset, offset + PAGE_SIZE);
  if (direction === 'in') page.set(bytes.subarray(at, at + PAGE_SIZE));
  else bytes.set(page, at);
}
