/** Checks of a PV guest's records. */

import { cr3ToFrame, GDT_ENTS_PER_FRAME, MAX_GDT_ENTS, VCPU_CONTEXT, type GuestWidth } from '../../abi/pv.js';
import { u32, u64, u64n } from '../../bytes/le.js';
import type { StreamPlace } from '../../errors.js';
import { StreamErrorCode } from '../codes.js';
import type { RecordEvent } from '../events.js';
import { LibxcRecord, PV_INFO_SIZE, VCPU_HEAD_SIZE, VCPU_MSR_SIZE } from '../libxc/constants.js';
import {
  decodeX86PvInfo,
  decodeX86PvP2mFrames,
  decodeX86PvVcpu,
  vcpuExtendedHead,
  type X86PvVcpuType,
} from '../libxc/pv.js';
import { attempt, checkReserved, placeIn, type VerifyContext } from './context.js';
import type { FindingList } from './report.js';

/** Vcpus that Xen gives a PV guest at most (MAX_VIRT_CPUS). */
const PV_VCPUS_MAX = 8192;

/** A frame of a vcpu that must lie within the p2m, which may still grow after it. */
export interface VcpuFrame {
  readonly offset: number;
  readonly path: string;
  readonly pfn: number;
}

/**
 * Frames that a receiver looks up in a vcpu's basic state: vcpu 0's start_info, the GDT's, those of the page-table bases.
 * Reports a GDT that is too large.
 *
 * @param place of the state
 */
export function vcpuFrames(
  findings: FindingList,
  place: StreamPlace,
  width: GuestWidth,
  vcpuId: number,
  blob: Uint8Array,
): readonly VcpuFrame[] {
  const layout = VCPU_CONTEXT[width];
  if (blob.length !== layout.size) return [];
  const name = place.path === undefined ? '' : `${place.path}.`;
  const frames: VcpuFrame[] = [];
  const word = (at: number): number => (width === 8 ? u64n(blob, at) : u32(blob, at));
  const add = (field: string, at: number, pfn: number): void => {
    frames.push({ offset: place.offset + at, path: `${name}${field}`, pfn });
  };
  if (vcpuId === 0) add(width === 8 ? 'user_regs.rdx' : 'user_regs.edx', layout.rdx, word(layout.rdx));
  const ents = word(layout.gdtEnts);
  if (ents > MAX_GDT_ENTS) {
    const { record } = place;
    const where = { offset: place.offset + layout.gdtEnts, record, path: `${name}gdt_ents` };
    findings.error(StreamErrorCode.FIELD, where, `${ents} GDT entries, at most ${MAX_GDT_ENTS}`);
  } else {
    for (let i = 0; i < Math.ceil(ents / GDT_ENTS_PER_FRAME); i++) {
      const at = layout.gdtFrames + i * width;
      add(`gdt_frames[${i}]`, at, word(at));
    }
  }
  const base = (n: number): bigint =>
    width === 8 ? u64(blob, layout.ctrlreg + 8 * n) : BigInt(u32(blob, layout.ctrlreg + 4 * n));
  add('ctrlreg[3]', layout.ctrlreg + 3 * width, cr3ToFrame(base(3), width));
  // A 64-bit guest's user page tables; bit 0 says that there are some.
  if (width === 8 && (base(1) & 1n) === 1n) {
    add('ctrlreg[1]', layout.ctrlreg + width, cr3ToFrame(base(1), width));
  }
  return frames;
}

/** Follows what a PV stream says of its guest beside pages. */
export class PvChecker {
  readonly #context: VerifyContext;
  #hadInfo = false;
  #hadSharedInfo = false;
  #hadP2mFrames = false;
  #maxPfn: number | undefined;
  /** Pfns up to this one have p2m frames, without a gap. */
  #coveredTo = -1;
  #gap = false;
  /** The highest frame of the p2m itself. */
  #highest: VcpuFrame | undefined;
  /** By vcpu: frames of its basic state. */
  readonly #basic = new Map<number, readonly VcpuFrame[]>();
  /** By vcpu: the first of its other records. */
  readonly #others = new Map<number, RecordEvent>();

  constructor(context: VerifyContext) {
    this.#context = context;
  }

  /** True once pfns can be checked against the p2m. */
  get hasP2m(): boolean {
    return this.#hadP2mFrames;
  }

  /** Highest pfn that can be right; Infinity while nothing is known. */
  get maxPfn(): number {
    return this.#maxPfn ?? Infinity;
  }

  /** `whole`: its length is right. One that was sent badly counts as sent: one finding is enough. */
  info(event: RecordEvent, whole: boolean): void {
    const { findings, summary } = this.#context;
    if (this.#hadInfo) findings.error(StreamErrorCode.DUPLICATE, placeIn(event), 'a second X86_PV_INFO');
    this.#hadInfo = true;
    if (!whole) return;
    if (event.body.length !== PV_INFO_SIZE) {
      const message = `length ${event.body.length}, expected ${PV_INFO_SIZE}`;
      findings.error(StreamErrorCode.LENGTH, placeIn(event, 'length', -4), message);
    }
    const info = attempt(findings, () => decodeX86PvInfo(event.body, event));
    if (info === undefined) return;
    summary.guestWidth ??= info.guestWidth;
    checkReserved(findings, event, info.reserved ?? 0, 2);
  }

  p2mFrames(event: RecordEvent, whole: boolean): void {
    const { findings, summary } = this.#context;
    this.#needInfo(event);
    this.#hadP2mFrames = true;
    if (!whole) return;
    const p2m = attempt(findings, () => decodeX86PvP2mFrames(event.body, event, summary.guestWidth));
    if (p2m === undefined) return;
    summary.maxPfn = this.#maxPfn = Math.max(this.#maxPfn ?? 0, p2m.endPfn);
    if (p2m.startPfn > this.#coveredTo + 1) this.#gap = true;
    this.#coveredTo = Math.max(this.#coveredTo, p2m.endPfn);
    let highest = 0;
    p2m.frames.forEach((pfn, i) => {
      if (pfn > (p2m.frames[highest] as number)) highest = i;
    });
    const pfn = p2m.frames[highest] as number;
    if (pfn > (this.#highest?.pfn ?? -1)) {
      this.#highest = {
        ...placeIn(event, `frames[${highest}]`, 8 + 8 * highest),
        path: `frames[${highest}]`,
        pfn,
      };
    }
  }

  sharedInfo(event: RecordEvent): void {
    this.#needInfo(event);
    this.#hadSharedInfo = true;
  }

  vcpu(event: RecordEvent, whole: boolean): void {
    const { findings, summary } = this.#context;
    const type = event.type as X86PvVcpuType;
    if (type === LibxcRecord.X86_PV_VCPU_BASIC) this.#needInfo(event);
    const vcpu = whole
      ? attempt(findings, () => decodeX86PvVcpu(type, event.body, event, summary.guestWidth))
      : undefined;
    if (vcpu === undefined) {
      const id = event.body.length >= 4 ? u32(event.body, 0) : Infinity;
      if (type === LibxcRecord.X86_PV_VCPU_BASIC && id < PV_VCPUS_MAX) this.#basic.set(id, []);
      return;
    }
    const { vcpuId, blob } = vcpu;
    checkReserved(findings, event, vcpu.reserved ?? 0, 4);
    if (vcpuId >= PV_VCPUS_MAX) {
      const message = `vcpu ${vcpuId}: a PV guest has at most ${PV_VCPUS_MAX}`;
      findings.error(StreamErrorCode.FIELD, placeIn(event, 'vcpuId', 0), message);
      return;
    }
    if (blob.length === 0) {
      const message = `no state for vcpu ${vcpuId}, as senders of Xen 4.6 to 4.8 wrote it; receivers skip it`;
      findings.warning(StreamErrorCode.LENGTH, placeIn(event, 'length', -4), message);
      return;
    }
    if (type === LibxcRecord.X86_PV_VCPU_BASIC) {
      this.#basic.set(vcpuId, this.#framesOf(event, vcpuId, blob));
      summary.vcpus = this.#basic.size;
      return;
    }
    if (!this.#others.has(vcpuId)) this.#others.set(vcpuId, event);
    if (type === LibxcRecord.X86_PV_VCPU_EXTENDED) this.#extended(event, vcpuId, blob);
    else if (type === LibxcRecord.X86_PV_VCPU_MSRS) this.#msrs(event, blob);
  }

  /** What must be there when the guest is first complete: at the first CHECKPOINT or at END. */
  finish(event: RecordEvent): void {
    const missing = (message: string): void => {
      this.#context.findings.error(StreamErrorCode.MISSING, placeIn(event), message);
    };
    if (!this.#hadInfo) missing('no X86_PV_INFO before it');
    if (!this.#hadP2mFrames) missing('no X86_PV_P2M_FRAMES before it');
    if (!this.#hadSharedInfo) missing('no SHARED_INFO before it');
    if (!this.#basic.has(0)) missing('no X86_PV_VCPU_BASIC of vcpu 0 before it');
    if (this.#gap) missing('X86_PV_P2M_FRAMES does not cover all pfns');
    this.checkFrames();
  }

  /** What can only be judged when a set of records is whole: at every CHECKPOINT and at END. */
  checkFrames(): void {
    const { findings } = this.#context;
    const maxPfn = this.#maxPfn;
    const tooHigh = (record: string, frame: VcpuFrame): void => {
      if (maxPfn === undefined || frame.pfn <= maxPfn) return;
      const message = `pfn 0x${frame.pfn.toString(16)} is above the last one, 0x${maxPfn.toString(16)}`;
      findings.error(StreamErrorCode.FIELD, { offset: frame.offset, record, path: frame.path }, message);
    };
    if (this.#highest !== undefined) tooHigh('X86_PV_P2M_FRAMES', this.#highest);
    for (const [id, frames] of this.#basic) {
      for (const frame of frames) tooHigh('X86_PV_VCPU_BASIC', frame);
      this.#basic.set(id, []);
    }
    for (const [id, event] of this.#others) {
      if (this.#basic.has(id)) continue;
      const message = `vcpu ${id} has no X86_PV_VCPU_BASIC; receivers skip the rest of it`;
      findings.warning(StreamErrorCode.MISSING, placeIn(event, 'vcpuId', 0), message);
    }
    this.#others.clear();
    this.#highest = undefined;
  }

  #needInfo(event: RecordEvent): void {
    if (this.#hadInfo) return;
    this.#context.findings.error(StreamErrorCode.ORDER, placeIn(event), 'before X86_PV_INFO');
  }

  #framesOf(event: RecordEvent, vcpuId: number, blob: Uint8Array): readonly VcpuFrame[] {
    const { findings, summary } = this.#context;
    if (summary.guestWidth === undefined) return [];
    const place = placeIn(event, 'blob', VCPU_HEAD_SIZE);
    return vcpuFrames(findings, place, summary.guestWidth, vcpuId, blob);
  }

  /** The hypervisor takes vcpu and size from the blob, not from the record. */
  #extended(event: RecordEvent, vcpuId: number, blob: Uint8Array): void {
    const head = vcpuExtendedHead(blob);
    if (head !== undefined && head.vcpu === vcpuId) return;
    const place = placeIn(event, 'blob.vcpu', VCPU_HEAD_SIZE);
    const message =
      head === undefined ? 'too short for its own vcpu' : `is ${head.vcpu}, not vcpuId ${vcpuId}`;
    this.#context.findings.warning(StreamErrorCode.FIELD, place, message);
  }

  #msrs(event: RecordEvent, blob: Uint8Array): void {
    for (let at = 4; at < blob.length; at += VCPU_MSR_SIZE) {
      const path = `msrs[${Math.floor(at / VCPU_MSR_SIZE)}].reserved`;
      checkReserved(this.#context.findings, event, u32(blob, at), VCPU_HEAD_SIZE + at, path);
    }
  }
}
