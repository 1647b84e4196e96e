/**
 * Guests that were asked to suspend, did not in time, and may yet: one that does is resumed, since nobody waits for it
 * any more.
 */
import { debug } from '../../debug.js';
import type { XenstoreWatch } from '../xenstore/index.js';
import { every } from './clock.js';
import { findDomain } from './hypercalls.js';
import { isSuspended, type Parts } from './parts.js';

/** A look without an event, see suspend.ts. */
const POLL_MS = 1000;

export class LateSuspends {
  readonly #parts: Parts;
  readonly #resume: (domid: number) => Promise<void>;
  readonly #domids = new Set<number>();
  #watch: Promise<XenstoreWatch> | undefined;
  #stopPoll: (() => void) | undefined;
  /** One look after the other. */
  #looking: Promise<void> = Promise.resolve();

  constructor(parts: Parts, resume: (domid: number) => Promise<void>) {
    this.#parts = parts;
    this.#resume = resume;
  }

  /** From here on the guest is looked after. */
  add(domid: number): void {
    this.#domids.add(domid);
    this.#stopPoll ??= every(this.#parts.clock, POLL_MS, this.#look);
    this.#watch ??= this.#parts
      .store()
      .then((store) => store.watch('@releaseDomain', { onChange: this.#look }));
    // Without xenstored there is still the clock.
    this.#watch.catch((error: unknown) => debug('late suspends: no watch: %O', error));
  }

  /** Somebody cares for this guest again, or it is no more. Waits for a resume under way. */
  async drop(domid: number): Promise<void> {
    if (!this.#domids.delete(domid)) return;
    await this.#looking;
    if (this.#domids.size === 0) await this.#idle();
  }

  /** Has a last look at all of them, then ends. */
  async close(): Promise<void> {
    if (this.#domids.size > 0) this.#look();
    await this.#looking;
    this.#domids.clear();
    await this.#idle();
  }

  async #idle(): Promise<void> {
    this.#stopPoll?.();
    this.#stopPoll = undefined;
    const watch = this.#watch;
    this.#watch = undefined;
    await (await watch?.catch(() => undefined))?.close();
  }

  readonly #look = (): void => {
    this.#looking = this.#looking.then(async () => {
      for (const domid of [...this.#domids]) {
        try {
          await this.#lookAt(domid);
        } catch (error) {
          debug('late suspends: domain %d: %O', domid, error);
        }
      }
    });
  };

  async #lookAt(domid: number): Promise<void> {
    const info = await findDomain(this.#parts.calls, domid);
    if (!this.#domids.has(domid)) return;
    if (info?.shutdown === false && !info.dying) return;
    this.#domids.delete(domid);
    if (info === undefined || info.dying || !isSuspended(info)) return;
    debug('late suspends: guest %d suspended after it was given up: resumed', domid);
    await this.#resume(domid);
  }
}
