/** The bandwidth limit of pre-copy: a token bucket, and the waiting that goes with it. */
import { now } from '../job.js';

/** What may go at once after a pause, in ms of the rate. Short, so that a limit shared with others is kept to. */
const BURST_MS = 50;

/** Longest wait in one piece, ms: a changed limit, or a cancelled job, takes effect after that long at the latest. */
const SLICE_MS = 100;

/**
 * Counts bytes against a rate. Bytes are spent after they went, so the bucket may be in debt; then `delay` says how
 * long nothing more may go. Averages to the rate however large the single amounts are.
 */
export class TokenBucket {
  /** Bytes that may go now; negative: bytes that went too early. */
  #level = 0;
  #filledAt = now();

  /** Notes that bytes went. */
  spend(bytes: number): void {
    this.#level -= bytes;
  }

  /** ms until more may go at `rate` bytes per second; 0 = now. Rate 0 is no limit and forgives all debt. */
  delay(rate: number): number {
    const at = now();
    const burst = (rate * BURST_MS) / 1000;
    this.#level = rate === 0 ? 0 : Math.min(burst, this.#level + (rate * (at - this.#filledAt)) / 1000);
    this.#filledAt = at;
    return this.#level >= 0 ? 0 : (-this.#level * 1000) / rate;
  }
}

/** Waits until the bucket allows more; `rate` is asked again and again. Ends early, without an error, on abort. */
export async function waitForTokens(
  bucket: TokenBucket,
  rate: () => number,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    const ms = bucket.delay(rate());
    if (ms === 0) return;
    // Timers are exact to a millisecond; less than one would spin.
    await sleep(Math.max(1, Math.min(ms, SLICE_MS)), signal);
  }
}

/** Waits. Ends early, without an error, on abort. */
export function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve();
      return;
    }
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
  });
}
