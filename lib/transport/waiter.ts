import { UsageError } from '../errors.js';
import { cancellation } from './failure.js';

/**
 * The one outstanding `wait` of a source, and its AbortSignal.
 *
 * The listener on the signal stays between waits: adding and removing one for every 64 KiB chunk would cost more than
 * the chunk. It goes when another signal is given and when the source closes.
 */
export class Waiter {
  readonly #doing: string;
  #signal: AbortSignal | undefined;
  #resolve: ((more: boolean) => void) | undefined;
  #reject: ((error: unknown) => void) | undefined;

  /** @param doing What the source does, for messages: `reading guest.save` */
  constructor(doing: string) {
    this.#doing = doing;
  }

  /** True while somebody waits. */
  get waiting(): boolean {
    return this.#resolve !== undefined;
  }

  /** Begins a wait. Rejects if the signal is aborted, now or later; UsageError if a wait is outstanding. */
  begin(signal: AbortSignal | undefined): Promise<boolean> {
    if (this.#resolve !== undefined) {
      return Promise.reject(new UsageError(`${this.#doing}: a second wait before the first ended`));
    }
    if (signal !== this.#signal) {
      this.stop();
      this.#signal = signal;
      signal?.addEventListener('abort', this.#onAbort);
    }
    if (signal?.aborted === true) return Promise.reject(cancellation(signal.reason, this.#doing));
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  /** Ends the wait, if there is one. */
  wake(more: boolean): void {
    const resolve = this.#resolve;
    this.#resolve = this.#reject = undefined;
    resolve?.(more);
  }

  /** Ends the wait, if there is one, with an error. */
  fail(error: unknown): void {
    const reject = this.#reject;
    this.#resolve = this.#reject = undefined;
    reject?.(error);
  }

  /** Lets go of the signal. */
  stop(): void {
    this.#signal?.removeEventListener('abort', this.#onAbort);
    this.#signal = undefined;
  }

  readonly #onAbort = (): void => {
    this.fail(cancellation(this.#signal?.reason, this.#doing));
  };
}
