/** Legacy images made of v2 streams, real ones above all: what a toolstack of 4.5 would have written of that guest. */

import { PAGE_SIZE, pageTypeHasData } from '../../lib/abi/pages.js';
import type { GuestWidth } from '../../lib/abi/pv.js';
import * as S from '../../lib/stream/index.js';
import type { Folded } from './fold.js';
import * as W from './writer.js';

export interface FromV2Options {
  /** Default 8. */
  readonly word?: W.Word;
  /** HVM: writes −21, which upstream does not know. Default: leaves it out, and says so. */
  readonly x87?: boolean;
  readonly qemu?: W.QemuSignature;
  /** Puts xl's header before the image, with the stream's configuration. Default false. */
  readonly xl?: boolean;
}

export interface PiecesFromV2 {
  /** The image, one after the other. */
  readonly pieces: readonly W.Piece[];
  readonly guest: 'pv' | 'hvm';
  readonly width: 32 | 64;
  /** What the stream has and the image has not, each once. */
  readonly dropped: readonly string[];
  /** HVM parameters among it. */
  readonly droppedParams: readonly number[];
}

export interface FromV2 extends PiecesFromV2 {
  readonly bytes: Uint8Array;
}

/** Most pages of a batch. */
const BATCH = 1024;

interface Vcpu {
  basic?: Uint8Array;
  extended?: Uint8Array;
  xsave?: Uint8Array;
}

const PARAM_NAMES = new Map<number, W.ParamChunk>(
  Object.entries(W.PARAM_CHUNKS).map(([name, index]) => [index, name as W.ParamChunk]),
);
/** Parameters that the tail has: ioreq, buffered ioreq, xenstore. */
const MAGIC_PARAMS = [5, 6, 1] as const;

/** Writes a legacy image of what it is told, event by event. */
class Legacy {
  readonly #options: FromV2Options;
  readonly #stream: Uint8Array;
  readonly dropped = new Set<string>();
  readonly droppedParams = new Set<number>();
  readonly #rounds: W.Round[] = [];
  pv = false;
  #width: GuestWidth = 8;
  #p2mSize = 1;
  #frames: readonly number[] = [];
  config: string | undefined;
  libxl = false;
  // The state of now; pages, verify mode and TSC since the last checkpoint, in the order in which they came.
  #body: W.Chunk[] = [];
  #changed = false;
  readonly #vcpus = new Map<number, Vcpu>();
  readonly #params = new Map<number, bigint>();
  #sharedInfo = new Uint8Array(PAGE_SIZE);
  #context = new Uint8Array(0);
  #emulator: Uint8Array | undefined;
  #physmap: readonly W.Physmap[] = [];

  constructor(stream: Uint8Array, options: FromV2Options) {
    this.#stream = stream;
    this.#options = options;
  }

  pages({ offset, count, pfns, types }: S.PageDataEvent): void {
    this.#changed = true;
    let at = offset + S.pageDataHeadSize(count);
    const entries = Array.from({ length: count }, (_, i): W.Entry => {
      const [pfn, type] = [pfns[i] as number, types[i] as number];
      if (pfn > 0x0fff_ffff) throw new Error(`pfn 0x${pfn.toString(16)} has more than 28 bits`);
      if (!this.pv) this.#p2mSize = Math.max(this.#p2mSize, pfn + 1);
      if (!pageTypeHasData(type)) return { pfn, type, contents: undefined };
      at += PAGE_SIZE;
      return { pfn, type, contents: this.#stream.subarray(at - PAGE_SIZE, at) };
    });
    for (let i = 0; i < count; i += BATCH) this.#body.push(W.pages(entries.slice(i, i + BATCH)));
  }

  libxcRecord(name: string, body: Uint8Array): void {
    if (name !== 'END') this.#changed = true;
    switch (name) {
      case 'END':
      case 'STATIC_DATA_END':
        break;
      case 'CHECKPOINT':
        if (!this.libxl) this.finish(false);
        break;
      case 'VERIFY':
        this.#body.push(W.verifyMode);
        break;
      case 'X86_TSC_INFO':
        this.#body.push(W.tsc(S.decodeX86TscInfo(body)));
        break;
      case 'X86_PV_INFO':
        this.#width = S.decodeX86PvInfo(body).guestWidth;
        break;
      case 'X86_PV_P2M_FRAMES': {
        const { endPfn, frames } = S.decodeX86PvP2mFrames(body);
        this.#p2mSize = endPfn + 1;
        this.#frames = Array.from(frames);
        break;
      }
      case 'SHARED_INFO':
        this.#sharedInfo = Uint8Array.from(body);
        break;
      case 'X86_PV_VCPU_BASIC':
        this.#vcpu(S.LibxcRecord.X86_PV_VCPU_BASIC, body, 'basic');
        break;
      case 'X86_PV_VCPU_EXTENDED':
        this.#vcpu(S.LibxcRecord.X86_PV_VCPU_EXTENDED, body, 'extended');
        break;
      case 'X86_PV_VCPU_XSAVE':
        this.#vcpu(S.LibxcRecord.X86_PV_VCPU_XSAVE, body, 'xsave');
        break;
      case 'HVM_CONTEXT':
        this.#context = Uint8Array.from(body);
        break;
      case 'HVM_PARAMS':
        for (const { index, value } of S.decodeHvmParams(body).entries) this.#params.set(index, value);
        break;
      default:
        this.dropped.add(name);
    }
  }

  #vcpu(type: S.X86PvVcpuType, body: Uint8Array, part: keyof Vcpu): void {
    const { vcpuId, blob } = S.decodeX86PvVcpu(type, body);
    if (blob.length > 0)
      this.#vcpus.set(vcpuId, { ...this.#vcpus.get(vcpuId), [part]: Uint8Array.from(blob) });
  }

  libxlRecord(name: string, body: Uint8Array): void {
    switch (name) {
      case 'END':
      case 'LIBXC_CONTEXT':
        break;
      case 'CHECKPOINT_END':
        this.finish(false);
        break;
      case 'EMULATOR_CONTEXT':
        this.#emulator = Uint8Array.from(S.decodeEmulatorContext(body).blob);
        break;
      case 'EMULATOR_XENSTORE_DATA':
        this.#physmap = physmapOf(S.decodeEmulatorXenstoreData(body).entries, this.dropped);
        break;
      default:
        this.dropped.add(name);
    }
  }

  /** A state of the guest is whole. */
  finish(last: boolean): void {
    if (!this.#changed) return;
    this.#changed = false;
    const body = [...this.#body, W.vcpuInfo()];
    if (!this.pv) body.push(...this.#paramChunks());
    body.push(W.toolstack(this.#physmap));
    if (last && this.#rounds.length === 0) body.push(W.lastCheckpoint);
    this.#rounds.push({ body, tail: this.pv ? this.#pvTail() : this.#hvmTail() });
    this.#body = [];
  }

  #paramChunks(): W.Chunk[] {
    for (const [index, value] of this.#params) {
      const kept = PARAM_NAMES.get(index) ?? (MAGIC_PARAMS as readonly number[]).includes(index);
      if (kept === false || (kept === 'HVM_X87_FIP_WIDTH' && this.#options.x87 !== true)) {
        this.droppedParams.add(index);
        this.dropped.add(`HVM parameter ${index} (0x${value.toString(16)})`);
      }
    }
    return [...PARAM_NAMES].flatMap(([index, name]) => {
      const value = this.#params.get(index);
      return value === undefined || this.droppedParams.has(index) ? [] : [W.param(name, value)];
    });
  }

  #hvmTail(): W.Chunk {
    const magic = MAGIC_PARAMS.map((index) => W.w64(this.#params.get(index) ?? 0n));
    const context = this.#context;
    const { qemu: signature = 'DeviceModelRecord0002' } = this.#options;
    const qemu = this.#emulator === undefined ? [] : W.qemuPieces({ signature, blob: this.#emulator });
    const state = W.cat(...magic, W.w32(context.length), context);
    return () => [{ name: 'HVM tail', bytes: state }, ...qemu];
  }

  #pvTail(): W.Chunk {
    const xsave = this.#xsaveSize();
    const vcpus = [...this.#vcpus].sort(([a], [b]) => a - b);
    const states = vcpus.flatMap(([id, { basic, extended, xsave: area }]) => {
      if (basic === undefined) throw new Error(`vcpu ${id} has no basic state`);
      const wide = new Uint8Array(W.EXTV_SIZE);
      wide.set(extended ?? []);
      return [basic, wide, ...(area === undefined ? [] : [area.subarray(8, 16), W.w64(xsave ?? 0), area])];
    });
    const bytes = W.cat(W.w32(0), ...states, this.#sharedInfo);
    return () => [{ name: 'PV tail', bytes }];
  }

  /** Bytes of xsave state: the same for all vcpus, or none has it. */
  #xsaveSize(): number | undefined {
    const sizes = new Set([...this.#vcpus.values()].map(({ xsave }) => xsave?.length));
    if (sizes.size > 1) throw new Error('vcpus with xsave states of different sizes');
    return [...sizes][0];
  }

  image(): PiecesFromV2 {
    const { word = 8, xl = false } = this.#options;
    const guest = this.pv ? (this.#width === 4 ? 'pv32' : 'pv64') : 'hvm';
    const xsave = this.#xsaveSize();
    const blocks = [W.block.vcpu(), W.block.extv(), ...(xsave === undefined ? [] : [W.block.xcnt(xsave)])];
    const pieces = W.legacyPieces({
      guest,
      word,
      p2mSize: this.#p2mSize,
      vcpus: this.pv ? [...this.#vcpus.keys()].sort((a, b) => a - b) : [0],
      blocks,
      frames: this.#frames,
      rounds: this.#rounds,
    });
    return {
      pieces: xl ? [{ name: 'xl header', bytes: W.xlHeader(this.config) }, ...pieces] : pieces,
      guest: this.pv ? 'pv' : 'hvm',
      width: word === 8 ? 64 : 32,
      dropped: [...this.dropped].sort(),
      droppedParams: [...this.droppedParams],
    };
  }
}

/** libxl's list of regions from xenstore's keys: physmap/<offset>/start_addr, size, name. */
function physmapOf(entries: S.EmulatorXenstoreData['entries'], dropped: Set<string>): W.Physmap[] {
  const regions = new Map<string, Record<string, string>>();
  for (const [key, value] of entries) {
    const [, offset, field] = /^physmap\/([0-9a-f]+)\/(start_addr|size|name)$/.exec(key) ?? [];
    if (offset === undefined || field === undefined) dropped.add(`xenstore ${key}`);
    else regions.set(offset, { ...regions.get(offset), [field]: value });
  }
  return [...regions].flatMap(([offset, { start_addr: start, size, name }]) => {
    if (start !== undefined && size !== undefined && name !== undefined) {
      const [from, bytes] = [BigInt(`0x${start}`), BigInt(`0x${size}`)];
      return [{ offset: BigInt(`0x${offset}`), start: from, size: bytes, name }];
    }
    dropped.add(`xenstore physmap/${offset}`);
    return [];
  });
}

/**
 * Writes a legacy image of a libxc, libxl or xl stream of an x86 guest; one of Remus becomes one of Remus, its last
 * checkpoint the last one that is whole. A stream without device state gets an image without QEMU record. The pieces
 * of page contents are views of the stream.
 * Throws Error for what a legacy image cannot say: frames beyond 28 bits, xsave states of different sizes.
 */
export function legacyPiecesFromV2(bytes: Uint8Array, options: FromV2Options = {}): PiecesFromV2 {
  const legacy = new Legacy(bytes, options);
  const reader = new S.StreamReader();
  for (let at = 0; !reader.done && at < bytes.length;) {
    const chunk = bytes.subarray(at, at + reader.want);
    at += chunk.length;
    const event = reader.feed(chunk);
    if (event?.kind === 'xl-header') legacy.config = event.header.config;
    else if (event?.kind === 'libxl-header') legacy.libxl = true;
    else if (event?.kind === 'domain-header') legacy.pv = event.header.type === 1;
    else if (event?.kind === 'page-data') legacy.pages(event);
    else if (event?.kind === 'record' && event.layer === 'libxc') legacy.libxcRecord(event.name, event.body);
    else if (event?.kind === 'record') legacy.libxlRecord(event.name, event.body);
  }
  if (reader.done) legacy.finish(true);
  return legacy.image();
}

/** The same in one piece. */
export function legacyFromV2(bytes: Uint8Array, options: FromV2Options = {}): FromV2 {
  const image = legacyPiecesFromV2(bytes, options);
  return { ...image, bytes: W.joinPieces(image.pieces) };
}

/** What a stream's guest is, less what its legacy image cannot hold and with what such images always hold. */
export function asLegacy(folded: Folded, { dropped, droppedParams }: FromV2): Folded {
  const params = Object.entries(folded.params).filter(
    ([index, value]) => value !== 0n && !droppedParams.includes(Number(index)),
  );
  const vcpus = Object.entries(folded.vcpus).map(([id, { X86_PV_VCPU_MSRS: _, ...kept }]) => {
    const extended = (kept['X86_PV_VCPU_EXTENDED'] ?? '').padEnd(2 * W.EXTV_SIZE, '0');
    return [id, { ...kept, X86_PV_VCPU_EXTENDED: extended }] as const;
  });
  const isKept = (key: string): boolean =>
    !dropped.some((of) => of.startsWith('xenstore ') && key.startsWith(of.slice(9)));
  return {
    ...folded,
    params: Object.fromEntries(params),
    vcpus: Object.fromEntries(vcpus),
    xenstore: folded.xenstore.filter(([key]) => isKept(key)),
    checkpoints: 0,
  };
}
