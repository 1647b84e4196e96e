/** The link over xenstored's Unix socket. */
import type * as net from 'node:net';
import { Errno } from '../../abi/errno.js';
import { XenstoreError } from '../../errors.js';
import { connectUnix } from '../unix-socket.js';
import type { LinkEvents, XenstoreLink } from './link.js';

class SocketLink implements XenstoreLink {
  readonly name: string;
  readonly kernel = false;
  readonly #socket: net.Socket;
  #events: LinkEvents | undefined;

  constructor(socket: net.Socket, path: string) {
    this.#socket = socket;
    this.name = path;
  }

  start(events: LinkEvents): void {
    this.#events = events;
    this.#socket.on('data', (chunk: Uint8Array) => this.#events?.onBytes(chunk));
    const onClose = (): void => {
      const lost = this.#events;
      this.#events = undefined;
      lost?.onLost(connectionLost(this.name, this.#socket.errored));
    };
    this.#socket.on('close', onClose);
    // Broken between 'connect' and now: 'close' may have been before.
    if (this.#socket.destroyed) process.nextTick(onClose);
  }

  send(message: Uint8Array): undefined {
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
export async function connectSocket(
  path: string,
  options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs: number },
): Promise<XenstoreLink> {
  return new SocketLink(await connectUnix(path, { ...options, phase: 'xenstore' }), path);
}
