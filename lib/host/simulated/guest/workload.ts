/** Workloads: which pages a simulated guest writes, and how fast. */

export type WorkloadKind = 'idle' | 'uniform' | 'hot-set' | 'sweep' | 'trace';

/** The kinds by number. */
export const workloadKinds: readonly WorkloadKind[] = ['idle', 'uniform', 'hot-set', 'sweep', 'trace'];

/** What a guest's workload does. Which page is written next depends on the seed and the step number alone. */
export interface Workload {
  /**
   * `idle` writes nothing. `uniform` picks among all data pages. `hot-set` picks mostly from a small set. `sweep` goes
   * through them in order. `trace` repeats a recorded list.
   */
  readonly kind: WorkloadKind;
  /** Page writes a second; Infinity for as fast as the guest can. Default 20 000. */
  readonly rate?: number | undefined;
  /** The guest rests after this many writes. Default: never. For runs that have to be repeatable to the byte. */
  readonly maxSteps?: number | undefined;
  /** hot-set: pages in it. Default 1/64 of the data pages. */
  readonly hotPages?: number | undefined;
  /** hot-set: writes that go to it, in percent. Default 95. */
  readonly hotPercent?: number | undefined;
  /** trace: frame numbers in the order of the writes; taken modulo the number of data pages. */
  readonly trace?: Uint32Array | undefined;
  /** Part of memory that the guest fills with data, 0…1; the rest stays zero. Default 0.5. */
  readonly filled?: number | undefined;
}

/** Default of `Workload.rate`: enough that pre-copy needs several passes. */
export const DEFAULT_RATE = 20_000;
