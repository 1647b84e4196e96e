/** What the steps of one save share. */
import { Bitmap } from '../bytes/bitmap.js';
import { GuestError } from '../errors.js';
import type { Domain, DomainInfo, Host } from '../host/host.js';
import type { JobControl } from '../job.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import { SaveErrorCode } from './codes.js';
import type { SaveOps } from './ops.js';
import type { SaveSteering } from './steering.js';
import type { SaveOptions } from './types.js';
import type { RecordWriter } from './writer.js';

/** Frames that bitmaps can count: 16 TiB of guest. */
const MAX_P2M_SIZE = 2 ** 32;

/** Everything that is known when a save begins. */
export interface SaveBasics {
  readonly control: JobControl;
  readonly host: Host;
  readonly toolstack: Toolstack;
  readonly domain: Domain;
  /** The domain as it was found. */
  readonly info: DomainInfo;
  readonly out: RecordWriter;
  readonly options: SaveOptions;
  readonly steering: SaveSteering;
  /** Makes the steps for this kind of guest. */
  readonly makeOps: (context: SaveContext) => SaveOps;
}

/** The state of one save: bitmaps, and what the guest is known to do. */
export class SaveContext {
  readonly control: JobControl;
  readonly host: Host;
  readonly toolstack: Toolstack;
  readonly domain: Domain;
  readonly info: DomainInfo;
  readonly out: RecordWriter;
  readonly options: SaveOptions;
  readonly steering: SaveSteering;
  readonly ops: SaveOps;
  /** Pre-copy while the guest runs. */
  readonly live: boolean;
  /** The hypervisor confirmed that the guest is suspended: from now on its memory stands still. */
  guestSuspended = false;
  /** Number of pfns that are sent. */
  p2mSize = 0;
  /** Pages that the present pass has to send. */
  dirty = new Bitmap(0);
  /** Pages that could not be sent while the guest ran, and must be in the final pass. */
  deferred = new Bitmap(0);
  #deferredCount = 0;

  constructor(basics: SaveBasics) {
    this.control = basics.control;
    this.host = basics.host;
    this.toolstack = basics.toolstack;
    this.domain = basics.domain;
    this.info = basics.info;
    this.out = basics.out;
    this.options = basics.options;
    this.steering = basics.steering;
    // A guest that stands still anyway gains nothing by pre-copy.
    const { shutdown, paused } = basics.info;
    this.live = (basics.options.live ?? true) && !shutdown && !paused;
    this.ops = basics.makeOps(this);
  }

  get domid(): number {
    return this.domain.domid;
  }

  /** Makes the bitmaps, all pages dirty. Throws GuestError for a guest larger than they can be. */
  allocateBitmaps(p2mSize: number): void {
    if (p2mSize > MAX_P2M_SIZE) {
      throw new GuestError(
        SaveErrorCode.TOO_BIG,
        `the guest has frames up to 0x${(p2mSize - 1).toString(16)}`,
      );
    }
    this.p2mSize = p2mSize;
    this.dirty = new Bitmap(p2mSize);
    this.dirty.fill();
    this.deferred = new Bitmap(p2mSize);
  }

  /** Number of deferred pages. */
  get deferredCount(): number {
    return this.#deferredCount;
  }

  /** Notes a page for the final pass. */
  defer(pfn: number): void {
    if (this.deferred.has(pfn)) return;
    this.deferred.set(pfn);
    this.#deferredCount++;
  }

  /** Forgets the deferred pages: the final pass has sent them. */
  forgetDeferred(): void {
    if (this.#deferredCount === 0) return;
    this.deferred.reset();
    this.#deferredCount = 0;
  }
}
