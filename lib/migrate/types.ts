/** Options and results of a migration's two ends; see `startMigrate` and `startReceive`. */
import type { Duplex } from 'node:stream';
import type { Job } from '../job.js';
import type { RestoreOptions, RestoreResult } from '../restore/types.js';
import type { JobBudget } from '../save/throttle.js';
import type { SaveLimits, SaveOptions, SaveResult } from '../save/types.js';
import type { Reconnect } from './opening.js';
import type { MigrationOffer } from './frames.js';
import type { MigrationProtocol } from './open-wire.js';

export type { MigrationOffer } from './frames.js';

/**
 * How long each phase may take, in ms. `Infinity` sets no limit. What runs out rejects with a TimeoutError whose
 * `phase` is the member's name without `Ms`.
 */
export interface MigrationTimeouts {
  /** Until the peer given is connected. Default 10 000. */
  readonly connectMs?: number | undefined;
  /**
   * Until the peer has said who it is. Sender: until the greeting, which is after the login if ssh starts the receiver,
   * and from there to READY, each (default 60 000). Receiver: until HELLO (default 10 000).
   */
  readonly helloMs?: number | undefined;
  /** From READY until memory begins to move, the building of the domain included. Default 60 000. */
  readonly setupMs?: number | undefined;
  /**
   * Without a byte moving though one should: the sender's while it has something to write (default 60 000), the
   * receiver's while it has something to read (default 180 000, since a sender is silent while its guest suspends and
   * while its `beforeSwitchover` runs).
   */
  readonly stallMs?: number | undefined;
  /**
   * The handover. Sender: from the stream's end to RESTORED, and from YOURS to RUNNING, each (default 60 000). Receiver:
   * from RESTORED to YOURS (default 30 000; keep it below the sender's, who then still hears that the receiver gave up).
   */
  readonly switchoverMs?: number | undefined;
  /** Receiver: from RUNNING until the sender says that its copy is gone. Running out is no error. Default 30 000. */
  readonly releaseMs?: number | undefined;
  /**
   * Sender: how long the destination is asked again, over `reconnect`, what became of a guest whose RUNNING did not come.
   * Default 60 000.
   */
  readonly resolveMs?: number | undefined;
  /** The whole migration up to the commit point, which nothing that comes later can undo. Default Infinity. */
  readonly totalMs?: number | undefined;
}

/** Options of `startMigrate`. `suspendTimeoutMs` belongs to the phase `suspend`. */
export interface MigrateOptions extends Omit<SaveOptions, 'format' | 'afterwards'> {
  /**
   * The connection to a receiver, of this library or `xl migrate-receive`: a net.Socket, tls.TLSSocket, what `connectPeer`
   * gives, or any Duplex of bytes, connected or connecting. Owned from now on: destroyed when the job is over.
   *
   * Or a function that opens one, called when the job begins, after it had to wait for its `budget`; it also serves as
   * `reconnect`.
   */
  readonly peer: Duplex | Reconnect;
  /** What the receiver speaks. Default `auto`: what it greets with. */
  readonly protocol?: MigrationProtocol | 'auto' | undefined;
  /**
   * A promise: if the receiver is xl, it was started as `xl migrate-receive -p`, which leaves the guest paused. xl cannot be
   * told by word, and would run it; so without this promise a guest that is paused is not sent to xl. Receivers of this
   * library are told what the guest was. Default false.
   */
  readonly peerLeavesPaused?: boolean | undefined;
  /**
   * The migration's id, a UUID in lower case. Default: a new one. The destination refuses one of which a migration is still
   * open there (`ERR_XEN_MIGRATION_KNOWN`).
   */
  readonly id?: string | undefined;
  /**
   * Compressions of the stream, best first, of which the receiver chooses the first that it has: `gzip`, `brotli`, `zstd`.
   * Default none.
   */
  readonly compression?: readonly string[] | undefined;
  /**
   * Opens another connection to the same destination, to ask what became of the guest if the connection is lost after
   * YOURS. Without it, and with a `peer` that is no function, such a migration ends with `ERR_XEN_HANDOVER_UNKNOWN` at once.
   */
  readonly reconnect?: Reconnect | undefined;
  /** Where `reconnect` goes, as `recover` is to be told it if this process dies: an address of `connectPeer`. */
  readonly reconnectTo?: string | undefined;
  readonly timeouts?: MigrationTimeouts | undefined;
}

/** What a successful migration tells the sender. */
export interface MigrateResult extends SaveResult {
  readonly id: string;
  /** The guest's domid at the destination; undefined if that does not say, as xl. */
  readonly peerDomid: number | undefined;
  /** What it does there: `paused` if it was paused here, or the receiver wants it so; of xl as `peerLeavesPaused` says. */
  readonly peerState: 'running' | 'paused';
  /** Name and version of the receiver's software. */
  readonly peerSoftware: string;
}

/** A running migration, at its source. `cancel` has no effect after the commit point. */
export interface MigrateJob extends Job<MigrateResult, SaveLimits> {
  /** Ends pre-copy after the present pass, whatever the policy says. */
  switchover(): void;
}

/** Options of `startReceive`. The guest's configuration comes with the stream unless `config` replaces it. */
export interface ReceiveOptions extends Omit<
  RestoreOptions,
  'format' | 'domid' | 'run' | 'refuseTrailing' | 'onTruncatedCheckpoint'
> {
  /** The connection to a sender: any Duplex of bytes. Owned from now on: destroyed when the job is over. */
  readonly from: Duplex;
  /** What is spoken: `xl` for a sender that is `xl migrate`. Default: this library's own protocol. */
  readonly protocol?: MigrationProtocol | undefined;
  /**
   * Who builds the guest: `own`, this library; `xl`, stock `xl restore` with this package's save helper under it; `auto`
   * (default), xl for guests that only libxl's tools can build (disks, network interfaces, HVM), on a host that has Xen.
   */
  readonly builder?: 'auto' | 'own' | 'xl' | undefined;
  /**
   * Leaves the guest paused, whatever it was at the source (as `xl migrate -p`, which a sender that is xl says by no word).
   * Default false: as it was.
   */
  readonly paused?: boolean | undefined;
  /** Compressions that the stream may come in. Default: all that this Node has. */
  readonly compression?: readonly string[] | undefined;
  /**
   * Looks at what is offered, before anything is built. To refuse, throw: the sender gets the message, and
   * `result` rejects with `ERR_XEN_NOT_ACCEPTED` (or what was thrown, if it is an error of this library). The time that
   * it takes counts for the sender's `hello`.
   */
  readonly accept?: ((offer: MigrationOffer, signal: AbortSignal) => Promise<void> | void) | undefined;
  /** What this job shares with others: its slots. The sender's time for READY runs while this job waits for one. */
  readonly budget?: JobBudget | undefined;
  readonly timeouts?: MigrationTimeouts | undefined;
}

/** What a successful migration tells the receiver. */
export interface ReceiveResult extends RestoreResult {
  readonly id: string;
  readonly offer: MigrationOffer;
  /** `paused` if the guest was paused at the source, or the options say so. */
  readonly state: 'running' | 'paused';
  /**
   * True: the sender has said that its copy is gone. False: it did not say so in time, or the connection broke after
   * the guest had been started here; then a suspended copy may be left there, which must be destroyed and never resumed.
   */
  readonly sourceReleased: boolean;
  /** The guest's name, if it could not be given it because another guest here has it: it is NAME--incoming then. */
  readonly nameTaken: string | undefined;
}

/** A running migration, at its destination. `cancel` has no effect after the commit point. */
export type ReceiveJob = Job<ReceiveResult, object>;
