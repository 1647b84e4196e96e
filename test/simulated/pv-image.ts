/**
 * A suspended PV guest as a stream carries it, taken out of one domain and put into another: what save and restore
 * do, in the plainest form, so that the simulator's guests are tested without them.
 */
import { gunzipSync } from 'node:zlib';
import { readFileSync } from 'node:fs';
import { pageTableLevel, PAGE_SIZE, PageType } from '../../lib/abi/pages.js';
import {
  cr3ToFrame,
  fppOf,
  frameToCr3,
  levelsOf,
  SHARED_INFO,
  START_INFO,
  VCPU_CONTEXT,
  type GuestWidth,
} from '../../lib/abi/pv.js';
import { setU32, setU64, setU64n, u32, u64 } from '../../lib/bytes/le.js';
import type { VcpuStateKind } from '../../lib/host/host.js';
import { long, populate, toldLeaves, toldP2m, type TestDomain } from './pv-helpers.js';

export interface PvImage {
  readonly width: GuestWidth;
  readonly pages: number;
  /** By pfn. Page tables have pfns in their entries. */
  readonly memory: Map<number, { type: number; bytes: Uint8Array }>;
  /** pfns of the p2m's pages. */
  readonly leaves: readonly number[];
  readonly sharedInfo: Uint8Array;
  /** By vcpu; frames are pfns. */
  readonly vcpus: Map<number, Map<VcpuStateKind, Uint8Array>>;
}

const KINDS: readonly VcpuStateKind[] = ['basic', 'extended', 'xsave', 'msrs'];

function isXenSlot(
  width: GuestWidth,
  level: number,
  slot: number,
  table: Uint8Array,
  compat: number,
): boolean {
  if (width === 8) return level === 4 && slot >= 256 && slot <= 271;
  if (level === 3) return slot >= 4;
  const first = (u64(table, 428 * 8) >> 12n) & 0xff_ffff_ffffn;
  return level === 2 && slot >= 428 && (compat === -1 || first === BigInt(compat));
}

/** Replaces the frames of a page table's present entries. */
function translate(
  bytes: Uint8Array,
  skip: (slot: number) => boolean,
  frameOf: (n: number) => number,
): Uint8Array {
  const out = new Uint8Array(bytes);
  for (let slot = 0; slot < 512; slot++) {
    const raw = u64(out, slot * 8);
    if (skip(slot)) setU64(out, slot * 8, 0n);
    else if ((raw & 1n) !== 0n) {
      const frame = frameOf(Number((raw >> 12n) & 0xff_ffff_ffffn));
      setU64(out, slot * 8, (raw & 0xfff0_0000_0000_0fffn) | (BigInt(frame) << 12n));
    }
  }
  return out;
}

function writeLong(bytes: Uint8Array, at: number, width: GuestWidth, value: number): void {
  if (width === 8) setU64n(bytes, at, value);
  else setU32(bytes, at, value);
}

/** Replaces the frames of a vcpu context. */
function translateContext(
  bytes: Uint8Array,
  vcpu: number,
  width: GuestWidth,
  frameOf: (n: number) => number,
  out: boolean,
): Uint8Array {
  const context = new Uint8Array(bytes);
  const layout = VCPU_CONTEXT[width];
  const swap = (at: number): void => writeLong(context, at, width, frameOf(Number(long(context, at, width))));
  if (vcpu === 0) swap(layout.rdx);
  const ents = Number(long(context, layout.gdtEnts, width));
  for (let i = 0; i < Math.ceil(ents / 512); i++) swap(layout.gdtFrames + i * width);
  const cr3At = layout.ctrlreg + 3 * width;
  if (width === 4) {
    setU32(context, cr3At, Number(frameToCr3(frameOf(cr3ToFrame(BigInt(u32(context, cr3At)), 4)), 4)));
    return context;
  }
  setU64(context, cr3At, frameToCr3(frameOf(cr3ToFrame(u64(context, cr3At), 8)), 8));
  const user = u64(context, layout.ctrlreg + 8);
  if (user !== 0n) {
    setU64(context, layout.ctrlreg + 8, frameToCr3(frameOf(cr3ToFrame(user, 8)), 8) | (out ? 1n : 0n));
  }
  return context;
}

export function takeImage(domain: TestDomain, pages: number): PvImage {
  const { memory, pv } = domain;
  const { width } = pv;
  const p2m = toldP2m(domain, pages);
  const pfnOf = (mfn: number): number => {
    const pfn = memory.pfnOf(mfn);
    if (pfn < 0 || p2m[pfn] !== mfn)
      throw new Error(`mfn 0x${mfn.toString(16)} is not in the pseudo-physmap`);
    return pfn;
  };
  const image: PvImage = {
    width,
    pages,
    memory: new Map(),
    leaves: toldLeaves(domain, pages).map(pfnOf),
    sharedInfo: memory.page(domain.sharedInfoMfn).slice(),
    vcpus: new Map(),
  };
  p2m.forEach((mfn, pfn) => {
    if (mfn < 0) return;
    const type = memory.typeOf(mfn);
    const level = pageTableLevel(type);
    const bytes = memory.page(mfn);
    const skip = (slot: number): boolean => isXenSlot(width, level, slot, bytes, memory.compatM2pMfn);
    image.memory.set(pfn, { type, bytes: level > 0 ? translate(bytes, skip, pfnOf) : bytes.slice() });
  });
  for (let v = 0; v < 4; v++) {
    if (!pv.vcpuOnline(v)) continue;
    const states = new Map(KINDS.map((kind) => [kind, pv.vcpuState(v, kind)]));
    states.set('basic', translateContext(states.get('basic')!, v, width, pfnOf, true));
    image.vcpus.set(v, states);
  }
  return image;
}

/** Puts an image into an empty domain. */
export function putImage(domain: TestDomain, image: PvImage): void {
  const { memory, pv } = domain;
  const { width } = image;
  pv.setWidth(width);
  const pfns = [...image.memory.keys()];
  const mfns = Float64Array.from(pfns);
  if (populate(memory, domain.domid, mfns) !== pfns.length) throw new Error('no memory');
  const mfnOf = new Map(pfns.map((pfn, i) => [pfn, mfns[i]!]));
  const frameOf = (pfn: number): number => {
    const mfn = mfnOf.get(pfn);
    if (mfn === undefined) throw new Error(`pfn 0x${pfn.toString(16)} is not in the image`);
    return mfn;
  };
  for (const [pfn, { type, bytes }] of image.memory) {
    const level = pageTableLevel(type);
    const keep = (): boolean => false;
    memory.page(frameOf(pfn)).set(level > 0 ? translate(bytes, keep, frameOf) : bytes);
  }
  putSharedInfo(domain, image);
  putStartInfo(domain, image, frameOf);
  for (const [vcpu, states] of image.vcpus) {
    const basic = translateContext(states.get('basic')!, vcpu, width, frameOf, false);
    const flags = VCPU_CONTEXT[width].flags;
    basic[flags] = basic[flags]! | 0x20;
    pv.setVcpuState(vcpu, 'basic', basic);
    for (const kind of KINDS.slice(1)) {
      const state = states.get(kind)!;
      if (state.length > 0) pv.setVcpuState(vcpu, kind, state);
    }
  }
  const pinned = [...image.memory].filter(([, { type }]) => (type & PageType.PINNED) !== 0);
  for (const [pfn, { type }] of pinned) pv.pinTables(Uint8Array.of(type & 7), Float64Array.of(frameOf(pfn)));
  const fpp = fppOf(width);
  image.leaves.forEach((leaf, i) => {
    const page = memory.page(frameOf(leaf)).fill(0xff);
    for (let k = 0; k < fpp; k++) {
      const mfn = mfnOf.get(i * fpp + k);
      if (mfn !== undefined) writeLong(page, k * width, width, mfn);
    }
  });
}

function putSharedInfo(domain: TestDomain, image: PvImage): void {
  const arch = SHARED_INFO[image.width];
  const page = domain.memory.page(domain.sharedInfoMfn);
  page.set(image.sharedInfo.subarray(0, 32 * 64));
  page.set(image.sharedInfo.subarray(arch.arch, arch.arch + arch.archBytes), arch.arch);
  page.fill(0, arch.frameListList, arch.frameListList + image.width);
  page.fill(0xff, arch.evtchnMask, arch.evtchnMask + arch.evtchnBytes);
}

function putStartInfo(domain: TestDomain, image: PvImage, frameOf: (pfn: number) => number): void {
  const { width } = image;
  const pfn = Number(long(image.vcpus.get(0)!.get('basic')!, VCPU_CONTEXT[width].rdx, width));
  const page = domain.memory.page(frameOf(pfn));
  const fields = START_INFO[width];
  for (const at of [fields.storeMfn, fields.consoleMfn]) {
    writeLong(page, at, width, frameOf(Number(long(page, at, width))));
  }
  setU32(page, fields.storeEvtchn, 11);
  setU32(page, fields.consoleEvtchn, 12);
  writeLong(page, fields.nrPages, width, image.pages);
  const shared = domain.sharedInfoMfn * PAGE_SIZE;
  setU32(page, fields.sharedInfo, shared % 0x1_0000_0000);
  if (width === 8) setU32(page, fields.sharedInfo + 4, Math.floor(shared / 0x1_0000_0000));
  setU32(page, fields.flags, 0);
}

/** Reads an xl image of a 64-bit PV guest. */
export function readCapture(file: string): PvImage {
  const data = gunzipSync(readFileSync(file));
  // The libxc part starts at its image header; domain header and records follow.
  let at = data.indexOf(Buffer.from('ffffffffffffffff58454e46', 'hex')) + 24 + 16;
  const image = {
    width: 8 as GuestWidth,
    pages: 0,
    leaves: [] as number[],
    sharedInfo: new Uint8Array(PAGE_SIZE),
  };
  const memory: PvImage['memory'] = new Map();
  const vcpus: PvImage['vcpus'] = new Map();
  const kinds = new Map<number, VcpuStateKind>([
    [4, 'basic'],
    [5, 'extended'],
    [6, 'xsave'],
    [12, 'msrs'],
  ]);
  for (;;) {
    const type = data.readUInt32LE(at);
    const length = data.readUInt32LE(at + 4);
    const body = data.subarray(at + 8, at + 8 + length);
    if (type === 0) break;
    const kind = kinds.get(type);
    if (type === 1) readPages(body, memory);
    else if (type === 2) image.width = body[0] as GuestWidth;
    else if (type === 3) {
      image.pages = body.readUInt32LE(4) + 1;
      for (let i = 8; i < length; i += 8) image.leaves.push(Number(body.readBigUInt64LE(i)));
    } else if (type === 7) image.sharedInfo = new Uint8Array(body);
    else if (kind !== undefined) {
      const vcpu = body.readUInt32LE(0);
      const states =
        vcpus.get(vcpu) ?? new Map<VcpuStateKind, Uint8Array>(KINDS.map((k) => [k, new Uint8Array(0)]));
      states.set(kind, new Uint8Array(body.subarray(8)));
      vcpus.set(vcpu, states);
    }
    at += 8 + Math.ceil(length / 8) * 8;
  }
  if (levelsOf(image.width) !== 4) throw new Error('not 64-bit');
  return { ...image, memory, vcpus };
}

function readPages(body: Buffer, memory: PvImage['memory']): void {
  const count = body.readUInt32LE(0);
  let data = 8 + 8 * count;
  for (let i = 0; i < count; i++) {
    const word = body.readBigUInt64LE(8 + 8 * i);
    const type = Number(word >> 60n);
    if (type >= PageType.BROKEN) continue;
    memory.set(Number(word & 0xf_ffff_ffff_ffffn), {
      type,
      bytes: new Uint8Array(body.subarray(data, data + PAGE_SIZE)),
    });
    data += PAGE_SIZE;
  }
}
