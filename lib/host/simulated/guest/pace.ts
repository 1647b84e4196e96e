/** Spreads a guest's writes over time. */

/** Time that a guest may catch up after it was held up, in ms: a loaded machine makes no burst of writes. */
const CATCH_UP_MS = 50;

export class Pace {
  readonly #rate: number;
  #from: number;
  #done = 0;

  /** @param rate writes a second; 0 = as many as possible */
  constructor(rate: number, now: number) {
    this.#rate = rate;
    this.#from = now;
  }

  /** How many of `wanted` writes may be done now; they count as done. Times in ms. */
  take(wanted: number, now: number): number {
    const rate = this.#rate;
    if (rate === 0) return wanted;
    if (now - this.#from - (this.#done / rate) * 1000 > CATCH_UP_MS) {
      this.#from = now - CATCH_UP_MS;
      this.#done = 0;
    }
    const n = Math.max(0, Math.min(wanted, Math.floor(((now - this.#from) * rate) / 1000) - this.#done));
    this.#done += n;
    return n;
  }
}
