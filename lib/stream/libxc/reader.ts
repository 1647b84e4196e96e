/** Incremental reader of a libxc stream, image version 2 or 3. */

import { MAX_BATCH, PAGE_SIZE } from '../../abi/pages.js';
import { u32 } from '../../bytes/le.js';
import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode } from '../codes.js';
import { Collector, HeaderCollector } from '../collect.js';
import type { PageDataEndEvent, PageDataEvent, RecordEvent, StreamEvent } from '../events.js';
import { decodeRecordHeader, RECORD_HEADER_SIZE, roundUp } from '../framing.js';
import { ReaderBase, type ReaderOptions } from '../reader-base.js';
import {
  DHDR_SIZE,
  IHDR_SIZE,
  libxcRecordName,
  LibxcRecord,
  PAGE_DATA_ENTRY_SIZE,
  PAGE_DATA_HEAD_SIZE,
  REC_LENGTH_MAX,
} from './constants.js';
import {
  decodeImageHeader,
  DOMAIN_HEADER,
  domainHeaderProblem,
  IMAGE_HEADER,
  readDomainHeader,
} from './headers.js';
import { libxcLengthProblem } from './lengths.js';
import { PageTable } from './page-data.js';

type State =
  | 'image-header'
  | 'domain-header'
  | 'record-header'
  | 'body'
  | 'page-data-head'
  | 'page-data-table'
  | 'page-bytes'
  | 'skip'
  | 'done';

const NO_BYTES = new Uint8Array(0);

// The first bytes of a record header, where the end of the PAGE_DATA record before it is yet to be told.
const TYPE_SIZE = 4;

/**
 * Reads a libxc stream from its image header to its END record. Records of any type come out as events, unknown ones
 * too, and CHECKPOINT does not stop it: after one, the libxc records of a bare stream go on; a reader of the libxl
 * stream around it calls `continueAt` when it is libxc's turn again.
 *
 * Holds one record other than PAGE_DATA at a time (at most 128 MiB, allocated as its bytes come), and the table of the
 * PAGE_DATA record, never page contents.
 */
export class LibxcReader extends ReaderBase {
  readonly #table = new PageTable();
  readonly #head = new HeaderCollector(IHDR_SIZE);
  readonly #body = new Collector();
  #state: State = 'image-header';
  // The header or record that is being read.
  #offset: number;
  #type = 0;
  #length = 0;
  #violation: StreamFormatError | undefined;
  // PAGE_DATA: the record's count, its reserved word; bytes of contents or of what is skipped: all, and seen.
  #count = 0;
  #reserved = 0;
  #tableLeft = 0;
  #total = 0;
  #seen = 0;
  // The padding of what was skipped.
  #padding: Uint8Array = NO_BYTES;
  // The page-data-end that waits for the next record's first bytes.
  #ended: PageDataEndEvent | undefined;

  constructor(options: ReaderOptions = {}) {
    super(options);
    this.#offset = this.position;
    this.#head.begin(IHDR_SIZE);
  }

  get want(): number {
    switch (this.#state) {
      case 'record-header':
        return this.#ended === undefined ? this.#head.missing : TYPE_SIZE;
      case 'body':
        return this.#body.missing;
      case 'page-data-table':
        return this.#tableLeft;
      case 'page-bytes':
      case 'skip':
        return this.#total - this.#seen;
      case 'done':
        return 0;
      default:
        return this.#head.missing;
    }
  }

  override get ahead(): number {
    const { want } = this;
    switch (this.#state) {
      case 'record-header':
        return this.#head.missing;
      case 'body':
        return isLastOfTurn(this.#type) ? want : want + RECORD_HEADER_SIZE;
      case 'page-data-head': {
        const rest = roundUp(this.#length) - PAGE_DATA_HEAD_SIZE + want;
        const table = want + MAX_BATCH * PAGE_DATA_ENTRY_SIZE;
        // No further than to where the contents begin in a record of usual size: they have a better place to go to.
        return rest <= table ? rest + RECORD_HEADER_SIZE : table;
      }
      case 'page-data-table':
        return this.#length === PAGE_DATA_HEAD_SIZE + this.#count * PAGE_DATA_ENTRY_SIZE
          ? want + RECORD_HEADER_SIZE
          : want;
      case 'page-bytes':
        return want + RECORD_HEADER_SIZE;
      default:
        return want;
    }
  }

  get done(): boolean {
    return this.#state === 'done';
  }

  get atBoundary(): boolean {
    switch (this.#state) {
      case 'image-header':
      case 'domain-header':
      case 'record-header':
        return this.#head.have === 0;
      default:
        return this.done;
    }
  }

  protected get reading(): string | undefined {
    switch (this.#state) {
      case 'image-header':
        return IMAGE_HEADER;
      case 'domain-header':
        return DOMAIN_HEADER;
      case 'record-header':
        return this.#head.have === 0 ? undefined : 'record header';
      default:
        return libxcRecordName(this.#type);
    }
  }

  /** Goes on at this offset, after others have read what stands between a CHECKPOINT and the libxc records after it. */
  continueAt(offset: number): void {
    this.moveTo(offset);
    this.#offset = offset;
  }

  protected step(bytes: Uint8Array): StreamEvent | undefined {
    switch (this.#state) {
      case 'image-header':
        return this.#imageHeader(bytes);
      case 'domain-header':
        return this.#domainHeader(bytes);
      case 'record-header':
        return this.#recordHeader(bytes);
      case 'body':
        return this.#record(this.#body.feed(bytes));
      case 'page-data-head':
        return this.#pageDataHead(bytes);
      case 'page-data-table':
        return this.#pageDataTable(bytes);
      case 'page-bytes':
        return this.#pageBytes(bytes);
      case 'skip':
        this.#skip(bytes);
        return undefined;
      case 'done':
        return undefined;
    }
  }

  #imageHeader(bytes: Uint8Array): StreamEvent | undefined {
    const head = this.#head.feed(bytes);
    if (head === undefined) return undefined;
    const raw = new Uint8Array(head);
    const offset = this.#offset;
    const header = decodeImageHeader(raw, { offset });
    this.#next('domain-header', DHDR_SIZE, bytes);
    return { kind: 'image-header', layer: 'libxc', offset, header, raw };
  }

  #domainHeader(bytes: Uint8Array): StreamEvent | undefined {
    const head = this.#head.feed(bytes);
    if (head === undefined) return undefined;
    const raw = new Uint8Array(head);
    const offset = this.#offset;
    const header = readDomainHeader(raw, { offset });
    const violation = this.violation(domainHeaderProblem(header, { offset }));
    this.#next('record-header', RECORD_HEADER_SIZE, bytes);
    return { kind: 'domain-header', layer: 'libxc', offset, header, raw, ...(violation && { violation }) };
  }

  #recordHeader(bytes: Uint8Array): StreamEvent | undefined {
    const head = this.#head.feed(bytes);
    if (this.#ended !== undefined) {
      const event = this.#ended;
      this.#ended = undefined;
      return event;
    }
    if (head === undefined) return undefined;
    const { type, length } = decodeRecordHeader(head);
    this.#type = type;
    this.#length = length;
    if (length > REC_LENGTH_MAX) {
      const where = { offset: this.#offset + 4, record: libxcRecordName(type), path: 'length' };
      const reason = `length ${length} is above the limit of ${REC_LENGTH_MAX} bytes`;
      throw formatError(StreamErrorCode.LIMIT, reason, where);
    }
    this.#violation = this.violation(libxcLengthProblem(type, length, { offset: this.#offset }));
    if (type === LibxcRecord.PAGE_DATA) {
      this.#table.begin(0);
      this.#reserved = 0;
      if (this.#violation !== undefined) return this.#brokenPageData(0);
      this.#state = 'page-data-head';
      this.#head.begin(PAGE_DATA_HEAD_SIZE);
      return undefined;
    }
    if (length === 0) return this.#record(NO_BYTES);
    this.#state = 'body';
    this.#body.begin(roundUp(length));
    return undefined;
  }

  #record(whole: Uint8Array | undefined): RecordEvent | undefined {
    if (whole === undefined) return undefined;
    const event: RecordEvent = {
      kind: 'record',
      layer: 'libxc',
      offset: this.#offset,
      type: this.#type,
      name: libxcRecordName(this.#type),
      body: whole.subarray(0, this.#length),
      padding: whole.subarray(this.#length),
      ...(this.#violation && { violation: this.#violation }),
    };
    if (this.#type === LibxcRecord.END) this.#state = 'done';
    else this.#toRecordHeader(RECORD_HEADER_SIZE + whole.length);
    return event;
  }

  #pageDataHead(bytes: Uint8Array): StreamEvent | undefined {
    const head = this.#head.feed(bytes);
    if (head === undefined) return undefined;
    const count = u32(head, 0);
    this.#count = count;
    this.#reserved = u32(head, 4);
    const room = this.#length - PAGE_DATA_HEAD_SIZE;
    const tableSize = count * PAGE_DATA_ENTRY_SIZE;
    if (count === 0 || tableSize > room) {
      const where = { offset: this.#offset + RECORD_HEADER_SIZE, record: 'PAGE_DATA', path: 'count' };
      const reason = count === 0 ? 'count is 0' : `${count} entries do not fit in length ${this.#length}`;
      this.#violation = this.violation(formatError(StreamErrorCode.FIELD, reason, where));
      return this.#brokenPageData(PAGE_DATA_HEAD_SIZE);
    }
    this.#table.begin(Math.floor((room - tableSize) / PAGE_SIZE));
    this.#tableLeft = tableSize;
    this.#state = 'page-data-table';
    return undefined;
  }

  #pageDataTable(bytes: Uint8Array): StreamEvent | undefined {
    this.#tableLeft -= bytes.length;
    const table = this.#table;
    if (!table.feed(bytes)) {
      this.#violation = this.violation(table.problem({ offset: this.#offset }, this.#length, this.#count));
    } else if (this.#tableLeft > 0) {
      return undefined;
    } else {
      this.#total = table.dataPages * PAGE_SIZE;
      const fits = PAGE_DATA_HEAD_SIZE + this.#count * PAGE_DATA_ENTRY_SIZE + this.#total;
      if (fits !== this.#length) this.#violation = this.violation(this.#misfit(fits));
    }
    if (this.#violation !== undefined) {
      return this.#brokenPageData(PAGE_DATA_HEAD_SIZE + this.#count * PAGE_DATA_ENTRY_SIZE - this.#tableLeft);
    }
    const event = this.#pageData();
    this.#seen = 0;
    if (this.#total > 0) this.#state = 'page-bytes';
    else this.#pageDataDone(NO_BYTES);
    return event;
  }

  #misfit(fits: number): StreamFormatError {
    const { count, dataPages } = this.#table;
    return formatError(
      StreamErrorCode.LENGTH,
      `length ${this.#length}, expected ${fits} for ${count} entries, ${dataPages} of them with data`,
      { offset: this.#offset + 4, record: 'PAGE_DATA', path: 'length' },
    );
  }

  #pageData(): PageDataEvent {
    const table = this.#table;
    return {
      kind: 'page-data',
      layer: 'libxc',
      offset: this.#offset,
      length: this.#length,
      count: table.count,
      pfns: table.pfns,
      types: table.types,
      dataPages: table.dataPages,
      run: table.run,
      reservedBitsAt: table.reservedBitsAt,
      reserved: this.#reserved,
      ...(this.#violation && { violation: this.#violation }),
    };
  }

  /** Lenient: tells a PAGE_DATA record that does not fit together, and skips what is left of its body. */
  #brokenPageData(bodyRead: number): PageDataEvent {
    const event = this.#pageData();
    this.#seen = 0;
    this.#total = roundUp(this.#length) - bodyRead;
    this.#padding = new Uint8Array(roundUp(this.#length) - this.#length);
    if (this.#total === 0) this.#pageDataDone(NO_BYTES);
    else this.#state = 'skip';
    return event;
  }

  #skip(bytes: Uint8Array): void {
    const paddingAt = this.#total - this.#padding.length;
    const from = Math.max(0, paddingAt - this.#seen);
    if (from < bytes.length) this.#padding.set(bytes.subarray(from), this.#seen + from - paddingAt);
    this.#seen += bytes.length;
    if (this.#seen === this.#total) this.#pageDataDone(this.#padding);
  }

  #pageBytes(bytes: Uint8Array): StreamEvent {
    const at = this.#seen;
    this.#seen += bytes.length;
    const offset = this.#offset;
    const last = this.#seen === this.#total;
    if (last) this.#pageDataDone(NO_BYTES);
    return { kind: 'page-bytes', layer: 'libxc', offset, at, bytes, last };
  }

  #pageDataDone(padding: Uint8Array): void {
    this.#ended = { kind: 'page-data-end', layer: 'libxc', offset: this.#offset, padding };
    this.#toRecordHeader(RECORD_HEADER_SIZE + roundUp(this.#length));
  }

  #toRecordHeader(recordSize: number): void {
    this.#offset += recordSize;
    this.#violation = undefined;
    this.#state = 'record-header';
    this.#head.begin(RECORD_HEADER_SIZE);
  }

  #next(state: State, size: number, bytes: Uint8Array): void {
    this.#offset = this.position + bytes.length;
    this.#state = state;
    this.#head.begin(size);
  }
}

/** Records after which others may have their turn: libxl goes on in the same stream. */
function isLastOfTurn(type: number): boolean {
  return type === LibxcRecord.END || type === LibxcRecord.CHECKPOINT;
}
