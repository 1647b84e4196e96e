/** Records of x86 HVM guests (PVH too). */

import { hvmParamName } from '../../abi/hvm.js';
import { setU32, setU64, u16, u32, u64 } from '../../bytes/le.js';
import { NOWHERE, StreamErrorCode, type Place } from '../codes.js';
import { checkTableLimit, checkU32, checkU64, fieldError } from '../fields.js';
import {
  HVM_PARAMS_ENTRY_SIZE,
  HVM_PARAMS_HEAD_SIZE,
  HVM_SAVE_DESCRIPTOR_SIZE,
  HvmSaveCode,
  LibxcRecord,
  TABLE_ENTRIES_MAX,
} from './constants.js';
import { checkLibxcLength } from './lengths.js';

/** One parameter of HVM_PARAMS. */
export interface HvmParamEntry {
  /** A number of abi/hvm.ts `HvmParam`; the field has 64 bits, parameters have 32. */
  readonly index: number;
  readonly value: bigint;
}

/** HVM_PARAMS. */
export interface HvmParams {
  readonly entries: readonly HvmParamEntry[];
  /** Always set by the decoder. */
  readonly reserved?: number;
}

/**
 * Reads HVM_PARAMS.
 *
 *     offset  size  field
 *          0     4  count
 *          4     4  reserved
 *          8  16·n  u64 index, u64 value for each parameter
 *
 * Throws StreamFormatError: LENGTH; LIMIT; FIELD for an index above 32 bits, which no parameter has.
 */
export function decodeHvmParams(body: Uint8Array, place: Place = NOWHERE): HvmParams {
  const record = 'HVM_PARAMS';
  checkLibxcLength(LibxcRecord.HVM_PARAMS, body, place);
  const count = u32(body, 0);
  const present = (body.length - HVM_PARAMS_HEAD_SIZE) / HVM_PARAMS_ENTRY_SIZE;
  if (count !== present) {
    const reason = `count ${count}, but length ${body.length} has room for ${present}`;
    throw fieldError(place, record, 'count', 0, reason, StreamErrorCode.LENGTH);
  }
  checkTableLimit(place, record, count, TABLE_ENTRIES_MAX);
  const entries: HvmParamEntry[] = [];
  for (let i = 0; i < count; i++) {
    const at = HVM_PARAMS_HEAD_SIZE + i * HVM_PARAMS_ENTRY_SIZE;
    if (u32(body, at + 4) !== 0) {
      const reason = `0x${u64(body, at).toString(16)} is no parameter`;
      throw fieldError(place, record, `entries[${i}].index`, at, reason);
    }
    entries.push({ index: u32(body, at), value: u64(body, at + 8) });
  }
  return { entries, reserved: u32(body, 4) };
}

/** Writes an HVM_PARAMS body. */
export function encodeHvmParams(params: HvmParams): Uint8Array {
  const { entries, reserved = 0 } = params;
  const body = new Uint8Array(HVM_PARAMS_HEAD_SIZE + entries.length * HVM_PARAMS_ENTRY_SIZE);
  setU32(body, 0, entries.length);
  setU32(body, 4, checkU32(reserved, 'reserved'));
  entries.forEach(({ index, value }, i) => {
    const at = HVM_PARAMS_HEAD_SIZE + i * HVM_PARAMS_ENTRY_SIZE;
    setU32(body, at, checkU32(index, 'HVM parameter'));
    setU64(body, at + 8, checkU64(value, hvmParamName(index)));
  });
  return body;
}

/**
 * Reads HVM_CONTEXT: the hypervisor's save records as one blob. Returns the body itself; `hvmSaveRecords` looks into
 * it. Throws StreamFormatError: LENGTH for an empty one.
 */
export function decodeHvmContext(body: Uint8Array, place: Place = NOWHERE): Uint8Array {
  checkLibxcLength(LibxcRecord.HVM_CONTEXT, body, place);
  return body;
}

/** One of the hypervisor's save records in HVM_CONTEXT. */
export interface HvmSaveRecord {
  /** Offset of the descriptor in the blob. */
  readonly at: number;
  /** A number of HvmSaveCode. */
  readonly typecode: number;
  /** For most types the vcpu. */
  readonly instance: number;
  /** Bytes of data, as the descriptor says. */
  readonly length: number;
  /** A view of the data that is there: shorter than `length` if the blob ends too early; then it is the last record. */
  readonly data: Uint8Array;
}

/**
 * The hypervisor's save records in an HVM_CONTEXT blob, up to and including its END record (typecode 0). Never throws:
 * the blob is opaque to the stream, and this is for those who want to show it.
 *
 *     offset  size  field
 *          0     2  typecode
 *          2     2  instance
 *          4     4  length
 *          8     n  data, not padded
 */
export function* hvmSaveRecords(context: Uint8Array): Generator<HvmSaveRecord> {
  for (let at = 0; at + HVM_SAVE_DESCRIPTOR_SIZE <= context.length;) {
    const typecode = u16(context, at);
    const length = u32(context, at + 4);
    const from = at + HVM_SAVE_DESCRIPTOR_SIZE;
    const data = context.subarray(from, from + length);
    yield { at, typecode, instance: u16(context, at + 2), length, data };
    if (typecode === HvmSaveCode.END || data.length < length) return;
    at = from + length;
  }
}
