/** The PV part of a simulated domain: the hypervisor's state of it, and whatever kernel is in it. */
import { PageType } from '../../abi/pages.js';
import { LEGACY_MAX_VCPUS, SHARED_INFO, VCPU_CONTEXT, type GuestWidth } from '../../abi/pv.js';
import { GuestError, UsageError } from '../../errors.js';
import { INVALID_FRAME, type VcpuStateKind } from '../host.js';
import { setFrame } from './pv-activity.js';
import { buildGuest } from './pv-build.js';
import { Activity, attachKernel, MAX_P2M_TAIL, type PvKernel, type PvKernelEnv } from './pv-kernel.js';
import { kernelRanges, layoutOf, type PvLayout } from './pv-layout.js';
import { FrameType, PvMmu, type PvMmuDomain } from './pv-mmu.js';
import {
  publishOpaqueP2m,
  resumeOpaque,
  suspendOpaque,
  type OpaqueRings,
  type OpaqueTools,
} from './pv-opaque.js';
import { bumpGeneration, hasKernelMark, resumeKernel, suspendKernel } from './pv-suspend.js';
import type {
  CreatePvDomain,
  FrameRange,
  PvDomain,
  PvDomainCore,
  PvGuestMap,
  PvGuestOptions,
} from './pv-types.js';
import { PvVcpus, readLong, writeLong } from './pv-vcpu.js';
import { refusal } from './refuse.js';

class SimulatedPvDomain implements PvDomain, PvMmuDomain {
  readonly domid: number;
  readonly frames;
  readonly mmu: PvMmu;
  readonly vcpus: PvVcpus;
  readonly #core: PvDomainCore;
  #width: GuestWidth = 8;
  /** The model's kernel while it is up. */
  #kernel: PvKernel | undefined;
  #rings: OpaqueRings | undefined;

  constructor(core: PvDomainCore) {
    this.domid = core.domid;
    this.frames = core.memory;
    this.#core = core;
    this.mmu = new PvMmu(this);
    this.vcpus = new PvVcpus(this, core.maxVcpus);
    // Xen shares the page for writing, once and for all, and it is none of the guest's RAM.
    this.mmu.get(core.sharedInfoMfn, FrameType.WRITABLE);
    core.memory.setType(core.sharedInfoMfn, PageType.XTAB);
  }

  get width(): GuestWidth {
    return this.#width;
  }

  markDirty(pfn: number): void {
    this.#core.markDirty(pfn);
  }

  setWidth(width: GuestWidth): void {
    this.#width = width;
  }

  maxGpfn(): number {
    const page = this.#core.memory.page(this.#core.sharedInfoMfn);
    return Math.max(1, readLong(page, SHARED_INFO[this.#width].maxPfn, this.#width)) - 1;
  }

  vcpuOnline(vcpu: number): boolean {
    return this.vcpus.online(vcpu);
  }

  vcpuState(vcpu: number, kind: VcpuStateKind): Uint8Array {
    return this.vcpus.state(vcpu, kind);
  }

  setVcpuState(vcpu: number, kind: VcpuStateKind, state: Uint8Array): void {
    this.vcpus.set(vcpu, kind, state);
  }

  pinTables(levels: Uint8Array, mfns: Float64Array): void {
    for (let i = 0; i < mfns.length; i++) {
      const level = levels[i] as number;
      const error = this.mmu.pin(mfns[i] as number, level);
      if (error !== 0) throw refusal(`MMUEXT_PIN_L${level}_TABLE`, error, this.mmu.reason, this.domid);
    }
  }

  construct(options: PvGuestOptions): PvGuestMap {
    const tail = options.p2mTail ?? 0;
    if (!(Number.isInteger(tail) && tail >= 0 && tail <= MAX_P2M_TAIL)) {
      throw new UsageError(`p2mTail must be 0…${MAX_P2M_TAIL}, not ${tail}`);
    }
    if (!(options.vcpus >= 1 && options.vcpus <= Math.min(this.#core.maxVcpus, LEGACY_MAX_VCPUS))) {
      throw new UsageError(`a PV guest of this domain cannot have ${options.vcpus} vcpus`);
    }
    const layout = layoutOf({
      width: this.#width,
      pages: options.pages,
      vcpus: options.vcpus,
      p2m: options.p2m,
      unalignedP2m: options.p2m === 'linear' && options.unalignedP2m === true,
      p2mTail: tail,
      seed: options.seed >>> 0,
    });
    this.#kernel = buildGuest(layout, {
      env: this.#env(),
      vcpus: this.vcpus,
      sharedInfoMfn: this.#core.sharedInfoMfn,
      allocate: (frames) => this.#core.allocate(frames),
      storeEvtchn: options.storeEvtchn,
      consoleEvtchn: options.consoleEvtchn,
      activity:
        (options.changesPageTables === false ? 0 : Activity.PAGE_TABLES) |
        (options.changesP2m === true ? Activity.P2M : 0),
    });
    return this.#map(this.#kernel);
  }

  suspend(registers: Uint8Array | undefined): void {
    if (!this.vcpus.isInitialised(0)) {
      throw new GuestError('ERR_XEN_GUEST_CRASHED', `domain ${this.domid} has no vcpu that could suspend`);
    }
    // A guest that was restored and did not run yet is where it left: it comes back and leaves again.
    if (this.#kernel === undefined) this.#enter();
    if (registers !== undefined) this.vcpus.setRegisters(registers);
    if (this.#kernel === undefined) this.#rings = suspendOpaque(this.#opaque());
    else suspendKernel(this.#kernel);
    this.#kernel = undefined;
  }

  resume(how: 'cancelled' | 'restored'): PvGuestMap | undefined {
    if (how === 'cancelled') {
      // What xc_domain_resume does: the hypercall returns 1.
      if (this.#rings === undefined)
        writeLong(this.vcpus.context(0), VCPU_CONTEXT[this.#width].rax, this.#width, 1);
      else resumeOpaque(this.#opaque(), this.#rings);
      this.#rings = undefined;
    }
    this.#enter();
    if (this.#kernel !== undefined) return this.#map(this.#kernel);
    if (how === 'restored') this.#publishOpaque();
    return undefined;
  }

  /** A guest of its own kernel is not run, so it cannot crash of what it would find: its next suspend tells. */
  #publishOpaque(): void {
    try {
      publishOpaqueP2m(this.#opaque());
    } catch (error) {
      if (!(error instanceof GuestError)) throw error;
    }
  }

  registers(): Uint8Array {
    return this.vcpus.registers();
  }

  balloon(pages: number): number[] {
    const kernel = this.#kernel;
    if (kernel === undefined) throw new UsageError(`domain ${this.domid} has no kernel that is up`);
    const { balloon } = kernel.layout;
    const done: number[] = [];
    bumpGeneration(kernel);
    for (let pfn = balloon.first; pfn < balloon.first + balloon.count; pfn++) {
      if (done.length === Math.abs(pages)) break;
      if (kernel.hasRam(pfn) !== pages > 0) continue;
      if (!(pages > 0 ? this.#giveUp(kernel, pfn) : this.#takeBack(kernel, pfn))) break;
      done.push(pfn);
    }
    bumpGeneration(kernel);
    return done;
  }

  #giveUp(kernel: PvKernel, pfn: number): boolean {
    const mfn = kernel.mfn(pfn);
    setFrame(kernel, pfn, INVALID_FRAME);
    kernel.setRam(pfn, false);
    this.#core.release(mfn);
    return true;
  }

  #takeBack(kernel: PvKernel, pfn: number): boolean {
    const frame = Float64Array.of(pfn);
    if (this.#core.allocate(frame) === 0) return false;
    setFrame(kernel, pfn, frame[0] as number);
    kernel.setRam(pfn, true);
    kernel.env.markDirty(pfn);
    return true;
  }

  /** Brings the model's kernel back from its suspend hypercall, if that is what vcpu 0 is in. */
  #enter(): void {
    if (!hasKernelMark(this.vcpus.context(0), this.#width)) return;
    const kernel = attachKernel(this.#env());
    resumeKernel(kernel, this.#core.sharedInfoMfn);
    this.#kernel = kernel;
  }

  #env(): PvKernelEnv {
    return {
      domid: this.domid,
      width: this.#width,
      frames: this.#core.memory,
      contexts: this.vcpus.contexts,
      markDirty: (pfn) => this.#core.markDirty(pfn),
    };
  }

  #opaque(): OpaqueTools {
    const { memory, sharedInfoMfn } = this.#core;
    return {
      env: this.#env(),
      context: this.vcpus.context(0),
      sharedInfoMfn,
      hiddenFrame: () => {
        const frame = new Float64Array(1);
        return memory.allocScattered(this.domid, 1, frame) === 0 ? INVALID_FRAME : (frame[0] as number);
      },
      forEachOwned: (visit) => memory.forEachOwned(this.domid, visit),
    };
  }

  #map(kernel: PvKernel): PvGuestMap {
    const { physmap, layout } = kernel;
    const { contexts } = this.vcpus;
    const memory = this.#core.memory.share();
    const handle = { domid: this.domid, width: this.#width, memory, contexts, physmap };
    return { physmap, free: freeRanges(layout), kernel: handle };
  }
}

/** What lies between the pages that the kernel uses or gave up. */
function freeRanges(layout: PvLayout): FrameRange[] {
  const taken = [...kernelRanges(layout), ...layout.holes].sort((a, b) => a.first - b.first);
  const free: FrameRange[] = [];
  let at = 0;
  for (const { first, count } of taken) {
    if (first > at) free.push({ first: at, count: first - at });
    at = Math.max(at, first + count);
  }
  if (at < layout.pages) free.push({ first: at, count: layout.pages - at });
  return free;
}

export const createPvDomain: CreatePvDomain = (core) => new SimulatedPvDomain(core);
