/** Whether a simulated guest that came from somewhere is alive and whole: it says so itself. */
import { setTimeout as sleep } from 'node:timers/promises';
import { GuestError } from '../errors.js';
import type { SimulatedHost } from '../host/simulated/host.js';
import { countText } from './format.js';
import type { Fact } from './report.js';

/** ms in which a running guest has to show that it runs. */
const PATIENCE = 5000;

/** What a guest showed. */
export interface Proof {
  readonly running: boolean;
  /** Steps of its program, over its whole life on all hosts: on arrival, and a moment later. */
  readonly stepsBefore: number;
  readonly stepsAfter: number;
  /** False for a guest that has no program of the simulator, such as one from a real Xen host. */
  readonly checkable: boolean;
  readonly pagesChecked: number;
  readonly errors: number;
}

/**
 * Watches a guest for a moment, then lets it check its own memory.
 *
 * @param moves Whether its program should be seen to go on; not for an idle or paused guest
 */
export async function proveGuest(
  host: SimulatedHost,
  domid: number,
  moves: boolean,
  signal?: AbortSignal,
): Promise<Proof> {
  const guest = host.guest(domid);
  const before = guest.stats();
  if (moves) {
    const until = performance.now() + PATIENCE;
    do await sleep(50, undefined, signal === undefined ? {} : { signal });
    while (guest.stats().steps <= before.steps && performance.now() < until);
  }
  const after = guest.stats();
  const seen = { running: after.running, stepsBefore: before.steps, stepsAfter: after.steps };
  try {
    const { pagesChecked, errors, steps } = await guest.check();
    return { ...seen, stepsAfter: Math.max(seen.stepsAfter, steps), checkable: true, pagesChecked, errors };
  } catch (error) {
    if (!(error instanceof GuestError) || guest.panic !== undefined) throw error;
    return { ...seen, checkable: false, pagesChecked: 0, errors: 0 };
  }
}

/** The proof in words. */
export function proofFacts(proof: Proof, moves: boolean): Fact[] {
  const facts: Fact[] = [];
  if (moves) {
    const { stepsBefore, stepsAfter } = proof;
    const ok = proof.running && stepsAfter > stepsBefore;
    const steps = `step ${countText(stepsBefore)} on arrival, ${countText(stepsAfter)} now`;
    facts.push({ ok, text: ok ? `it runs here: ${steps}` : `it does not run here: ${steps}` });
  }
  if (proof.checkable) {
    const { pagesChecked, errors } = proof;
    const found = errors === 1 ? '1 error' : `${errors === 0 ? 'no' : countText(errors)} errors`;
    facts.push({
      ok: errors === 0,
      text: `it checked its memory: ${countText(pagesChecked)} pages, ${found}`,
    });
  }
  return facts;
}

/** True if nothing speaks against the guest. */
export function proved(facts: readonly Fact[]): boolean {
  return facts.every(({ ok }) => ok);
}
