/** Checks of legacy (v1) images: order, what must be there, and what does not fit together. */

import { pageTableLevel, pageTypeHasData, pageTypeName } from '../../abi/pages.js';
import { StreamErrorCode } from '../codes.js';
import type { PageDataEvent } from '../events.js';
import { LegacyChunk, legacyChunkName, LegacyPart } from '../legacy/constants.js';
import { decodeLegacyVcpuInfo, decodeToolstack } from '../legacy/decode.js';
import type {
  LegacyChunkEvent,
  LegacyHeader,
  LegacyHeaderEvent,
  LegacyTailEvent,
  LegacyTmemEvent,
} from '../legacy/events.js';
import { attempt, countRecord, type VerifyContext } from './context.js';
import { FrameSet } from './frame-set.js';
import { LegacyDeltaChecker } from './legacy-deltas.js';
import { LegacyParamChecker } from './legacy-params.js';
import { LegacyTailChecker } from './legacy-tail.js';
import { LegacyTmemChecker } from './legacy-tmem.js';

/** Chunks of which a checkpoint has one at most. VCPU_INFO is the reader's affair. */
const ONCE: ReadonlySet<number> = new Set([
  LegacyChunk.ENABLE_VERIFY_MODE,
  LegacyChunk.TSC_INFO,
  LegacyChunk.LAST_CHECKPOINT,
  LegacyChunk.ENABLE_COMPRESSION,
  LegacyChunk.TOOLSTACK,
]);

/** Chunks that come with the pages; all others but tmem's tell of the guest's state and follow them. */
const WITH_PAGES: ReadonlySet<number> = new Set([
  LegacyChunk.ENABLE_VERIFY_MODE,
  LegacyChunk.TSC_INFO,
  LegacyChunk.COMPRESSED_DATA,
]);

/** Follows one legacy image. */
export class LegacyChecker {
  readonly #context: VerifyContext;
  readonly #frames = new FrameSet();
  readonly #params: LegacyParamChecker;
  readonly #deltas: LegacyDeltaChecker;
  readonly #tail: LegacyTailChecker;
  readonly #tmem: LegacyTmemChecker;
  #header: LegacyHeader | undefined;
  /** The image says that this checkpoint is its last. */
  #last = false;
  #compression = false;
  #hadTsc = false;
  #saidTypes = false;
  // Of the checkpoint that is being read.
  readonly #seen = new Set<number>();
  #any = false;
  /** The first chunk of the guest's state. */
  #state: string | undefined;

  constructor(context: VerifyContext) {
    this.#context = context;
    this.#params = new LegacyParamChecker(context.findings);
    this.#deltas = new LegacyDeltaChecker(context.findings);
    this.#tail = new LegacyTailChecker(context, this.#frames);
    this.#tmem = new LegacyTmemChecker(context.findings);
  }

  /** Sent by Remus: one checkpoint after the other, until the sender is gone. */
  get endsOpen(): boolean {
    return !this.#last && (this.#context.summary.checkpoints > 1 || this.#compression);
  }

  header(event: LegacyHeaderEvent): void {
    const { findings, summary, configType } = this.#context;
    const { header } = event;
    const { guest, guestWidth, p2mSize, wordSize } = header;
    this.#header = header;
    this.#tail.begin(event);
    summary.wordSize = wordSize;
    summary.guest = guest === 'pv' ? 'x86 PV' : 'x86 HVM';
    summary.guestWidth = guestWidth;
    if (guest === 'pv') summary.maxPfn = p2mSize - 1;
    if (event.violation !== undefined) findings.thrown(event.violation);
    if (configType === undefined || (configType === 'pv') === (guest === 'pv')) return;
    const place = { offset: event.offset, record: LegacyPart.HEADER, path: undefined };
    const message = `an image of ${guest === 'pv' ? 'a PV' : 'an HVM'} guest, but xl's configuration is of a ${configType} guest`;
    findings.error(StreamErrorCode.CONFIG, place, message);
  }

  batch(event: PageDataEvent): void {
    const { findings, summary } = this.#context;
    countRecord(summary, LegacyPart.PAGE_BATCH);
    summary.pageEntries += event.count;
    summary.dataPages += event.dataPages;
    if (event.violation !== undefined) findings.thrown(event.violation);
    this.#withPages(LegacyPart.PAGE_BATCH, event.offset);
    if (event.compressed === true) this.#deltas.batch(event);
    const { pfns, types, count } = event;
    for (let i = 0; i < count; i++) {
      if (pageTypeHasData(types[i] as number)) this.#frames.add(pfns[i] as number);
    }
    if (this.#header?.guest === 'hvm' && !this.#saidTypes) this.#pageTables(event);
  }

  chunk(event: LegacyChunkEvent): void {
    const { findings, summary } = this.#context;
    const { id, name, offset, body, violation } = event;
    if (id !== LegacyChunk.END) countRecord(summary, name);
    if (violation !== undefined) findings.thrown(violation);
    const place = { offset, record: name };
    if (this.#seen.has(id)) {
      findings.warning(StreamErrorCode.DUPLICATE, place, 'a second one; it replaces the first');
    } else if (ONCE.has(id)) this.#seen.add(id);
    if (WITH_PAGES.has(id)) this.#withPages(name, offset);
    else if (id !== LegacyChunk.END) {
      this.#state ??= name;
      this.#any = true;
    }
    switch (id) {
      case LegacyChunk.END:
        this.#end(event);
        return;
      case LegacyChunk.ENABLE_VERIFY_MODE:
        summary.verifyPass = true;
        return;
      case LegacyChunk.TSC_INFO:
        this.#hadTsc = true;
        return;
      case LegacyChunk.VCPU_INFO:
        if (this.#header?.guest !== 'pv') return;
        summary.vcpus = attempt(findings, () => decodeLegacyVcpuInfo(body, event))?.online.length ?? 0;
        return;
      case LegacyChunk.LAST_CHECKPOINT:
        this.#last = true;
        return;
      case LegacyChunk.ENABLE_COMPRESSION:
        if (this.#compression) findings.warning(StreamErrorCode.ORDER, place, 'it is enabled already');
        this.#compression = true;
        return;
      case LegacyChunk.COMPRESSED_DATA:
        if (violation === undefined) this.#deltas.data(event, this.#header?.wordSize ?? 8);
        return;
      case LegacyChunk.TOOLSTACK:
        this.#toolstack(event);
        return;
      default:
        this.#params.chunk(event);
    }
  }

  tmem(event: LegacyTmemEvent): void {
    const { part, offset } = event;
    const extra = part === 'flush-end';
    if (part === 'section' || extra) {
      const name = legacyChunkName(extra ? LegacyChunk.TMEM_EXTRA : LegacyChunk.TMEM);
      countRecord(this.#context.summary, name);
      if (extra) this.#withPages(name, offset);
      else if (this.#any || this.#context.summary.checkpoints > 0) {
        const message = 'not before everything else, where writers put it';
        this.#context.findings.warning(StreamErrorCode.ORDER, { offset, record: name }, message);
      }
      this.#any = true;
    }
    this.#tmem.event(event);
  }

  tail(event: LegacyTailEvent): void {
    const { summary } = this.#context;
    countRecord(summary, event.part);
    this.#tail.part(event);
    if (!event.completes) return;
    summary.checkpoints++;
    this.#seen.clear();
    this.#any = false;
    this.#state = undefined;
    this.#params.begin();
    this.#deltas.begin();
  }

  /** Writers send pages first, and then the guest's state. Receivers take chunks in any order. */
  #withPages(name: string, offset: number): void {
    this.#any = true;
    if (this.#state === undefined) return;
    const message = `after ${this.#state}: writers put it before the guest's state`;
    this.#context.findings.warning(StreamErrorCode.ORDER, { offset, record: name }, message);
  }

  #pageTables({ types, count, offset }: PageDataEvent): void {
    for (let i = 0; i < count; i++) {
      const type = types[i] as number;
      if (pageTableLevel(type) === 0) continue;
      this.#saidTypes = true;
      const place = {
        offset: offset + 4 + i * (this.#header?.wordSize ?? 8),
        record: LegacyPart.PAGE_BATCH,
        path: `pfns[${i}].type`,
      };
      const message = `${pageTypeName(type)}, but an HVM guest's page tables are its own affair`;
      this.#context.findings.warning(StreamErrorCode.PAGE_TYPE, place, message);
      return;
    }
  }

  /** libxl's; its receivers refuse what they cannot decode. An empty one is that of a toolstack without a word to say. */
  #toolstack(event: LegacyChunkEvent): void {
    const { findings } = this.#context;
    const { body, offset, name } = event;
    if (body.length === 0) return;
    const entries = attempt(findings, () => decodeToolstack(body, this.#header?.wordSize ?? 8, event));
    if (entries === undefined || entries.length === 0 || this.#header?.guest !== 'pv') return;
    const place = { offset: offset + 12, record: name, path: 'count' };
    findings.warning(StreamErrorCode.FIELD, place, "regions of QEMU's memory, but a PV guest has none");
  }

  /** What a checkpoint must have had. */
  #end(event: LegacyChunkEvent): void {
    const { findings, summary } = this.#context;
    const place = { offset: event.offset, record: event.name };
    const missing = (message: string): void => {
      findings.warning(StreamErrorCode.MISSING, place, message);
    };
    // Receivers keep the list of the checkpoint before.
    const vcpuInfo = legacyChunkName(LegacyChunk.VCPU_INFO);
    if (this.#header?.guest === 'pv' && summary.records[vcpuInfo] === undefined) {
      missing(`no ${vcpuInfo} before it: receivers take vcpu 0 for the only one`);
    }
    if (summary.checkpoints === 0) {
      if (!this.#hadTsc) missing('no TSC_INFO before it');
      if (summary.records[LegacyPart.PAGE_BATCH] === undefined) missing('the guest has no pages');
    }
    this.#params.end(event);
    this.#deltas.end(event);
  }
}
