/** Counts the calls under way through something that can be closed, so that closing can wait for them. */
import { UsageError } from '../../errors.js';

/**
 * One gate stands before each host and each domain. `enter` and `leave` embrace every call; `close` shuts the gate and
 * resolves when nobody is inside any more.
 */
export class Gate {
  readonly #what: string;
  readonly #domid: number | undefined;
  #inside = 0;
  #closed = false;
  #empty: PromiseWithResolvers | undefined;

  /** @param what stands in the error of who comes too late, for instance `access to domain 3` */
  constructor(what: string, domid?: number) {
    this.#what = what;
    this.#domid = domid;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** @throws UsageError once the gate is closed */
  enter(): void {
    if (this.#closed) throw new UsageError(`${this.#what} is closed`, { domid: this.#domid });
    this.#inside++;
  }

  leave(): void {
    this.#inside--;
    if (this.#inside === 0) this.#empty?.resolve();
  }

  /** Lets nobody in any more; resolves when the last one has left. Idempotent. */
  close(): Promise<void> {
    this.#closed = true;
    if (this.#inside === 0) return Promise.resolve();
    this.#empty ??= withResolvers();
    return this.#empty.promise;
  }
}

/** `Promise.withResolvers`, which Node 20 does not have. */
interface PromiseWithResolvers {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
}

function withResolvers(): PromiseWithResolvers {
  let resolve!: () => void;
  const promise = new Promise<void>((r) => (resolve = r));
  return { promise, resolve };
}
