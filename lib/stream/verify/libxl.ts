/** Checks of the libxl layer. */

import { u32 } from '../../bytes/le.js';
import { StreamErrorCode } from '../codes.js';
import type { LibxlHeaderEvent, RecordEvent } from '../events.js';
import {
  CheckpointState,
  EmulatorId,
  isLibxlRecordType,
  LIBXL_OPT_BIG_ENDIAN,
  LIBXL_OPT_LEGACY,
  LibxlRecord,
} from '../libxl/constants.js';
import { LIBXL_HEADER } from '../libxl/header.js';
import { decodeEmulatorXenstoreData } from '../libxl/records.js';
import { attempt, checkFrame, countRecord, placeIn, type VerifyContext } from './context.js';

const EMPTY: ReadonlySet<number> = new Set([
  LibxlRecord.END,
  LibxlRecord.LIBXC_CONTEXT,
  LibxlRecord.CHECKPOINT_END,
]);

const OPTIONS_OFFSET = 12;

/** Follows the libxl records of one stream. */
export class LibxlChecker {
  readonly #context: VerifyContext;
  #hadLibxc = false;
  /** Emulator records since the last checkpoint. */
  readonly #seen = new Set<number>();
  #hadEmulatorContext = false;
  /** Type of the libxl record before. */
  #last: number | undefined;

  constructor(context: VerifyContext) {
    this.#context = context;
  }

  header(event: LibxlHeaderEvent): void {
    const { findings, summary } = this.#context;
    const { options } = event.header;
    const place = { offset: event.offset + OPTIONS_OFFSET, record: LIBXL_HEADER, path: 'options' };
    const reserved = (options & ~(LIBXL_OPT_BIG_ENDIAN | LIBXL_OPT_LEGACY)) >>> 0;
    if (reserved !== 0) {
      findings.error(StreamErrorCode.RESERVED, place, `reserved bits 0x${reserved.toString(16)} are set`);
    }
    if ((options & LIBXL_OPT_LEGACY) !== 0) {
      summary.converted = true;
      findings.warning(StreamErrorCode.CONVERTED, place, 'converted from a legacy stream');
    }
  }

  record(event: RecordEvent): void {
    const { findings, summary } = this.#context;
    countRecord(summary, event.type === LibxlRecord.END ? 'libxl END' : event.name);
    const whole = checkFrame(this.#context, event, EMPTY.has(event.type));
    const last = this.#last;
    this.#last = event.type;
    if (!isLibxlRecordType(event.type)) {
      // libxl knows no optional records.
      findings.error(StreamErrorCode.TYPE, placeIn(event), 'no libxl receiver knows this record');
      return;
    }
    switch (event.type) {
      case LibxlRecord.LIBXC_CONTEXT:
        this.#hadLibxc = true;
        break;
      case LibxlRecord.EMULATOR_XENSTORE_DATA:
        if (whole) this.#xenstoreData(event);
        break;
      case LibxlRecord.EMULATOR_CONTEXT:
        this.#hadEmulatorContext = true;
        if (whole) this.#emulator(event);
        break;
      case LibxlRecord.CHECKPOINT_END:
        this.#seen.clear();
        break;
      case LibxlRecord.CHECKPOINT_STATE:
        this.#checkpointState(event, last, whole);
        break;
      case LibxlRecord.END:
        this.#end(event);
        break;
    }
  }

  #xenstoreData(event: RecordEvent): void {
    this.#emulator(event);
    attempt(this.#context.findings, () => decodeEmulatorXenstoreData(event.body, event));
  }

  /** What both emulator records must keep. */
  #emulator(event: RecordEvent): void {
    const { findings, summary, configType } = this.#context;
    const id = u32(event.body, 0);
    if (id > EmulatorId.QEMU_UPSTREAM) {
      findings.error(StreamErrorCode.FIELD, placeIn(event, 'emulatorId', 0), `unknown emulator ${id}`);
    }
    if (summary.guest === 'x86 PV' || configType === 'pv' || configType === 'pvh') {
      const guest = summary.guest === 'x86 PV' || configType === 'pv' ? 'PV' : 'PVH';
      findings.error(StreamErrorCode.TYPE, placeIn(event), `a ${guest} guest has no emulator`);
    }
    if (this.#seen.has(event.type)) {
      findings.warning(StreamErrorCode.DUPLICATE, placeIn(event), 'a second one; it replaces the first');
    }
    this.#seen.add(event.type);
  }

  /** Only COLO's primary writes one, to begin the round after a checkpoint. */
  #checkpointState(event: RecordEvent, last: number | undefined, whole: boolean): void {
    const { findings, summary } = this.#context;
    if (last !== LibxlRecord.CHECKPOINT_END) {
      findings.error(StreamErrorCode.ORDER, placeIn(event), 'stands only after a CHECKPOINT_END of COLO');
      return;
    }
    summary.colo = true;
    if (!whole || u32(event.body, 0) === CheckpointState.CHECKPOINT_NEW) return;
    const message = `state ${u32(event.body, 0)}: only 0 (CHECKPOINT_NEW) goes from the primary to the secondary`;
    findings.error(StreamErrorCode.FIELD, placeIn(event, 'id', 0), message);
  }

  #end(event: RecordEvent): void {
    const { findings, configType } = this.#context;
    if (!this.#hadLibxc) {
      findings.error(StreamErrorCode.MISSING, placeIn(event), 'the stream has no LIBXC_CONTEXT');
    }
    if (configType === 'hvm' && !this.#hadEmulatorContext) {
      findings.warning(
        StreamErrorCode.MISSING,
        placeIn(event),
        'no EMULATOR_CONTEXT, which an HVM guest needs',
      );
    }
  }
}
