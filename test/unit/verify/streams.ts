/** Small valid streams in named pieces, so that tests can take a piece out, change it or put one in. */

import { frameToCr3, VCPU_CONTEXT, type GuestWidth } from '../../../lib/abi/pv.js';
import { setU32, setU64n } from '../../../lib/bytes/le.js';
import * as S from '../../../lib/stream/index.js';

/** A header or a whole record. */
export interface Piece {
  readonly name: string;
  readonly bytes: Uint8Array;
}

export function join(pieces: readonly Piece[]): Uint8Array {
  return Buffer.concat(pieces.map((piece) => piece.bytes));
}

/** Offset of the first piece of this name. */
export function offsetOf(pieces: readonly Piece[], name: string, nth = 0): number {
  let at = 0;
  for (const piece of pieces) {
    if (piece.name === name && nth-- === 0) return at;
    at += piece.bytes.length;
  }
  throw new Error(`no ${name}`);
}

/** A libxc record by its name. */
export function libxc(name: S.LibxcRecordName, body?: Uint8Array): Piece {
  return { name, bytes: S.encodeRecord(S.LibxcRecord[name], body) };
}

/** A libxl record by its name. */
export function libxl(name: S.LibxlRecordName, body?: Uint8Array): Piece {
  return { name: name === 'END' ? 'libxl END' : name, bytes: S.encodeRecord(S.LibxlRecord[name], body) };
}

/** PAGE_DATA with a little contents for each page that has data. */
export function pages(entries: readonly (readonly [pfn: number, type: number])[]): Piece {
  const head = new Uint8Array(S.pageDataHeadSize(entries.length));
  S.writePageDataHead(
    head,
    entries.map(([pfn]) => pfn),
    entries.map(([, type]) => type),
    entries.length,
  );
  const contents = entries.filter(([, type]) => type < 0xd).map(([pfn]) => new Uint8Array(4096).fill(pfn));
  return { name: 'PAGE_DATA', bytes: Buffer.concat([head, ...contents]) };
}

export function headers(type: number, version: 2 | 3, xenMajor = 4): Piece[] {
  return [
    { name: 'image header', bytes: S.encodeImageHeader({ version }) },
    { name: 'domain header', bytes: S.encodeDomainHeader({ type, xenMajor, xenMinor: 17 }) },
  ];
}

function staticData(version: 2 | 3): Piece[] {
  if (version === 2) return [];
  const leaf = { leaf: 0, subleaf: S.CPUID_NO_SUBLEAF, a: 13, b: 1, c: 2, d: 3 };
  return [
    libxc('X86_CPUID_POLICY', S.encodeX86CpuidPolicy([leaf, { ...leaf, leaf: 1 }])),
    libxc('X86_MSR_POLICY', S.encodeX86MsrPolicy([{ index: 0xce, flags: 0, value: 1n << 31n }])),
    libxc('STATIC_DATA_END'),
  ];
}

const tsc = libxc('X86_TSC_INFO', S.encodeX86TscInfo({ mode: 2, khz: 2_400_000, nsec: 5n, incarnation: 1 }));

/** Hypervisor save records: HEADER with 5 bytes, END. 21 bytes, so the record has padding. */
export const hvmContext = Uint8Array.from([1, 0, 0, 0, 5, 0, 0, 0, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0]);

function hvmState(): Piece[] {
  const entries = [
    { index: 1, value: 0xfeffcn },
    { index: 17, value: 0xfefffn },
  ];
  return [tsc, libxc('HVM_CONTEXT', hvmContext), libxc('HVM_PARAMS', S.encodeHvmParams({ entries }))];
}

/** A libxc stream of an HVM guest. */
export function hvm(version: 2 | 3 = 3): Piece[] {
  return [
    ...headers(2, version),
    ...staticData(version),
    pages([
      [0x10, 0],
      [0x11, 0xf],
      [0x12, 0xd],
    ]),
    pages([[0x13, 0xf]]),
    ...hvmState(),
    libxc('END'),
  ];
}

/** A libxc stream of an HVM guest with checkpoints, without libxl records between. */
export function hvmCheckpointed(checkpoints = 2): Piece[] {
  const round = [pages([[0x10, 0]]), ...hvmState(), libxc('CHECKPOINT')];
  return [
    ...headers(2, 3),
    ...staticData(3),
    ...Array.from({ length: checkpoints }, () => round).flat(),
    libxc('END'),
  ];
}

/** vcpu_guest_context with frames in range. */
export function vcpuContext(width: GuestWidth, frame = 3): Uint8Array {
  const layout = VCPU_CONTEXT[width];
  const blob = new Uint8Array(layout.size);
  const word = (at: number, value: number): unknown =>
    width === 8 ? setU64n(blob, at, value) : setU32(blob, at, value);
  word(layout.rdx, frame);
  word(layout.gdtEnts, 513);
  word(layout.gdtFrames, frame);
  word(layout.gdtFrames + width, frame);
  word(layout.ctrlreg + 3 * width, Number(frameToCr3(frame, width)));
  if (width === 8) word(layout.ctrlreg + 8, Number(frameToCr3(frame, width)) + 1);
  return blob;
}

export function vcpu(name: 'BASIC' | 'EXTENDED' | 'XSAVE' | 'MSRS', vcpuId: number, blob: Uint8Array): Piece {
  return libxc(`X86_PV_VCPU_${name}`, S.encodeX86PvVcpu({ vcpuId, blob }));
}

/** xen_domctl_ext_vcpucontext, as far as it names its vcpu. */
export function extended(vcpuId: number): Uint8Array {
  const blob = new Uint8Array(128);
  setU32(blob, 0, vcpuId);
  setU32(blob, 4, 128);
  return blob;
}

/** A libxc stream of a PV guest with two vcpus. */
export function pv(width: GuestWidth = 8, version: 2 | 3 = 3): Piece[] {
  const fpp = 4096 / width;
  const p2m = S.encodeX86PvP2mFrames({ startPfn: 0, endPfn: fpp + 87, frames: [3, 4] });
  return [
    ...headers(1, version),
    libxc('X86_PV_INFO', S.encodeX86PvInfo({ guestWidth: width })),
    ...staticData(version),
    libxc('X86_PV_P2M_FRAMES', p2m),
    pages([
      [3, 0],
      [5, 0x1],
      [6, 0xf],
    ]),
    pages([[9, width === 8 ? 0xc : 0xb]]),
    tsc,
    libxc('SHARED_INFO', new Uint8Array(4096).fill(9)),
    vcpu('BASIC', 0, vcpuContext(width)),
    vcpu('EXTENDED', 0, extended(0)),
    vcpu('XSAVE', 0, new Uint8Array(20)),
    vcpu('MSRS', 0, S.encodeVcpuMsrs([{ index: 0xc000_0103, value: 7n }])),
    vcpu('BASIC', 1, vcpuContext(width)),
    libxc('END'),
  ];
}

const emulator = libxl(
  'EMULATOR_CONTEXT',
  S.encodeEmulatorContext({ emulatorId: 2, index: 0, blob: Uint8Array.from([0x51, 0x45, 0x56, 0x4d, 1]) }),
);

/** A libxl stream around a libxc one; with the emulator's state unless told otherwise. */
export function inLibxl(
  inner: readonly Piece[] = hvm(),
  { emulated = true, xenstore = false } = {},
): Piece[] {
  const entries: [string, string][] = [['physmap/0/name', 'vga.vram']];
  const data = S.encodeEmulatorXenstoreData({ emulatorId: 2, index: 0, entries });
  return [
    { name: 'libxl header', bytes: S.encodeLibxlHeader() },
    libxl('LIBXC_CONTEXT'),
    ...inner,
    ...(xenstore ? [libxl('EMULATOR_XENSTORE_DATA', data)] : []),
    ...(emulated ? [emulator] : []),
    libxl('END'),
  ];
}

/** A libxl stream with checkpoints; without END, as Remus leaves it. */
export function remus(checkpoints = 2): Piece[] {
  const round = [pages([[0x10, 0]]), ...hvmState(), libxc('CHECKPOINT'), emulator, libxl('CHECKPOINT_END')];
  return [
    { name: 'libxl header', bytes: S.encodeLibxlHeader() },
    libxl('LIBXC_CONTEXT'),
    ...headers(2, 3),
    ...staticData(3),
    ...Array.from({ length: checkpoints }, () => round).flat(),
  ];
}

/** A file of xl. */
export function inXl(stream: readonly Piece[] = inLibxl(), type = 'hvm', config?: string): Piece[] {
  const json = config ?? JSON.stringify({ c_info: { type, name: 'guest' } });
  return [{ name: 'xl header', bytes: S.encodeXlHeader({ config: json }) }, ...stream];
}

/** One of each kind, by name, with its format. */
export function samples(): readonly { name: string; format: S.StreamFormat; pieces: Piece[] }[] {
  return [
    { name: 'HVM', format: 'libxc', pieces: hvm() },
    { name: 'HVM, version 2', format: 'libxc', pieces: hvm(2) },
    { name: 'HVM, checkpointed', format: 'libxc', pieces: hvmCheckpointed() },
    { name: 'PV, 64-bit', format: 'libxc', pieces: pv(8) },
    { name: 'PV, 64-bit, version 2', format: 'libxc', pieces: pv(8, 2) },
    { name: 'PV, 32-bit', format: 'libxc', pieces: pv(4) },
    { name: 'libxl, HVM', format: 'libxl', pieces: inLibxl() },
    { name: 'libxl, HVM with xenstore data', format: 'libxl', pieces: inLibxl(hvm(), { xenstore: true }) },
    { name: 'libxl, PV', format: 'libxl', pieces: inLibxl(pv(), { emulated: false }) },
    { name: 'libxl, Remus', format: 'libxl', pieces: remus() },
    { name: 'xl, HVM', format: 'xl', pieces: inXl() },
    { name: 'xl, PVH', format: 'xl', pieces: inXl(inLibxl(hvm(), { emulated: false }), 'pvh') },
    { name: 'xl, PV', format: 'xl', pieces: inXl(inLibxl(pv(), { emulated: false }), 'pv') },
  ];
}

/** The pieces without those of this name. */
export function without(pieces: readonly Piece[], ...names: string[]): Piece[] {
  return pieces.filter((piece) => !names.includes(piece.name));
}

/** The pieces with the first of this name replaced by others. */
export function replace(pieces: readonly Piece[], name: string, ...by: Piece[]): Piece[] {
  const i = pieces.findIndex((piece) => piece.name === name);
  if (i < 0) throw new Error(`no ${name}`);
  return [...pieces.slice(0, i), ...by, ...pieces.slice(i + 1)];
}

/** The pieces with others before the first of this name. */
export function before(pieces: readonly Piece[], name: string, ...added: Piece[]): Piece[] {
  return replace(
    pieces,
    name,
    ...added,
    pieces.find((piece) => piece.name === name)!,
  );
}

/** The pieces with bytes of the first of this name overwritten, counted from the start of its header. */
export function poke(pieces: readonly Piece[], name: string, at: number, ...bytes: number[]): Piece[] {
  const piece = pieces.find((p) => p.name === name)!;
  const changed = Uint8Array.from(piece.bytes);
  changed.set(bytes, at);
  return replace(pieces, name, { name, bytes: changed });
}
