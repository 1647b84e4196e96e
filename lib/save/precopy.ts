/** Live pre-copy: pass after pass over what the running guest dirtied, until the policy has enough. */
import { PAGE_SIZE } from '../abi/pages.js';
import { debug } from '../debug.js';
import { CancelledError } from '../errors.js';
import { now } from '../job.js';
import type { IterationStats } from '../progress.js';
import type { PageSender, Pass } from './batch.js';
import type { SaveContext } from './context.js';
import { callback } from './failure.js';
import { cleanLogDirty, enableLogDirty } from './logdirty.js';
import { limitsPolicy, PROGRESS_SHARE } from './policy.js';
import { MAX_PASSES } from './steering.js';
import type { PrecopyDecision, PrecopyStats } from './types.js';

/** Bytes on the wire for a page: its entry and its contents. */
const BYTES_PER_PAGE = 8 + PAGE_SIZE;

/** What pre-copy measures; the policy gets a copy. */
class Measurements {
  iteration = 0;
  totalWritten = 0;
  dirtyCount: number;
  rate = 0;
  dirtyPagesRate: number | undefined;
  stalledPasses = 0;
  /** Bytes per second that the line took, the bandwidth limit left out. */
  #lineRate = 0;
  #fewestDirty = Infinity;
  /** When the dirty pages began to be counted. */
  #countedFrom = now();
  readonly #p2mSize: number;

  constructor(p2mSize: number) {
    this.#p2mSize = p2mSize;
    this.dirtyCount = p2mSize;
  }

  /** A pass is over; nobody knows yet what the guest dirtied meanwhile. */
  passed(pass: Pass): void {
    this.iteration++;
    this.totalWritten += this.dirtyCount;
    this.dirtyCount = -1;
    if (pass.ms > 0) this.rate = (pass.bytes * 1000) / pass.ms;
    const busyMs = pass.ms - pass.idleMs;
    if (busyMs > 0 && pass.bytes > 0) this.#lineRate = (pass.bytes * 1000) / busyMs;
  }

  /** CLEAN has counted. */
  counted(dirtyCount: number): void {
    const at = now();
    const ms = at - this.#countedFrom;
    this.#countedFrom = at;
    this.dirtyCount = dirtyCount;
    if (ms > 0) this.dirtyPagesRate = (dirtyCount * 1000) / ms;
    if (dirtyCount < this.#fewestDirty * PROGRESS_SHARE) {
      this.#fewestDirty = dirtyCount;
      this.stalledPasses = 0;
    } else {
      this.stalledPasses++;
    }
  }

  get expectedDowntime(): number | undefined {
    if (this.dirtyCount < 0 || this.#lineRate === 0) return undefined;
    return (this.dirtyCount * BYTES_PER_PAGE * 1000) / this.#lineRate;
  }

  get stats(): PrecopyStats {
    return {
      iteration: this.iteration,
      totalWritten: this.totalWritten,
      dirtyCount: this.dirtyCount,
      p2mSize: this.#p2mSize,
      rate: this.rate,
      dirtyPagesRate: this.dirtyPagesRate,
      expectedDowntime: this.expectedDowntime,
      stalledPasses: this.stalledPasses,
    };
  }
}

/** The statistics of a pass, for result and listeners. */
export function iterationStats(
  iteration: number,
  dirtyPages: number,
  pass: Pass,
  suspended: boolean,
): IterationStats {
  return {
    iteration,
    dirtyPages,
    sentPages: pass.entries,
    dataPages: pass.dataPages,
    bytes: pass.bytes,
    ms: pass.ms,
    rate: pass.ms > 0 ? (pass.bytes * 1000) / pass.ms : 0,
    suspended,
  };
}

/**
 * Sends memory while the guest runs. Ends with log-dirty on and the guest running; the pages dirtied since the last
 * CLEAN are for the final pass.
 *
 * The policy is asked before and after each pass, as in libxc: before a pass with what CLEAN found, after it with
 * `dirtyCount` −1. `stop-and-copy` before a pass still sends that pass live.
 *
 * Throws CancelledError if the policy wants to abort.
 */
export async function sendMemoryLive(
  context: SaveContext,
  sender: PageSender,
  iterations: IterationStats[],
): Promise<void> {
  const { control, steering } = context;
  await enableLogDirty(context);
  control.throwIfCancelled();

  const policy = context.options.policy ?? limitsPolicy(steering);
  const measured = new Measurements(context.p2mSize);
  const decide = (): PrecopyDecision => {
    if (steering.switchoverWanted) return 'stop-and-copy';
    const decision = callback('policy', () => policy(measured.stats));
    if (decision === 'continue' && measured.iteration >= MAX_PASSES) {
      debug('domain %d: %d passes are enough for any policy', context.domid, MAX_PASSES);
      return 'stop-and-copy';
    }
    return decision;
  };

  for (;;) {
    let decision = decide();
    if (decision === 'abort') throw policyAborted(measured);
    if (measured.dirtyCount > 0) {
      const { iteration, dirtyCount } = measured;
      const pass = await sender.sendDirty(dirtyCount, { throttled: true });
      measured.passed(pass);
      const stats = iterationStats(iteration, dirtyCount, pass, false);
      iterations.push(stats);
      control.iteration(stats);
    } else {
      measured.passed({ entries: 0, dataPages: 0, bytes: 0, ms: 0, idleMs: 0 });
    }
    if (decision !== 'continue') return;

    decision = decide();
    if (decision === 'abort') throw policyAborted(measured);
    if (decision !== 'continue') return;

    measured.counted(await cleanLogDirty(context, false));
    control.note({
      iteration: measured.iteration,
      remaining: measured.dirtyCount,
      dirtyPagesRate: measured.dirtyPagesRate,
      expectedDowntime: measured.expectedDowntime,
    });
  }
}

function policyAborted(measured: Measurements): CancelledError {
  const { iteration, dirtyCount } = measured;
  const dirty = dirtyCount < 0 ? '' : ` with ${dirtyCount} pages dirty`;
  return new CancelledError(`the pre-copy policy aborted the save after ${iteration} passes${dirty}`, {
    phase: 'pre-copy',
  });
}
