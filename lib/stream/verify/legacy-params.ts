/** Checks of the HVM parameters that stand in chunks of their own. */

import { HvmParam } from '../../abi/hvm.js';
import { StreamErrorCode } from '../codes.js';
import { LEGACY_PARAM_CHUNKS } from '../legacy/constants.js';
import { decodeLegacyParam } from '../legacy/decode.js';
import type { LegacyChunkEvent } from '../legacy/events.js';
import type { FindingList } from './report.js';

/** Follows the parameters of one checkpoint after the other. Receivers keep those of the checkpoint before. */
export class LegacyParamChecker {
  readonly #findings: FindingList;
  readonly #values = new Map<number, bigint>();
  readonly #now = new Set<number>();

  constructor(findings: FindingList) {
    this.#findings = findings;
  }

  chunk(event: LegacyChunkEvent): void {
    const { id, offset, name, body, violation } = event;
    if (violation !== undefined || !LEGACY_PARAM_CHUNKS.has(id)) return;
    const param = decodeLegacyParam(id, body);
    if (param === undefined) return;
    const { index, value } = param;
    const place = { offset: offset + 8, record: name, path: 'value' };
    if (this.#now.has(index)) {
      this.#findings.warning(
        StreamErrorCode.DUPLICATE,
        { offset, record: name },
        'a second one; it replaces the first',
      );
    }
    this.#now.add(index);
    this.#values.set(index, value);
    if (index === HvmParam.ACPI_IOPORTS_LOCATION && value !== 1n && value !== 0n) {
      this.#findings.warning(
        StreamErrorCode.FIELD,
        place,
        `${value} is neither 0 nor 1; receivers ignore it`,
      );
    }
  }

  /** The end of a checkpoint's chunks. Pfn and number of the ioreq server's pages are of use only together. */
  end(event: LegacyChunkEvent): void {
    const has = (index: number): boolean => (this.#values.get(index) ?? 0n) !== 0n;
    if (has(HvmParam.IOREQ_SERVER_PFN) === has(HvmParam.NR_IOREQ_SERVER_PAGES)) return;
    const place = { offset: event.offset, record: event.name };
    const message =
      'HVM_IOREQ_SERVER_PFN and HVM_NR_IOREQ_SERVER_PAGES do not come together; receivers ignore both';
    this.#findings.warning(StreamErrorCode.FIELD, place, message);
  }

  /** A checkpoint begins. */
  begin(): void {
    this.#now.clear();
  }
}
