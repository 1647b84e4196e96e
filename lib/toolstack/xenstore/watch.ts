/** One watch: changes wait in it until somebody asks. */
import { debug } from '../../debug.js';
import { TimeoutError, type XenMigrationError } from '../../errors.js';
import { cancellation } from '../../transport/failure.js';
import type { XenstoreOptions } from './connection.js';

/** Distinct paths that wait in a watch. More become one event for the watched path. */
const WAITING_MAX = 256;

/** How changes are told. */
export interface WatchOptions extends XenstoreOptions {
  /**
   * Called with the path of each change, instead of keeping it for `next`. What it throws is ignored but for
   * `NODE_DEBUG`.
   */
  readonly onChange?: ((path: string) => void) | undefined;
  /** With `onChange`: called when the connection ends before the watch is closed. */
  readonly onLost?: ((error: XenMigrationError) => void) | undefined;
}

interface Waiter {
  readonly resolve: (path: string) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * A watch on a node and all below it, or on a special event (`@releaseDomain`).
 *
 * An event says "look again", not what happened: there is one right after the watch is set, there may be spurious ones,
 * and changes of one path that nobody asked for yet are one event.
 */
export class XenstoreWatch implements AsyncIterable<string>, AsyncDisposable {
  readonly path: string;
  readonly token: string;
  readonly #options: WatchOptions;
  readonly #unwatch: (watch: XenstoreWatch) => Promise<void>;
  readonly #changed = new Set<string>();
  readonly #waiters = new Set<Waiter>();
  #ended: { readonly error: XenMigrationError | undefined } | undefined;

  /** @internal Made by `XenstoreClient.watch`. */
  constructor(
    path: string,
    token: string,
    options: WatchOptions,
    unwatch: (watch: XenstoreWatch) => Promise<void>,
  ) {
    this.path = path;
    this.token = token;
    this.#options = options;
    this.#unwatch = unwatch;
  }

  /**
   * Waits for the next change and resolves to its path; to undefined if the watch is closed.
   *
   * @throws TimeoutError if `timeoutMs` is given and passes; CancelledError; the connection's error if it is lost
   */
  async next(options: XenstoreOptions = {}): Promise<string | undefined> {
    const { signal, timeoutMs } = options;
    const doing = `waiting for xenstore ${this.path}`;
    if (signal?.aborted === true) throw cancellation(signal.reason, doing);
    for (const path of this.#changed) {
      this.#changed.delete(path);
      return path;
    }
    if (this.#ended !== undefined) {
      if (this.#ended.error !== undefined) throw this.#ended.error;
      return undefined;
    }
    return new Promise<string | undefined>((resolve, reject) => {
      const leave = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        this.#waiters.delete(waiter);
      };
      const waiter: Waiter = {
        resolve: (path) => {
          leave();
          resolve(path);
        },
        reject: (error) => {
          leave();
          // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- as it came
          if (error !== undefined) reject(error);
          else resolve(undefined);
        },
      };
      const onAbort = (): void => waiter.reject(cancellation(signal?.reason, doing));
      const timer =
        timeoutMs === undefined
          ? undefined
          : setTimeout(
              () =>
                waiter.reject(
                  new TimeoutError('xenstore', timeoutMs, `${doing}: no change in ${timeoutMs} ms`),
                ),
              timeoutMs,
            );
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#waiters.add(waiter);
    });
  }

  /** Ends the watch. No event comes after it is called. Idempotent; does not reject if the connection is gone. */
  async close(): Promise<void> {
    if (this.#ended !== undefined) return;
    this.#changed.clear();
    this.end(undefined);
    await this.#unwatch(this);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Paths of changes, until the watch is closed; leaving the loop closes it. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    try {
      for (;;) {
        const path = await this.next({ signal: this.#options.signal });
        if (path === undefined) return;
        yield path;
      }
    } finally {
      await this.close();
    }
  }

  /** @internal A change came. */
  notify(path: string): void {
    if (this.#ended !== undefined) return;
    const { onChange } = this.#options;
    if (onChange !== undefined) {
      call(onChange, path);
      return;
    }
    const [waiter] = this.#waiters;
    if (waiter !== undefined) waiter.resolve(path);
    else if (this.#changed.size < WAITING_MAX) this.#changed.add(path);
    else {
      this.#changed.clear();
      this.#changed.add(this.path);
    }
  }

  /** @internal No more changes will come: the watch is closed, or the connection is lost. */
  end(error: XenMigrationError | undefined): void {
    if (this.#ended !== undefined) return;
    this.#ended = { error };
    for (const waiter of [...this.#waiters]) waiter.reject(error);
    if (error !== undefined && this.#options.onLost !== undefined) call(this.#options.onLost, error);
  }
}

function call<T>(callback: (value: T) => void, value: T): void {
  try {
    callback(value);
  } catch (error) {
    debug('xenstore: a callback threw: %O', error);
  }
}
