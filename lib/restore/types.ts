/** Options and results of a restore; see `startRestore`. */
import type { Job, JobOptions } from '../job.js';
import type { BackendWiring, MissingStaticData, Toolstack } from '../toolstack/toolstack.js';

/** Formats that a restore can read. `auto` tells them apart by their first bytes. */
export type RestoreFormat = 'auto' | 'libxc' | 'libxl' | 'xl';

/** Options of `startRestore`, but for the stream. */
export interface RestoreOptions extends JobOptions {
  readonly format?: RestoreFormat | undefined;
  /** Restore into this empty domain. Default: the toolstack builds one from the configuration. */
  readonly domid?: number | undefined;
  /** Configuration (libxl_domain_config as JSON) to use instead of the xl header's; needed for libxl and libxc streams without `domid`. */
  readonly config?: string | undefined;
  /** Let the guest run when all is in place (default), or leave it paused. */
  readonly run?: boolean | undefined;
  /** Refuse bytes after the end (default: they are left alone; a migration's handshake follows there). */
  readonly refuseTrailing?: boolean | undefined;
  /**
   * What to do when a checkpointed stream (Remus) ends or its peer is lost without an END record, after at least one
   * complete checkpoint. `error` (default): the restore fails, as for any stream that is cut off. `failover`: the guest
   * goes on from the last complete checkpoint. Only say so when the guest does not run at its source any more: nobody
   * here can know, and two running copies destroy the guest's disks. Before the first complete checkpoint a stream
   * that ends is always an error.
   */
  readonly onTruncatedCheckpoint?: 'error' | 'failover' | undefined;
  /**
   * Directory for a checkpoint that is not complete yet, where it is larger than 16 MiB. Default: the system's for
   * temporary files. The file has no name and mode 0600: it holds guest memory.
   */
  readonly spoolDirectory?: string | undefined;
  /** Default: the host's. */
  readonly toolstack?: Toolstack | undefined;
  /** Default: asked from the toolstack. */
  readonly wiring?: BackendWiring | undefined;
}

/** What a successful restore tells. */
export interface RestoreResult {
  readonly domid: number;
  readonly guestType: 'pv' | 'hvm';
  readonly bytes: number;
  /** Pages whose contents were written. */
  readonly pages: number;
  /** Pages that got memory, and how many 2 MiB superpages there are among them. */
  readonly populated: { readonly pages: number; readonly superpages: number };
  /** Complete checkpoints that the guest's state comes from; 0 for a plain stream. */
  readonly checkpoints: number;
  /** True if the stream ended early and the guest was restored to its last complete checkpoint. */
  readonly failedOver: boolean;
  /** Static data that the stream did not carry. */
  readonly missing: MissingStaticData;
  /** Frames of the xenstore and console rings (PV: mfns). */
  readonly storeGfn: number;
  readonly consoleGfn: number;
  /** Pages that differed in a stream with VERIFY; 0 without. At most the first few are listed. */
  readonly verifyMismatches: { readonly count: number; readonly pfns: readonly number[] };
  /** The configuration of the xl header, if there was one. */
  readonly config: string | undefined;
  /** ms. */
  readonly elapsed: number;
}

/** A running restore. It has no limits to change. */
export type RestoreJob = Job<RestoreResult, object>;
