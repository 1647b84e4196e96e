/** What a verification says, and how findings are collected. */

import type { StreamFormatError, StreamPlace } from '../../errors.js';
import type { StreamErrorCode } from '../codes.js';
import type { ScannedFormat } from '../scan.js';

/** Only errors make a stream invalid. */
export type Severity = 'error' | 'warning';

/** One thing that was found. */
export interface VerifyFinding {
  readonly severity: Severity;
  /** Stable reason, one of StreamErrorCode. */
  readonly code: string;
  /** Offset from the start of the stream of the field, or of the header or record. */
  readonly offset: number;
  /** Name of the header or record. */
  readonly record?: string | undefined;
  /** The field in it. */
  readonly path?: string | undefined;
  /** One line, without the place. */
  readonly message: string;
}

/** What the stream is, as far as it could be read. */
export interface VerifySummary {
  /** Version of the libxc image header: 2 or 3. */
  imageVersion: number | undefined;
  guest: 'x86 PV' | 'x86 HVM' | undefined;
  /** Version of the Xen that wrote it, `4.17`; undefined for converted streams. */
  xenVersion: string | undefined;
  /** Made from a legacy stream by a converter. */
  converted: boolean;
  /** Legacy images: word size of the toolstack that wrote it, in bytes. Undefined for v2 streams. */
  wordSize: 4 | 8 | undefined;
  /** PV: word size in bytes. */
  guestWidth: 4 | 8 | undefined;
  /** PV: highest pfn of the p2m. */
  maxPfn: number | undefined;
  /** PV: vcpus with a basic state. */
  vcpus: number;
  /** Records by name, those of unknown types together; chunks and parts of legacy images. */
  records: Record<string, number>;
  /** Entries of PAGE_DATA records, or of a legacy image's page batches. */
  pageEntries: number;
  /** Of them, those with data. */
  dataPages: number;
  /** Complete checkpoints; 0 for a stream that is not a checkpointed one. */
  checkpoints: number;
  /** True if there is a VERIFY record, or a legacy image's ENABLE_VERIFY_MODE. */
  verifyPass: boolean;
  /** True if COLO's checkpoint states were seen. */
  colo: boolean;
  /** True if the stream was read to its last END record, a legacy image to the end of its tail. */
  complete: boolean;
  /** Bytes after the end. */
  trailingBytes: number;
}

/** What `verify` resolves to. Plain data. */
export interface VerifyReport {
  /** True if there is no error. */
  readonly valid: boolean;
  readonly format: ScannedFormat;
  /** In the order of the stream; see `suppressed`. */
  readonly findings: readonly VerifyFinding[];
  /** All that were found, suppressed ones too. */
  readonly errors: number;
  readonly warnings: number;
  /** How many of them are not in `findings`, because there were so many, or so many of a kind. */
  readonly suppressed: number;
  readonly summary: VerifySummary;
  /** Bytes of the source that were read or passed over. */
  readonly bytes: number;
}

/** Findings of each severity that are kept, unless told otherwise. */
export const FINDINGS_MAX = 100;

/** Findings of one code, record and field that are kept. */
const SAME_MAX = 5;

/** Collects findings, a bounded number of them. */
export class FindingList {
  readonly #max: number;
  readonly #kept: VerifyFinding[] = [];
  readonly #keptOf: Record<Severity, number> = { error: 0, warning: 0 };
  readonly #seen: Record<Severity, number> = { error: 0, warning: 0 };
  readonly #kinds = new Map<string, number>();

  /** @param max Findings of each severity to keep */
  constructor(max: number) {
    this.#max = max;
  }

  get findings(): readonly VerifyFinding[] {
    return this.#kept;
  }

  get errors(): number {
    return this.#seen.error;
  }

  get warnings(): number {
    return this.#seen.warning;
  }

  get suppressed(): number {
    return this.#seen.error + this.#seen.warning - this.#kept.length;
  }

  error(code: StreamErrorCode, place: StreamPlace, message: string): void {
    this.#add('error', code, place, message);
  }

  warning(code: StreamErrorCode, place: StreamPlace, message: string): void {
    this.#add('warning', code, place, message);
  }

  /** Adds what a decoder or reader threw. */
  thrown(error: StreamFormatError): void {
    this.#add('error', error.code, error, error.reason);
  }

  #add(severity: Severity, code: string, place: StreamPlace, message: string): void {
    this.#seen[severity]++;
    if (this.#keptOf[severity] >= this.#max) return;
    const { offset, record, path } = place;
    // Entry numbers do not make another kind. The map grows only with findings that are kept.
    const kind = `${severity} ${code} ${record ?? ''} ${path?.replaceAll(/\d+/g, '') ?? ''}`;
    const same = this.#kinds.get(kind) ?? 0;
    if (same >= SAME_MAX) return;
    this.#kinds.set(kind, same + 1);
    this.#keptOf[severity]++;
    this.#kept.push({ severity, code, offset, record, path, message });
  }
}
