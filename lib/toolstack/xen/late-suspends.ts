/**
 * Guests that were asked to suspend, did not in time, and may yet: one that does is resumed, since nobody waits for it
 * any more.
 *
 * Not for ever, and not once somebody else asks: a guest that another toolstack has suspended must not be resumed under it.
 */
import { debug } from '../../debug.js';
import type { XenstoreWatch } from '../xenstore/index.js';
import { every } from './clock.js';
import { findDomain } from './hypercalls.js';
import { isSuspended, type Parts } from './parts.js';
import { xsPath } from './paths.js';

/** A look without an event, see suspend.ts. */
const POLL_MS = 1000;
/** As long as libxl gives a guest that has acknowledged. */
export const LOOK_AFTER_MS = 60_000;

/** One guest that is looked after. */
interface Ward {
  readonly watches: Promise<readonly XenstoreWatch[]>;
  readonly stopTimers: () => void;
}

export class LateSuspends {
  readonly #parts: Parts;
  readonly #resume: (domid: number) => Promise<void>;
  readonly #wards = new Map<number, Ward>();
  /** One look after the other. */
  #looking: Promise<void> = Promise.resolve();

  constructor(parts: Parts, resume: (domid: number) => Promise<void>) {
    this.#parts = parts;
    this.#resume = resume;
  }

  /** From here on the guest is looked after. */
  add(domid: number): void {
    const { clock } = this.#parts;
    const look = (): void => this.#look(domid);
    const stopPoll = every(clock, POLL_MS, look);
    const stopTime = clock.after(LOOK_AFTER_MS, () => void this.drop(domid));
    const watches = this.#watch(domid, look);
    // Without xenstored there is still the clock.
    watches.catch((error: unknown) => debug('late suspends: domain %d: no watch: %O', domid, error));
    const stopTimers = (): void => {
      stopPoll();
      stopTime();
    };
    this.#wards.set(domid, { watches, stopTimers });
  }

  /** Somebody cares for this guest again, or it is no more. Waits for a resume under way. */
  async drop(domid: number): Promise<void> {
    const ward = this.#wards.get(domid);
    if (ward === undefined) return;
    this.#wards.delete(domid);
    ward.stopTimers();
    for (const watch of await ward.watches.catch(() => [])) await watch.close();
    await this.#looking;
  }

  /** Has a last look at all of them, then ends. */
  async close(): Promise<void> {
    for (const domid of this.#wards.keys()) this.#look(domid);
    await this.#looking;
    for (const domid of [...this.#wards.keys()]) await this.drop(domid);
  }

  async #watch(domid: number, look: () => void): Promise<XenstoreWatch[]> {
    const store = await this.#parts.store();
    const releases = await store.watch('@releaseDomain', { onChange: look });
    // The guest has taken notice of our request, so the next change of this node is another toolstack's. One event comes
    // when the watch is set.
    let events = 0;
    const onChange = (): void => {
      events += 1;
      if (events > 1) void this.drop(domid);
    };
    return [releases, await store.watch(xsPath.shutdown(domid), { onChange })];
  }

  #look(domid: number): void {
    this.#looking = this.#looking.then(async () => {
      try {
        await this.#lookAt(domid);
      } catch (error) {
        debug('late suspends: domain %d: %O', domid, error);
      }
    });
  }

  async #lookAt(domid: number): Promise<void> {
    const info = this.#wards.has(domid) ? await findDomain(this.#parts.calls, domid) : undefined;
    if (!this.#wards.has(domid) || (info?.shutdown === false && !info.dying)) return;
    const ours = info !== undefined && !info.dying && isSuspended(info);
    // Not waited for: it waits for this look.
    void this.drop(domid);
    if (!ours) return;
    debug('late suspends: guest %d suspended after it was given up: resumed', domid);
    await this.#resume(domid);
  }
}
