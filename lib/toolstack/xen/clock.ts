/** Time, so that tests need not wait for it. */

export interface Clock {
  /** Calls back after `ms`, once, unless the function returned is called before. */
  after(ms: number, callback: () => void): () => void;
}

export const systemClock: Clock = {
  after(ms, callback) {
    const timer = setTimeout(callback, ms);
    return () => clearTimeout(timer);
  },
};

/** Calls back every `ms` until the function returned is called. */
export function every(clock: Clock, ms: number, callback: () => void): () => void {
  let stop = clock.after(ms, tick);
  function tick(): void {
    stop = clock.after(ms, tick);
    callback();
  }
  return () => stop();
}

/** "Look again", said from many places to one that looks. Rings before `rung` is called are not lost. */
export class Bell {
  #rung = false;
  #waiting: (() => void) | undefined;

  readonly ring = (): void => {
    this.#rung = true;
    this.#waiting?.();
  };

  /** Resolves once the bell has rung since the last time. For one waiter. */
  async rung(): Promise<void> {
    if (!this.#rung) await new Promise<void>((resolve) => (this.#waiting = resolve));
    this.#waiting = undefined;
    this.#rung = false;
  }
}
