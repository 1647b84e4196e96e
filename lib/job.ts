/**
 * What every long operation returns, and the bookkeeping behind it: one progress object, three ways to see it
 * (callback, snapshot, diagnostics channels), one signal to stop it.
 */
import { channel } from 'node:diagnostics_channel';
import { debug } from './debug.js';
import { CancelledError, XenMigrationError } from './errors.js';
import type { IterationStats, JobPhase, JobState, Progress } from './progress.js';

/** A running operation. Plain object, no emitter: await `result`, look at `status`. */
export interface Job<Result, Update extends object> {
  /** Settles when the operation and all its clean-up are over. */
  readonly result: Promise<Result>;
  /** A snapshot, made at the moment of reading. */
  readonly status: Progress;
  /** Changes the limits of the running operation; throws UsageError for values that cannot be. */
  update(changes: Update): void;
  /** Stops the operation as soon as it is safe; `result` then rejects with CancelledError. No-op once it is over. */
  cancel(reason?: unknown): void;
}

/** Options that every operation takes. */
export interface JobOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called at each change of phase and at most every `progressInterval` ms between. What it throws is ignored but for `NODE_DEBUG`. */
  readonly onProgress?: ((progress: Progress) => void) | undefined;
  /** ms, default 100. */
  readonly progressInterval?: number | undefined;
}

/**
 * Diagnostics channels. Messages: `start` and `progress` a Progress, `iteration` an IterationStats with `domid` and
 * `operation`, `end` the last Progress with `error` if it failed.
 */
export const channels = {
  start: channel('xen-migration:job:start'),
  progress: channel('xen-migration:job:progress'),
  iteration: channel('xen-migration:job:iteration'),
  end: channel('xen-migration:job:end'),
};

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** Time in ms that only goes forward. */
export function now(): number {
  return performance.now();
}

/** Over how many ms the rate is taken. */
const RATE_WINDOW = 1000;

/** The operation's side of a job. */
export class JobControl {
  /** Aborted by `cancel()`, by the caller's signal, or by nothing. */
  readonly signal: AbortSignal;
  readonly #controller = new AbortController();
  readonly #options: JobOptions;
  readonly #started = now();
  readonly #state: Mutable<Progress>;
  readonly #outer: AbortSignal | undefined;
  #lastReport = 0;
  #rateFrom = { at: this.#started, bytes: 0 };
  #ended = false;

  constructor(operation: Progress['operation'], domid: number | undefined, options: JobOptions) {
    this.#options = options;
    this.signal = this.#controller.signal;
    this.#state = {
      operation,
      state: 'active',
      phase: 'setup',
      domid,
      iteration: 0,
      transferred: 0,
      remaining: undefined,
      total: undefined,
      pages: 0,
      rate: 0,
      dirtyPagesRate: undefined,
      expectedDowntime: undefined,
      elapsed: 0,
    };
    this.#outer = options.signal;
    if (this.#outer?.aborted === true) this.cancel(this.#outer.reason);
    else this.#outer?.addEventListener('abort', this.#onOuterAbort, { once: true });
    if (channels.start.hasSubscribers) channels.start.publish(this.status);
  }

  get status(): Progress {
    return { ...this.#state, elapsed: this.#ended ? this.#state.elapsed : now() - this.#started };
  }

  get phase(): JobPhase {
    return this.#state.phase;
  }

  set domid(domid: number) {
    this.#state.domid = domid;
  }

  /** Enters a phase and tells the listeners. */
  enter(phase: JobPhase): void {
    this.#state.phase = phase;
    this.#publish();
  }

  /** Notes progress. Cheap; listeners hear of it at most once an interval. */
  note(changes: Partial<Mutable<Progress>>): void {
    Object.assign(this.#state, changes);
    const at = now();
    if (at - this.#rateFrom.at >= RATE_WINDOW || this.#state.rate === 0) {
      const ms = at - this.#rateFrom.at;
      if (ms > 0) this.#state.rate = ((this.#state.transferred - this.#rateFrom.bytes) * 1000) / ms;
      if (ms >= RATE_WINDOW) this.#rateFrom = { at, bytes: this.#state.transferred };
    }
    if (at - this.#lastReport >= (this.#options.progressInterval ?? 100)) this.#publish();
  }

  /** Publishes a finished pass. */
  iteration(stats: IterationStats): void {
    if (channels.iteration.hasSubscribers)
      channels.iteration.publish({ ...stats, domid: this.#state.domid, operation: this.#state.operation });
  }

  /** Asks the operation to stop. */
  cancel(reason?: unknown): void {
    if (this.#ended || this.signal.aborted) return;
    this.#controller.abort(
      XenMigrationError.is(reason)
        ? reason
        : new CancelledError(`cancelled during ${this.#state.phase}`, {
            cause: reason,
            phase: this.#state.phase,
            domid: this.#state.domid,
          }),
    );
  }

  /** Throws the reason if the operation was asked to stop. */
  throwIfCancelled(): void {
    if (this.signal.aborted) throw this.signal.reason as Error;
  }

  /**
   * Runs the operation and settles the job: state, last report, listeners removed. Errors of this library that name no
   * phase and domid get the present ones.
   */
  async run<T>(operation: () => Promise<T>): Promise<T> {
    try {
      this.throwIfCancelled();
      const value = await operation();
      this.#finish('completed', undefined);
      return value;
    } catch (error) {
      if (XenMigrationError.is(error)) {
        error.phase ??= this.#state.phase;
        error.domid ??= this.#state.domid;
      }
      this.#finish(error instanceof CancelledError ? 'cancelled' : 'failed', error);
      throw error;
    }
  }

  readonly #onOuterAbort = (): void => {
    this.cancel(this.#outer?.reason);
  };

  #finish(state: JobState, error: unknown): void {
    this.#outer?.removeEventListener('abort', this.#onOuterAbort);
    this.#state.state = state;
    this.#state.elapsed = now() - this.#started;
    if (state === 'completed') this.#state.phase = 'done';
    this.#publish();
    this.#ended = true;
    if (channels.end.hasSubscribers) channels.end.publish({ ...this.status, error });
  }

  #publish(): void {
    this.#lastReport = now();
    if (this.#options.onProgress === undefined && !channels.progress.hasSubscribers) return;
    const snapshot = this.status;
    channels.progress.publish(snapshot);
    try {
      this.#options.onProgress?.(snapshot);
    } catch (error) {
      debug('onProgress threw: %O', error);
    }
  }
}
