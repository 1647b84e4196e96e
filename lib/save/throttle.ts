/** The bandwidth limit of pre-copy: a token bucket, the waiting that goes with it, and what a shared budget adds. */
import { UsageError } from '../errors.js';
import { now, type JobControl } from '../job.js';

/** What may go at once after a pause, in ms of the rate. Short, so that a limit shared with others is kept to. */
const BURST_MS = 50;

/** Longest wait in one piece, ms: a changed limit, or a cancelled job, takes effect after that long at the latest. */
const SLICE_MS = 100;

/** What keeps a job to its bandwidth: asked before every batch of pre-copy, told of every write. */
export interface Throttle {
  /**
   * True: the next batch may go now, and counts as begun. Asked again before it has gone, the answer stays true.
   *
   * @param limit The job's own limit, bytes per second; 0 = none
   */
  ready(limit: number): boolean;
  /** Waits until the next batch may go; it counts as begun then. Ends early, without an error, on abort. */
  wait(limit: () => number, signal: AbortSignal): Promise<void>;
  /** Notes bytes that went, limited or not. */
  spend(bytes: number): void;
  /** A running guest is about to be suspended: until `endSwitchover` the job is not asked to wait, and others make room. */
  beginSwitchover(): void;
  /** All of the guest has been written. Harmless if no switch-over had begun. */
  endSwitchover(): void;
}

/** A job's place in a budget. */
export interface JobTicket extends Throttle {
  /** Gives everything back. Idempotent; the job must not send any more. */
  leave(): void;
}

/** What many jobs share: see `MigrationBudget`. */
export interface JobBudget {
  /** Waits for a slot. Rejects with the signal's reason, or a CancelledError that carries it. */
  enter(signal?: AbortSignal): Promise<JobTicket>;
}

/**
 * Counts bytes against a rate. Bytes may be spent after they went, so the bucket may be in debt; then `delay` says how
 * long nothing more may go. Averages to the rate however large the single amounts are.
 */
export class TokenBucket {
  /** Bytes that may go now; negative: bytes that went too early. */
  #level = 0;
  #filledAt = now();

  /** Notes that bytes went, or, less than 0, that some did not go after all. */
  spend(bytes: number): void {
    this.#level -= bytes;
  }

  /**
   * ms until more may go at `rate` bytes per second; 0 = now. Rate 0 is no limit and forgives all debt.
   *
   * @param need Bytes that must have gathered; at most `most`
   * @param most Bytes that may gather at most
   */
  delay(rate: number, need = 0, most = burst(rate)): number {
    const at = now();
    this.#level = rate === 0 ? most : Math.min(most, this.#level + (rate * (at - this.#filledAt)) / 1000);
    this.#filledAt = at;
    return rate === 0 || this.#level >= need ? 0 : ((need - this.#level) * 1000) / rate;
  }
}

/** Bytes that may go at once after a pause. */
export function burst(rate: number): number {
  return (rate * BURST_MS) / 1000;
}

/** The limit of a job that shares nothing. */
export class OwnThrottle implements Throttle {
  readonly #bucket = new TokenBucket();

  ready(limit: number): boolean {
    return this.#bucket.delay(limit) === 0;
  }

  wait(limit: () => number, signal: AbortSignal): Promise<void> {
    return waitForTokens(this.#bucket, limit, signal);
  }

  spend(bytes: number): void {
    this.#bucket.spend(bytes);
  }

  beginSwitchover(): void {
    // Nobody else is there.
  }

  endSwitchover(): void {
    // Nobody else is there.
  }
}

/** Throws UsageError for what is no budget. */
export function checkBudget(budget: JobBudget | undefined): void {
  if (budget !== undefined && typeof (budget as Partial<JobBudget> | null)?.enter !== 'function') {
    throw new UsageError('budget must be a MigrationBudget');
  }
}

/**
 * Runs a job's work in a slot of its budget, for which it waits in phase `queued`; without a budget, at once. The slot
 * is given back however the work ends.
 *
 * @param work Gets the throttle to put into `SaveSteering.throttle`
 */
export async function withinBudget<T>(
  budget: JobBudget | undefined,
  control: JobControl,
  work: (throttle: Throttle) => Promise<T>,
): Promise<T> {
  if (budget === undefined) return work(new OwnThrottle());
  const phase = control.phase;
  control.enter('queued');
  const ticket = await budget.enter(control.signal);
  try {
    control.throwIfCancelled();
    control.enter(phase);
    return await work(ticket);
  } finally {
    ticket.leave();
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
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted === true) {
      resolve();
      return;
    }
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', done, { once: true });
  });
}
