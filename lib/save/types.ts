/** Options and results of a save; see `startSave`. */
import type { Job, JobOptions } from '../job.js';
import type { DowntimeSplit, IterationStats } from '../progress.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import type { JobBudget } from './throttle.js';

/** What a pre-copy policy is told: libxc's `precopy_stats`, and what a better policy needs. */
export interface PrecopyStats {
  /** Passes finished so far. 0 before the first. */
  readonly iteration: number;
  /** Pages sent in all passes so far. */
  readonly totalWritten: number;
  /** Pages dirty now, or −1 if not known (right after a pass, before CLEAN). */
  readonly dirtyCount: number;
  /** Pages of the guest. */
  readonly p2mSize: number;
  /** Bytes per second of the last pass; 0 before the first. */
  readonly rate: number;
  /** Pages per second that the guest dirtied during the last pass; undefined before the first CLEAN. */
  readonly dirtyPagesRate: number | undefined;
  /** ms that the guest would stand still if it were suspended now, as far as can be told. */
  readonly expectedDowntime: number | undefined;
  /** Passes in a row that did not bring the dirty pages below nine tenths of the fewest that any before them left. */
  readonly stalledPasses: number;
}

/** XGS_POLICY_*: what to do next. */
export type PrecopyDecision = 'continue' | 'stop-and-copy' | 'abort';

/**
 * A pure function of the statistics. Called before and after each pass, as libxc's `precopy_policy` is: after a pass
 * `dirtyCount` is −1, before the next one it is what CLEAN found. `stop-and-copy` before a pass still sends that pass live.
 */
export type PrecopyPolicy = (stats: PrecopyStats) => PrecopyDecision;

/** Limits that may change while a save runs. Undefined members leave the present value. */
export interface SaveLimits {
  /** Most pre-copy passes before stop-and-copy, 1 to 1000. libxc's: 5. */
  readonly maxIterations?: number | undefined;
  /** Stop-and-copy when fewer pages than this are dirty. libxc's: 50. */
  readonly minRemaining?: number | undefined;
  /**
   * Stop-and-copy as soon as the expected downtime (ms) is at most this. No promise: after `maxIterations`, or when
   * further passes no longer help, the guest is suspended all the same. Counts the final pass, not what the guest and
   * the device model take to stop.
   */
  readonly maxDowntimeMs?: number | undefined;
  /** Bytes per second on average; 0 = no limit. Not applied to the final pass of a guest that ran until then. */
  readonly maxBytesPerSecond?: number | undefined;
}

/** Formats that a save can write: a bare libxc stream, with libxl's records around it, with xl's file header before that. */
export type SaveFormat = 'libxc' | 'libxl' | 'xl';

/** Options of `startSave`, but for the target. */
export interface SaveOptions extends JobOptions, SaveLimits {
  readonly domid: number;
  /** Default `xl`. */
  readonly format?: SaveFormat | undefined;
  /** Pre-copy while the guest runs (default), or suspend first. A paused or suspended guest has no pre-copy. */
  readonly live?: boolean | undefined;
  /** Send all pages again after the final pass behind a VERIFY record (libxc's debug flag). Default false. */
  readonly verify?: boolean | undefined;
  /** Replaces the default policy, `xenDefaultPolicy` with the limits above. */
  readonly policy?: PrecopyPolicy | undefined;
  /** Called when pre-copy is over, before the guest is asked to suspend; the job waits for it. */
  readonly beforeSwitchover?: ((signal: AbortSignal) => Promise<void> | void) | undefined;
  /** Time for the guest to acknowledge the request to suspend, where it does, and again to suspend, ms. Default 60 000, libxl's. */
  readonly suspendTimeoutMs?: number | undefined;
  /**
   * Ask the toolstack to suspend also a guest that is suspended already. Default false. libxl stops the device model and
   * keeps its state when it is asked, and has none to send if it is not.
   */
  readonly alwaysAskToSuspend?: boolean | undefined;
  /**
   * What becomes of the guest after a successful save: `destroy` it (default, as xl save does), `resume` it (xl save
   * -c) or leave it `suspended`. After a failed save it always runs on, if it ran before.
   */
  readonly afterwards?: 'destroy' | 'resume' | 'suspended' | undefined;
  /** Text for the xl header instead of the toolstack's own configuration. */
  readonly config?: string | undefined;
  /**
   * What this job shares with others: it waits for a slot first, in phase `queued`, and for its share of the bandwidth
   * during pre-copy.
   */
  readonly budget?: JobBudget | undefined;
  /** Default: the host's. */
  readonly toolstack?: Toolstack | undefined;
}

/** What a successful save tells. */
export interface SaveResult {
  readonly domid: number;
  /** Bytes written. */
  readonly bytes: number;
  /** PAGE_DATA entries with contents, all passes together. */
  readonly pages: number;
  /** PAGE_DATA entries by type nibble name, all passes together. */
  readonly entriesByType: Readonly<Record<string, number>>;
  readonly p2mSize: number;
  readonly iterations: readonly IterationStats[];
  readonly downtime: DowntimeSplit;
  /** ms. */
  readonly elapsed: number;
  /** `now()` when the guest was asked to suspend; lets a migration continue the downtime's clock. */
  readonly suspendRequestedAt: number;
  /** Steps of the clean-up that failed after the image was complete, for instance turning log-dirty off. */
  readonly cleanupErrors: readonly unknown[];
}

/** A running save. */
export interface SaveJob extends Job<SaveResult, SaveLimits> {
  /** Ends pre-copy after the present pass, whatever the policy says. */
  switchover(): void;
}
