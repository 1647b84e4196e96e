/**
 * The client of QEMU's monitor.
 *
 * QEMU serves one client of a socket at a time; the next one gets its greeting when the one before has hung up. libxl
 * connects for each operation, waits at most ten seconds for each answer, and waits no longer for us: so connect, ask,
 * close.
 */
import { randomUUID } from 'node:crypto';
import type { Socket } from 'node:net';
import { debug } from '../../debug.js';
import { DeviceModelError, TimeoutError, XenMigrationError } from '../../errors.js';
import { cancellation } from '../../transport/failure.js';
import { connectUnix } from '../unix-socket.js';
import {
  LineReader,
  QmpSyntaxError,
  decodeLine,
  decodeVersion,
  encodeCommand,
  isObject,
  type QemuVersion,
  type QmpEvent,
} from './wire.js';

/** Time that QEMU may take for one answer: LIBXL_QMP_CMD_TIMEOUT. */
export const QMP_TIMEOUT_MS = 10_000;
/** Time until the greeting: another client, such as libxl, may be in the middle of something. */
export const QMP_OPEN_TIMEOUT_MS = 30_000;

/** Limits of one command. */
export interface QmpOptions {
  readonly signal?: AbortSignal | undefined;
  /** ms, default QMP_TIMEOUT_MS. */
  readonly timeoutMs?: number | undefined;
}

export interface OpenQmpOptions {
  /** Cancels the opening alone. */
  readonly signal?: AbortSignal | undefined;
  /** Time to connect and be greeted, in ms. Default 30 s. */
  readonly timeoutMs?: number | undefined;
  /** QEMU is being started: wait until its socket is there. */
  readonly starting?: boolean | undefined;
  /** Called with each event. What it throws is ignored but for `NODE_DEBUG`. */
  readonly onEvent?: ((event: QmpEvent) => void) | undefined;
}

/** Answer to query-status. */
export interface QemuStatus {
  readonly running: boolean;
  /** `running`, `paused`, `inmigrate`, … */
  readonly status: string;
}

interface Pending {
  readonly command: string;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Connects to a monitor and negotiates.
 *
 * @param path For a guest of libxl: `/var/run/xen/qmp-libxl-<domid>`
 * @throws DeviceModelError if there is no QEMU, or it is none; TimeoutError; CancelledError
 */
export async function openQmp(path: string, options: OpenQmpOptions = {}): Promise<QmpClient> {
  const { signal, timeoutMs = QMP_OPEN_TIMEOUT_MS } = options;
  const began = performance.now();
  const retryOn = options.starting === true ? ['EAGAIN', 'ENOENT', 'ECONNREFUSED'] : ['EAGAIN'];
  let socket: Socket;
  try {
    socket = await connectUnix(path, { signal, timeoutMs, phase: 'device-model', retryOn });
  } catch (cause) {
    if (XenMigrationError.is(cause)) throw cause;
    const text = cause instanceof Error ? cause.message : String(cause);
    throw new DeviceModelError('connect', undefined, text, { cause });
  }
  const client = new QmpClient(socket, path, options.onEvent);
  try {
    await client.negotiate({ signal, timeoutMs: Math.max(0, timeoutMs - (performance.now() - began)) });
  } catch (error) {
    client.close();
    throw error;
  }
  return client;
}

/** A connection to QEMU's monitor, past its greeting. `close` it soon. */
export class QmpClient implements Disposable {
  readonly #socket: Socket;
  readonly #path: string;
  readonly #onEvent: ((event: QmpEvent) => void) | undefined;
  readonly #reader = new LineReader();
  /** By id. An answer whose id is not in it is dropped: its command was given up, or was another client's. */
  readonly #pending = new Map<string, Pending>();
  readonly #idPrefix = `xen-migration-${randomUUID()}`;
  #lastId = 0;
  #version: QemuVersion | undefined;
  #greeted: Pending | undefined;
  #failure: { readonly why: string; readonly cause: unknown } | undefined;

  /** @internal Made by `openQmp`. */
  constructor(socket: Socket, path: string, onEvent: ((event: QmpEvent) => void) | undefined) {
    this.#socket = socket;
    this.#path = path;
    this.#onEvent = onEvent;
    socket.on('data', this.#onData);
    const onClose = (): void => {
      const why = socket.errored === null ? '' : `: ${socket.errored.message}`;
      this.#fail(`the connection to ${path} was lost${why}`, socket.errored);
    };
    socket.on('close', onClose);
    // Broken before the listener came: 'close' may have been before.
    if (socket.destroyed) process.nextTick(onClose);
  }

  /** The QEMU at the other end, from its greeting. */
  get version(): QemuVersion {
    if (this.#version === undefined) throw new DeviceModelError('connect', undefined, 'no greeting yet');
    return this.#version;
  }

  /** @internal Waits for the greeting and leaves the negotiation of capabilities. */
  async negotiate(options: {
    readonly signal?: AbortSignal | undefined;
    readonly timeoutMs: number;
  }): Promise<void> {
    const doing = `waiting for the greeting of QEMU on ${this.#path}`;
    if (this.#version === undefined) {
      await this.#wait(
        'greeting',
        (pending) => (this.#greeted = pending),
        () => (this.#greeted = undefined),
        options,
        `${doing}: is another client connected?`,
      );
    }
    await this.execute('qmp_capabilities', undefined, { signal: options.signal });
  }

  /**
   * Has QEMU execute a command, and resolves to what it returns.
   *
   * @throws DeviceModelError with QMP's class if QEMU refuses, without if the connection is gone; TimeoutError;
   *   CancelledError. After the last two QEMU may execute the command all the same
   */
  async execute(
    command: string,
    args?: Readonly<Record<string, unknown>>,
    options: QmpOptions = {},
  ): Promise<unknown> {
    const { signal, timeoutMs = QMP_TIMEOUT_MS } = options;
    const id = `${this.#idPrefix}-${++this.#lastId}`;
    return this.#wait(
      command,
      (pending) => {
        this.#pending.set(id, pending);
        this.#socket.write(encodeCommand(id, command, args));
      },
      () => this.#pending.delete(id),
      { signal, timeoutMs },
      `QEMU: ${command}`,
    );
  }

  /** query-status. */
  async queryStatus(options?: QmpOptions): Promise<QemuStatus> {
    const value = await this.execute('query-status', undefined, options);
    if (!isObject(value) || typeof value['running'] !== 'boolean' || typeof value['status'] !== 'string') {
      throw new DeviceModelError('query-status', undefined, 'an answer without running and status');
    }
    return { running: value['running'], status: value['status'] };
  }

  /** query-version. */
  async queryVersion(options?: QmpOptions): Promise<QemuVersion> {
    const value = await this.execute('query-version', undefined, options);
    try {
      return decodeVersion(value);
    } catch (cause) {
      throw new DeviceModelError('query-version', undefined, String(cause), { cause });
    }
  }

  /** stop: emulated devices stand still. Nothing happens if they do. */
  async stop(options?: QmpOptions): Promise<void> {
    await this.execute('stop', undefined, options);
  }

  /** cont. Nothing happens if QEMU runs. */
  async cont(options?: QmpOptions): Promise<void> {
    await this.execute('cont', undefined, options);
  }

  /** xen-set-global-dirty-log: whether QEMU tells Xen which frames it writes. */
  async setGlobalDirtyLog(enable: boolean, options?: QmpOptions): Promise<void> {
    await this.execute('xen-set-global-dirty-log', { enable }, options);
  }

  /**
   * xen-save-devices-state: the state of all devices, without memory, into a file. QEMU is to be stopped.
   *
   * @param filename Absolute path, which QEMU opens itself: with its own rights and in its own root, and truncates. A
   *   file that does not exist is made with mode 0660 less QEMU's umask
   * @param live Whether the guest is moving to another host: then QEMU gives up the locks on its disk images
   */
  async saveDevicesState(filename: string, live: boolean, options?: QmpOptions): Promise<void> {
    // QEMU takes no unknown argument; `live` came with 2.11.
    const { major, minor } = this.version;
    const args = major > 2 || (major === 2 && minor >= 11) ? { filename, live } : { filename };
    await this.execute('xen-save-devices-state', args, options);
  }

  /** Hangs up. Commands under way reject. Idempotent. */
  close(): void {
    this.#fail('the connection was closed here', undefined);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Waits for one answer. `leave` is called when it has come, or is no longer waited for. */
  #wait(
    command: string,
    begin: (pending: Pending) => void,
    leave: () => void,
    options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs: number },
    doing: string,
  ): Promise<unknown> {
    const { signal, timeoutMs } = options;
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) {
        reject(this.#lost(command));
        return;
      }
      if (signal?.aborted === true) {
        reject(cancellation(signal.reason, doing));
        return;
      }
      const end = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        leave();
      };
      const pending: Pending = {
        command,
        resolve: (value) => {
          end();
          resolve(value);
        },
        reject: (error) => {
          end();
          // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- as it came
          reject(error);
        },
      };
      const onAbort = (): void => pending.reject(cancellation(signal?.reason, doing));
      const timer = setTimeout(
        () =>
          pending.reject(
            new TimeoutError('device-model', timeoutMs, `${doing}: no answer in ${Math.round(timeoutMs)} ms`),
          ),
        timeoutMs,
      );
      signal?.addEventListener('abort', onAbort, { once: true });
      begin(pending);
    });
  }

  readonly #onData = (chunk: Uint8Array): void => {
    try {
      this.#reader.push(chunk, (line) => {
        if (this.#failure === undefined) this.#onLine(line);
      });
    } catch (error) {
      if (!(error instanceof QmpSyntaxError)) throw error;
      this.#fail(`${this.#path} does not speak QMP: ${error.message}`, error);
    }
  };

  #onLine(line: string): void {
    const message = decodeLine(line);
    if (message.kind === 'greeting') {
      this.#version = message.version;
      this.#greeted?.resolve(undefined);
      return;
    }
    if (message.kind === 'event') {
      try {
        this.#onEvent?.(message.event);
      } catch (error) {
        debug('qmp: onEvent threw: %O', error);
      }
      return;
    }
    const { id } = message;
    if (message.kind === 'error' && id === undefined) {
      // It could not read what we sent, so it is unknown which command it is of.
      throw new QmpSyntaxError(`it understood nothing (${message.text})`);
    }
    const pending = typeof id === 'string' ? this.#pending.get(id) : undefined;
    if (pending === undefined) {
      debug('qmp: an answer to nothing that is waited for');
    } else if (message.kind === 'return') {
      pending.resolve(message.value);
    } else {
      const { errorClass, text } = message;
      pending.reject(new DeviceModelError(pending.command, errorClass, `${text} (${errorClass})`));
    }
  }

  #fail(why: string, cause: unknown): void {
    if (this.#failure !== undefined) return;
    this.#failure = { why, cause };
    this.#socket.destroy();
    this.#greeted?.reject(this.#lost('connect'));
    for (const pending of [...this.#pending.values()]) pending.reject(this.#lost(pending.command));
  }

  #lost(command: string): DeviceModelError {
    const { why, cause } = this.#failure as { why: string; cause: unknown };
    return new DeviceModelError(command, undefined, why, { cause });
  }
}
