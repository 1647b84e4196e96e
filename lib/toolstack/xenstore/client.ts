/** The client of xenstored: nodes, transactions, watches, and what only a toolstack may ask. */
import { setTimeout as delay } from 'node:timers/promises';
import { Errno } from '../../abi/errno.js';
import { debug } from '../../debug.js';
import { TimeoutError, UsageError, XenstoreError, withCleanupError } from '../../errors.js';
import { cancellation } from '../../transport/failure.js';
import { Connection, type Request, type XenstoreOptions } from './connection.js';
import type { XenstoreLink } from './link.js';
import { XenstoreNodes } from './nodes.js';
import { XenstoreWatch, type WatchOptions } from './watch.js';
import { decodeNumber, decodeString, encodePath, encodeString, protocolError } from './wire.js';

/** Time that xenstored may take for one answer. It is single-threaded and may be busy, or replacing itself. */
export const XENSTORE_TIMEOUT_MS = 30_000;

/** Options of `transaction`. */
export interface TransactionOptions extends XenstoreOptions {
  /** How often to try while others change the same nodes. Default 100. */
  readonly attempts?: number | undefined;
}

/** Nodes as one transaction sees them. */
export class XenstoreTransaction extends XenstoreNodes {
  readonly #connection: Connection;
  readonly #options: XenstoreOptions;
  readonly #txId: number;
  #over = false;

  /** @internal Made by `XenstoreClient.transaction`. */
  constructor(connection: Connection, txId: number, options: XenstoreOptions) {
    super();
    this.#connection = connection;
    this.#txId = txId;
    this.#options = options;
  }

  /** @internal Commits or drops what was done. */
  async end(commit: boolean, options: XenstoreOptions): Promise<void> {
    this.#over = true;
    await this.#connection.request({
      ...options,
      operation: 'XS_TRANSACTION_END',
      txId: this.#txId,
      parts: [encodeString(commit ? 'T' : 'F')],
    });
  }

  protected override async request(request: Request): Promise<Uint8Array> {
    if (this.#over) throw new UsageError('the xenstore transaction is over');
    const { signal = this.#options.signal, timeoutMs = this.#options.timeoutMs } = request;
    return this.#connection.request({ ...request, signal, timeoutMs, txId: this.#txId });
  }
}

/** A connection to xenstored. Owns its link; `close` it. */
export class XenstoreClient extends XenstoreNodes implements Disposable {
  readonly #connection: Connection;
  readonly #watches = new Map<string, XenstoreWatch>();
  #lastToken = 0;

  /** @param link Owned from now on. `openXenstore` makes one */
  constructor(link: XenstoreLink, timeoutMs = XENSTORE_TIMEOUT_MS) {
    super();
    this.#connection = new Connection(link, timeoutMs, {
      event: (path, token) => this.#watches.get(token)?.notify(path),
      lost: (error) => {
        for (const watch of this.#watches.values()) watch.end(error);
        this.#watches.clear();
      },
    });
  }

  /** What the connection ended with, also by `close`; undefined while it works. */
  get failure(): Error | undefined {
    return this.#connection.failure;
  }

  /**
   * Runs `body` in a transaction and commits what it did; anew if others changed the same nodes meanwhile, so `body` may
   * run several times. If it throws, everything it did is dropped.
   *
   * @throws what `body` threw; XenstoreError with EAGAIN after `attempts` conflicts
   */
  async transaction<T>(
    body: (tx: XenstoreTransaction) => Promise<T> | T,
    options: TransactionOptions = {},
  ): Promise<T> {
    const { attempts = 100, ...limits } = options;
    for (let attempt = 1; ; attempt++) {
      const tx = await this.#startTransaction(limits);
      let result: T;
      try {
        result = await body(tx);
      } catch (error) {
        throw await this.#dropTransaction(tx, error);
      }
      try {
        // An abort that came while `body` ran must not commit.
        if (limits.signal?.aborted === true) {
          throw await this.#dropTransaction(tx, cancellation(limits.signal.reason, 'xenstore: transaction'));
        }
        await tx.end(true, limits);
        return result;
      } catch (error) {
        if (!(error instanceof XenstoreError) || error.errno !== Errno.EAGAIN || attempt >= attempts)
          throw error;
      }
      // Whoever is in the way gets a little more time with each attempt.
      await delay(Math.min(attempt - 1, 20) * Math.random());
    }
  }

  /**
   * Sets a watch. Events wait in it (`next`, `for await`) or go to `onChange`. One comes right away.
   *
   * @param path A node, or a special event: `@releaseDomain`, `@introduceDomain`
   */
  async watch(path: string, options: WatchOptions = {}): Promise<XenstoreWatch> {
    const { signal, timeoutMs } = options;
    this.#lastToken += 1;
    const token = `xen-migration-${this.#lastToken}`;
    const parts = [encodePath(path), encodeString(token)];
    const watch = new XenstoreWatch(path, token, options, () => this.#unwatch(path, token));
    // Known before xenstored is asked: its first event may come before its answer.
    this.#watches.set(token, watch);
    try {
      await this.#connection.request({
        operation: 'XS_WATCH',
        path,
        parts,
        signal,
        timeoutMs,
        onLate: () => void this.#unwatch(path, token),
      });
    } catch (error) {
      this.#watches.delete(token);
      throw error;
    }
    return watch;
  }

  /**
   * Waits until a node's value passes a test, and resolves to that value.
   *
   * @param test Gets the value, or undefined if there is no such node
   * @param options `timeoutMs`: how long to wait in all; for ever if it is not given
   * @throws TimeoutError; CancelledError; what `test` throws
   */
  async waitFor(
    path: string,
    test: (value: string | undefined) => boolean,
    options: XenstoreOptions = {},
  ): Promise<string | undefined> {
    const { signal, timeoutMs } = options;
    const deadline = timeoutMs === undefined ? undefined : performance.now() + timeoutMs;
    await using watch = await this.watch(path, { signal });
    for (;;) {
      const value = await this.read(path, { signal });
      if (test(value)) return value;
      const left = deadline === undefined ? undefined : Math.max(0, deadline - performance.now());
      try {
        await watch.next({ signal, timeoutMs: left });
      } catch (error) {
        if (!(error instanceof TimeoutError) || timeoutMs === undefined) throw error;
        const now = value === undefined ? 'absent' : JSON.stringify(value.slice(0, 80));
        throw new TimeoutError(
          'xenstore',
          timeoutMs,
          `xenstore ${path} is still ${now} after ${timeoutMs} ms`,
        );
      }
    }
  }

  /**
   * Connects xenstored with a domain's xenstore ring.
   *
   * @param gfn Frame of the ring. A xenstored that maps it by the grant table looks only at the domid
   * @param port Unbound event channel in the domain
   */
  async introduce(domid: number, gfn: number, port: number, options?: XenstoreOptions): Promise<void> {
    const parts = [domid, gfn, port].map((number) => encodeNumber(number));
    await this.request({ ...options, operation: 'XS_INTRODUCE', path: `domain ${domid}`, parts });
  }

  /** Disconnects xenstored from a domain's ring. */
  async release(domid: number, options?: XenstoreOptions): Promise<void> {
    await this.#onDomain('XS_RELEASE', domid, options);
  }

  /** Tells xenstored that a domain runs again after a shutdown, so that its next one will be reported too. */
  async resume(domid: number, options?: XenstoreOptions): Promise<void> {
    await this.#onDomain('XS_RESUME', domid, options);
  }

  /** The domain's home, `/local/domain/<domid>`; also for a domain that does not exist. */
  async domainPath(domid: number, options?: XenstoreOptions): Promise<string> {
    return decodeString(await this.#onDomain('XS_GET_DOMAIN_PATH', domid, options));
  }

  /** Whether xenstored is connected with the domain's ring. */
  async isIntroduced(domid: number, options?: XenstoreOptions): Promise<boolean> {
    const answer = decodeString(await this.#onDomain('XS_IS_DOMAIN_INTRODUCED', domid, options));
    if (answer !== 'T' && answer !== 'F') throw protocolError('XS_IS_DOMAIN_INTRODUCED', 'neither T nor F');
    return answer === 'T';
  }

  /**
   * Ends all watches of this connection at once. Transactions under way are dropped by xenstored too.
   *
   * @throws XenstoreError with EOPNOTSUPP through a device: the kernel's own watches would end with ours
   */
  async resetWatches(options?: XenstoreOptions): Promise<void> {
    if (this.#connection.throughKernel) {
      const why = "through a device it would end the kernel's own watches";
      throw new XenstoreError('XS_RESET_WATCHES', Errno.EOPNOTSUPP, why);
    }
    await this.request({ ...options, operation: 'XS_RESET_WATCHES', parts: [encodeString('')] });
    const watches = [...this.#watches.values()];
    this.#watches.clear();
    for (const watch of watches) watch.end(undefined);
  }

  /** Closes the connection. What is pending rejects, watches end with an error. Idempotent. */
  close(): void {
    this.#connection.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  protected override request(request: Request): Promise<Uint8Array> {
    return this.#connection.request(request);
  }

  #onDomain(
    operation: 'XS_RELEASE' | 'XS_RESUME' | 'XS_GET_DOMAIN_PATH' | 'XS_IS_DOMAIN_INTRODUCED',
    domid: number,
    options: XenstoreOptions | undefined,
  ): Promise<Uint8Array> {
    return this.request({ ...options, operation, path: `domain ${domid}`, parts: [encodeNumber(domid)] });
  }

  async #startTransaction(limits: XenstoreOptions): Promise<XenstoreTransaction> {
    const transactionOf = (body: Uint8Array): XenstoreTransaction => {
      const txId = decodeNumber('XS_TRANSACTION_START', body);
      return new XenstoreTransaction(this.#connection, txId, limits);
    };
    const body = await this.#connection.request({
      ...limits,
      operation: 'XS_TRANSACTION_START',
      parts: [encodeString('')],
      onLate: (late) => void this.#dropTransaction(transactionOf(late), undefined),
    });
    return transactionOf(body);
  }

  /** Drops a transaction; not under the caller's signal, which may be what ends it. @returns `error` */
  async #dropTransaction(tx: XenstoreTransaction, error: unknown): Promise<unknown> {
    try {
      await tx.end(false, {});
    } catch (later) {
      debug('xenstore: a transaction could not be dropped: %O', later);
      return withCleanupError(error, later);
    }
    return error;
  }

  async #unwatch(path: string, token: string): Promise<void> {
    this.#watches.delete(token);
    if (this.#connection.failure !== undefined) return;
    try {
      const parts = [encodePath(path), encodeString(token)];
      await this.#connection.request({ operation: 'XS_UNWATCH', path, parts });
    } catch (error) {
      // ENOENT: xenstored has lost it already. Else the connection broke, and the watch with it.
      debug('xenstore: unwatch %s: %O', path, error);
    }
  }
}

/** A decimal number and its NUL. */
function encodeNumber(value: number): Uint8Array {
  if (!Number.isSafeInteger(value) || value < 0) throw new UsageError(`${value} is no domid, frame or port`);
  return encodeString(String(value));
}
