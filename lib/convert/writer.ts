/** The v2 stream of a conversion as it is written: headers, pages, and what a checkpoint says. */
import { isLostEntry } from '../stream/legacy/batch.js';
import type { LegacyHeader } from '../stream/legacy/events.js';
import type { PageDataEvent } from '../stream/events.js';
import { encodeRecord } from '../stream/framing.js';
import { DomainType, LibxcRecord, XEN_MAJOR_CONVERTED } from '../stream/libxc/constants.js';
import { encodeHeaders } from '../stream/libxc/headers.js';
import { pageDataHeadSize, writePageDataHead, writePageDataRun } from '../stream/libxc/page-data.js';
import { encodeX86PvInfo, encodeX86PvP2mFrames } from '../stream/libxc/pv.js';
import { LIBXL_OPT_LEGACY, LibxlRecord } from '../stream/libxl/constants.js';
import { encodeLibxlHeader } from '../stream/libxl/header.js';
import { MAX_BATCH, pageTypeHasData } from '../abi/pages.js';
import type { ByteSink } from '../transport/types.js';
import { tscRecord, type CheckpointState } from './checkpoint.js';
import type { ConvertOutput } from './types.js';

/** xen_minor of a converted stream: the converter's version. */
const CONVERTER_VERSION = 1;

/** Writes a conversion's output. A batch's head goes out with its first contents, in one write. */
export class ConvertedWriter {
  readonly #sink: ByteSink;
  readonly #output: ConvertOutput;
  readonly #head = new Uint8Array(pageDataHeadSize(MAX_BATCH));
  /** The head of the present batch, while it waits for the batch's first contents. */
  #waiting: Uint8Array | undefined;
  readonly #pfns = new Float64Array(MAX_BATCH);
  readonly #types = new Uint8Array(MAX_BATCH);
  bytes = 0;
  pages = 0;
  dataPages = 0;

  constructor(sink: ByteSink, output: ConvertOutput) {
    this.#sink = sink;
    this.#output = output;
  }

  /** Writes views, borrowed until the promise settles. */
  async write(views: readonly Uint8Array[]): Promise<void> {
    await this.#sink.write(views);
    for (const view of views) this.bytes += view.length;
  }

  /** All headers but xl's, and the static data. */
  async headers(header: LegacyHeader): Promise<void> {
    const { guest, guestWidth, p2mFrames, p2mSize } = header;
    const views: Uint8Array[] = [];
    if (this.#output !== 'libxc') {
      views.push(encodeLibxlHeader({ options: LIBXL_OPT_LEGACY }), encodeRecord(LibxlRecord.LIBXC_CONTEXT));
    }
    const type = guest === 'pv' ? DomainType.X86_PV : DomainType.X86_HVM;
    views.push(encodeHeaders({ type, xenMajor: XEN_MAJOR_CONVERTED, xenMinor: CONVERTER_VERSION }));
    if (guestWidth !== undefined) {
      views.push(encodeRecord(LibxcRecord.X86_PV_INFO, encodeX86PvInfo({ guestWidth })));
    }
    views.push(encodeRecord(LibxcRecord.STATIC_DATA_END));
    if (p2mFrames !== undefined) {
      const body = encodeX86PvP2mFrames({ startPfn: 0, endPfn: p2mSize - 1, frames: p2mFrames });
      views.push(encodeRecord(LibxcRecord.X86_PV_P2M_FRAMES, body));
    }
    await this.write(views);
  }

  /** The table of a batch whose contents follow, or of one without any. */
  batch(event: PageDataEvent): Promise<void> | undefined {
    const head = this.#headOf(event);
    if (head === undefined) return undefined;
    if (event.dataPages === 0) return this.write([head]);
    this.#waiting = head;
    return undefined;
  }

  /** Contents of the present batch, in pieces as they come; borrowed until the promise settles. */
  contents(bytes: Uint8Array): Promise<void> {
    const head = this.#waiting;
    this.#waiting = undefined;
    return this.write(head === undefined ? [bytes] : [head, bytes]);
  }

  /** A whole batch in ascending order, with the contents of those of its pages that have any. */
  async pagesOf(
    pfns: Float64Array,
    types: Uint8Array,
    count: number,
    contents: readonly Uint8Array[],
  ): Promise<void> {
    const size = writePageDataHead(this.#head, pfns, types, count);
    this.pages += count;
    for (let i = 0; i < count; i++) if (pageTypeHasData(types[i] as number)) this.dataPages++;
    await this.write([this.#head.subarray(0, size), ...contents]);
  }

  tscInfo(body: Uint8Array): Promise<void> {
    return this.write([tscRecord(body)]);
  }

  /** What stands after the pages. */
  async end(state: CheckpointState, skipQemu = false): Promise<void> {
    await this.write(state.libxcRecords());
    if (this.#output !== 'libxc') await this.write(state.libxlRecords());
    else if (!skipQemu) await this.write(state.qemuRecord());
  }

  /** Undefined if none of the entries stands for anything: a receiver refuses a PAGE_DATA without entries. */
  #headOf(event: PageDataEvent): Uint8Array | undefined {
    const { pfns, types, count, run, dataPages } = event;
    const into = this.#head;
    if (run && !isLostEntry(pfns[0] as number, types[0] as number)) {
      this.pages += count;
      this.dataPages += dataPages;
      return into.subarray(0, writePageDataRun(into, pfns[0] as number, types[0] as number, count));
    }
    let kept = 0;
    for (let i = 0; i < count; i++) {
      const pfn = pfns[i] as number;
      const type = types[i] as number;
      if (isLostEntry(pfn, type)) continue;
      this.#pfns[kept] = pfn;
      this.#types[kept++] = type;
    }
    this.pages += kept;
    this.dataPages += dataPages;
    if (kept === 0) return undefined;
    return into.subarray(0, writePageDataHead(into, this.#pfns, this.#types, kept));
  }
}
