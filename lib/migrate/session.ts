/**
 * The state of a migration: which synchronisation point it has passed, and what a failure means from there on.
 *
 * The invariant: at every instant at most one side may let the guest run. Up to point 4 it is the sender; from point
 * 5, which the sender passes by beginning to send YOURS, it is the receiver. Only the receiver's word (RUNNING, or
 * FAILED with `gone`) tells the sender more than that.
 */
import { debug } from '../debug.js';
import { now } from '../job.js';

/** The synchronisation points, in order. The same numbers stand in docs/reference/handshake.md. */
export const SyncPoint = {
  /** Nothing has been said. */
  START: 0,
  /** Sender → receiver: versions, id and what is offered. */
  HELLO: 1,
  /** Receiver → sender: go on. */
  READY: 2,
  /** The stream is through; the guest is suspended. */
  STREAM_END: 3,
  /** Receiver → sender: the domain is built, its memory in place; it is paused. */
  RESTORED: 4,
  /** Sender → receiver: run it. The commit point. */
  YOURS: 5,
  /** Receiver → sender: it runs (or stays paused, as it was). */
  RUNNING: 6,
  /** Sender → receiver: the source's copy is gone. */
  RELEASED: 7,
} as const;

export type SyncPoint = (typeof SyncPoint)[keyof typeof SyncPoint];

/** What an end does with its copy when the migration fails after a point. */
export type FailureRule =
  /** Sender: the guest goes on here. */
  | 'resume'
  /** Sender: nobody here can tell which side runs it; the copy stays suspended. */
  | 'keep-suspended'
  /** Receiver: the copy goes. */
  | 'destroy'
  /** Receiver: the guest is to run here; only if it cannot, the copy goes and FAILED says so. */
  | 'run'
  /** The guest lives at the destination, whatever failed. */
  | 'destination';

/** Failure rules by point, one row for each end. */
export const failureRules: Readonly<Record<'sender' | 'receiver', readonly FailureRule[]>> = {
  sender: ['resume', 'resume', 'resume', 'resume', 'resume', 'keep-suspended', 'destination', 'destination'],
  receiver: ['destroy', 'destroy', 'destroy', 'destroy', 'destroy', 'run', 'destination', 'destination'],
};

/** Names of the points, for logs. */
export const syncPointNames: readonly string[] = Object.keys(SyncPoint);

/** One end's way along the points. */
export class Session {
  readonly role: 'sender' | 'receiver';
  /** `now()` at which each point was passed. */
  readonly passedAt: number[] = [now()];
  id = '';
  #point: SyncPoint = SyncPoint.START;

  constructor(role: 'sender' | 'receiver') {
    this.role = role;
  }

  get point(): SyncPoint {
    return this.#point;
  }

  /** What a failure now means. */
  get rule(): FailureRule {
    return failureRules[this.role][this.#point] as FailureRule;
  }

  /** True once this end can no longer take the migration back by itself. */
  get committed(): boolean {
    return this.#point >= SyncPoint.YOURS;
  }

  /** Passes the next point. Skipping one, or going back, is an error in this library and throws. */
  pass(point: SyncPoint): void {
    if (point !== this.#point + 1) {
      throw new Error(`${this.role}: point ${point} does not follow point ${this.#point}`);
    }
    this.#point = point;
    this.passedAt.push(now());
    debug('%s %s: point %d %s', this.role, this.id, point, syncPointNames[point]);
  }
}
