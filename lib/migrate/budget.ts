/**
 * What the jobs of one process share: how many run at a time, and the bandwidth of their pre-copy.
 *
 * The bandwidth is one token bucket. Each job has a purse that holds one batch; before a batch goes, the purse is
 * filled up from the bucket. While there is too little in it, jobs wait, and the next bytes are for the one that has had
 * least (start-time fair queueing: each job has a clock that runs with its bytes, and one that comes back from a pause
 * starts at the clock of whoever was served last, so that nobody saves up). What a slow job does not ask for, the others
 * get. Bucket and purses together never hold more than a batch for each job, so no more than that can ever go at once.
 */
import { MAX_BATCH, PAGE_SIZE } from '../abi/pages.js';
import { UsageError } from '../errors.js';
import { now } from '../job.js';
import { burst, OwnThrottle, TokenBucket, type JobBudget, type JobTicket } from '../save/throttle.js';
import { cancellation } from '../transport/failure.js';

/**
 * While others switch over, a job may still send a batch after so many ms without one: far below the time after which
 * its receiver would think that it has stalled.
 */
export const HELD_BACK_MS = 10_000;

/** Longest wait in one piece, ms: what a timer of Node can have is less than what a tiny limit asks for. */
const LONGEST_WAIT = 60_000;

/** The largest batch, bytes: its pages, and the records before them, also those of batches without pages. */
export const BATCH_BYTES = MAX_BATCH * PAGE_SIZE + 64 * 8 * MAX_BATCH;

/** What the jobs of a `MigrationBudget` share. */
export interface BudgetLimits {
  /** Jobs that run at a time. Default Infinity. 0: nobody begins any more, and those that run go on. */
  readonly slots?: number | undefined;
  /** Bytes per second of all pre-copy together, on average. Default 0: no limit. */
  readonly maxBytesPerSecond?: number | undefined;
}

/** How a `MigrationBudget` stands. */
export interface BudgetStatus {
  /** Jobs that have a slot. May be more than `slots` for a while after those were made fewer. */
  readonly running: number;
  /** Jobs that wait for one. */
  readonly waiting: number;
  readonly slots: number;
  readonly maxBytesPerSecond: number;
  /** Jobs whose guests stand still for their switch-over: as long as there is one, the pre-copy of the others is held back. */
  readonly switchingOver: number;
}

/** Somebody who waits for a slot. */
interface Arrival {
  readonly admit: () => void;
}

/** A job that waits to send a batch. */
interface Waiter {
  readonly ticket: Ticket;
  /** Its clock, or what the budget's was when it came. The lowest goes first. */
  readonly start: number;
  readonly go: () => void;
}

/**
 * Slots and bandwidth that many jobs share. Give the same object to all of them: `startMigrate(host, { budget, … })`;
 * `startSave` takes it too, and `startReceive` for its slots alone.
 *
 * * A job waits for a slot in the order of arrival, in phase `queued`. It can be cancelled meanwhile.
 * * During pre-copy, jobs share `maxBytesPerSecond` fairly. What one does not use goes to the others. A job's own
 *   `maxBytesPerSecond` holds besides.
 * * From the request to suspend its guest until the last byte is written, a job is not limited at all, and the pre-copy of
 *   the others is held back: each may send one batch (at most 4.5 MiB) in ten seconds, so that its receiver does not take
 *   it for stalled. The bytes of the switch-over do not count for the limit.
 * * A guest that was paused or suspended beforehand has no switch-over that anybody would notice: its memory goes like
 *   pre-copy.
 *
 * Keep the limit large enough that every running job can send 4.5 MiB within the receiver's `stallMs`.
 */
export class MigrationBudget implements JobBudget {
  #slots = Infinity;
  #rate = 0;
  readonly #arrivals = new Set<Arrival>();
  readonly #running = new Set<Ticket>();
  readonly #switching = new Set<Ticket>();
  readonly #bucket = new TokenBucket();
  /** Bytes in all purses. */
  #inPurses = 0;
  readonly #waiters = new Set<Waiter>();
  #timer: NodeJS.Timeout | undefined;
  /** The clock of whoever was served last, bytes. */
  #clock = 0;
  /** What a ticket may do to its budget. */
  readonly #desk: Desk = {
    ready: (ticket) => this.#ready(ticket),
    wait: (ticket, signal) => this.#wait(ticket, signal),
    spend: (ticket, bytes) => this.#spend(ticket, bytes),
    switching: (ticket, on) => this.#switch(ticket, on),
    leave: (ticket) => this.#leave(ticket),
  };

  /** Throws UsageError for limits that cannot be. */
  constructor(limits: BudgetLimits = {}) {
    this.update(limits);
  }

  /** A snapshot, made at the moment of reading. */
  get status(): BudgetStatus {
    return {
      running: this.#running.size,
      waiting: this.#arrivals.size,
      slots: this.#slots,
      maxBytesPerSecond: this.#rate,
      switchingOver: this.#switching.size,
    };
  }

  /**
   * Changes limits, at once; members left out stay. With fewer slots than jobs run, those go on and no other begins.
   *
   * @throws UsageError, with nothing changed, for values that cannot be
   */
  update(changes: BudgetLimits): void {
    const { slots = this.#slots, maxBytesPerSecond = this.#rate } = changes;
    if (typeof slots !== 'number' || !(slots >= 0) || !(Number.isInteger(slots) || slots === Infinity)) {
      throw new UsageError(`slots must be a whole number of 0 or more, or Infinity, not ${String(slots)}`);
    }
    if (typeof maxBytesPerSecond !== 'number' || !(maxBytesPerSecond >= 0 && maxBytesPerSecond < Infinity)) {
      throw new UsageError(
        `maxBytesPerSecond must be a number of 0 or more, not ${String(maxBytesPerSecond)}`,
      );
    }
    // What has gathered until now gathered at the old rate.
    this.#delay(0);
    this.#slots = slots;
    this.#rate = maxBytesPerSecond;
    this.#admit();
    this.#serve();
  }

  /**
   * Waits for a slot. The jobs of this library do it themselves; for one of another kind, call `leave` of the ticket when
   * it is over, however it ended.
   *
   * @throws CancelledError, or the signal's reason if it is an error of this library
   */
  enter(signal?: AbortSignal): Promise<JobTicket> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(cancellation(signal.reason, 'queued'));
        return;
      }
      const onAbort = (): void => {
        this.#arrivals.delete(arrival);
        reject(cancellation(signal?.reason, 'queued'));
      };
      const arrival: Arrival = {
        admit: () => {
          signal?.removeEventListener('abort', onAbort);
          const ticket = new Ticket(this.#desk);
          this.#running.add(ticket);
          resolve(ticket);
        },
      };
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#arrivals.add(arrival);
      this.#admit();
    });
  }

  #admit(): void {
    for (const arrival of this.#arrivals) {
      if (this.#running.size >= this.#slots) return;
      this.#arrivals.delete(arrival);
      arrival.admit();
    }
  }

  #leave(ticket: Ticket): void {
    if (!this.#running.delete(ticket)) return;
    this.#switching.delete(ticket);
    this.#giveBack(ticket);
    this.#admit();
    this.#serve();
  }

  #switch(ticket: Ticket, on: boolean): void {
    if (!on) this.#switching.delete(ticket);
    else if (this.#running.has(ticket)) this.#switching.add(ticket);
    this.#giveBack(ticket);
    this.#serve();
  }

  /** True if a batch of the job may go now; its purse is full then. */
  #ready(ticket: Ticket): boolean {
    if (this.#free(ticket) || ticket.purse >= BATCH_BYTES) return true;
    const waits = this.#waiters.size > 0 || this.#switching.size > 0;
    if (waits || this.#delay(BATCH_BYTES - ticket.purse) > 0) return false;
    this.#fill(ticket, Math.max(ticket.clock, this.#clock));
    return true;
  }

  #wait(ticket: Ticket, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      if (signal.aborted || this.#ready(ticket)) {
        resolve();
        return;
      }
      const done = (): void => {
        this.#waiters.delete(waiter);
        signal.removeEventListener('abort', onAbort);
        resolve();
      };
      const onAbort = (): void => {
        done();
        this.#serve();
      };
      const waiter: Waiter = { ticket, start: Math.max(ticket.clock, this.#clock), go: done };
      signal.addEventListener('abort', onAbort, { once: true });
      this.#waiters.add(waiter);
      this.#serve();
    });
  }

  /** Not limited: while its guest stands still, and when its job is over. */
  #free(ticket: Ticket): boolean {
    return this.#switching.has(ticket) || !this.#running.has(ticket);
  }

  #spend(ticket: Ticket, bytes: number): void {
    if (this.#free(ticket)) return;
    // What gathered until now gathered beside a full purse.
    this.#delay(0);
    const paid = Math.min(bytes, ticket.purse);
    ticket.purse -= paid;
    this.#inPurses -= paid;
    // Not asked for beforehand: the end of a pass, and what came before a limit.
    this.#bucket.spend(bytes - paid);
    ticket.clock += bytes - paid;
    ticket.wentAt = now();
  }

  /** ms until the bucket holds so many bytes. */
  #delay(bytes: number): number {
    const least = burst(this.#rate);
    const all = Math.max(least, Math.max(1, this.#running.size) * BATCH_BYTES) - this.#inPurses;
    return this.#bucket.delay(this.#rate, bytes, Math.min(Math.max(least, BATCH_BYTES), all));
  }

  /** Fills a purse from the bucket. */
  #fill(ticket: Ticket, start: number): void {
    const bytes = BATCH_BYTES - ticket.purse;
    this.#clock = Math.max(this.#clock, start);
    ticket.clock = start + bytes;
    this.#bucket.spend(bytes);
    this.#inPurses += bytes;
    ticket.purse += bytes;
  }

  /** Empties a purse into the bucket. */
  #giveBack(ticket: Ticket): void {
    this.#bucket.spend(-ticket.purse);
    ticket.clock -= ticket.purse;
    this.#inPurses -= ticket.purse;
    ticket.purse = 0;
  }

  /** Lets go whoever may go now, and sets the timer for the next. */
  #serve(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (;;) {
      const next = this.#nextWaiter();
      if (next === undefined) return;
      const { waiter, ms } = next;
      if (ms > 0) {
        // Timers are exact to a millisecond; less than one would spin.
        this.#timer = setTimeout(() => this.#serve(), Math.max(1, Math.min(ms, LONGEST_WAIT)));
        return;
      }
      if (!this.#free(waiter.ticket)) this.#fill(waiter.ticket, waiter.start);
      waiter.go();
    }
  }

  /** Who goes next, and in how many ms. */
  #nextWaiter(): { waiter: Waiter; ms: number } | undefined {
    let next: Waiter | undefined;
    const held = this.#switching.size > 0;
    for (const waiter of this.#waiters) {
      if (this.#free(waiter.ticket)) return { waiter, ms: 0 };
      const sooner =
        next === undefined || (held ? waiter.ticket.wentAt < next.ticket.wentAt : waiter.start < next.start);
      if (sooner) next = waiter;
    }
    if (next === undefined) return undefined;
    const hold = held ? next.ticket.wentAt + HELD_BACK_MS - now() : 0;
    return { waiter: next, ms: Math.max(this.#delay(BATCH_BYTES - next.ticket.purse), hold) };
  }
}

/** What a ticket may do to its budget. */
interface Desk {
  readonly ready: (ticket: Ticket) => boolean;
  readonly wait: (ticket: Ticket, signal: AbortSignal) => Promise<void>;
  readonly spend: (ticket: Ticket, bytes: number) => void;
  readonly switching: (ticket: Ticket, on: boolean) => void;
  readonly leave: (ticket: Ticket) => void;
}

/** One job in a budget. The job's own limit comes first: what it does not let through asks for nothing. */
class Ticket implements JobTicket {
  /** Bytes that were taken out of the bucket and have not gone yet. */
  purse = 0;
  /** Runs with the job's bytes. */
  clock = 0;
  /** When something went, or the job began. */
  wentAt = now();
  /** The guest stands still: not even the job's own limit holds. */
  #switching = false;
  readonly #own = new OwnThrottle();
  readonly #desk: Desk;

  constructor(desk: Desk) {
    this.#desk = desk;
  }

  ready(limit: number): boolean {
    return this.#own.ready(this.#switching ? 0 : limit) && this.#desk.ready(this);
  }

  async wait(limit: () => number, signal: AbortSignal): Promise<void> {
    await this.#own.wait(() => (this.#switching ? 0 : limit()), signal);
    await this.#desk.wait(this, signal);
  }

  spend(bytes: number): void {
    this.#own.spend(bytes);
    this.#desk.spend(this, bytes);
  }

  beginSwitchover(): void {
    this.#switching = true;
    this.#desk.switching(this, true);
  }

  endSwitchover(): void {
    this.#switching = false;
    this.#desk.switching(this, false);
  }

  leave(): void {
    this.#desk.leave(this);
  }
}
