/**
 * Requests and answers over one link, matched by req_id.
 *
 * A request that was given up (aborted, or too late) keeps its req_id until its answer comes, so that a late answer is
 * recognised and dropped; what it brought to life at xenstored, a transaction or a watch, is then undone.
 */
import { Errno } from '../../abi/errno.js';
import { debug } from '../../debug.js';
import { TimeoutError, XenMigrationError, XenstoreError } from '../../errors.js';
import { cancellation } from '../../transport/failure.js';
import type { XenstoreLink } from './link.js';
import {
  MessageReader,
  XenstoreType,
  decodeError,
  decodeWatchEvent,
  encodeMessage,
  protocolError,
  typeName,
  type XenstoreMessage,
  type XenstoreOperation,
} from './wire.js';

/** Limits of one operation. */
export interface XenstoreOptions {
  readonly signal?: AbortSignal | undefined;
  /** Time for each request that the operation makes, in ms. Default: the client's. */
  readonly timeoutMs?: number | undefined;
}

/** One request. */
export interface Request extends XenstoreOptions {
  readonly operation: XenstoreOperation;
  readonly txId?: number | undefined;
  /** For messages. */
  readonly path?: string | undefined;
  readonly parts: readonly Uint8Array[];
  /** Called with the answer if it is a success and the request has been given up before. */
  readonly onLate?: ((body: Uint8Array) => void) | undefined;
}

interface Pending {
  readonly request: Request;
  /** Until it is sent. */
  message: Uint8Array | undefined;
  readonly reqId: number;
  sent: boolean;
  /** Undefined once the request has been given up. */
  settle:
    { readonly resolve: (body: Uint8Array) => void; readonly reject: (error: unknown) => void } | undefined;
  /** Takes timer and listener off. */
  release: () => void;
}

const MAX_REQ_ID = 0xffff_ffff;

export class Connection {
  readonly #link: XenstoreLink;
  readonly #timeoutMs: number;
  readonly #reader = new MessageReader();
  readonly #pending = new Map<number, Pending>();
  readonly #onEvent: (path: string, token: string) => void;
  readonly #onLost: (error: XenMigrationError) => void;
  #lastReqId = 0;
  #failure: XenMigrationError | undefined;

  /**
   * @param link Not started; owned from now on
   * @param timeoutMs Default time for a request
   */
  constructor(
    link: XenstoreLink,
    timeoutMs: number,
    on: {
      readonly event: (path: string, token: string) => void;
      readonly lost: (error: XenMigrationError) => void;
    },
  ) {
    this.#link = link;
    this.#timeoutMs = timeoutMs;
    this.#onEvent = on.event;
    this.#onLost = on.lost;
    link.start({ onBytes: this.#onBytes, onLost: (error) => this.#fail(error) });
  }

  /** Whether the kernel stands between; see XenstoreLink. */
  get throughKernel(): boolean {
    return this.#link.kernel;
  }

  /** What the connection ended with; undefined while it works. */
  get failure(): XenMigrationError | undefined {
    return this.#failure;
  }

  /**
   * Sends a request; resolves to the body of its answer.
   *
   * @throws XenstoreError with the errno that xenstored gave, or with ECONNRESET once the connection is gone;
   *   TimeoutError; CancelledError. After the last two it is unknown whether xenstored acted on the request
   */
  async request(request: Request): Promise<Uint8Array> {
    const { operation, signal, timeoutMs = this.#timeoutMs } = request;
    if (this.#failure !== undefined) throw this.#failure;
    const doing = describe(request);
    if (signal?.aborted === true) throw cancellation(signal.reason, doing);
    const reqId = this.#newReqId();
    const message = encodeMessage(operation, reqId, request.txId ?? 0, request.parts);
    return new Promise((resolve, reject) => {
      const pending: Pending = {
        request,
        message,
        reqId,
        sent: false,
        settle: { resolve, reject },
        release: () => {
          clearTimeout(timer);
          signal?.removeEventListener('abort', onAbort);
        },
      };
      const onAbort = (): void => this.#giveUp(pending, cancellation(signal?.reason, doing));
      const timer = setTimeout(
        () =>
          this.#giveUp(
            pending,
            new TimeoutError('xenstore', timeoutMs, `${doing}: no answer in ${timeoutMs} ms`),
          ),
        timeoutMs,
      );
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#pending.set(reqId, pending);
      if (this.#link.kernel) this.#sendNext();
      else this.#send(pending);
    });
  }

  /** Closes the connection. What is pending rejects. Idempotent. */
  close(): void {
    this.#fail(
      new XenstoreError(
        'connection',
        Errno.ECONNRESET,
        `the connection to ${this.#link.name} was closed here`,
      ),
    );
  }

  /** A number that no request under way has. 0 is for watch events. */
  #newReqId(): number {
    do this.#lastReqId = this.#lastReqId === MAX_REQ_ID ? 1 : this.#lastReqId + 1;
    while (this.#pending.has(this.#lastReqId));
    return this.#lastReqId;
  }

  /** Through the kernel: sends the next request if none is under way. */
  #sendNext(): void {
    for (const pending of this.#pending.values()) if (pending.sent || this.#send(pending)) return;
  }

  /** @returns false if the link refused the request, which is settled then */
  #send(pending: Pending): boolean {
    const { message } = pending;
    pending.sent = true;
    pending.message = undefined;
    const refusal = message && this.#link.send(message);
    if (refusal === undefined) return true;
    const { operation, path } = pending.request;
    const { errno, why, cause } = refusal;
    this.#finish(pending, (settle) =>
      settle?.reject(new XenstoreError(operation, errno, why, { path, cause })),
    );
    return false;
  }

  #finish(pending: Pending, settle: (to: Pending['settle']) => void): void {
    pending.release();
    this.#pending.delete(pending.reqId);
    settle(pending.settle);
  }

  #giveUp(pending: Pending, reason: unknown): void {
    const { settle } = pending;
    pending.release();
    pending.settle = undefined;
    if (!pending.sent) this.#pending.delete(pending.reqId);
    settle?.reject(reason);
  }

  #fail(error: XenMigrationError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#link.close();
    const all = [...this.#pending.values()];
    for (const pending of all) this.#finish(pending, (settle) => settle?.reject(error));
    this.#onLost(error);
  }

  readonly #onBytes = (chunk: Uint8Array): void => {
    try {
      this.#reader.push(chunk, (message) => {
        if (this.#failure === undefined) this.#onMessage(message);
      });
    } catch (error) {
      if (!XenMigrationError.is(error)) throw error;
      this.#fail(error);
    }
  };

  #onMessage(message: XenstoreMessage): void {
    const { type, body } = message;
    if (type === XenstoreType.XS_WATCH_EVENT) {
      const { path, token } = decodeWatchEvent(body);
      this.#onEvent(path, token);
      return;
    }
    const pending = this.#awaiting(message);
    if (pending === undefined) {
      throw protocolError(typeName(type), `there is no request ${message.reqId}`);
    }
    const { request } = pending;
    const expected = XenstoreType[request.operation];
    if (type !== expected && type !== XenstoreType.XS_ERROR) {
      throw protocolError(request.operation, `it is of type ${typeName(type)}`);
    }
    this.#finish(pending, (settle) => {
      if (type === XenstoreType.XS_ERROR) {
        const { errno, name } = decodeError(body);
        settle?.reject(
          new XenstoreError(request.operation, errno, `xenstored answered ${name}`, { path: request.path }),
        );
      } else if (settle !== undefined) {
        settle.resolve(body);
      } else {
        debug('xenstore: late answer to %s', describe(request));
        request.onLate?.(body);
      }
    });
    if (this.#link.kernel) this.#sendNext();
  }

  #awaiting({ type, reqId }: XenstoreMessage): Pending | undefined {
    const pending = this.#pending.get(reqId);
    if (pending !== undefined || !this.#link.kernel || reqId !== 0)
      return pending?.sent === true ? pending : undefined;
    // The kernel answers watch requests by itself and does not copy the req_id.
    if (type !== XenstoreType.XS_WATCH && type !== XenstoreType.XS_UNWATCH) return undefined;
    const [first] = this.#pending.values();
    return first?.sent === true ? first : undefined;
  }
}

function describe({ operation, path }: Request): string {
  return path === undefined ? `xenstore: ${operation}` : `xenstore: ${operation} ${path}`;
}
