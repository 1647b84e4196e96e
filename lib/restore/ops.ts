/**
 * `RestoreOps`: what differs between kinds of guest in a restore. The algorithm (receiver.ts) is the same for all; one
 * object of this kind stands behind it for x86 PV, another for x86 HVM and PVH.
 */
import type { Domain, DomainInfo } from '../host/host.js';
import type { PageDataEvent, RecordEvent } from '../stream/events.js';
import type { BackendWiring, MissingStaticData } from '../toolstack/toolstack.js';

/** What the operations of every kind of guest work on. */
export interface RestoreContext {
  readonly domain: Domain;
  /** As it was when the restore began: empty. */
  readonly info: DomainInfo;
  readonly wiring: BackendWiring;
  readonly populator: PopulatorPort;
}

/** What guest-type operations may ask of populate.ts. */
export interface PopulatorPort {
  /** True if the domain has memory at this pfn. */
  has(pfn: number): boolean;
  /** Gives memory to the first `count` of `pfns` that have none. `offset`: of the record that asks for it, for errors. */
  populate(pfns: Float64Array, count: number, types: Uint8Array | undefined, offset: number): Promise<void>;
  /** The same for the table of a record. Undefined if there is nothing to wait for. */
  populateTable(table: PageTypes, offset: number): Promise<void> | undefined;
}

/** The table of a PAGE_DATA record: the first `count` of both arrays. `run` as in PageDataEvent. */
export type PageTypes = Pick<PageDataEvent, 'pfns' | 'types' | 'count' | 'run'>;

/** Frames of the rings that the toolstack is told, INVALID_FRAME where the guest has none. */
export interface RingFrames {
  readonly storeGfn: number;
  readonly consoleGfn: number;
}

/**
 * Every method is called on every restore as described, also where a kind of guest has nothing to do there. A throw of
 * any method ends the restore; `cleanup` follows, and the domain is given up.
 */
export interface RestoreOps {
  readonly guestType: 'pv' | 'hvm';

  /** Once, after the stream's headers, before any other. Opens what the others need. */
  setup(): Promise<void>;

  /** Highest pfn that an entry of a PAGE_DATA record may have at this moment. */
  readonly maxPfn: number;
  /** Writes the gfns of the first `count` pfns to `gfns`: INVALID_FRAME for those without memory. Of a valid table. */
  pfnsToGfns(pfns: Float64Array, count: number, gfns: Float64Array): void;
  /** For pfns that got memory: `gfns` is what the hypervisor gave for them. Throws if that cannot be. */
  setGfns(pfns: Float64Array, gfns: Float64Array, count: number): void;
  /** As `setGfns`, for `count` pfns and gfns that follow each other. */
  setGfnRun(pfn: number, gfn: number, count: number): void;
  /** For each PAGE_DATA record, after memory was populated for it. */
  setPageTypes(table: PageTypes): void;
  /**
   * True if pages of this type hold frame numbers: then `collectReferences` and `localisePage` are called for each of
   * them, once all its bytes are in place.
   */
  holdsFrames(type: number): boolean;

  /**
   * Checks a page of 1024 words at `words[at]` and writes the pfns it refers to that have no memory yet to `out`
   * (512 places). Returns how many, or −1 − n if entry n cannot be.
   */
  collectReferences(type: number, words: Uint32Array, at: number, out: Float64Array): number;

  /** Rewrites the pfns in a page to frames of this host, in place. All of them have memory by then. */
  localisePage(type: number, words: Uint32Array, at: number): void;

  /**
   * For each record that is not common to all guests. Resolves to false if the record is not one that this kind of
   * guest can have. A record may come again in a checkpointed stream: the later one counts.
   */
  processRecord(record: RecordEvent): Promise<boolean>;

  /** Once, at STATIC_DATA_END or where it is inferred. Applies the CPU policy; resolves to what was not there. */
  staticDataComplete(): Promise<MissingStaticData>;

  /** Once, after the last page: puts the stashed state into the domain. `offset`: of the record that ended the stream. */
  streamComplete(offset: number): Promise<RingFrames>;

  /** Once, if `setup` was called, whatever happened since. Must not need the domain. */
  cleanup(): Promise<void>;
}
