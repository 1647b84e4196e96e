/** Which body lengths a receiver refuses, by record type. */

import { VCPU_CONTEXT } from '../../abi/pv.js';
import { PAGE_SIZE } from '../../abi/pages.js';
import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode, type Place } from '../codes.js';
import * as C from './constants.js';

const { LibxcRecord } = C;

/** True if the length can be right. The rules are the C receiver's: what it does not look at is not judged here. */
type Rule = readonly [fits: (length: number) => boolean, expected: string];

const entriesAfter =
  (head: number, entry: number, atLeast = 0) =>
  (length: number): boolean =>
    length >= head + atLeast * entry && (length - head) % entry === 0;

const pv32 = C.VCPU_HEAD_SIZE + VCPU_CONTEXT[4].size;
const pv64 = C.VCPU_HEAD_SIZE + VCPU_CONTEXT[8].size;

// A vcpu record without a blob is let through: senders of Xen 4.6 to 4.8 wrote such.
const rules = new Map<number, Rule>([
  [LibxcRecord.PAGE_DATA, [(n) => n >= C.PAGE_DATA_HEAD_SIZE + C.PAGE_DATA_ENTRY_SIZE, 'at least 16']],
  [LibxcRecord.X86_PV_INFO, [(n) => n >= C.PV_INFO_SIZE, 'at least 8']],
  [
    LibxcRecord.X86_PV_P2M_FRAMES,
    [
      entriesAfter(C.P2M_FRAMES_HEAD_SIZE, C.P2M_FRAMES_ENTRY_SIZE, 1),
      '8 and 8 for each of one or more frames',
    ],
  ],
  [
    LibxcRecord.X86_PV_VCPU_BASIC,
    [(n) => n === C.VCPU_HEAD_SIZE || n === pv32 || n === pv64, `${pv32} (32-bit guest) or ${pv64} (64-bit)`],
  ],
  [
    LibxcRecord.X86_PV_VCPU_EXTENDED,
    [(n) => n >= C.VCPU_HEAD_SIZE && n <= C.VCPU_HEAD_SIZE + C.VCPU_EXTENDED_MAX, '8 to 136'],
  ],
  [
    LibxcRecord.X86_PV_VCPU_XSAVE,
    [(n) => n === C.VCPU_HEAD_SIZE || n >= C.VCPU_HEAD_SIZE + C.VCPU_XSAVE_MIN, 'at least 24'],
  ],
  [LibxcRecord.X86_PV_VCPU_MSRS, [entriesAfter(C.VCPU_HEAD_SIZE, C.VCPU_MSR_SIZE), '8 and 16 for each MSR']],
  [LibxcRecord.SHARED_INFO, [(n) => n === PAGE_SIZE, '4096']],
  [LibxcRecord.X86_TSC_INFO, [(n) => n === C.TSC_INFO_SIZE, '24']],
  [LibxcRecord.HVM_CONTEXT, [(n) => n > 0, 'at least 1']],
  [
    LibxcRecord.HVM_PARAMS,
    [entriesAfter(C.HVM_PARAMS_HEAD_SIZE, C.HVM_PARAMS_ENTRY_SIZE), '8 and 16 for each parameter'],
  ],
  [LibxcRecord.CHECKPOINT_DIRTY_PFN_LIST, [entriesAfter(0, C.DIRTY_PFN_SIZE), 'a multiple of 8']],
  [
    LibxcRecord.X86_CPUID_POLICY,
    [entriesAfter(0, C.CPUID_LEAF_SIZE, 1), '24 for each of one or more leaves'],
  ],
  [LibxcRecord.X86_MSR_POLICY, [entriesAfter(0, C.MSR_ENTRY_SIZE, 1), '16 for each of one or more MSRs']],
]);

/** The error of a body length that no record of this type can have, or undefined. `offset` in it: the length field's. */
export function libxcLengthProblem(
  type: number,
  length: number,
  place: Place,
): StreamFormatError | undefined {
  const rule = rules.get(type);
  if (rule === undefined || rule[0](length)) return undefined;
  return formatError(StreamErrorCode.LENGTH, `length ${length}, expected ${rule[1]}`, {
    offset: place.offset + 4,
    record: C.libxcRecordName(type),
    path: 'length',
  });
}

/** Throws what `libxcLengthProblem` finds. */
export function checkLibxcLength(type: number, body: Uint8Array, place: Place): void {
  const problem = libxcLengthProblem(type, body.length, place);
  if (problem !== undefined) throw problem;
}
