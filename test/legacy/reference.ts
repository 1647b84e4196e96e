/**
 * What a guest is after a legacy image, worked out in the plainest way: the whole image in memory, one loop, no limits.
 * Shares no code with the library's reader, so that tests have something to hold that against. For good images only.
 */

import { play } from './delta.js';
import { hash, hex, nothing, type Folded } from './fold.js';
import { ChunkId, PARAM_CHUNKS, type Word } from './writer.js';

const PARAMS = new Map(
  Object.entries(PARAM_CHUNKS).map(([name, index]) => [ChunkId[name as keyof typeof PARAM_CHUNKS], index]),
);

/** The bytes ended. */
class Ended extends Error {}

class Cursor {
  at = 0;
  readonly #bytes: Buffer;
  readonly #word: Word;

  constructor(bytes: Uint8Array, word: Word) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#word = word;
  }

  take(size: number): Buffer {
    if (this.at + size > this.#bytes.length) throw new Ended();
    this.at += size;
    return this.#bytes.subarray(this.at - size, this.at);
  }

  u32 = (): number => this.take(4).readUInt32LE();
  i32 = (): number => this.take(4).readInt32LE();
  u64 = (): bigint => this.take(8).readBigUInt64LE();
  ulong = (): number => (this.#word === 8 ? Number(this.u64()) : this.u32());
  rest = (): Buffer => this.take(this.#bytes.length - this.at);
}

interface Header {
  readonly width: 4 | 8;
  readonly extv: boolean;
  /** Bytes of xsave state with its head; 0 if there is none. */
  readonly xcnt: number;
}

/** One round: chunks up to 0, and the tail. Changes the guest; throws Ended within it. */
class Guest {
  readonly types = new Map<number, number>();
  /** What receivers have of each page; it stays where a later entry has no contents. */
  readonly memory = new Map<number, Uint8Array>();
  state: Omit<Folded, 'pages'>;
  compressed = false;
  announced = false;
  last = false;
  #online: number[] = [];
  #deltas: Uint8Array[] = [];
  #waiting: number[] = [];
  readonly #cursor: Cursor;
  readonly #header: Header;
  readonly #word: Word;

  constructor(cursor: Cursor, header: Header, word: Word, state: Omit<Folded, 'pages'>) {
    this.#cursor = cursor;
    this.#header = header;
    this.#word = word;
    this.state = state;
  }

  body(): void {
    this.state.xenstore = [];
    this.state.params = {};
    for (;;) {
      const id = this.#cursor.i32();
      if (id === ChunkId.END) break;
      if (id > 0) this.#batch(id);
      else this.#chunk(id);
    }
    if (this.compressed) this.#decompress();
  }

  #batch(count: number): void {
    const c = this.#cursor;
    const entries = Array.from({ length: count }, () => c.ulong());
    for (const entry of entries) {
      if (entry === 0xf000_0000) continue;
      const [pfn, type] = [entry % 0x1000_0000, Math.floor(entry / 0x1000_0000)];
      this.types.set(pfn, type);
      if (type >= 0xd) continue;
      if (this.compressed) this.#waiting.push(pfn);
      else this.memory.set(pfn, c.take(4096));
    }
  }

  #chunk(id: number): void {
    const c = this.#cursor;
    const param = PARAMS.get(id as never);
    if (param !== undefined) {
      c.u32();
      this.state.params[param] = c.u64();
      return;
    }
    switch (id) {
      case ChunkId.VCPU_INFO: {
        const maxId = c.i32();
        const map = Array.from({ length: Math.floor(maxId / 64) + 1 }, () => c.u64());
        this.#online = map.flatMap((bits, i) =>
          Array.from({ length: 64 }, (_, bit) => 64 * i + bit).filter(
            (vcpu) => (bits >> BigInt(vcpu % 64)) & 1n,
          ),
        );
        break;
      }
      case ChunkId.TSC_INFO: {
        const [mode, nsec, khz, incarnation] = [c.u32(), c.u64(), c.u32(), c.u32()];
        this.state.tsc = { mode, khz, nsec, incarnation };
        break;
      }
      case ChunkId.TOOLSTACK:
        this.#toolstack(c.take(c.u32()));
        break;
      case ChunkId.COMPRESSED_DATA:
        this.#deltas.push(c.take(c.ulong()));
        break;
      case ChunkId.ENABLE_COMPRESSION:
        this.announced = true;
        break;
      case ChunkId.LAST_CHECKPOINT:
        this.last = true;
        break;
      case ChunkId.ENABLE_VERIFY_MODE:
        break;
      case ChunkId.TMEM:
        c.take(28);
        while (c.u32() !== 0xffff_ffff) {
          c.u32();
          if (c.u32() !== 0) throw new Error('a pool with pages');
          c.take(16);
        }
        break;
      case ChunkId.TMEM_EXTRA:
        while (c.u32() !== 0xffff_ffff) c.take(28);
        break;
      default:
        throw new Error(`chunk ${id}`);
    }
  }

  #toolstack(data: Buffer): void {
    if (data.length === 0) return;
    const c = new Cursor(data, this.#word);
    c.u32();
    const entries = Array.from({ length: c.u32() }, () => {
      const [offset, start, size] = [c.u64(), c.u64(), c.u64()].map((value) => value.toString(16));
      const name = c.take(c.u32()).toString('latin1').slice(0, -1);
      if (this.#word === 8) c.u32();
      const root = `physmap/${offset as string}`;
      return [
        [`${root}/start_addr`, start as string],
        [`${root}/size`, size as string],
        [`${root}/name`, name],
      ] as const;
    });
    if (this.state.guest === 'hvm') this.state.xenstore = [...this.state.xenstore, ...entries.flat()];
  }

  #decompress(): void {
    let deltas: Uint8Array = Buffer.concat(this.#deltas);
    for (const pfn of this.#waiting) {
      const size = sizeOf(deltas);
      const before = this.memory.get(pfn) ?? new Uint8Array(4096);
      this.memory.set(pfn, play(before, deltas.subarray(0, size)));
      deltas = deltas.subarray(size);
    }
    this.#waiting = [];
    this.#deltas = [];
  }

  tail(): void {
    const c = this.#cursor;
    const { state } = this;
    if (state.guest === 'hvm') {
      for (const index of [5, 6, 1]) state.params[index] = c.u64();
      state.context = hex(c.take(c.u32()));
      const signature = c.take(21).toString('latin1');
      state.emulator = hash(signature === 'QemuDeviceModelRecord' ? c.rest() : c.take(c.u32()));
      if (signature === 'QemuDeviceModelRecord') this.last = true;
      return;
    }
    const { width, extv, xcnt } = this.#header;
    c.take(c.u32() * this.#word);
    state.vcpus = {};
    for (const id of this.#online) {
      const vcpu: Record<string, string> = { X86_PV_VCPU_BASIC: hex(c.take(width === 8 ? 5168 : 2800)) };
      if (extv) vcpu['X86_PV_VCPU_EXTENDED'] = hex(c.take(128));
      if (xcnt > 0) vcpu['X86_PV_VCPU_XSAVE'] = hex(c.take(xcnt).subarray(16));
      state.vcpus[id] = vcpu;
    }
    state.sharedInfo = hash(c.take(4096));
  }
}

/** Bytes of the delta that stands first. */
function sizeOf(deltas: Uint8Array): number {
  if (deltas[0] === 0) return 1;
  if (deltas[0] === 0x80) return 4097;
  let [at, covered] = [0, 0];
  while (covered < 4096) {
    const marker = deltas[at] as number;
    const size = 4 * (marker & 0x7f);
    covered += size;
    at += marker < 0x80 ? 1 + size : 1;
  }
  return at;
}

function readHeader(c: Cursor, guest: 'pv' | 'hvm'): [Header, Omit<Folded, 'pages'>] {
  const { pages: _, ...empty } = nothing();
  const state: Omit<Folded, 'pages'> = { ...empty, guest };
  const p2mSize = c.ulong();
  let header: Header = { width: 8, extv: false, xcnt: 0 };
  if (guest === 'hvm') return [header, state];
  c.ulong();
  const end = c.u32() + c.at;
  while (c.at < end) {
    const id = c.take(4).toString('latin1');
    const data = c.take(c.u32());
    if (id === 'vcpu') header = { ...header, width: data.length === 5168 ? 8 : 4 };
    else if (id === 'extv') header = { ...header, extv: true };
    else header = { ...header, xcnt: data.readUInt32LE() };
  }
  state.guestWidth = header.width;
  state.endPfn = p2mSize - 1;
  state.p2mFrames = Array.from({ length: Math.ceil((p2mSize * header.width) / 4096) }, () => c.ulong());
  return [header, state];
}

/**
 * The guest as it is after the image's last complete checkpoint. `checkpoints` is 0, as `foldV2` has it for a stream
 * without any; `rounds` counts those of the image. Pools of tmem are passed over if they have no pages. Throws if there is no
 * checkpoint, or for what is no legacy image.
 */
export function foldLegacy(image: Uint8Array, guest: 'pv' | 'hvm', word: Word): Folded & { rounds: number } {
  const cursor = new Cursor(image, word);
  const [header, state] = readHeader(cursor, guest);
  const now = new Guest(cursor, header, word, state);
  let last: { state: typeof state; types: Map<number, number>; memory: Map<number, Uint8Array> } | undefined;
  let rounds = 0;
  const padding = (): boolean => rounds > 0 && image.subarray(cursor.at).every((byte) => byte === 0);
  while (!now.last && cursor.at < image.length && !padding()) {
    try {
      now.body();
      now.tail();
    } catch (error) {
      if (error instanceof Ended && rounds > 0) break;
      throw error;
    }
    now.compressed = now.announced;
    last = { state: structuredClone(now.state), types: new Map(now.types), memory: new Map(now.memory) };
    rounds++;
  }
  if (last === undefined) throw new Error('not one complete checkpoint');
  const { types, memory } = last;
  const pages = new Map<number, string>();
  for (const [pfn, type] of types) {
    const contents = memory.get(pfn);
    pages.set(
      pfn,
      type >= 0xd || contents === undefined ? `type ${type}` : `type ${type}, ${hash(contents)}`,
    );
  }
  return { ...last.state, pages, rounds };
}
