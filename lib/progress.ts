/**
 * Progress, in the vocabulary of QEMU's `query-migrate`: one object that is handed to `onProgress`, returned by
 * `job.status` and published on diagnostics channels.
 */

/** What a job is doing now. */
export type JobPhase =
  | 'queued'
  | 'setup'
  | 'static-data'
  | 'pre-copy'
  | 'pre-switchover'
  | 'suspend'
  | 'stop-and-copy'
  | 'verify'
  | 'state'
  | 'memory'
  | 'complete'
  | 'handshake'
  | 'cleanup'
  | 'done';

/** How a job stands. */
export type JobState = 'active' | 'completed' | 'failed' | 'cancelled';

/** One pass over guest memory. */
export interface IterationStats {
  /** 0 is the first pass over all memory. */
  readonly iteration: number;
  /** Pages that were to be sent. */
  readonly dirtyPages: number;
  /** PAGE_DATA entries sent. */
  readonly sentPages: number;
  /** Those of them that carried page contents; the others are holes in the guest's memory. */
  readonly dataPages: number;
  readonly bytes: number;
  readonly ms: number;
  /** Bytes per second of this pass. */
  readonly rate: number;
  /** True for the pass made while the guest was suspended. */
  readonly suspended: boolean;
}

/** A snapshot. Sizes in bytes, times in ms, rates per second. */
export interface Progress {
  readonly operation: 'save' | 'restore' | 'migrate' | 'receive' | 'convert';
  readonly state: JobState;
  readonly phase: JobPhase;
  readonly domid: number | undefined;
  readonly iteration: number;
  /** Bytes written to (or read from) the stream. */
  readonly transferred: number;
  /** Pages that this pass still has to send; undefined where it cannot be known (restore). */
  readonly remaining: number | undefined;
  /** Pages of the whole guest (its p2m size). */
  readonly total: number | undefined;
  /** PAGE_DATA entries that carried page contents, so far. */
  readonly pages: number;
  /** Bytes per second, over the last second or so. */
  readonly rate: number;
  /** Pages per second that the guest dirtied during the pass before; undefined before the first CLEAN. */
  readonly dirtyPagesRate: number | undefined;
  /** Time that the guest would stand still if it were suspended now; undefined until it can be estimated. */
  readonly expectedDowntime: number | undefined;
  /** ms since the job started. */
  readonly elapsed: number;
}

/** How the time in which the guest stood still was spent, in ms. */
export interface DowntimeSplit {
  /** Asking the guest until it was suspended. The guest runs for part of it. */
  readonly suspend: number;
  /** Last CLEAN and the pages it found. */
  readonly finalPass: number;
  /** Vcpu, HVM and TSC state, and END. */
  readonly state: number;
  /** Device model records. */
  readonly deviceModel: number;
  /** From the last byte sent until the destination said that the guest runs; 0 for a save. */
  readonly handover: number;
  /** From the suspend request to the end. */
  readonly total: number;
}
