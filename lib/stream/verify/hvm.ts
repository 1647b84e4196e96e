/** Checks of an HVM or PVH guest's records. */

import { hvmParamName } from '../../abi/hvm.js';
import type { StreamPlace } from '../../errors.js';
import { StreamErrorCode } from '../codes.js';
import type { RecordEvent } from '../events.js';
import { HVM_PARAMS_ENTRY_SIZE, HVM_PARAMS_HEAD_SIZE, HvmSaveCode, LibxcRecord } from '../libxc/constants.js';
import { decodeHvmParams, hvmSaveRecords } from '../libxc/hvm.js';
import { attempt, checkReserved, placeIn, type VerifyContext } from './context.js';
import type { FindingList } from './report.js';

/** Opaque to the stream; Xen refuses a context that does not begin with its header, or ends before its end. */
export function checkHvmContext(findings: FindingList, place: StreamPlace, context: Uint8Array): void {
  let first: number | undefined;
  let last: number | undefined;
  for (const { typecode, length, data } of hvmSaveRecords(context)) {
    first ??= typecode;
    last = data.length < length ? undefined : typecode;
  }
  if (first === HvmSaveCode.HEADER && last === HvmSaveCode.END) return;
  const message =
    first === HvmSaveCode.HEADER
      ? 'the hypervisor save records have no end'
      : 'does not begin with the header of hypervisor save records';
  findings.warning(StreamErrorCode.FIELD, place, message);
}

/** Follows what an HVM stream says of its guest beside pages. */
export class HvmChecker {
  readonly #context: VerifyContext;
  #hadContext = false;
  #hadParams = false;

  constructor(context: VerifyContext) {
    this.#context = context;
  }

  /** `whole`: its length is right. One that was sent badly counts as sent: one finding is enough. */
  context(event: RecordEvent, whole: boolean): void {
    this.#hadContext = true;
    if (!whole) return;
    checkHvmContext(this.#context.findings, placeIn(event, 'blob', 0), event.body);
  }

  params(event: RecordEvent, whole: boolean): void {
    const { findings } = this.#context;
    this.#hadParams = true;
    if (!whole) return;
    const params = attempt(findings, () => decodeHvmParams(event.body, event));
    if (params === undefined) return;
    checkReserved(findings, event, params.reserved ?? 0, 4);
    if (params.entries.length === 0) {
      findings.warning(StreamErrorCode.FIELD, placeIn(event, 'count', 0), 'no parameters');
    }
    const seen = new Set<number>();
    params.entries.forEach(({ index }, i) => {
      const place = placeIn(event, `entries[${i}].index`, HVM_PARAMS_HEAD_SIZE + i * HVM_PARAMS_ENTRY_SIZE);
      const name = hvmParamName(index);
      if (seen.has(index)) findings.warning(StreamErrorCode.DUPLICATE, place, `${name} a second time`);
      else if (name === String(index))
        findings.warning(StreamErrorCode.FIELD, place, `unknown parameter ${index}`);
      seen.add(index);
    });
  }

  /** What must be there when the guest is first complete: at the first CHECKPOINT or at END. */
  finish(event: RecordEvent): void {
    const { findings, summary } = this.#context;
    if (!this.#hadContext) {
      findings.error(StreamErrorCode.MISSING, placeIn(event), 'no HVM_CONTEXT before it');
    }
    if (!this.#hadParams) {
      findings.warning(StreamErrorCode.MISSING, placeIn(event), 'no HVM_PARAMS before it: no xenstore ring');
    }
    if (!summary.converted && summary.records['X86_TSC_INFO'] === undefined) {
      findings.warning(StreamErrorCode.MISSING, placeIn(event), 'no X86_TSC_INFO before it');
    }
  }
}

/** Records that only PV guests have. */
export const PV_RECORDS: ReadonlySet<number> = new Set([
  LibxcRecord.X86_PV_INFO,
  LibxcRecord.X86_PV_P2M_FRAMES,
  LibxcRecord.X86_PV_VCPU_BASIC,
  LibxcRecord.X86_PV_VCPU_EXTENDED,
  LibxcRecord.X86_PV_VCPU_XSAVE,
  LibxcRecord.X86_PV_VCPU_MSRS,
  LibxcRecord.SHARED_INFO,
]);

/** Records that only HVM and PVH guests have. */
export const HVM_RECORDS: ReadonlySet<number> = new Set([LibxcRecord.HVM_CONTEXT, LibxcRecord.HVM_PARAMS]);
