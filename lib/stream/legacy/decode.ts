/** Decoders of the legacy image's chunks and tails. Pure; `place.offset` is that of the chunk's id or of the piece. */

import { HvmParam } from '../../abi/hvm.js';
import { VCPU_CONTEXT, type GuestWidth } from '../../abi/pv.js';
import { u32, u64 } from '../../bytes/le.js';
import { formatError, NOWHERE, StreamErrorCode, type Place } from '../codes.js';
import { failAt } from '../fields.js';
import { LEGACY_PARAM_CHUNKS, LegacyChunk, legacyChunkName, LegacyPart } from './constants.js';
import type { LegacyHeader } from './events.js';

const ID_SIZE = 4;

/** What the blocks of a PV guest's extended info say. */
export type LegacyExtendedInfo = Pick<LegacyHeader, 'extendedContexts' | 'xsaveSize'> & {
  readonly guestWidth: GuestWidth;
};

/**
 * Reads the blocks of extended info.
 *
 *     offset  size  field, again and again
 *          0     4  id    "vcpu", "extv" or "xcnt"
 *          4     4  size
 *          8  size  data  vcpu: a vcpu_guest_context, whose size tells the guest's width; extv: nothing;
 *                         xcnt: u32 size of a vcpu's xsave area with its header
 *
 * Throws StreamFormatError: LENGTH, FIELD, TYPE for other blocks, DUPLICATE, MISSING without "vcpu".
 */
export function decodeExtendedInfo(bytes: Uint8Array, place: Place = NOWHERE): LegacyExtendedInfo {
  const record = LegacyPart.EXTENDED_INFO;
  const fail = failAt(place, record);
  let guestWidth: GuestWidth | undefined;
  let extendedContexts = false;
  let xsaveSize = 0;
  const seen = new Set<string>();
  for (let at = 0; at < bytes.length;) {
    if (bytes.length - at < 8) {
      const reason = `${bytes.length - at} bytes have no room for a block's id and size`;
      throw fail(StreamErrorCode.LENGTH, at, 'blocks', reason);
    }
    const id = String.fromCharCode(...bytes.subarray(at, at + 4));
    const size = u32(bytes, at + 4);
    const data = at + 8;
    if (size > bytes.length - data) {
      const reason = `${size} bytes of data, ${bytes.length - data} are left`;
      throw fail(StreamErrorCode.LENGTH, at + 4, 'blocks.size', reason);
    }
    if (seen.has(id)) throw fail(StreamErrorCode.DUPLICATE, at, 'blocks.id', `a second block "${id}"`);
    seen.add(id);
    switch (id) {
      case 'vcpu':
        if (size === VCPU_CONTEXT[8].size) guestWidth = 8;
        else if (size === VCPU_CONTEXT[4].size) guestWidth = 4;
        else throw fail(StreamErrorCode.LENGTH, at + 4, 'vcpu.size', `no vcpu context has ${size} bytes`);
        break;
      case 'extv':
        extendedContexts = true;
        break;
      case 'xcnt':
        if (size < 4) throw fail(StreamErrorCode.LENGTH, at + 4, 'xcnt.size', `${size} bytes, expected 4`);
        xsaveSize = u32(bytes, data);
        break;
      default:
        throw fail(StreamErrorCode.TYPE, at, 'blocks.id', `unknown block ${JSON.stringify(id)}`);
    }
    at = data + size;
  }
  if (guestWidth === undefined) {
    throw fail(StreamErrorCode.MISSING, 0, 'vcpu', "no vcpu context, which tells the guest's width");
  }
  return { guestWidth, extendedContexts, xsaveSize };
}

/** VCPU_INFO. */
export interface LegacyVcpuInfo {
  readonly maxId: number;
  /** Ids of the vcpus that are online, ascending. */
  readonly online: readonly number[];
}

/** Bytes of a VCPU_INFO body. */
export function vcpuInfoSize(maxId: number): number {
  return 4 + 8 * (Math.floor(maxId / 64) + 1);
}

/**
 * Reads VCPU_INFO.
 *
 *     offset  size  field
 *          0     4  max_id
 *          4   8·n  online   bit i of the map: vcpu i is online; n = max_id / 64 + 1
 *
 * Throws StreamFormatError: LENGTH; FIELD for vcpus above max_id.
 */
export function decodeLegacyVcpuInfo(body: Uint8Array, place: Place = NOWHERE): LegacyVcpuInfo {
  const record = legacyChunkName(LegacyChunk.VCPU_INFO);
  const maxId = body.length < 4 ? 0 : u32(body, 0);
  if (body.length < 4 || body.length !== vcpuInfoSize(maxId)) {
    const where = { offset: place.offset + ID_SIZE, record, path: 'online' };
    throw formatError(StreamErrorCode.LENGTH, `${body.length} bytes for max_id ${maxId}`, where);
  }
  const online: number[] = [];
  for (let id = 0; id < (body.length - 4) * 8; id++) {
    if (((body[4 + (id >> 3)] as number) & (1 << (id & 7))) === 0) continue;
    if (id > maxId) {
      const where = { offset: place.offset + ID_SIZE + 4, record, path: 'online' };
      throw formatError(StreamErrorCode.FIELD, `vcpu ${id} is above max_id ${maxId}`, where);
    }
    online.push(id);
  }
  return { maxId, online };
}

/**
 * Reads the value of a chunk that carries an HVM parameter.
 *
 *     offset  size  field
 *          0     4  padding
 *          4     8  value
 */
export function decodeLegacyParam(
  id: number,
  body: Uint8Array,
): { readonly index: number; readonly value: bigint } | undefined {
  const index = LEGACY_PARAM_CHUNKS.get(id);
  return index === undefined ? undefined : { index, value: u64(body, 4) };
}

/**
 * Reads a legacy TSC_INFO.
 *
 *     offset  size  field
 *          0     4  mode
 *          4     8  nsec
 *         12     4  khz
 *         16     4  incarnation
 */
export function decodeLegacyTscInfo(body: Uint8Array): {
  readonly mode: number;
  readonly nsec: bigint;
  readonly khz: number;
  readonly incarnation: number;
} {
  return { mode: u32(body, 0), nsec: u64(body, 4), khz: u32(body, 12), incarnation: u32(body, 16) };
}

/** The parameters that stand in an HVM tail, in its order. */
export const MAGIC_PFN_PARAMS: readonly number[] = [
  HvmParam.IOREQ_PFN,
  HvmParam.BUFIOREQ_PFN,
  HvmParam.STORE_PFN,
];

/**
 * Reads the magic pfns of an HVM tail: u64 ioreq_pfn, u64 bufioreq_pfn, u64 store_pfn.
 */
export function decodeMagicPfns(body: Uint8Array): { readonly index: number; readonly value: bigint }[] {
  return MAGIC_PFN_PARAMS.map((index, i) => ({ index, value: u64(body, 8 * i) }));
}

/** One entry of libxl's toolstack chunk: a region that QEMU has moved in the guest's memory. */
export interface LegacyPhysmap {
  readonly physOffset: bigint;
  readonly startAddr: bigint;
  readonly size: bigint;
  /** One character for each byte (latin1). */
  readonly name: string;
}

/** Most entries that are decoded; QEMU has a handful. */
const PHYSMAP_MAX = 4096;

/**
 * Reads libxl's toolstack chunk, without its length.
 *
 *     offset  size  field
 *          0     4  version     1
 *          4     4  count
 *     then count times
 *          0     8  phys_offset
 *          8     8  start_addr
 *         16     8  size
 *         24     4  namelen     with its NUL
 *         28     n  name
 *      28+n      4  garbage, written by 64-bit toolstacks alone
 *
 * Throws StreamFormatError: VERSION, LENGTH, LIMIT, FIELD.
 */
export function decodeToolstack(body: Uint8Array, wordSize: 4 | 8, place: Place = NOWHERE): LegacyPhysmap[] {
  const record = legacyChunkName(LegacyChunk.TOOLSTACK);
  // Id and length stand before the body.
  const fail = failAt({ offset: place.offset + 2 * ID_SIZE }, record);
  if (body.length < 8) throw fail(StreamErrorCode.LENGTH, 0, 'length', `${body.length} bytes, at least 8`);
  const version = u32(body, 0);
  if (version !== 1) throw fail(StreamErrorCode.VERSION, 0, 'version', `version ${version} is not 1`);
  const count = u32(body, 4);
  if (count > PHYSMAP_MAX) throw fail(StreamErrorCode.LIMIT, 4, 'count', `${count} entries`);
  const garbage = wordSize === 8 ? 4 : 0;
  const entries: LegacyPhysmap[] = [];
  let at = 8;
  for (let i = 0; i < count; i++) {
    const path = `entries[${i}]`;
    if (body.length - at < 28) {
      throw fail(StreamErrorCode.LENGTH, at, path, `${body.length - at} bytes are left, 28 needed`);
    }
    const length = u32(body, at + 24);
    if (length === 0) throw fail(StreamErrorCode.FIELD, at + 24, `${path}.namelen`, 'an empty name');
    if (body.length - at - 28 < length + garbage) {
      const reason = `${length} bytes of name, ${body.length - at - 28} bytes are left`;
      throw fail(StreamErrorCode.LENGTH, at + 24, `${path}.namelen`, reason);
    }
    const name = body.subarray(at + 28, at + 28 + length);
    if (name[length - 1] !== 0) {
      throw fail(StreamErrorCode.FIELD, at + 28, `${path}.name`, 'the name is not terminated');
    }
    if (name.indexOf(0) !== length - 1) {
      throw fail(StreamErrorCode.FIELD, at + 28, `${path}.name`, 'the name ends before its length');
    }
    const text = String.fromCharCode(...name.subarray(0, length - 1));
    entries.push({
      physOffset: u64(body, at),
      startAddr: u64(body, at + 8),
      size: u64(body, at + 16),
      name: text,
    });
    at += 28 + length + garbage;
  }
  return entries;
}
