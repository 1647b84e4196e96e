/**
 * The libxc part of a restore, in the order of the specification: static data, memory, state. One receiver for each
 * stream; the session (session.ts) feeds it the events between the headers and the end.
 */
import { StreamFormatError } from '../errors.js';
import type { Domain } from '../host/host.js';
import type { JobControl } from '../job.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { PageDataEvent, RecordEvent, StreamEvent } from '../stream/events.js';
import {
  IHDR_VERSION_3,
  isLibxcRecordType,
  isOptionalRecord,
  LibxcRecord,
} from '../stream/libxc/constants.js';
import type { MissingStaticData, Toolstack } from '../toolstack/toolstack.js';
import type { RestoreOps, RingFrames } from './ops.js';
import type { PageWriter } from './pages.js';

/** What a receiver works with. */
export interface ReceiverParts {
  readonly control: JobControl;
  readonly domain: Domain;
  readonly ops: RestoreOps;
  readonly pages: PageWriter;
  readonly toolstack: Toolstack;
  /** Of the image header: in version 2 static data has no end record. */
  readonly imageVersion: number;
}

export class Receiver {
  readonly #parts: ReceiverParts;
  #missing: MissingStaticData | undefined;

  constructor(parts: ReceiverParts) {
    this.#parts = parts;
  }

  /** Static data that the stream did not bring. */
  get missing(): MissingStaticData {
    return this.#missing ?? { cpuid: true, msr: true };
  }

  /** Takes an event of the libxc stream other than its headers, END and CHECKPOINT. */
  handle(event: StreamEvent): Promise<void> | undefined {
    switch (event.kind) {
      case 'page-bytes':
        return this.#parts.pages.bytes(event);
      case 'page-data':
        return this.#pageData(event);
      case 'record':
        return this.#record(event);
      default:
        return undefined;
    }
  }

  /** The stream has ended, or will not go on: the guest gets its state. */
  async complete(offset: number): Promise<RingFrames> {
    const { control, ops } = this.#parts;
    control.enter('state');
    // A stream may have no memory, but not lack a sign that its static data is over.
    await this.#needStaticData('END', offset);
    return ops.streamComplete(offset);
  }

  #pageData(event: PageDataEvent): Promise<void> | undefined {
    const { control, pages } = this.#parts;
    if (this.#missing === undefined) return this.#firstPageData(event);
    if (control.phase !== 'memory' && !pages.verifying) control.enter('memory');
    return pages.begin(event);
  }

  async #firstPageData(event: PageDataEvent): Promise<void> {
    await this.#needStaticData('PAGE_DATA', event.offset);
    await this.#pageData(event);
  }

  async #record(record: RecordEvent): Promise<void> {
    const { control, ops, pages } = this.#parts;
    const { type, name, offset } = record;
    switch (type) {
      case LibxcRecord.STATIC_DATA_END:
        if (this.#missing !== undefined) {
          throw new StreamFormatError(StreamErrorCode.DUPLICATE, 'static data has ended already', {
            offset,
            record: name,
          });
        }
        await this.#staticDataComplete();
        return;
      case LibxcRecord.VERIFY:
        pages.startVerify();
        control.enter('verify');
        return;
      case LibxcRecord.CHECKPOINT_DIRTY_PFN_LIST: {
        const reason = 'belongs into the back channel of COLO';
        throw new StreamFormatError(StreamErrorCode.TYPE, reason, { offset, record: name });
      }
      case LibxcRecord.X86_PV_P2M_FRAMES:
        if (ops.guestType === 'pv') await this.#needStaticData(name, offset);
        break;
      case LibxcRecord.X86_TSC_INFO:
        if (this.#missing !== undefined) control.enter('state');
        break;
    }
    if (await ops.processRecord(record)) return;
    if (isOptionalRecord(type)) return;
    const reason = isLibxcRecordType(type)
      ? `not a record of an x86 ${ops.guestType.toUpperCase()} guest`
      : 'unknown, and must not be skipped';
    throw new StreamFormatError(StreamErrorCode.TYPE, reason, { offset, record: name });
  }

  async #needStaticData(record: string, offset: number): Promise<void> {
    if (this.#missing !== undefined) return;
    if (this.#parts.imageVersion >= IHDR_VERSION_3) {
      const reason = 'before STATIC_DATA_END';
      throw new StreamFormatError(StreamErrorCode.ORDER, reason, { offset, record });
    }
    await this.#staticDataComplete();
  }

  async #staticDataComplete(): Promise<void> {
    const { control, domain, ops, toolstack } = this.#parts;
    control.enter('static-data');
    this.#missing = await ops.staticDataComplete();
    await toolstack.staticDataDone(domain.domid, this.#missing);
  }
}
