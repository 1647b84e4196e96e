/** State of a PV guest's vcpus: stashed while the stream is read, put into the domain when memory is in place. */
import { PageType } from '../abi/pages.js';
import {
  cr3ToFrame,
  frameToCr3,
  GDT_ENTS_PER_FRAME,
  type GuestWidth,
  levelsOf,
  MAX_GDT_ENTS,
  START_INFO,
  VCPU_CONTEXT,
  VGCF_ONLINE,
} from '../abi/pv.js';
import { setU32, setU64, u32, u64, u64n } from '../bytes/le.js';
import { StreamFormatError } from '../errors.js';
import type { VcpuStateKind } from '../host/host.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { RecordEvent } from '../stream/events.js';
import { RECORD_HEADER_SIZE } from '../stream/framing.js';
import { LibxcRecord, VCPU_HEAD_SIZE } from '../stream/libxc/constants.js';
import { decodeX86PvVcpu, vcpuExtendedHead, type X86PvVcpuType } from '../stream/libxc/pv.js';

/**
 * Longest XSAVE and MSRS blobs. Everything that CPUs of today save is below 12 KiB, and a PV guest has a handful of
 * MSRs; without a limit a stream could have 128 MiB kept for each vcpu.
 */
const BLOB_MAX = 65_536;

const kinds = new Map<number, VcpuStateKind>([
  [LibxcRecord.X86_PV_VCPU_BASIC, 'basic'],
  [LibxcRecord.X86_PV_VCPU_EXTENDED, 'extended'],
  [LibxcRecord.X86_PV_VCPU_XSAVE, 'xsave'],
  [LibxcRecord.X86_PV_VCPU_MSRS, 'msrs'],
]);

/** One blob and where in the stream it begins. */
export interface VcpuBlob {
  readonly bytes: Uint8Array;
  readonly record: string;
  readonly offset: number;
}

/** The last record of each kind for each vcpu. */
export class VcpuStash {
  readonly #maxVcpuId: number;
  readonly #blobs = new Map<number, Map<VcpuStateKind, VcpuBlob>>();

  constructor(maxVcpuId: number) {
    this.#maxVcpuId = maxVcpuId;
  }

  /** Takes a vcpu record. False if it is none. Throws StreamFormatError. */
  add(event: RecordEvent, width: GuestWidth): boolean {
    const kind = kinds.get(event.type);
    if (kind === undefined) return false;
    const { vcpuId, blob } = decodeX86PvVcpu(event.type as X86PvVcpuType, event.body, event, width);
    const body = event.offset + RECORD_HEADER_SIZE;
    const fail = (code: StreamErrorCode, path: string, at: number, reason: string): StreamFormatError =>
      new StreamFormatError(code, reason, { offset: body + at, record: event.name, path });
    if (vcpuId > this.#maxVcpuId) {
      const reason = `vcpu ${vcpuId}, but the domain's last one is ${this.#maxVcpuId}`;
      throw fail(StreamErrorCode.FIELD, 'vcpuId', 0, reason);
    }
    // Senders of Xen 4.6 to 4.8 wrote such for vcpus that have no state of the kind.
    if (blob.length === 0) return true;
    if (blob.length > BLOB_MAX) {
      const reason = `${blob.length} bytes, the limit is ${BLOB_MAX}`;
      throw fail(StreamErrorCode.LIMIT, 'blob', VCPU_HEAD_SIZE, reason);
    }
    if (kind === 'extended') {
      // The hypercall goes by the number inside: another one would change a vcpu that the record does not name.
      const inner = vcpuExtendedHead(blob)?.vcpu;
      if (inner !== vcpuId) {
        const reason = `is for vcpu ${String(inner)}, the record for vcpu ${vcpuId}`;
        throw fail(StreamErrorCode.FIELD, 'blob.vcpu', VCPU_HEAD_SIZE, reason);
      }
    }
    let blobs = this.#blobs.get(vcpuId);
    if (blobs === undefined) this.#blobs.set(vcpuId, (blobs = new Map<VcpuStateKind, VcpuBlob>()));
    blobs.set(kind, { bytes: blob, record: event.name, offset: body + VCPU_HEAD_SIZE });
    return true;
  }

  get(vcpu: number, kind: VcpuStateKind): VcpuBlob | undefined {
    return this.#blobs.get(vcpu)?.get(kind);
  }

  /** vcpus that have a BASIC record, ascending. */
  online(): number[] {
    const ids = [...this.#blobs].filter(([, blobs]) => blobs.has('basic')).map(([id]) => id);
    return ids.sort((a, b) => a - b);
  }
}

/** Where a pfn stands that has to be one of the guest's frames, for the error if it is not. */
export interface FramePlace {
  readonly record: string;
  readonly offset: number;
  readonly path: string;
}

/**
 * The mfn of a pfn that the guest's state refers to. `type` is the type nibble that the page must have, without its
 * pin bit if `anyPin`. Throws StreamFormatError if the pfn is out of range, has another type or no memory.
 */
export type FrameOf = (pfn: number, type: number, anyPin: boolean, place: FramePlace) => number;

/** pfn of the start_info page, which a suspended guest's vcpu 0 has in edx (rdx): its suspend hypercall's argument. */
export function startInfoPfn(basic: VcpuBlob, width: GuestWidth): number {
  return readFrame(basic.bytes, VCPU_CONTEXT[width].rdx, width);
}

/**
 * A copy of a vcpu_guest_context with frames of this host in it: vcpu 0's start_info, the GDT, CR3, and of a 64-bit
 * guest the user page table in ctrlreg[1]. The vcpu is marked online.
 */
export function localiseContext(
  basic: VcpuBlob,
  vcpu: number,
  width: GuestWidth,
  frameOf: FrameOf,
): Uint8Array {
  const layout = VCPU_CONTEXT[width];
  const context = basic.bytes.slice();
  const place = (at: number, path: string): FramePlace => ({
    record: basic.record,
    offset: basic.offset + at,
    path: `context.${path}`,
  });
  if (vcpu === 0) {
    const pfn = readFrame(context, layout.rdx, width);
    const mfn = frameOf(pfn, PageType.NOTAB, false, place(layout.rdx, width === 8 ? 'rdx' : 'edx'));
    writeFrame(context, layout.rdx, width, mfn);
  }
  setU32(context, layout.flags, u32(context, layout.flags) | VGCF_ONLINE);

  // gdt_ents is an unsigned long; what is above 32 bits is above the limit as well.
  const gdtEnts = readFrame(context, layout.gdtEnts, width);
  if (gdtEnts > MAX_GDT_ENTS) {
    const reason = `${gdtEnts} entries, a PV guest can have ${MAX_GDT_ENTS}`;
    throw new StreamFormatError(StreamErrorCode.FIELD, reason, place(layout.gdtEnts, 'gdtEnts'));
  }
  for (let i = 0; i < Math.ceil(gdtEnts / GDT_ENTS_PER_FRAME); i++) {
    const at = layout.gdtFrames + i * width;
    const pfn = readFrame(context, at, width);
    writeFrame(context, at, width, frameOf(pfn, PageType.NOTAB, false, place(at, `gdtFrames[${i}]`)));
  }

  const top = levelsOf(width);
  const cr3At = layout.ctrlreg + 3 * width;
  const cr3 = width === 8 ? u64(context, cr3At) : BigInt(u32(context, cr3At));
  const cr3Mfn = frameOf(cr3ToFrame(cr3, width), top, true, place(cr3At, 'ctrlreg[3]'));
  if (width === 4) {
    setU32(context, cr3At, Number(frameToCr3(cr3Mfn, 4)));
    return context;
  }
  setU64(context, cr3At, frameToCr3(cr3Mfn, 8));
  // Bit 0 tells that there is a user page table. It is the stream's own mark and not the register's.
  const cr1At = layout.ctrlreg + width;
  const cr1 = u64(context, cr1At);
  if ((cr1 & 1n) !== 0n) {
    const mfn = frameOf(cr3ToFrame(cr1, 8), top, true, place(cr1At, 'ctrlreg[1]'));
    setU64(context, cr1At, frameToCr3(mfn, 8));
  }
  return context;
}

/** What start_info gets anew. */
export interface StartInfoChanges {
  readonly nrPages: number;
  readonly sharedInfoFrame: number;
  readonly storeEvtchn: number;
  readonly consoleEvtchn: number;
}

/** Rewrites a mapped start_info page for its new host. Returns the frames of the two rings. */
export function localiseStartInfo(
  page: Uint8Array,
  width: GuestWidth,
  changes: StartInfoChanges,
  frameOf: FrameOf,
  basic: VcpuBlob,
): { readonly storeGfn: number; readonly consoleGfn: number } {
  const layout = START_INFO[width];
  // The page stands somewhere in the stream; the vcpu that points to it is the best place to tell.
  const place = (path: string): FramePlace => ({ record: basic.record, offset: basic.offset, path });
  const ring = (at: number, path: string): number => {
    const mfn = frameOf(readFrame(page, at, width), PageType.NOTAB, false, place(path));
    writeFrame(page, at, width, mfn);
    return mfn;
  };
  const storeGfn = ring(layout.storeMfn, 'startInfo.storeMfn');
  const consoleGfn = ring(layout.consoleMfn, 'startInfo.console.mfn');
  setU32(page, layout.storeEvtchn, changes.storeEvtchn);
  setU32(page, layout.consoleEvtchn, changes.consoleEvtchn);
  writeFrame(page, layout.nrPages, width, changes.nrPages);
  writeFrame(page, layout.sharedInfo, width, changes.sharedInfoFrame * 4096);
  setU32(page, layout.flags, 0);
  return { storeGfn, consoleGfn };
}

/** An unsigned long that holds a frame number. Values above 2^53 lose bits, and stay above every bound. */
function readFrame(bytes: Uint8Array, at: number, width: GuestWidth): number {
  return width === 8 ? u64n(bytes, at) : u32(bytes, at);
}

function writeFrame(bytes: Uint8Array, at: number, width: GuestWidth, value: number): void {
  setU32(bytes, at, value % 0x1_0000_0000);
  if (width === 8) setU32(bytes, at + 4, Math.floor(value / 0x1_0000_0000));
}
