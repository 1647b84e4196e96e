/** What a legacy (v1) image says of its guest beside pages, and a few words on each of its parts. */

import { hvmParamName } from '../../abi/hvm.js';
import { printable } from '../../bytes/printable.js';
import type { PageDataEvent } from '../events.js';
import { DeltaCheck } from '../legacy/compressed.js';
import { LegacyChunk, LegacyPart, QEMU_MAGIC } from '../legacy/constants.js';
import {
  decodeLegacyParam,
  decodeLegacyTscInfo,
  decodeLegacyVcpuInfo,
  decodeMagicPfns,
  decodeToolstack,
} from '../legacy/decode.js';
import type { LegacyChunkEvent, LegacyHeader, LegacyHeaderEvent, LegacyTailEvent } from '../legacy/events.js';
import type { GuestFacts } from './guest.js';
import type { Inspection, LegacyFacts } from './report.js';

type Writable<T> = { -readonly [K in keyof T]: T[K] };

const plural = (n: number, one: string, many = `${one}s`): string => `${n} ${n === 1 ? one : many}`;

/** Collects what is said of the whole image. Its methods return a few words, and throw StreamFormatError. */
export class LegacyImageFacts {
  readonly #guest: GuestFacts;
  readonly #deltas = new DeltaCheck();
  readonly #params = new Map<number, bigint>();
  #header: LegacyHeader | undefined;
  #facts: Writable<LegacyFacts> | undefined;

  constructor(guest: GuestFacts) {
    this.#guest = guest;
  }

  get facts(): Inspection['legacy'] {
    return this.#facts;
  }

  header(event: LegacyHeaderEvent): string {
    const { header } = event;
    const { wordSize, guest, guestWidth, p2mSize, p2mFrames, extendedContexts, xsaveSize } = header;
    this.#header = header;
    this.#facts = {
      wordSize,
      guest,
      p2mSize,
      extendedContexts,
      xsaveSize,
      lastCheckpoint: false,
      onlineVcpus: undefined,
      maxVcpuId: undefined,
      unmappedPfns: undefined,
      physmap: [],
      compression: undefined,
      qemu: undefined,
    };
    if (guest === 'hvm') return `HVM, ${plural(p2mSize, 'pfn')}, ${wordSize * 8}-bit toolstack`;
    const { pv } = this.#guest;
    pv.guestWidth = guestWidth;
    pv.ptLevels = guestWidth === 4 ? 3 : 4;
    pv.maxPfn = p2mSize - 1;
    pv.p2mFrames = p2mFrames?.length ?? 0;
    const width = guestWidth === undefined ? '' : `, ${guestWidth * 8}-bit`;
    return `PV${width}, ${plural(p2mSize, 'pfn')}, ${wordSize * 8}-bit toolstack`;
  }

  batch(event: PageDataEvent): void {
    if (event.compressed === true) this.#compression().pages += event.dataPages;
  }

  chunk(event: LegacyChunkEvent): string {
    const { id, body } = event;
    const facts = this.#facts;
    switch (id) {
      case LegacyChunk.TSC_INFO: {
        const { mode, khz, nsec, incarnation } = decodeLegacyTscInfo(body);
        this.#guest.tsc = { mode, khz, nsec: String(nsec), incarnation };
        return `mode ${mode}, ${khz} kHz, ${nsec} ns, incarnation ${incarnation}`;
      }
      case LegacyChunk.VCPU_INFO: {
        const { online, maxId } = decodeLegacyVcpuInfo(body, event);
        if (facts !== undefined) {
          facts.onlineVcpus = online.length;
          facts.maxVcpuId = maxId;
        }
        return `${plural(online.length, 'vcpu')} online, highest id ${maxId}`;
      }
      case LegacyChunk.LAST_CHECKPOINT:
        if (facts !== undefined) facts.lastCheckpoint = true;
        return '';
      case LegacyChunk.ENABLE_COMPRESSION:
        this.#compression();
        return 'from the next checkpoint on';
      case LegacyChunk.COMPRESSED_DATA:
        return this.#compressed(event);
      case LegacyChunk.TOOLSTACK: {
        if (body.length === 0) return '';
        const entries = decodeToolstack(body, this.#header?.wordSize ?? 8, event);
        const hex = (value: bigint): string => `0x${value.toString(16)}`;
        if (facts !== undefined) {
          facts.physmap = entries.map(({ name, physOffset, startAddr, size }) => {
            return { name, physOffset: hex(physOffset), startAddr: hex(startAddr), size: hex(size) };
          });
        }
        return plural(entries.length, 'region');
      }
      default: {
        const param = decodeLegacyParam(id, body);
        if (param === undefined) return '';
        this.#param(param.index, param.value);
        return `0x${param.value.toString(16)}`;
      }
    }
  }

  tail(event: LegacyTailEvent): string {
    const { part, body, vcpuId = 0, count = 0, signature = '' } = event;
    const facts = this.#facts;
    switch (part) {
      case LegacyPart.UNMAPPED_PFNS:
        if (facts !== undefined) facts.unmappedPfns = count;
        return plural(count, 'pfn');
      case LegacyPart.VCPU_BASIC:
      case LegacyPart.VCPU_EXTENDED:
      case LegacyPart.VCPU_XSAVE: {
        const row = this.#guest.vcpuRow(vcpuId);
        if (row === undefined) return `vcpu ${vcpuId}`;
        if (part === LegacyPart.VCPU_BASIC) row.basic = body.length;
        else if (part === LegacyPart.VCPU_EXTENDED) row.extended = body.length;
        else row.xsave = body.length;
        return `vcpu ${vcpuId}`;
      }
      case LegacyPart.MAGIC_PFNS:
        for (const { index, value } of decodeMagicPfns(body)) this.#param(index, value);
        return 'ioreq, buffered ioreq, xenstore';
      case LegacyPart.HVM_CONTEXT:
        return this.#guest.hvmContext(body);
      case LegacyPart.QEMU: {
        const magic = String.fromCharCode(...body.subarray(0, QEMU_MAGIC.length));
        if (facts !== undefined) facts.qemu = { signature, length: body.length };
        return printable(magic === QEMU_MAGIC ? signature : `${signature}, no QEMU state in it`);
      }
      default:
        return '';
    }
  }

  /** A checkpoint is complete. */
  endCheckpoint(): void {
    this.#deltas.reset();
  }

  /** Parameters stand in chunks of their own; the list has each once, as last sent. */
  #param(index: number, value: bigint): void {
    this.#params.set(index, value);
    this.#guest.hvm.params = [...this.#params].map(([i, v]) => {
      return { index: i, name: hvmParamName(i), value: `0x${v.toString(16)}` };
    });
  }

  #compression(): Writable<NonNullable<LegacyFacts['compression']>> {
    const none = { pages: 0, chunks: 0, bytes: 0, changes: 0, unchanged: 0, whole: 0 };
    const facts = this.#facts;
    if (facts === undefined) return none;
    const compression = facts.compression ?? none;
    facts.compression = compression;
    return compression;
  }

  #compressed({ offset, body, violation }: LegacyChunkEvent): string {
    const compression = this.#compression();
    compression.chunks++;
    compression.bytes += body.length;
    if (violation !== undefined) return '';
    const { deltas, unchanged, whole } = this.#deltas;
    try {
      this.#deltas.feed(body, offset + 4 + (this.#header?.wordSize ?? 8));
    } finally {
      compression.changes += this.#deltas.deltas - deltas;
      compression.unchanged += this.#deltas.unchanged - unchanged;
      compression.whole += this.#deltas.whole - whole;
    }
    const now = this.#deltas;
    return `${plural(now.deltas - deltas, 'page')}: ${now.unchanged - unchanged} unchanged, ${now.whole - whole} whole`;
  }
}
