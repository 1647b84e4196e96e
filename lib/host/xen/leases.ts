/**
 * Keeps mapped pages mapped as long as somebody reads them.
 *
 * A write that is still queued reads the pages by address. Were they released meanwhile, the peer would silently get
 * zeros. So whoever hands views to a sink holds a lease until the write is over, and a release waits for the leases.
 */
import { UsageError } from '../../errors.js';
import type { NativePageMap } from './native.js';

/** The right to read the views of a `LeasedMap` until `release()`. Releasing twice is harmless. */
export interface Lease extends Disposable {
  release(): void;
}

/** A page map that is released when its owner has let it go and its last lease has ended. One lease covers a batch. */
export class LeasedMap implements Disposable {
  /** All pages, as bytes. Length 0 once the pages are gone. */
  readonly bytes: Uint8Array;
  /** The same memory in 32-bit words. */
  readonly words: Uint32Array;
  readonly #map: NativePageMap;
  #leases = 0;
  #letGo = false;

  /** Takes over `map`. If its buffer cannot be had, the map is released before the error is thrown. */
  constructor(map: NativePageMap) {
    this.#map = map;
    try {
      const buffer = map.buffer();
      this.bytes = new Uint8Array(buffer);
      this.words = new Uint32Array(buffer);
    } catch (error) {
      map.release();
      throw error;
    }
  }

  /** True while the pages are mapped, which they still are between `release()` and the end of the last lease. */
  get live(): boolean {
    return this.#map.live;
  }

  /** Leases that have not ended. */
  get leases(): number {
    return this.#leases;
  }

  /** @throws UsageError after `release()`: the pages may be gone at any moment. */
  lease(): Lease {
    if (this.#letGo) throw new UsageError('the mapping was released: no new lease');
    this.#leases++;
    let held = true;
    const release = (): void => {
      if (!held) return;
      held = false;
      this.#leases--;
      this.#drop();
    };
    return { release, [Symbol.dispose]: release };
  }

  /**
   * Gives the pages back, at once if there is no lease, else with the end of the last one. Idempotent. If the pages
   * cannot be replaced (ENOMEM), the error is thrown to whoever let go last, and calling again tries again.
   */
  release(): void {
    this.#letGo = true;
    this.#drop();
  }

  [Symbol.dispose](): void {
    this.release();
  }

  #drop(): void {
    if (this.#letGo && this.#leases === 0) this.#map.release();
  }
}
