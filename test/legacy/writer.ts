/**
 * Writes legacy (v1) images, for tests: what the toolstacks of Xen 4.0 to 4.5 wrote, and what they should not have.
 *
 *     legacyImage({
 *       guest: 'pv64',
 *       blocks: [block.vcpu(), block.extv(), block.xcnt()],
 *       body: [tsc(), pages(ram(0, 4), page(4, 'L4_PIN'), holes(5)), vcpuInfo(), lastCheckpoint],
 *     })
 *
 * Numbers and contents that a test does not care about are made up, the same each time.
 */

import { VCPU_CONTEXT } from '../../lib/abi/pv.js';
import { hvmContext, vcpuContext } from '../unit/verify/streams.js';
import { cat, joinPieces, seeded, text, ulong, ulongs, w32, w64, type Piece, type Word } from './bytes.js';
import { endOfBody, type Chunk, type Layout } from './chunks.js';

export * from './bytes.js';
export * from './chunks.js';
export * from './delta.js';
export * from './envelope.js';
export * from './tmem.js';

/** Bytes of an extended vcpu context, whatever is used of them. */
export const EXTV_SIZE = 128;
/** Bytes of xsave state on the machine that the real images come from. */
export const XSAVE_SIZE = 0x350;

/** A block of a PV image's extended info: char[4] name, u32 size, data. */
export interface Block {
  readonly id: string;
  readonly data: (layout: Layout) => Uint8Array;
  /** What it says of the tail. */
  readonly extv?: true;
  readonly xsave?: number;
}

export const block = {
  /** A vcpu context, by whose size readers know the guest's width; its contents are not used. */
  vcpu: (size?: number): Block => ({
    id: 'vcpu',
    data: ({ guest }) => seeded(size ?? VCPU_CONTEXT[guest === 'pv32' ? 4 : 8].size, 77),
  }),
  /** The tail has extended contexts. Senders write it empty. */
  extv: (size = 0): Block => ({ id: 'extv', data: () => seeded(size, 78), extv: true }),
  /** The tail has xsave states of this size; the block says 16 more. */
  xcnt: (xsave = XSAVE_SIZE): Block => ({ id: 'xcnt', data: () => w32(xsave + 16), xsave }),
  raw: (id: string, data: Uint8Array): Block => ({ id, data: () => data }),
} as const;

export type QemuSignature = 'DeviceModelRecord0002' | 'QemuDeviceModelRecord' | 'RemusDeviceModelState';

export interface QemuRecord {
  /** 21 characters. */
  readonly signature: QemuSignature | (string & {});
  readonly blob?: Uint8Array;
  /** Default: the blob's length; QemuDeviceModelRecord has none and goes to the end of the file. */
  readonly length?: number;
}

/** A device model's state. */
export function qemuState(size = 64, seed = 1): Uint8Array {
  return cat(text('QEVM'), w32(0x0300_0000), seeded(size, 0x5000 + seed));
}

/** What follows a body. Everything may be left out. */
export interface TailSpec {
  /** HVM: frames of ioreq, buffered ioreq and xenstore. */
  readonly magic?: readonly [number, number, number];
  /** HVM: Xen's state. */
  readonly context?: Uint8Array;
  /** HVM: the record of the device model; `none` leaves it out. */
  readonly qemu?: QemuRecord | 'none';
  /** PV: frames that were without memory at the end. */
  readonly unmapped?: readonly number[];
  /** PV: vcpus whose xsave state is left out although there is an "xcnt" block. */
  readonly withoutXsave?: readonly number[];
  /** PV: vcpus that the tail has. Default: the image's. */
  readonly vcpus?: readonly number[];
  /** PV: makes this tail's vcpus and shared info differ from another one's. */
  readonly seed?: number;
}

/** A body and its tail: one state of the guest. Remus sends one after the other. */
export interface Round {
  readonly body: readonly Chunk[];
  /** A chunk is the tail as it stands; `none`: the image stops after the body. */
  readonly tail?: TailSpec | Chunk | 'none';
}

export interface ImageSpec {
  readonly guest: Layout['guest'];
  /** Default 8. */
  readonly word?: Word;
  /** Default 64. */
  readonly p2mSize?: number;
  /** Online vcpus. Default: 0. */
  readonly vcpus?: readonly number[];
  /** PV: extended info. Default: vcpu and extv, as on machines without XSAVE. */
  readonly blocks?: readonly Block[];
  /** PV: length of the extended info, if not the true one. */
  readonly blocksLength?: number;
  /** PV: p2m frames. Default: as many as p2mSize and the guest's width need. */
  readonly frames?: readonly number[];
  /** Chunks, without the end, which is added. */
  readonly body?: readonly Chunk[];
  readonly tail?: TailSpec | Chunk | 'none';
  /** Instead of `body` and `tail`: several. */
  readonly rounds?: readonly Round[];
}

const isPv = ({ guest }: Pick<Layout, 'guest'>): boolean => guest !== 'hvm';

export const WIDTH = { hvm: 8, pv32: 4, pv64: 8 } as const;

/** What the parts of an image have in common. */
export function layoutOf(spec: ImageSpec): Layout {
  const { guest, word = 8, p2mSize = 64, vcpus = [0], blocks = [block.vcpu(), block.extv()] } = spec;
  return {
    guest,
    word,
    p2mSize,
    vcpus,
    extv: blocks.some(({ extv }) => extv),
    xsave: blocks.findLast(({ xsave }) => xsave !== undefined)?.xsave,
  };
}

function header(spec: ImageSpec, layout: Layout): Piece[] {
  const { word, p2mSize, guest } = layout;
  const size: Piece = { name: 'p2m_size', bytes: ulong(word, p2mSize) };
  if (!isPv(layout)) return [size];
  const blocks = (spec.blocks ?? [block.vcpu(), block.extv()]).map((of): Piece => {
    const data = of.data(layout);
    return { name: `block ${of.id}`, bytes: cat(text(of.id), w32(data.length), data) };
  });
  const length = spec.blocksLength ?? blocks.reduce((sum, { bytes }) => sum + bytes.length, 0);
  const fpp = 4096 / WIDTH[guest];
  const count = p2mSize < 1 << 24 ? Math.ceil(p2mSize / fpp) : 0;
  const frames = spec.frames ?? Array.from({ length: count }, (_, i) => 1 + i);
  return [
    size,
    { name: 'extended info', bytes: cat(ulong(word, -1n), w32(length)) },
    ...blocks,
    { name: 'p2m frames', bytes: ulongs(word, frames) },
  ];
}

/** xen_domctl_ext_vcpucontext: u32 vcpu, u32 size, the rest of it. */
function extendedContext(vcpu: number, seed: number): Uint8Array {
  return cat(w32(vcpu), w32(EXTV_SIZE), seeded(EXTV_SIZE - 8, 0x3000 + 16 * vcpu + seed));
}

/** u64 xcr0, u64 xcr0_accum, the area itself. */
function xsaveState(size: number, seed: number): Uint8Array {
  return cat(w64(0x1fn), w64(0x1fn), seeded(Math.max(size - 16, 0), seed)).subarray(0, size);
}

function pvTail(layout: Layout, tail: TailSpec): Piece[] {
  const { word, guest, extv, xsave } = layout;
  const { unmapped = [], withoutXsave = [], vcpus = layout.vcpus, seed = 0 } = tail;
  const shared = new Uint8Array(4096);
  shared.set(seeded(64, 0x4000 + seed));
  return [
    { name: 'unmapped', bytes: cat(w32(unmapped.length), ulongs(word, unmapped)) },
    ...vcpus.flatMap((vcpu): Piece[] => {
      const basic = vcpuContext(WIDTH[guest], 3 + seed);
      // The start of the FPU's state, which readers hand on unseen: tells vcpus and rounds apart.
      basic.set(seeded(32, 0x2000 + 16 * vcpu + seed));
      const name = `vcpu ${vcpu}`;
      return [
        { name: `${name}: basic`, bytes: basic },
        ...(extv ? [{ name: `${name}: extended`, bytes: extendedContext(vcpu, seed) }] : []),
        ...(xsave !== undefined && !withoutXsave.includes(vcpu)
          ? [
              { name: `${name}: xsave head`, bytes: cat(w64(0x1fn), w64(xsave)) },
              { name: `${name}: xsave`, bytes: xsaveState(xsave, 0x6000 + 16 * vcpu + seed) },
            ]
          : []),
      ];
    }),
    { name: 'shared info', bytes: shared, opaque: true },
  ];
}

/** 21 characters of signature; u32 length; the state. */
export function qemuPieces(record: QemuRecord): Piece[] {
  const { signature, blob = qemuState() } = record;
  const pieces: Piece[] = [{ name: 'QEMU signature', bytes: text(signature) }];
  const length = record.length ?? (signature === 'QemuDeviceModelRecord' ? undefined : blob.length);
  if (length !== undefined) pieces.push({ name: 'QEMU length', bytes: w32(length) });
  return [...pieces, { name: 'QEMU state', bytes: blob, opaque: true }];
}

function hvmTail(tail: TailSpec): Piece[] {
  const {
    magic = [0xfeffd, 0xfeffe, 0xfeffc],
    context = hvmContext,
    qemu = { signature: 'DeviceModelRecord0002' },
  } = tail;
  return [
    { name: 'magic pfns', bytes: cat(...magic.map((pfn) => w64(pfn))) },
    { name: 'HVM context length', bytes: w32(context.length) },
    { name: 'HVM context', bytes: context },
    ...(qemu === 'none' ? [] : qemuPieces(qemu)),
  ];
}

function tailPieces(layout: Layout, tail: TailSpec | Chunk | 'none'): readonly Piece[] {
  if (tail === 'none') return [];
  if (typeof tail === 'function') return tail(layout);
  return isPv(layout) ? pvTail(layout, tail) : hvmTail(tail);
}

/** The image in pieces. */
export function legacyPieces(spec: ImageSpec): Piece[] {
  const layout = layoutOf(spec);
  const { rounds = [{ body: spec.body ?? [], tail: spec.tail ?? {} }] } = spec;
  return [
    ...header(spec, layout),
    ...rounds.flatMap(({ body, tail = {} }) => [
      ...body.flatMap((chunk) => chunk(layout)),
      ...endOfBody(layout),
      ...tailPieces(layout, tail),
    ]),
  ];
}

export function legacyImage(spec: ImageSpec): Uint8Array {
  return joinPieces(legacyPieces(spec));
}
