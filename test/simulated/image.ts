/**
 * What a stream says about a guest, gathered into one value that can be compared: the last state of each page and the
 * last record of each kind. A checkpointed stream that ends early is read up to its last complete checkpoint.
 */
import { PAGE_SIZE, pageTypeHasData } from '../../lib/abi/pages.js';
import { u32 } from '../../lib/bytes/le.js';
import {
  LibxcRecord,
  LibxlRecord,
  StreamReader,
  type DomainHeader,
  type ImageHeader,
  type LibxlHeader,
  type StreamEvent,
  type XlHeader,
} from '../../lib/stream/index.js';

/** Pages of an image, by pfn. Typed arrays: a stream tells of a million holes. */
export class ImagePages {
  /** Type nibble + 1 of each pfn, 0 for those that the stream does not tell. */
  #types = new Uint8Array(1 << 16);
  readonly #bytes = new Map<number, Uint8Array>();
  #end = 0;

  /** Highest pfn told + 1. */
  get end(): number {
    return this.#end;
  }

  /** pfns of the pages with contents. */
  get withData(): number[] {
    return [...this.#bytes.keys()].sort((a, b) => a - b);
  }

  set(pfn: number, type: number, bytes: Uint8Array | undefined): void {
    if (pfn >= this.#types.length) {
      const bigger = new Uint8Array(Math.max(pfn + 1, 2 * this.#types.length));
      bigger.set(this.#types);
      this.#types = bigger;
    }
    this.#types[pfn] = type + 1;
    this.#end = Math.max(this.#end, pfn + 1);
    // A page that became a hole keeps its memory in a receiver; a stream that needs that judged is not among ours.
    if (bytes === undefined) this.#bytes.delete(pfn);
    else this.#bytes.set(pfn, bytes);
  }

  /** Type nibble, undefined if the stream does not tell the pfn. */
  type(pfn: number): number | undefined {
    const type = this.#types[pfn] ?? 0;
    return type === 0 ? undefined : type - 1;
  }

  bytes(pfn: number): Uint8Array | undefined {
    return this.#bytes.get(pfn);
  }
}

export interface Image {
  readonly xl: XlHeader | undefined;
  readonly libxl: LibxlHeader | undefined;
  readonly image: ImageHeader;
  readonly domain: DomainHeader;
  /** By layer, name and, for PV vcpus, number: `libxc X86_PV_VCPU_BASIC 0`. */
  readonly records: ReadonlyMap<string, Uint8Array>;
  readonly pages: ImagePages;
  /** Complete checkpoints. */
  readonly checkpoints: number;
}

/** Records that say where something ends or begins, and nothing about the guest. */
const PUNCTUATION = new Set([
  'END',
  'LIBXC_CONTEXT',
  'STATIC_DATA_END',
  'VERIFY',
  'CHECKPOINT',
  'CHECKPOINT_END',
]);

/** Reads a whole stream that is in memory; page contents are views of it. */
export function readImage(stream: Uint8Array): Image {
  const ends = checkpointEnds(stream);
  // Without END nothing behind the last complete checkpoint counts.
  const last = ends.complete ? stream.length : (ends.offsets.at(-1) ?? 0);
  const found: {
    xl?: XlHeader;
    libxl?: LibxlHeader;
    image?: ImageHeader;
    domain?: DomainHeader;
  } = {};
  const records = new Map<string, Uint8Array>();
  const pages = new ImagePages();
  let pending: { pfn: number; type: number }[] = [];
  for (const event of eventsOf(stream.subarray(0, last))) {
    switch (event.kind) {
      case 'xl-header':
        found.xl = event.header;
        break;
      case 'libxl-header':
        found.libxl = event.header;
        break;
      case 'image-header':
        found.image = event.header;
        break;
      case 'domain-header':
        found.domain = event.header;
        break;
      case 'record':
        if (!PUNCTUATION.has(event.name)) {
          const vcpu = event.name.includes('_VCPU_') ? ` ${u32(event.body, 0)}` : '';
          records.set(`${event.layer} ${event.name}${vcpu}`, event.body);
        }
        break;
      case 'page-data':
        pending = [];
        for (let i = 0; i < event.count; i++) {
          const pfn = event.pfns[i]!;
          const type = event.types[i]!;
          if (pageTypeHasData(type)) pending.push({ pfn, type });
          else pages.set(pfn, type, undefined);
        }
        break;
      case 'page-bytes':
        if (event.at !== 0 || !event.last) throw new Error('a record in pieces');
        pending.forEach(({ pfn, type }, i) => {
          pages.set(pfn, type, event.bytes.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE));
        });
        break;
      case 'page-data-end':
        break;
      default:
        throw new Error(`${event.kind} in a v2 stream`);
    }
  }
  const { image, domain } = found;
  if (image === undefined || domain === undefined) throw new Error('no libxc stream');
  return {
    xl: found.xl,
    libxl: found.libxl,
    image,
    domain,
    records,
    pages,
    checkpoints: ends.offsets.length,
  };
}

function* eventsOf(stream: Uint8Array): Generator<StreamEvent> {
  const reader = new StreamReader();
  for (let at = 0; at < stream.length && !reader.done;) {
    const bytes = stream.subarray(at, at + reader.want);
    at += bytes.length;
    const event = reader.feed(bytes);
    if (event !== undefined) yield event;
  }
}

function checkpointEnds(stream: Uint8Array): { offsets: number[]; complete: boolean } {
  const offsets: number[] = [];
  let complete = false;
  for (const event of eventsOf(stream)) {
    if (event.kind !== 'record') continue;
    if (event.layer === 'libxl' && event.type === LibxlRecord.CHECKPOINT_END) offsets.push(event.offset + 8);
    if (event.layer === 'libxc' && event.type === LibxcRecord.END) complete = true;
  }
  return { offsets, complete };
}

/** pfns at which two images differ, in type or in contents. A pfn that only one of them tells differs. */
export function differingPages(a: Image, b: Image): number[] {
  const differ: number[] = [];
  for (let pfn = 0; pfn < Math.max(a.pages.end, b.pages.end); pfn++) {
    const left = a.pages.bytes(pfn);
    const right = b.pages.bytes(pfn);
    const same =
      a.pages.type(pfn) === b.pages.type(pfn) &&
      (left === undefined || right === undefined ? left === right : Buffer.compare(left, right) === 0);
    if (!same) differ.push(pfn);
  }
  return differ;
}

/** Byte ranges `[from, to)` at which two arrays of the same length differ, neighbours joined. */
export function differingBytes(a: Uint8Array, b: Uint8Array): [from: number, to: number][] {
  const ranges: [number, number][] = [];
  for (let i = 0; i < a.length; i++) {
    if (a[i] === b[i]) continue;
    const range = ranges.at(-1);
    if (range?.[1] === i) range[1]++;
    else ranges.push([i, i + 1]);
  }
  return ranges;
}
