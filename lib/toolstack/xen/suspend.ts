/** Suspending a guest: asking it, waiting for it, and what is left to do when it does not, or does too late. */
import { GuestError, TimeoutError, throwIfAborted, withCleanupError } from '../../errors.js';
import { Bell, every } from './clock.js';
import { findDomain } from './hypercalls.js';
import { assertAlive, isSuspended, type Parts } from './parts.js';
import { suspendRequest, type SuspendRequest } from './suspend-request.js';

/** Time that libxl gives a guest to acknowledge, where it does, and again to suspend. */
export const SUSPEND_TIMEOUT_MS = 60_000;

/**
 * How long a guest with a request that cannot be taken back is waited for after its request was given up before its time
 * was over: it is about to suspend, and must not stand unseen.
 */
const LATE_MS = 10_000;

/**
 * A look at the domain without any event. xenstored reports a shutdown only once until it is told that the domain was
 * resumed, which not every toolstack does.
 */
const POLL_MS = 1000;

/** How a suspend ended. */
export interface SuspendOutcome {
  /** Undefined: the guest is suspended. */
  readonly error?: unknown;
  /** The guest runs, but has a request that it may still follow: whoever gave up has to keep an eye on it. */
  readonly mayFollow: boolean;
}

/**
 * Asks the guest to suspend and waits until it has. A guest that suspends after it was given up, but while it is still
 * waited for, is resumed by `resume`.
 *
 * The outcome's error is TimeoutError, GuestError (it crashed, was destroyed, …), what the signal says, or what xenstore
 * or the hypervisor answered.
 */
export async function suspendGuest(
  parts: Parts,
  domid: number,
  options: {
    readonly signal?: AbortSignal | undefined;
    readonly timeoutMs: number;
    readonly resume: () => Promise<void>;
  },
): Promise<SuspendOutcome> {
  const info = await findDomain(parts.calls, domid);
  assertAlive(domid, info, 'before it could be asked to suspend');
  if (isSuspended(info)) return { mayFollow: false };
  throwIfAborted(options.signal, 'suspend', domid);

  const bell = new Bell();
  const store = await parts.store();
  // Before the request is sent: nothing of what follows may be missed.
  const releases = await store.watch('@releaseDomain', { onChange: bell.ring });
  let request: SuspendRequest | undefined;
  try {
    request = await suspendRequest(parts, info, bell.ring);
    const wait = new Wait(parts, domid, request, bell);
    return await wait.run(options);
  } finally {
    await request?.close();
    await releases.close();
  }
}

class Wait {
  readonly #parts: Parts;
  readonly #domid: number;
  readonly #request: SuspendRequest;
  readonly #bell: Bell;

  constructor(parts: Parts, domid: number, request: SuspendRequest, bell: Bell) {
    this.#parts = parts;
    this.#domid = domid;
    this.#request = request;
    this.#bell = bell;
  }

  async run(options: {
    readonly signal?: AbortSignal | undefined;
    readonly timeoutMs: number;
    readonly resume: () => Promise<void>;
  }): Promise<SuspendOutcome> {
    const { signal, timeoutMs, resume } = options;
    try {
      await this.#request.send();
    } catch (error) {
      // It may have gone out all the same.
      return { error, mayFollow: !(await this.#request.withdraw().catch(() => false)) };
    }
    try {
      let end = await this.#until(timeoutMs, signal);
      if (end === 'late' && this.#request.answer === 'none') {
        if (await this.#request.withdraw()) return this.#tooLate(timeoutMs, 'withdrawn');
        // Taken at the last moment.
        end = await this.#until(timeoutMs, signal);
      }
      if (end === 'suspended') return { mayFollow: false };
      if (end === 'late') return this.#tooLate(timeoutMs);
      throwIfAborted(signal, 'suspend', this.#domid);
    } catch (error) {
      return this.#giveUp(error, resume);
    }
    return { mayFollow: false };
  }

  /** Waits for the guest, for the time, or for the signal. The time begins anew when the guest takes the request. */
  async #until(ms: number, signal?: AbortSignal): Promise<'suspended' | 'late' | 'aborted'> {
    const { calls, clock } = this.#parts;
    const time = { over: false };
    const start = (): (() => void) =>
      clock.after(ms, () => {
        time.over = true;
        this.#bell.ring();
      });
    let stopTimer = start();
    let { answer } = this.#request;
    const stopPoll = every(clock, POLL_MS, this.#bell.ring);
    signal?.addEventListener('abort', this.#bell.ring);
    try {
      for (;;) {
        // The request first: a guest that suspends right after the look rings again.
        await this.#request.look();
        if (this.#request.answer !== answer) {
          ({ answer } = this.#request);
          stopTimer();
          time.over = false;
          stopTimer = start();
        }
        const info = await findDomain(calls, this.#domid);
        assertAlive(this.#domid, info, 'while it was asked to suspend');
        if (isSuspended(info)) return 'suspended';
        if (signal?.aborted === true) return 'aborted';
        if (time.over) return 'late';
        await this.#bell.rung();
      }
    } finally {
      stopTimer();
      stopPoll();
      signal?.removeEventListener('abort', this.#bell.ring);
    }
  }

  #tooLate(timeoutMs: number, withdrawn?: 'withdrawn'): SuspendOutcome {
    const { how, answer } = this.#request;
    const what = withdrawn
      ? `took no notice within ${timeoutMs} ms; the request was taken back`
      : answer === 'unknown'
        ? `did not suspend within ${timeoutMs} ms`
        : `acknowledged the request, but did not suspend within ${timeoutMs} ms`;
    const message = `guest ${this.#domid}, asked ${how} to suspend, ${what}`;
    const error = new TimeoutError('suspend', timeoutMs, message, { domid: this.#domid });
    return { error, mayFollow: withdrawn === undefined };
  }

  /** Cancelled, or failed on the way. `error` stays the first one. */
  async #giveUp(error: unknown, resume: () => Promise<void>): Promise<SuspendOutcome> {
    try {
      if (await this.#request.withdraw()) return { error, mayFollow: false };
      if (isEnd(error)) return { error, mayFollow: false };
      if ((await this.#until(LATE_MS)) !== 'suspended') return { error, mayFollow: true };
      await resume();
      return { error, mayFollow: false };
    } catch (later) {
      return { error: withCleanupError(error, later), mayFollow: !isEnd(later) };
    }
  }
}

/** True if the guest will never suspend any more. */
function isEnd(error: unknown): boolean {
  return error instanceof GuestError;
}
