/** Counts the calls to a simulated host, records them if asked to, and makes chosen ones fail. */
import { setTimeout as delay } from 'node:timers/promises';
import type { Domain, Host } from '../host.js';
import type { Toolstack } from '../../toolstack/toolstack.js';
import { refusal } from './refuse.js';

/** Methods of the ports, as faults and counters name them: `mapFrames`, `toolstack.suspend`, `host.openDomain`. */
export type SimulatedCall =
  | Exclude<keyof Domain, 'domid'>
  | `toolstack.${Exclude<keyof Toolstack, 'notes'>}`
  | `notes.${'list' | 'read' | 'create' | 'write' | 'claim' | 'remove'}`
  | `host.${Exclude<keyof Host, 'kind' | 'toolstack'>}`;

/** One call, as the log keeps it. */
export interface CallRecord {
  /** 1 for the first call to the host. */
  readonly seq: number;
  readonly call: SimulatedCall;
  readonly domid: number | undefined;
  /** What tells this call from others of its kind: the operation, an index, a number of frames. */
  readonly detail: string | number | undefined;
}

/** Which call a fault hits, and what happens then. All conditions that are given must hold. */
export interface Fault {
  /** Default: any call. */
  readonly call?: SimulatedCall | undefined;
  readonly domid?: number | undefined;
  readonly detail?: string | number | undefined;
  /** Hits the n-th call for which the other conditions hold, counted from 1 since the fault was added. Default 1. */
  readonly nth?: number | undefined;
  /** Hits so many in a row. Default 1. */
  readonly times?: number | undefined;
  /** Waits so many ms first. */
  readonly delayMs?: number | undefined;
  /** Runs before the call is refused or goes on: crash a guest, abort a signal, … */
  readonly action?: ((record: CallRecord) => void | Promise<void>) | undefined;
  /** Rejects with a HypercallError with this errno. */
  readonly errno?: number | undefined;
  /** Rejects with this. */
  readonly error?: Error | undefined;
}

/** A fault that was added. */
export interface ArmedFault {
  /** How often it has hit. */
  readonly hits: number;
  remove(): void;
}

class Armed implements ArmedFault {
  hits = 0;
  seen = 0;
  readonly fault: Fault;
  readonly #owner: Set<Armed>;

  constructor(fault: Fault, owner: Set<Armed>) {
    this.fault = fault;
    this.#owner = owner;
  }

  remove(): void {
    this.#owner.delete(this);
  }
}

export class Faults {
  /** Calls so far, all kinds together. */
  total = 0;
  /** Calls so far by kind. */
  readonly counts = new Map<SimulatedCall, number>();
  /** The calls, oldest first, if the host records them. */
  readonly log: CallRecord[] = [];
  readonly #record: boolean;
  readonly #armed = new Set<Armed>();

  constructor(record: boolean) {
    this.#record = record;
  }

  add(fault: Fault): ArmedFault {
    const armed = new Armed(fault, this.#armed);
    this.#armed.add(armed);
    return armed;
  }

  /** Removes all faults. */
  clear(): void {
    this.#armed.clear();
  }

  count(call: SimulatedCall): number {
    return this.counts.get(call) ?? 0;
  }

  /** Called before each call. A promise only if a fault hits; it rejects if the call is to fail. */
  before(call: SimulatedCall, domid?: number, detail?: string | number): Promise<void> | undefined {
    const seq = ++this.total;
    this.counts.set(call, (this.counts.get(call) ?? 0) + 1);
    if (!this.#record && this.#armed.size === 0) return undefined;
    const record: CallRecord = { seq, call, domid, detail };
    if (this.#record) this.log.push(record);
    let hit: Promise<void> | undefined;
    for (const armed of this.#armed) {
      const { fault } = armed;
      if (fault.call !== undefined && fault.call !== call) continue;
      if (fault.domid !== undefined && fault.domid !== domid) continue;
      if (fault.detail !== undefined && fault.detail !== detail) continue;
      const nth = fault.nth ?? 1;
      armed.seen++;
      if (armed.seen < nth || armed.seen >= nth + (fault.times ?? 1)) continue;
      armed.hits++;
      hit = hit === undefined ? strike(fault, record) : hit.then(() => strike(fault, record));
    }
    return hit;
  }
}

async function strike(fault: Fault, record: CallRecord): Promise<void> {
  if (fault.delayMs !== undefined) await delay(fault.delayMs);
  await fault.action?.(record);
  if (fault.error !== undefined) throw fault.error;
  if (fault.errno !== undefined) throw refusal(record.call, fault.errno, 'injected fault', record.domid);
}
