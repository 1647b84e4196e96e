/** Records of x86 PV guests. */

import { fppOf, levelsOf, VCPU_CONTEXT, type GuestWidth } from '../../abi/pv.js';
import { PAGE_SIZE } from '../../abi/pages.js';
import { setU16, setU32, setU64, setU64n, u16, u32, u64 } from '../../bytes/le.js';
import { UsageError } from '../../errors.js';
import { NOWHERE, StreamErrorCode, type Place } from '../codes.js';
import { checkTableLimit, checkU32, checkU64, checkUint, fieldError } from '../fields.js';
import {
  LibxcRecord,
  libxcRecordName,
  P2M_FRAMES_ENTRY_SIZE,
  P2M_FRAMES_HEAD_SIZE,
  PV_INFO_SIZE,
  TABLE_ENTRIES_MAX,
  VCPU_HEAD_SIZE,
  VCPU_MSR_SIZE,
  VCPU_XSAVE_MIN,
} from './constants.js';
import { checkLibxcLength } from './lengths.js';

const TWO_32 = 0x1_0000_0000;

/** X86_PV_INFO. */
export interface X86PvInfo {
  /** Guest word size in bytes. */
  readonly guestWidth: GuestWidth;
  /** Page-table levels: 3 with width 4, 4 with width 8. */
  readonly ptLevels: 3 | 4;
  /** The 6 reserved bytes as one number. Always set by the decoder. */
  readonly reserved?: number;
}

/**
 * Reads X86_PV_INFO.
 *
 *     offset  size  field
 *          0     1  guest_width  4 or 8
 *          1     1  pt_levels    3 or 4
 *          2     6  reserved
 *
 * Bytes after them are ignored. Throws StreamFormatError: LENGTH, FIELD for other pairs than (4, 3) and (8, 4).
 */
export function decodeX86PvInfo(body: Uint8Array, place: Place = NOWHERE): X86PvInfo {
  checkLibxcLength(LibxcRecord.X86_PV_INFO, body, place);
  const [width, levels] = [body[0], body[1]];
  if (width !== 4 && width !== 8) {
    throw fieldError(
      place,
      'X86_PV_INFO',
      'guestWidth',
      0,
      `guest width ${String(width)} is neither 4 nor 8`,
    );
  }
  const expected = levelsOf(width);
  if (levels !== expected) {
    const reason = `${String(levels)} page-table levels, expected ${expected} for guest width ${width}`;
    throw fieldError(place, 'X86_PV_INFO', 'ptLevels', 1, reason);
  }
  return { guestWidth: width, ptLevels: expected, reserved: u32(body, 4) * 0x1_0000 + u16(body, 2) };
}

/** Writes an X86_PV_INFO body: 8 bytes. */
export function encodeX86PvInfo(info: Omit<X86PvInfo, 'ptLevels'>): Uint8Array {
  const { guestWidth, reserved = 0 } = info;
  const body = new Uint8Array(PV_INFO_SIZE);
  body[0] = guestWidth;
  body[1] = levelsOf(guestWidth);
  setU16(body, 2, reserved % 0x1_0000);
  setU32(body, 4, Math.floor(reserved / 0x1_0000));
  return body;
}

/** X86_PV_P2M_FRAMES. */
export interface X86PvP2mFrames {
  /** First and last pfn that the frames describe. */
  readonly startPfn: number;
  readonly endPfn: number;
  /** pfns of the guest's p2m leaf frames, from the one that holds `startPfn` to the one that holds `endPfn`. */
  readonly frames: Float64Array;
}

/** Leaf frames that a p2m of this guest width needs for `startPfn` to `endPfn`. */
export function p2mFrameCount(startPfn: number, endPfn: number, width: GuestWidth): number {
  const fpp = fppOf(width);
  return Math.floor(endPfn / fpp) - Math.floor(startPfn / fpp) + 1;
}

/**
 * Reads X86_PV_P2M_FRAMES. The number of frames is checked if `width` (from X86_PV_INFO) is given.
 *
 *     offset  size  field
 *          0     4  start_pfn
 *          4     4  end_pfn   inclusive
 *          8   8·n  pfns of the leaf frames, 64 bits for 32-bit guests too
 *
 * Throws StreamFormatError: LENGTH; FIELD for start_pfn above end_pfn and for frames that no PV guest can have.
 */
export function decodeX86PvP2mFrames(
  body: Uint8Array,
  place: Place = NOWHERE,
  width?: GuestWidth,
): X86PvP2mFrames {
  const record = 'X86_PV_P2M_FRAMES';
  checkLibxcLength(LibxcRecord.X86_PV_P2M_FRAMES, body, place);
  const startPfn = u32(body, 0);
  const endPfn = u32(body, 4);
  if (startPfn > endPfn) {
    throw fieldError(place, record, 'startPfn', 0, `start ${startPfn} is above end ${endPfn}`);
  }
  const count = (body.length - P2M_FRAMES_HEAD_SIZE) / P2M_FRAMES_ENTRY_SIZE;
  if (width !== undefined && count !== p2mFrameCount(startPfn, endPfn, width)) {
    const expected = p2mFrameCount(startPfn, endPfn, width);
    const reason = `${count} frames, expected ${expected} for pfns ${startPfn} to ${endPfn}`;
    throw fieldError(place, record, 'length', -4, reason, StreamErrorCode.LENGTH);
  }
  const frames = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const at = P2M_FRAMES_HEAD_SIZE + i * P2M_FRAMES_ENTRY_SIZE;
    // end_pfn has 32 bits, so a pfn that has more is beyond any end.
    if (u32(body, at + 4) !== 0) {
      throw fieldError(
        place,
        record,
        `frames[${i}]`,
        at,
        `0x${u64(body, at).toString(16)} is no pfn of a PV guest`,
      );
    }
    frames[i] = u32(body, at);
  }
  return { startPfn, endPfn, frames };
}

/** Writes an X86_PV_P2M_FRAMES body. Throws UsageError for pfns of more than 32 bits. */
export function encodeX86PvP2mFrames(record: {
  readonly startPfn: number;
  readonly endPfn: number;
  readonly frames: ArrayLike<number>;
}): Uint8Array {
  const { startPfn, endPfn, frames } = record;
  if (startPfn > endPfn || frames.length < 1)
    throw new UsageError(`X86_PV_P2M_FRAMES ${startPfn} to ${endPfn}`);
  const body = new Uint8Array(P2M_FRAMES_HEAD_SIZE + frames.length * P2M_FRAMES_ENTRY_SIZE);
  setU32(body, 0, checkU32(startPfn, 'startPfn'));
  setU32(body, 4, checkU32(endPfn, 'endPfn'));
  for (let i = 0; i < frames.length; i++) {
    const pfn = checkUint(frames[i] as number, TWO_32 - 1, 'p2m frame');
    setU64n(body, P2M_FRAMES_HEAD_SIZE + i * P2M_FRAMES_ENTRY_SIZE, pfn);
  }
  return body;
}

/** X86_PV_VCPU_BASIC, …_EXTENDED, …_XSAVE or …_MSRS. */
export interface X86PvVcpu {
  readonly vcpuId: number;
  /** A view of the body. Empty: to be skipped, as senders of Xen 4.6 to 4.8 wrote it. */
  readonly blob: Uint8Array;
  /** Always set by the decoder. */
  readonly reserved?: number;
}

/** Types of the four vcpu records. */
export type X86PvVcpuType =
  | typeof LibxcRecord.X86_PV_VCPU_BASIC
  | typeof LibxcRecord.X86_PV_VCPU_EXTENDED
  | typeof LibxcRecord.X86_PV_VCPU_XSAVE
  | typeof LibxcRecord.X86_PV_VCPU_MSRS;

/**
 * Reads a vcpu record of any of the four types.
 *
 *     offset  size  field
 *          0     4  vcpu_id
 *          4     4  reserved
 *          8     n  blob
 *
 *     type      blob
 *     BASIC     vcpu_guest_context, frame numbers as pfns: 2800 (32-bit guest) or 5168 bytes (64-bit)
 *     EXTENDED  xen_domctl_ext_vcpucontext from its own u32 vcpu, u32 size: up to 128 bytes
 *     XSAVE     u64 xcr0, u64 xcr0_accum, xsave area: at least 16 bytes
 *     MSRS      16 bytes for each MSR; see `decodeVcpuMsrs`
 *
 * The blob's size of BASIC is checked against `width` (from X86_PV_INFO) if that is given.
 * Throws StreamFormatError: LENGTH.
 */
export function decodeX86PvVcpu(
  type: X86PvVcpuType,
  body: Uint8Array,
  place: Place = NOWHERE,
  width?: GuestWidth,
): X86PvVcpu {
  checkLibxcLength(type, body, place);
  const blob = body.subarray(VCPU_HEAD_SIZE);
  if (type === LibxcRecord.X86_PV_VCPU_BASIC && width !== undefined && blob.length > 0) {
    const { size } = VCPU_CONTEXT[width];
    if (blob.length !== size) {
      const reason = `vcpu context of ${blob.length} bytes, expected ${size} for guest width ${width}`;
      throw fieldError(place, libxcRecordName(type), 'length', -4, reason, StreamErrorCode.LENGTH);
    }
  }
  return { vcpuId: u32(body, 0), blob, reserved: u32(body, 4) };
}

/** As `decodeX86PvVcpu`. */
export function decodeX86PvVcpuBasic(
  body: Uint8Array,
  place: Place = NOWHERE,
  width?: GuestWidth,
): X86PvVcpu {
  return decodeX86PvVcpu(LibxcRecord.X86_PV_VCPU_BASIC, body, place, width);
}

/** As `decodeX86PvVcpu`. */
export function decodeX86PvVcpuExtended(body: Uint8Array, place: Place = NOWHERE): X86PvVcpu {
  return decodeX86PvVcpu(LibxcRecord.X86_PV_VCPU_EXTENDED, body, place);
}

/** As `decodeX86PvVcpu`. */
export function decodeX86PvVcpuXsave(body: Uint8Array, place: Place = NOWHERE): X86PvVcpu {
  return decodeX86PvVcpu(LibxcRecord.X86_PV_VCPU_XSAVE, body, place);
}

/** As `decodeX86PvVcpu`. */
export function decodeX86PvVcpuMsrs(body: Uint8Array, place: Place = NOWHERE): X86PvVcpu {
  return decodeX86PvVcpu(LibxcRecord.X86_PV_VCPU_MSRS, body, place);
}

/** Writes the body of a vcpu record of any of the four types. The blob is copied, not looked at. */
export function encodeX86PvVcpu(vcpu: X86PvVcpu): Uint8Array {
  const body = new Uint8Array(VCPU_HEAD_SIZE + vcpu.blob.length);
  setU32(body, 0, checkU32(vcpu.vcpuId, 'vcpuId'));
  setU32(body, 4, checkU32(vcpu.reserved ?? 0, 'reserved'));
  body.set(vcpu.blob, VCPU_HEAD_SIZE);
  return body;
}

/** One MSR of an X86_PV_VCPU_MSRS blob. */
export interface VcpuMsr {
  readonly index: number;
  readonly value: bigint;
  /** Always set by the decoder. */
  readonly reserved?: number;
}

/**
 * Reads the blob of X86_PV_VCPU_MSRS.
 *
 *     offset  size  field, for each MSR
 *          0     4  index
 *          4     4  reserved
 *          8     8  value
 *
 * Throws StreamFormatError: LENGTH for a size that is no multiple of 16; LIMIT.
 */
export function decodeVcpuMsrs(blob: Uint8Array, place: Place = NOWHERE): VcpuMsr[] {
  const record = 'X86_PV_VCPU_MSRS';
  if (blob.length % VCPU_MSR_SIZE !== 0) {
    const reason = `${blob.length} bytes are no multiple of ${VCPU_MSR_SIZE}`;
    throw fieldError(place, record, 'length', -4, reason, StreamErrorCode.LENGTH);
  }
  checkTableLimit(place, record, blob.length / VCPU_MSR_SIZE, TABLE_ENTRIES_MAX);
  const msrs: VcpuMsr[] = [];
  for (let at = 0; at < blob.length; at += VCPU_MSR_SIZE) {
    msrs.push({ index: u32(blob, at), value: u64(blob, at + 8), reserved: u32(blob, at + 4) });
  }
  return msrs;
}

/** Writes the blob of X86_PV_VCPU_MSRS. */
export function encodeVcpuMsrs(msrs: readonly VcpuMsr[]): Uint8Array {
  const blob = new Uint8Array(msrs.length * VCPU_MSR_SIZE);
  msrs.forEach((msr, i) => {
    const at = i * VCPU_MSR_SIZE;
    setU32(blob, at, checkU32(msr.index, 'MSR index'));
    setU32(blob, at + 4, checkU32(msr.reserved ?? 0, 'MSR reserved'));
    setU64(blob, at + 8, checkU64(msr.value, 'MSR value'));
  });
  return blob;
}

/** The u32 vcpu and u32 size that an EXTENDED blob begins with, or undefined if it is shorter than that. */
export function vcpuExtendedHead(
  blob: Uint8Array,
): { readonly vcpu: number; readonly size: number } | undefined {
  return blob.length < 8 ? undefined : { vcpu: u32(blob, 0), size: u32(blob, 4) };
}

/** The xcr0 and xcr0_accum that an XSAVE blob begins with, or undefined if it is shorter than that. */
export function vcpuXsaveHead(
  blob: Uint8Array,
): { readonly xcr0: bigint; readonly xcr0Accum: bigint } | undefined {
  return blob.length < VCPU_XSAVE_MIN ? undefined : { xcr0: u64(blob, 0), xcr0Accum: u64(blob, 8) };
}

/**
 * Reads SHARED_INFO: the guest's shared info page as it is, 4096 bytes. Returns the body itself; its fields are in
 * abi/pv.ts. Throws StreamFormatError: LENGTH.
 */
export function decodeSharedInfo(body: Uint8Array, place: Place = NOWHERE): Uint8Array {
  checkLibxcLength(LibxcRecord.SHARED_INFO, body, place);
  return body;
}

/** The body of SHARED_INFO: the page itself. Throws UsageError unless it is 4096 bytes. */
export function encodeSharedInfo(page: Uint8Array): Uint8Array {
  if (page.length !== PAGE_SIZE) throw new UsageError(`shared info of ${page.length} bytes`);
  return page;
}
