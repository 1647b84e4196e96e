/** The link over xenstored's Unix socket. */
import * as net from 'node:net';
import { Errno } from '../../abi/errno.js';
import { TimeoutError, XenstoreError } from '../../errors.js';
import { cancellation } from '../../transport/failure.js';
import type { LinkEvents, XenstoreLink } from './link.js';

class SocketLink implements XenstoreLink {
  readonly name: string;
  readonly serial = false;
  readonly #socket: net.Socket;
  #events: LinkEvents | undefined;
  #cause: unknown;

  constructor(socket: net.Socket, path: string) {
    this.#socket = socket;
    this.name = path;
    // Stays for good: an error of a closed socket must not become an unhandled event.
    socket.on('error', (error) => {
      this.#cause ??= error;
    });
  }

  start(events: LinkEvents): void {
    this.#events = events;
    this.#socket.on('data', (chunk: Uint8Array) => this.#events?.onBytes(chunk));
    const onClose = (): void => {
      const lost = this.#events;
      this.#events = undefined;
      lost?.onLost(connectionLost(this.name, this.#cause));
    };
    this.#socket.on('close', onClose);
    // Broken between 'connect' and now: 'close' may have been before.
    if (this.#socket.destroyed) process.nextTick(onClose);
  }

  send(message: Uint8Array): void {
    this.#socket.write(message);
  }

  close(): void {
    this.#events = undefined;
    this.#socket.destroy();
  }
}

/** The error that everything pending ends with when a connection breaks. */
export function connectionLost(name: string, cause: unknown): XenstoreError {
  const why = cause instanceof Error ? `: ${cause.message}` : '';
  return new XenstoreError('connection', Errno.ECONNRESET, `the connection to ${name} was lost${why}`, {
    cause,
  });
}

/**
 * Connects to a socket.
 *
 * @returns a link that has not been started
 * @throws Node's error if it cannot be connected; TimeoutError; CancelledError
 */
export function connectSocket(
  path: string,
  options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs: number },
): Promise<XenstoreLink> {
  const { signal, timeoutMs } = options;
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) {
      reject(cancellation(signal.reason, `connecting to ${path}`));
      return;
    }
    const socket = net.connect({ path });
    const settle = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      socket.off('error', fail);
    };
    const fail = (error: unknown): void => {
      settle();
      socket.on('error', () => undefined);
      socket.destroy();
      // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- as it came
      reject(error);
    };
    const onAbort = (): void => fail(cancellation(signal?.reason, `connecting to ${path}`));
    const timer = setTimeout(
      () => fail(new TimeoutError('xenstore', timeoutMs, `${path} did not accept the connection`)),
      timeoutMs,
    );
    signal?.addEventListener('abort', onAbort, { once: true });
    socket.once('error', fail);
    socket.once('connect', () => {
      settle();
      resolve(new SocketLink(socket, path));
    });
  });
}
