/** Connecting to the Unix socket of a daemon that takes its time. */
import * as net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { TimeoutError } from '../errors.js';
import { cancellation } from '../transport/failure.js';

/** Between two attempts, in ms. */
const RETRY_MS = 10;

export interface ConnectOptions {
  readonly signal?: AbortSignal | undefined;
  /** Time in all, in ms. */
  readonly timeoutMs: number;
  /** Phase of a TimeoutError. */
  readonly phase: string;
  /**
   * Error codes after which to try again until the time is over. Default: EAGAIN, with which Linux answers at once when
   * the queue of a listening socket is full: the daemon has not accepted those before us.
   */
  readonly retryOn?: readonly string[] | undefined;
}

/**
 * Connects to a Unix socket.
 *
 * @returns the socket, the caller's own. It has an 'error' listener that does nothing, so that an error never becomes an
 *   unhandled event; `socket.errored` keeps it
 * @throws Node's error; TimeoutError, with Node's last error as its cause; CancelledError
 */
export async function connectUnix(path: string, options: ConnectOptions): Promise<net.Socket> {
  const { signal, timeoutMs, phase, retryOn = ['EAGAIN'] } = options;
  const doing = `connecting to ${path}`;
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    if (signal?.aborted === true) throw cancellation(signal.reason, doing);
    try {
      return await connectOnce(path, doing, deadline, options);
    } catch (error) {
      if (!retryOn.includes((error as { code?: unknown }).code as string)) throw error;
      if (performance.now() + RETRY_MS >= deadline) {
        const why = error instanceof Error ? error.message : String(error);
        throw new TimeoutError(phase, timeoutMs, `${doing}: ${why}, for ${timeoutMs} ms`, { cause: error });
      }
    }
    // Its rejection is told at the beginning of the next round.
    await delay(RETRY_MS, undefined, { signal }).catch(() => undefined);
  }
}

function connectOnce(
  path: string,
  doing: string,
  deadline: number,
  { signal, timeoutMs, phase }: ConnectOptions,
): Promise<net.Socket> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ path });
    const settle = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      socket.off('error', fail);
      socket.on('error', () => undefined);
    };
    const fail = (error: unknown): void => {
      settle();
      socket.destroy();
      // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- as it came
      reject(error);
    };
    const onAbort = (): void => fail(cancellation(signal?.reason, doing));
    const timer = setTimeout(
      () => fail(new TimeoutError(phase, timeoutMs, `${doing}: no answer in ${timeoutMs} ms`)),
      Math.max(0, deadline - performance.now()),
    );
    signal?.addEventListener('abort', onAbort, { once: true });
    socket.once('error', fail);
    socket.once('connect', () => {
      settle();
      resolve(socket);
    });
  });
}
