/** What may be changed while a save runs: its limits, and the wish to switch over now. */
import { UsageError } from '../errors.js';
import { OwnThrottle, type Throttle } from './throttle.js';
import type { SaveLimits } from './types.js';

/** libxc's numbers (xg_sr_save.c, SPP_MAX_ITERATIONS and SPP_TARGET_DIRTY_COUNT). */
export const DEFAULT_MAX_ITERATIONS = 5;
export const DEFAULT_MIN_REMAINING = 50;

/**
 * Most pre-copy passes that any policy gets. A policy that never ends would otherwise keep a guest in log-dirty mode,
 * slow, for ever.
 */
export const MAX_PASSES = 1000;

/** Limits with nothing left out. */
export interface PresentLimits {
  readonly maxIterations: number;
  readonly minRemaining: number;
  /** Undefined: no such limit. */
  readonly maxDowntimeMs: number | undefined;
  /** 0: no such limit. */
  readonly maxBytesPerSecond: number;
}

/** The hands on the wheel of one running save. */
export class SaveSteering {
  /** Who keeps the job to its bandwidth. Replaced before the save begins where jobs share a budget. */
  throttle: Throttle = new OwnThrottle();
  #limits: PresentLimits = {
    maxIterations: DEFAULT_MAX_ITERATIONS,
    minRemaining: DEFAULT_MIN_REMAINING,
    maxDowntimeMs: undefined,
    maxBytesPerSecond: 0,
  };
  #switchover = false;

  /** Throws UsageError for limits that cannot be. */
  constructor(limits: SaveLimits = {}) {
    this.update(limits);
  }

  /** The limits as they are now. */
  get limits(): PresentLimits {
    return this.#limits;
  }

  /** True once `switchover` was called. */
  get switchoverWanted(): boolean {
    return this.#switchover;
  }

  /** Changes limits; members left out stay. Throws UsageError, with nothing changed, for values that cannot be. */
  update(changes: SaveLimits): void {
    const { maxIterations, minRemaining, maxDowntimeMs, maxBytesPerSecond } = changes;
    check('maxIterations', maxIterations, 1, MAX_PASSES, true);
    check('minRemaining', minRemaining, 0, Number.MAX_SAFE_INTEGER, true);
    check('maxDowntimeMs', maxDowntimeMs, 0, Number.MAX_VALUE, false);
    check('maxBytesPerSecond', maxBytesPerSecond, 0, Number.MAX_VALUE, false);
    const present = this.#limits;
    this.#limits = {
      maxIterations: maxIterations ?? present.maxIterations,
      minRemaining: minRemaining ?? present.minRemaining,
      maxDowntimeMs: maxDowntimeMs ?? present.maxDowntimeMs,
      maxBytesPerSecond: maxBytesPerSecond ?? present.maxBytesPerSecond,
    };
  }

  /** Ends pre-copy after the present pass, whatever the policy says. */
  switchover(): void {
    this.#switchover = true;
  }
}

function check(name: string, value: number | undefined, least: number, most: number, whole: boolean): void {
  if (value === undefined) return;
  if (typeof value === 'number' && value >= least && value <= most && (!whole || Number.isInteger(value)))
    return;
  const kind = whole ? 'a whole number' : 'a number';
  const range = most === MAX_PASSES ? `${least} to ${most}` : `${least} or more`;
  throw new UsageError(`${name} must be ${kind} of ${range}, not ${String(value)}`);
}
