/** Time limits of the phases, and watching whether bytes still move. */
import { TimeoutError, UsageError, XenMigrationError } from '../errors.js';
import { cancellation } from '../transport/failure.js';
import type { ByteSink, ByteSource } from '../transport/types.js';
import type { MigrationTimeouts } from './types.js';

/** Timeouts with every member filled in. */
export type FullTimeouts = { readonly [K in keyof MigrationTimeouts]-?: number };

const defaults: FullTimeouts = {
  connectMs: 10_000,
  // The receiver may be a program that ssh has to start first: a login can take half a minute, and its host be busy.
  helloMs: 60_000,
  setupMs: 60_000,
  stallMs: 60_000,
  switchoverMs: 60_000,
  releaseMs: 30_000,
  resolveMs: 60_000,
  totalMs: Infinity,
};

const receiverDefaults: Partial<FullTimeouts> = {
  // Whoever has connected and says nothing shall not keep the place of another.
  helloMs: 10_000,
  // Longer than a sender's guest may take to suspend.
  stallMs: 180_000,
  // Shorter than the sender's, who then still hears that the receiver has given up.
  switchoverMs: 30_000,
};

/** The longest delay that a timer of Node can have; beyond it fires at once. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** The caller's timeouts over the defaults. Throws UsageError for what is no time. */
export function fullTimeouts(role: 'sender' | 'receiver', given: MigrationTimeouts = {}): FullTimeouts {
  const full = { ...defaults, ...(role === 'receiver' ? receiverDefaults : {}) };
  for (const name of Object.keys(defaults) as (keyof FullTimeouts)[]) {
    const ms = given[name];
    if (ms === undefined) continue;
    if (!(ms > 0)) throw new UsageError(`timeouts.${name} must be more than 0 ms, not ${ms}`);
    full[name] = ms;
  }
  return full;
}

/** `1.5 s`, `20 ms`. */
export function msText(ms: number): string {
  return ms >= 1000 ? `${Math.round(ms / 100) / 10} s` : `${Math.ceil(ms)} ms`;
}

/** Starts a timer that a limit of Infinity never fires. */
export function startTimer(ms: number, fire: () => void): NodeJS.Timeout | undefined {
  return ms > LONGEST_TIMER ? undefined : setTimeout(fire, ms);
}

/**
 * Runs one phase within its time. Rejects with TimeoutError or with the signal's reason as soon as either comes,
 * even if `work` does not look at the signal that it is given.
 *
 * @param what What did not happen in time, for the message: `the receiver did not answer the greeting`
 */
export async function withLimit<T>(
  phase: string,
  ms: number,
  what: string,
  signal: AbortSignal | undefined,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  if (signal?.aborted === true) throw cancellation(signal.reason, phase);
  const stop = new AbortController();
  const onAbort = (): void => stop.abort(cancellation(signal?.reason, phase));
  signal?.addEventListener('abort', onAbort, { once: true });
  const timer = startTimer(ms, () =>
    stop.abort(new TimeoutError(phase, ms, `${what} within ${msText(ms)}`, { phase })),
  );
  const stopped = new Promise<never>((_resolve, reject) => {
    stop.signal.addEventListener('abort', () => reject(stop.signal.reason as XenMigrationError), {
      once: true,
    });
  });
  try {
    const working = work(stop.signal);
    // Whichever of the two loses must not become an unhandled rejection.
    working.catch(() => undefined);
    return await Promise.race([working, stopped]);
  } finally {
    clearTimeout(timer);
    stopped.catch(() => undefined);
    signal?.removeEventListener('abort', onAbort);
  }
}

/** Fires when something that should move has not moved for a while. Cheap enough for each write. */
class StallWatch {
  readonly #ms: number;
  readonly #fire: () => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(ms: number, fire: () => void) {
    this.#ms = ms;
    this.#fire = fire;
  }

  /** Something should move from now on, or has just moved and more should. */
  arm(): void {
    if (this.#timer === undefined) this.#timer = startTimer(this.#ms, this.#fire);
    else this.#timer.refresh();
  }

  /** Nothing needs to move. */
  disarm(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }
}

/**
 * The sink that a migration's stream is written to: the connection's, with the bytes counted and stalls noticed.
 * `end` waits for the writes and leaves the connection open, for the handshake follows.
 */
export class StreamSink implements ByteSink {
  readonly #sink: ByteSink;
  readonly #watch: StallWatch;
  readonly #pending = new Set<Promise<void>>();
  #bytesWritten = 0;

  constructor(sink: ByteSink, stallMs: number, onStall: () => void) {
    this.#sink = sink;
    this.#watch = new StallWatch(stallMs, onStall);
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  write(views: readonly Uint8Array[]): Promise<void> {
    let bytes = 0;
    for (const view of views) bytes += view.length;
    if (this.#pending.size === 0) this.#watch.arm();
    const writing: Promise<void> = this.#sink.write(views).then(
      () => {
        this.#bytesWritten += bytes;
        this.#settled(writing);
      },
      (error: unknown) => {
        this.#settled(writing);
        throw error;
      },
    );
    this.#pending.add(writing);
    return writing;
  }

  async end(): Promise<void> {
    await Promise.all(this.#pending);
  }

  abort(reason: unknown): void {
    this.#watch.disarm();
    this.#sink.abort(reason);
  }

  /** Stops watching. */
  stop(): void {
    this.#watch.disarm();
  }

  #settled(writing: Promise<void>): void {
    this.#pending.delete(writing);
    if (this.#pending.size === 0) this.#watch.disarm();
    else this.#watch.arm();
  }
}

/** The source that a migration's stream is read from: counts from the stream's first byte, notices stalls, stays open. */
export class StreamSource implements ByteSource {
  readonly #source: ByteSource;
  readonly #from: number;
  readonly #watch: StallWatch;

  constructor(source: ByteSource, stallMs: number, onStall: () => void) {
    this.#source = source;
    this.#from = source.position;
    this.#watch = new StallWatch(stallMs, onStall);
  }

  get position(): number {
    return this.#source.position - this.#from;
  }

  take(max: number): Uint8Array | undefined {
    return this.#source.take(max);
  }

  async wait(want: number, signal?: AbortSignal): Promise<boolean> {
    this.#watch.arm();
    try {
      return await this.#source.wait(want, signal);
    } finally {
      this.#watch.disarm();
    }
  }

  /** Leaves the connection open: the handshake follows. */
  async close(): Promise<void> {
    this.#watch.disarm();
  }
}
