/** The verifier without I/O: bytes in, report out. */

import { UsageError } from '../../errors.js';
import { StreamErrorCode } from '../codes.js';
import type { RecordEvent, StreamEvent } from '../events.js';
import { LibxcRecord } from '../libxc/constants.js';
import { LibxlRecord } from '../libxl/constants.js';
import { Scan, type ScanOptions } from '../scan.js';
import type { VerifyContext } from './context.js';
import { LegacyChecker } from './legacy.js';
import { LibxcChecker } from './libxc.js';
import { LibxlChecker } from './libxl.js';
import { FINDINGS_MAX, FindingList, type VerifyReport, type VerifySummary } from './report.js';
import { checkXlHeader } from './xl.js';

export interface VerifierOptions extends ScanOptions {
  /** Findings of each severity to keep. Default 100. */
  readonly maxFindings?: number | undefined;
}

/**
 * Verifies a stream from its bytes. Nothing in them makes it throw.
 *
 *     const verifier = new Verifier();
 *     for (const chunk of chunks) verifier.feed(chunk);
 *     const report = verifier.end();
 *
 * Wrong contents do not stop it; framing that is lost does. Page contents are not looked at. Holds the header of one
 * record at a time, and a bounded number of findings.
 */
export class Verifier {
  readonly #context: VerifyContext;
  readonly #scan: Scan;
  readonly #libxl: LibxlChecker;
  readonly #legacy: LegacyChecker;
  #libxc: LibxcChecker;
  #isLegacy = false;
  #isLibxl = false;
  #pageDataLength = 0;
  /** Where the last complete checkpoint ends. */
  #checkpointEnd = 0;
  #report: VerifyReport | undefined;

  constructor(options: VerifierOptions = {}) {
    this.#context = {
      findings: new FindingList(options.maxFindings ?? FINDINGS_MAX),
      summary: emptySummary(),
      configType: undefined,
    };
    this.#libxl = new LibxlChecker(this.#context);
    this.#libxc = new LibxcChecker(this.#context);
    this.#legacy = new LegacyChecker(this.#context);
    this.#scan = new Scan(options, (event) => {
      this.#event(event);
    });
  }

  /** Bytes that are of use now: for a source that must not be read beyond the stream. 0 once nothing more is. */
  get want(): number {
    return this.#report === undefined ? this.#scan.want : 0;
  }

  /** Takes any number of bytes; those of no use any more are ignored. */
  feed(bytes: Uint8Array): void {
    if (this.#report === undefined) this.#scan.feed(bytes);
  }

  /** Bytes of page contents that come next: they may be passed over instead of being fed. */
  get unneeded(): number {
    return this.#scan.contents;
  }

  /** Passes over 1…unneeded bytes. */
  pass(count: number): void {
    if (!(count <= this.unneeded)) throw new UsageError(`pass over ${count} bytes of ${this.unneeded}`);
    this.#scan.pass(count);
  }

  /** Says that no bytes follow. Returns the report; the same one each time. */
  end(): VerifyReport {
    this.#report ??= this.#finish();
    return this.#report;
  }

  #event(event: StreamEvent): void {
    switch (event.kind) {
      case 'page-bytes':
        return;
      case 'page-data':
        this.#pageDataLength = event.length;
        if (event.layer === 'legacy') this.#legacy.batch(event);
        else this.#libxc.pageData(event);
        return;
      case 'page-data-end':
        this.#libxc.pageDataEnd(event, this.#pageDataLength);
        return;
      case 'record':
        if (event.layer === 'libxc') this.#libxcRecord(event);
        else this.#libxlRecord(event);
        return;
      case 'xl-header':
        checkXlHeader(this.#context, event);
        return;
      case 'libxl-header':
        this.#isLibxl = true;
        this.#libxl.header(event);
        return;
      case 'image-header':
        // A second libxc stream, itself reported, is judged for itself.
        if (this.#context.summary.imageVersion !== undefined) this.#libxc = new LibxcChecker(this.#context);
        this.#libxc.imageHeader(event);
        return;
      case 'domain-header':
        this.#libxc.domainHeader(event);
        return;
      case 'xend-header':
        // What stands in its configuration is the converter's affair.
        return;
      case 'legacy-header':
        this.#isLegacy = true;
        this.#legacy.header(event);
        return;
      case 'legacy-chunk':
        this.#legacy.chunk(event);
        return;
      case 'legacy-tmem':
        this.#legacy.tmem(event);
        return;
      case 'legacy-tail':
        this.#legacy.tail(event);
        if (event.completes) this.#checkpointEnd = this.#scan.position;
        return;
    }
  }

  #libxcRecord(event: RecordEvent): void {
    this.#libxc.record(event);
    if (event.type === LibxcRecord.CHECKPOINT && !this.#isLibxl) this.#checkpoint(event);
  }

  #libxlRecord(event: RecordEvent): void {
    this.#libxl.record(event);
    if (event.type === LibxlRecord.CHECKPOINT_END && event.violation === undefined) this.#checkpoint(event);
  }

  #checkpoint(event: RecordEvent): void {
    this.#context.summary.checkpoints++;
    this.#checkpointEnd = event.offset + 8 + event.body.length + event.padding.length;
  }

  #finish(): VerifyReport {
    const { findings, summary } = this.#context;
    const scan = this.#scan;
    scan.end();
    summary.complete = scan.complete;
    summary.trailingBytes = scan.trailing;
    if (scan.error !== undefined) this.#stopped(scan.error);
    else if (this.#isLegacy && scan.complete) this.#legacyEnd();
    if (scan.trailing > 0) {
      const place = { offset: scan.position, record: undefined, path: undefined };
      const what = scan.handover ? ": xl's hand-over, as in a captured migration" : '';
      findings.warning(
        StreamErrorCode.TRAILING,
        place,
        `${scan.trailing} ${scan.trailing === 1 ? 'byte' : 'bytes'} after the end of the stream${what}`,
      );
    }
    return {
      valid: findings.errors === 0,
      format: scan.format,
      findings: findings.findings,
      errors: findings.errors,
      warnings: findings.warnings,
      suppressed: findings.suppressed,
      summary,
      bytes: scan.bytes,
    };
  }

  /**
   * A stream that ends too early is broken, except one with a complete checkpoint: its receiver fails over to that, and
   * drops what came of the next one. That is how a checkpointed stream ends when its sender dies.
   */
  #stopped(error: NonNullable<Scan['error']>): void {
    const { findings, summary } = this.#context;
    if (error.code !== StreamErrorCode.TRUNCATED || summary.checkpoints === 0) {
      findings.thrown(error);
      return;
    }
    const rest = error.offset - this.#checkpointEnd;
    const dropped = rest > 0 ? `, and drops the ${rest} bytes after it` : '';
    const checkpoints =
      summary.checkpoints === 1 ? 'a complete checkpoint' : `${summary.checkpoints} complete checkpoints`;
    const end = this.#isLegacy ? '' : ' without END';
    const message = `ends${end} after ${checkpoints}: a receiver fails over to the last one${dropped}`;
    findings.warning(StreamErrorCode.TRUNCATED, error, message);
  }

  /**
   * A legacy image that ends with a whole checkpoint. One alone is a plain image, or may be one of Remus that was cut off
   * right there: nothing tells.
   */
  #legacyEnd(): void {
    const { findings, summary } = this.#context;
    if (this.#legacy.endsOpen) {
      const place = { offset: this.#scan.position, record: undefined, path: undefined };
      const n = summary.checkpoints;
      const what = n === 1 ? 'a complete checkpoint' : `${n} complete checkpoints`;
      const message = `ends after ${what}: a receiver fails over to the last one`;
      findings.warning(StreamErrorCode.TRUNCATED, place, message);
    } else if (summary.checkpoints === 1) summary.checkpoints = 0;
  }
}

function emptySummary(): VerifySummary {
  return {
    imageVersion: undefined,
    guest: undefined,
    wordSize: undefined,
    xenVersion: undefined,
    converted: false,
    guestWidth: undefined,
    maxPfn: undefined,
    vcpus: 0,
    records: {},
    pageEntries: 0,
    dataPages: 0,
    checkpoints: 0,
    verifyPass: false,
    colo: false,
    complete: false,
    trailingBytes: 0,
  };
}
