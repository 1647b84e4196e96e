/**
 * Chunks of a legacy image's body, for tests. Each is written as the senders of Xen 4.0 to 4.5 wrote it.
 *
 *     offset  size  field
 *          0     4  id, signed: > 0 a batch of so many pages, 0 the end of the body, < 0 one of `ChunkId`
 *          4     …  data
 */

import { cat, pageOf, text, ulong, ulongs, w32, w64, type Piece, type Word } from './bytes.js';
import type { Delta } from './delta.js';

/** What every part of an image may depend on. */
export interface Layout {
  readonly word: Word;
  readonly guest: 'hvm' | 'pv32' | 'pv64';
  readonly p2mSize: number;
  /** Online vcpus, ascending. */
  readonly vcpus: readonly number[];
  /** PV: the tail has extended contexts. */
  readonly extv: boolean;
  /** PV: bytes of xsave state of each vcpu in the tail; undefined if there is none. */
  readonly xsave: number | undefined;
}

/** A chunk, not yet written. */
export type Chunk = (layout: Layout) => readonly Piece[];

export const ChunkId = {
  END: 0,
  ENABLE_VERIFY_MODE: -1,
  VCPU_INFO: -2,
  HVM_IDENT_PT: -3,
  HVM_VM86_TSS: -4,
  TMEM: -5,
  TMEM_EXTRA: -6,
  TSC_INFO: -7,
  HVM_CONSOLE_PFN: -8,
  LAST_CHECKPOINT: -9,
  HVM_ACPI_IOPORTS_LOCATION: -10,
  HVM_VIRIDIAN: -11,
  COMPRESSED_DATA: -12,
  ENABLE_COMPRESSION: -13,
  HVM_GENERATION_ID_ADDR: -14,
  HVM_PAGING_RING_PFN: -15,
  HVM_ACCESS_RING_PFN: -16,
  HVM_SHARING_RING_PFN: -17,
  TOOLSTACK: -18,
  HVM_IOREQ_SERVER_PFN: -19,
  HVM_NR_IOREQ_SERVER_PAGES: -20,
  HVM_X87_FIP_WIDTH: -21,
} as const;

export type ChunkName = keyof typeof ChunkId;

/** Chunks that hold an HVM parameter each, in the order in which 4.5 writes them, and the parameter's number. */
export const PARAM_CHUNKS = {
  HVM_GENERATION_ID_ADDR: 34,
  HVM_IDENT_PT: 12,
  HVM_PAGING_RING_PFN: 27,
  HVM_ACCESS_RING_PFN: 28,
  HVM_SHARING_RING_PFN: 29,
  HVM_VM86_TSS: 15,
  HVM_CONSOLE_PFN: 17,
  HVM_ACPI_IOPORTS_LOCATION: 19,
  HVM_VIRIDIAN: 9,
  HVM_IOREQ_SERVER_PFN: 32,
  HVM_NR_IOREQ_SERVER_PAGES: 33,
  HVM_X87_FIP_WIDTH: 36,
} as const;

export type ParamChunk = keyof typeof PARAM_CHUNKS;

function chunk(id: number, name: string, ...data: readonly Uint8Array[]): readonly Piece[] {
  return [{ name, bytes: cat(w32(id), ...data) }];
}

/** A chunk of any id with any data. */
export function rawChunk(id: number, data: Uint8Array = new Uint8Array(0)): Chunk {
  return () => chunk(id, `chunk ${id}`, data);
}

/** Page types, as nibbles. */
export const PageType = {
  NOTAB: 0x0,
  L1: 0x1,
  L2: 0x2,
  L3: 0x3,
  L4: 0x4,
  L1_PIN: 0x9,
  L2_PIN: 0xa,
  L3_PIN: 0xb,
  L4_PIN: 0xc,
  BROKEN: 0xd,
  XALLOC: 0xe,
  XTAB: 0xf,
} as const;

export type PageTypeName = keyof typeof PageType;

/** A page of a batch. */
export interface Entry {
  readonly pfn: number;
  /** A nibble, perhaps of a type that does not exist. */
  readonly type: number;
  readonly contents: Uint8Array | undefined;
}

/** A page of any type; with contents if its type has them. */
export function page(pfn: number, type: PageTypeName | number = 'NOTAB', contents = pageOf(pfn)): Entry {
  const nibble = typeof type === 'number' ? type : PageType[type];
  return { pfn, type: nibble, contents: nibble < 0xd ? contents : undefined };
}

/** Ordinary pages: `count` from `from` on. */
export function ram(from: number, count = 1, version = 1): Entry[] {
  return Array.from({ length: count }, (_, i) => page(from + i, 'NOTAB', pageOf(from + i, version)));
}

/** Pages without memory that are sent with their number. */
export function holes(from: number, count = 1): Entry[] {
  return Array.from({ length: count }, (_, i) => page(from + i, 'XTAB'));
}

/** Pages without memory whose number got lost on the way: what 4.5 sends for those that it could not map. */
export function lost(count = 1): Entry[] {
  return Array.from({ length: count }, () => page(0, 'XTAB'));
}

function batchHead({ word }: Layout, entries: readonly Entry[]): Piece {
  const table = entries.map(({ pfn, type }) => type * 0x1000_0000 + pfn);
  return { name: `batch of ${entries.length}`, bytes: cat(w32(entries.length), ulongs(word, table)) };
}

/** A batch of pages with contents. `ulong[count]`: type in bits 31–28, pfn in 27–0; then 4096 bytes for each that has. */
export function pages(...entries: readonly (Entry | readonly Entry[])[]): Chunk {
  const all = entries.flat();
  return (layout) => [
    batchHead(layout, all),
    ...all.flatMap(({ pfn, contents }): Piece[] =>
      contents === undefined ? [] : [{ name: `contents of page ${pfn}`, bytes: contents, opaque: true }],
    ),
  ];
}

/** A batch without contents, as compressed checkpoints have them. */
export function pfns(...entries: readonly (Entry | readonly Entry[])[]): Chunk {
  const all = entries.flat();
  return (layout) => [batchHead(layout, all)];
}

/** Page contents as deltas: `ulong` size, then that many bytes. */
export function compressed(...deltas: readonly Delta[]): Chunk {
  const data = cat(...deltas);
  return ({ word }) => chunk(ChunkId.COMPRESSED_DATA, 'COMPRESSED_DATA', ulong(word, data.length), data);
}

const bare = (name: ChunkName): Chunk => {
  return () => chunk(ChunkId[name], name);
};

export const verifyMode: Chunk = bare('ENABLE_VERIFY_MODE');
export const lastCheckpoint: Chunk = bare('LAST_CHECKPOINT');
export const enableCompression: Chunk = bare('ENABLE_COMPRESSION');
export const endOfBody: Chunk = bare('END');

/** How a vcpu chunk differs from that of 4.2 and later. */
export interface VcpuInfoOptions {
  /** Default: the image's vcpus. */
  readonly online?: readonly number[];
  /** Default: the highest online one. */
  readonly maxId?: number;
  /** Words of the map. Default: as many as `maxId` needs; 4.0 and 4.1 wrote one always. */
  readonly words?: number;
}

/** i32 highest vcpu, then u64[highest / 64 + 1]: a bit for each that is online. */
export function vcpuInfo(options: VcpuInfoOptions = {}): Chunk {
  return ({ vcpus }) => {
    const { online = vcpus } = options;
    const { maxId = Math.max(...online, 0) } = options;
    const { words = Math.floor(maxId / 64) + 1 } = options;
    const map = new Array<bigint>(Math.max(words, 0)).fill(0n);
    for (const id of online) {
      const word = Math.floor(id / 64);
      if (word < map.length) map[word] = (map[word] as bigint) | (1n << BigInt(id % 64));
    }
    return chunk(ChunkId.VCPU_INFO, 'VCPU_INFO', w32(maxId), ...map.map((bits) => w64(bits)));
  };
}

/** An HVM parameter: u32 padding, u64 value. The padding is whatever stood on the sender's stack. */
export function param(name: ParamChunk, value: number | bigint, padding = 0): Chunk {
  return () => chunk(ChunkId[name], name, w32(padding), w64(value));
}

export interface Tsc {
  readonly mode: number;
  readonly nsec: bigint;
  readonly khz: number;
  readonly incarnation: number;
}

/** u32 mode, u64 nsec, u32 khz, u32 incarnation. */
export function tsc(of: Partial<Tsc> = {}): Chunk {
  const { mode, nsec, khz, incarnation } = {
    mode: 1,
    nsec: 0x1_2345_6789n,
    khz: 2_400_000,
    incarnation: 3,
    ...of,
  };
  return () => chunk(ChunkId.TSC_INFO, 'TSC_INFO', w32(mode), w64(nsec), w32(khz), w32(incarnation));
}

/** A region of the device model's memory, as libxl keeps it in xenstore. */
export interface Physmap {
  readonly offset: number | bigint;
  readonly start: number | bigint;
  readonly size: number | bigint;
  readonly name: string;
}

/** How a toolstack chunk differs from that of libxl 4.2 to 4.5. */
export interface ToolstackOptions {
  readonly version?: number;
  /** Default: the number of entries. */
  readonly count?: number;
  /** Four bytes of the sender's memory behind each name. Default: as builds with this word did. */
  readonly garbage?: boolean;
}

/** u32 length of what follows; libxl's: u32 version, u32 count, then u64 offset, start, size, u32 length of name, name. */
export function toolstack(entries: readonly Physmap[] = [], options: ToolstackOptions = {}): Chunk {
  return (layout) => {
    const { version = 1, count = entries.length, garbage = layout.word === 8 } = options;
    const data = entries.flatMap(({ offset, start, size, name }, i) => [
      ...[w64(offset), w64(start), w64(size), w32(name.length + 1), text(`${name}\0`)],
      ...(garbage ? [text(`\xa5\x5a${String.fromCharCode(i)}\0`)] : []),
    ]);
    return toolstackBytes(cat(w32(version), w32(count), ...data))(layout);
  };
}

/** A toolstack chunk of another toolstack. */
export function toolstackBytes(data: Uint8Array): Chunk {
  return () => chunk(ChunkId.TOOLSTACK, 'TOOLSTACK', w32(data.length), data);
}
