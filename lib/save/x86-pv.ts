/** Saving PV guests (xg_sr_save_x86_pv.c). */
import { PAGE_SIZE } from '../abi/pages.js';
import { SHARED_INFO, type GuestWidth, type SharedInfoLayout } from '../abi/pv.js';
import { u32, u64 } from '../bytes/le.js';
import { debug } from '../debug.js';
import { GuestError, UsageError } from '../errors.js';
import { INVALID_FRAME, type MachineToPhys, type PageMapping } from '../host/host.js';
import { pageView } from '../host/pages.js';
import { DomainType, LibxcRecord } from '../stream/libxc/constants.js';
import { encodeSharedInfo, encodeX86PvInfo, encodeX86PvP2mFrames } from '../stream/libxc/pv.js';
import { SaveErrorCode } from './codes.js';
import type { SaveContext } from './context.js';
import { mapGuestFrames, p2mError } from './guest-frames.js';
import { normalisePageTable } from './normalise.js';
import type { Normalised, SaveOps } from './ops.js';
import { checkP2mSize, P2m } from './p2m.js';
import { walkLinearP2m, type P2mFrames } from './p2m-linear.js';
import { walkTreeP2m } from './p2m-tree.js';
import { sleep } from './throttle.js';
import { writeVcpus } from './vcpus.js';
import { writeCpuPolicy, writeTscInfo } from './x86-common.js';

/** Most frames that X86_PV_P2M_FRAMES can speak of. */
const MAX_FRAMES = 2 ** 32;

/** How often, and how long apart (ms), a p2m is followed again that the guest changed meanwhile. */
const WALKS = 5;
const WALK_PAUSE_MS = 10;

/** What shared info said when the p2m was followed; each field read once, since the guest may write them. */
interface P2mAnchor {
  readonly maxPfn: number;
  readonly cr3: bigint;
  readonly vaddr: bigint;
  readonly generation: bigint;
  readonly frameListList: number;
}

/** What `setup` acquires. */
interface PvGuest {
  readonly width: GuestWidth;
  readonly m2p: MachineToPhys;
  readonly p2m: P2m;
  /** pfns of the p2m's frames. */
  readonly leafPfns: Float64Array;
  readonly anchor: P2mAnchor;
}

export class PvSaveOps implements SaveOps {
  readonly domainType = DomainType.X86_PV;
  readonly guestType = 'pv';
  readonly #context: SaveContext;
  #m2p: MachineToPhys | undefined;
  #sharedInfoMapping: PageMapping | undefined;
  #sharedInfo: Uint8Array | undefined;
  #layout: SharedInfoLayout = SHARED_INFO[8];
  #width: GuestWidth = 8;
  #present: PvGuest | undefined;

  constructor(context: SaveContext) {
    this.#context = context;
  }

  get #guest(): PvGuest {
    if (this.#present === undefined) throw new UsageError('the PV guest has not been set up');
    return this.#present;
  }

  async setup(): Promise<number> {
    const { control, domain, host, info } = this.#context;
    const width: number = await domain.guestWidth();
    control.throwIfCancelled();
    if (width !== 4 && width !== 8) throw p2mError(`guest width of ${width} bytes`);
    this.#width = width;
    this.#layout = SHARED_INFO[width];
    const m2p = await host.mapMachineToPhys();
    this.#m2p = m2p;
    control.throwIfCancelled();
    // Stays mapped until the end: its page is sent as it is then.
    const frame = Float64Array.of(info.sharedInfoFrame);
    this.#sharedInfoMapping = await mapGuestFrames(domain, frame, 'shared info');
    this.#sharedInfo = pageView(this.#sharedInfoMapping, 0);
    control.throwIfCancelled();

    const opened = await this.#openP2m(m2p);
    this.#present = { width, m2p, ...opened };
    return opened.p2m.maxPfn + 1;
  }

  async staticData(): Promise<void> {
    const { width } = this.#guest;
    await this.#context.out.record(LibxcRecord.X86_PV_INFO, encodeX86PvInfo({ guestWidth: width }));
    await writeCpuPolicy(this.#context);
  }

  async startOfStream(): Promise<void> {
    const { p2m, leafPfns } = this.#guest;
    const body = encodeX86PvP2mFrames({ startPfn: 0, endPfn: p2m.maxPfn, frames: leafPfns });
    await this.#context.out.record(LibxcRecord.X86_PV_P2M_FRAMES, body);
  }

  async startOfCheckpoint(): Promise<void> {
    // Nothing to do.
  }

  async endOfCheckpoint(): Promise<void> {
    const context = this.#context;
    const { width, p2m } = this.#guest;
    await writeTscInfo(context);
    // A copy: the mapping may be gone before the last byte of a view of it is.
    const page = (this.#sharedInfo ?? new Uint8Array(PAGE_SIZE)).slice();
    await context.out.record(LibxcRecord.SHARED_INFO, encodeSharedInfo(page));
    await writeVcpus(context, width, (mfn) => p2m.pfnOf(mfn));
  }

  /**
   * A p2m frame that the guest replaced since it was mapped would be sent with stale contents. Kernels with a linear
   * p2m count such changes; for a tree, the frames are compared once the guest stands still.
   */
  async checkVmState(): Promise<void> {
    const { anchor, p2m, m2p } = this.#guest;
    const present = this.#readAnchor();
    const linear = anchor.cr3 !== 0n;
    if (linear !== (present.cr3 !== 0n)) throw p2mChanged('its kind');
    if (linear) {
      if (present.generation !== anchor.generation) throw p2mChanged('its generation count');
      return;
    }
    if (!this.#context.guestSuspended) return;
    if (present.maxPfn !== anchor.maxPfn) throw p2mChanged('its size');
    const { maxPfn, leaves } = await this.#walk(present, m2p.maxMfn);
    this.#context.control.throwIfCancelled();
    if (maxPfn !== p2m.maxPfn || leaves.some((mfn, i) => mfn !== p2m.leaves[i]))
      throw p2mChanged('its frames');
  }

  pfnsToGfns(pfns: Float64Array, count: number, gfns: Float64Array): void {
    const { p2m } = this.#guest;
    const { maxMfn } = p2m;
    for (let i = 0; i < count; i++) {
      const pfn = pfns[i] as number;
      const mfn = p2m.mfnOf(pfn);
      // Ballooned out, or the guest is just exchanging the frame. In the final pass it is the former.
      if (mfn === INVALID_FRAME) this.#context.defer(pfn);
      gfns[i] = mfn > maxMfn ? INVALID_FRAME : mfn;
    }
  }

  normalisePage(
    pfn: number,
    level: number,
    page: Uint32Array,
    at: number,
    out: Uint32Array,
    outAt: number,
  ): Normalised {
    const { p2m } = this.#guest;
    return normalisePageTable(p2m, pfn, level, page, at, out, outAt, this.#context.guestSuspended);
  }

  async cleanup(): Promise<void> {
    this.#present?.p2m.release();
    this.#present = undefined;
    this.#sharedInfoMapping?.release();
    this.#sharedInfoMapping = undefined;
    this.#sharedInfo = undefined;
    this.#m2p?.release();
    this.#m2p = undefined;
  }

  /**
   * Follows and maps the p2m. An odd generation says that the guest is changing it just now, another one afterwards
   * that it did; then once more, since nothing has been sent yet.
   */
  async #openP2m(m2p: MachineToPhys): Promise<Pick<PvGuest, 'anchor' | 'p2m' | 'leafPfns'>> {
    const { control, domain } = this.#context;
    let problem: unknown = p2mChanged('its generation count');
    for (let walk = 0; walk < WALKS; walk++) {
      if (walk > 0) {
        await sleep(WALK_PAUSE_MS, control.signal);
        control.throwIfCancelled();
      }
      const anchor = this.#readAnchor();
      if ((anchor.generation & 1n) !== 0n) continue;
      let p2m: P2m | undefined;
      try {
        const frames = await this.#walk(anchor, m2p.maxMfn);
        control.throwIfCancelled();
        p2m = await P2m.open(domain, this.#width, frames, m2p);
        control.throwIfCancelled();
        // While somebody changes it, a p2m may look broken.
        const leafPfns = p2m.leafPfns();
        if (this.#readAnchor().generation === anchor.generation) return { anchor, p2m, leafPfns };
      } catch (error) {
        p2m?.release();
        if (this.#readAnchor().generation === anchor.generation) throw error;
        problem = error;
        continue;
      }
      p2m.release();
    }
    debug('domain %d: gave up following its p2m: %O', this.#context.domid, problem);
    throw p2mChanged('its generation count, again and again');
  }

  async #walk(anchor: P2mAnchor, maxMfn: number): Promise<P2mFrames> {
    const { domain, info } = this.#context;
    const width = this.#width;
    const limit = (maxPfn: number): void => {
      checkP2mSize(maxPfn, width, info);
    };
    return anchor.cr3 === 0n
      ? walkTreeP2m(domain, width, maxMfn, anchor.maxPfn, limit, anchor.frameListList)
      : walkLinearP2m(domain, width, maxMfn, anchor.maxPfn, limit, anchor);
  }

  #readAnchor(): P2mAnchor {
    const bytes = this.#sharedInfo;
    if (bytes === undefined) throw new UsageError('the PV guest has not been set up');
    const layout = this.#layout;
    const read = (at: number): bigint => (this.#width === 8 ? u64(bytes, at) : BigInt(u32(bytes, at)));
    const frames = read(layout.maxPfn);
    if (frames < 1n || frames > BigInt(MAX_FRAMES)) {
      const reason = `shared_info.arch.max_pfn is 0x${frames.toString(16)}`;
      if (frames < 1n) throw p2mError(reason);
      throw new GuestError(SaveErrorCode.TOO_BIG, reason);
    }
    const cr3 = read(layout.p2mCr3);
    return {
      maxPfn: Number(frames) - 1,
      cr3,
      vaddr: read(layout.p2mVaddr),
      // Kernels with a tree know nothing of this field.
      generation: cr3 === 0n ? 0n : read(layout.p2mGeneration),
      frameListList: Number(read(layout.frameListList)),
    };
  }
}

function p2mChanged(what: string): GuestError {
  return new GuestError(
    SaveErrorCode.P2M_CHANGED,
    `the guest changed its p2m (${what}): it cannot be saved now`,
  );
}
