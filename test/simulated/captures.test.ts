/**
 * Every real capture, restored into a simulated host and saved again, is the same guest: the same records and, frame by
 * frame, the same pages. For a PV guest this carries a real kernel's page tables over other machine frames and back.
 *
 * What may differ is listed field by field, with the value that it must have afterwards.
 */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { HvmParam } from '../../lib/abi/hvm.js';
import { PAGE_SIZE } from '../../lib/abi/pages.js';
import {
  cr3ToFrame,
  fppOf,
  frameToCr3,
  type GuestWidth,
  LEGACY_MAX_VCPUS,
  SHARED_INFO,
  START_INFO,
  VCPU_CONTEXT,
  VCPU_INFO_SIZE,
} from '../../lib/abi/pv.js';
import { isZero, setU32, u32, u64, u64n } from '../../lib/bytes/le.js';
import type { Host } from '../../lib/host/host.js';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import { restore } from '../../lib/restore/restore.js';
import { save } from '../../lib/save/save.js';
import { decodeHvmParams } from '../../lib/stream/libxc/hvm.js';
import { decodeX86PvInfo, decodeX86PvP2mFrames } from '../../lib/stream/libxc/pv.js';
import { MemorySink } from '../../lib/transport/index.js';
import { differingPages, type Image, readImage } from './image.js';

const root = path.resolve(import.meta.dirname, '../..');
const golden = path.join(root, 'test/golden/streams');
const local = process.env['XEN_MIGRATION_STREAMS'] ?? path.resolve(root, '../shared/streams');

interface Capture {
  readonly name: string;
  readonly folder: string;
  /** Superpages that a restore finds in the order in which the sender sent its pages. */
  readonly superpages: number;
  readonly checkpoints: number;
  readonly pages: number;
}

const captures: readonly Capture[] = [
  { name: 'tinyhvm.save', folder: golden, superpages: 15, checkpoints: 0, pages: 8176 },
  { name: 'tinyhvm.migrate', folder: golden, superpages: 15, checkpoints: 0, pages: 8176 },
  { name: 'tinyhvm.remus', folder: golden, superpages: 15, checkpoints: 8, pages: 8176 },
  { name: 'pvh.save', folder: local, superpages: 63, checkpoints: 0, pages: 32784 },
  { name: 'pv.save', folder: local, superpages: 54, checkpoints: 0, pages: 32768 },
];

/** What only the host knows that the guest was restored on. */
interface NewHost {
  readonly sharedInfoMfn: number;
  readonly wiring: { readonly storeEvtchn: number; readonly consoleEvtchn: number };
  /** pfn of a machine frame. */
  readonly pfnOf: (mfn: number) => number;
  /** mfn of each pfn that has memory. */
  readonly mfnOf: ReadonlyMap<number, number>;
}

/** The other host has no superpages to give, so that a PV guest's frames are scattered one by one. */
function withoutSuperpages(host: SimulatedHost): Host {
  return {
    kind: host.kind,
    toolstack: host.toolstack,
    xenVersion: () => host.xenVersion(),
    listDomains: () => host.listDomains(),
    mapMachineToPhys: () => host.mapMachineToPhys(),
    close: () => host.close(),
    openDomain: async (domid) => {
      const domain = await host.openDomain(domid);
      const populate = domain.populate.bind(domain);
      domain.populate = async (frames, order) => (order === 9 ? 0 : populate(frames, order));
      return domain;
    },
  };
}

/** Restores a stream into a new host, saves the guest again, and looks at both. */
async function throughHost(
  stream: Uint8Array,
  options: { readonly seed: number; readonly superpages: boolean },
): Promise<{
  readonly restored: Awaited<ReturnType<typeof restore>>;
  readonly saved: Uint8Array;
  readonly host: NewHost;
}> {
  await using host = new SimulatedHost({ seed: options.seed, unscrubbedMemory: true });
  const onto = options.superpages ? host : withoutSuperpages(host);
  const restored = await restore(onto, { from: stream, onTruncatedCheckpoint: 'failover' });
  const { state, wiring } = host.inspect(restored.domid);
  const sink = new MemorySink();
  await save(host, { domid: restored.domid, to: sink, live: false, afterwards: 'suspended' });
  expect(host.mappings).toBe(0);
  const mfnOf = new Map<number, number>();
  state.forEachPage((pfn, mfn) => mfnOf.set(pfn, mfn));
  const pfns = new Map([...mfnOf].map(([pfn, mfn]) => [mfn, pfn]));
  const { sharedInfoMfn } = state;
  return {
    restored,
    saved: sink.bytes.slice(),
    host: { sharedInfoMfn, wiring, mfnOf, pfnOf: (mfn) => pfns.get(mfn) ?? -1 },
  };
}

function long(bytes: Uint8Array, at: number, width: GuestWidth): number {
  return width === 8 ? u64n(bytes, at) : u32(bytes, at);
}

/** Headers and records: the same ones, byte for byte, but for what `expected` says of a record. */
function expectSameRecords(
  before: Image,
  after: Image,
  expected: Record<string, (body: Uint8Array) => Uint8Array>,
): void {
  expect(after.image).toEqual(before.image);
  expect(after.domain).toEqual(before.domain);
  expect(after.libxl).toEqual(before.libxl);
  expect(after.xl).toEqual(before.xl);
  expect([...after.records.keys()]).toEqual([...before.records.keys()]);
  for (const [name, body] of before.records) {
    const wanted = expected[name]?.(body.slice()) ?? body;
    expect(Buffer.from(after.records.get(name)!).toString('hex'), name).toBe(
      Buffer.from(wanted).toString('hex'),
    );
  }
}

/** Xen counts how often a domain's TSC was set. */
function countedTsc(body: Uint8Array): Uint8Array {
  setU32(body, 16, u32(body, 16) + 1);
  return body;
}

function expectSameHvmGuest(before: Image, after: Image): void {
  expectSameRecords(before, after, { 'libxc X86_TSC_INFO': countedTsc });
  const { entries } = decodeHvmParams(before.records.get('libxc HVM_PARAMS')!);
  const rings: readonly number[] = [
    HvmParam.STORE_PFN,
    HvmParam.CONSOLE_PFN,
    HvmParam.IOREQ_PFN,
    HvmParam.BUFIOREQ_PFN,
  ];
  const cleared = entries.filter(({ index }) => rings.includes(index)).map(({ value }) => Number(value));
  expect(cleared.length).toBeGreaterThanOrEqual(2);
  for (const pfn of cleared) {
    expect(after.pages.type(pfn)).toBe(before.pages.type(pfn));
    expect(isZero(after.pages.bytes(pfn)!)).toBe(true);
  }
  expect(differingPages(before, after).filter((pfn) => !cleared.includes(pfn))).toEqual([]);
}

/** shared_info as the receiver makes it, and what the guest tells anew when it comes back and leaves again. */
function newSharedInfo(body: Uint8Array, width: GuestWidth, p2mCr3: bigint): Uint8Array {
  const at = SHARED_INFO[width];
  for (let vcpu = 0; vcpu < LEGACY_MAX_VCPUS; vcpu++) {
    const sel = vcpu * VCPU_INFO_SIZE + at.pendingSel;
    body.fill(0, sel, sel + width);
  }
  body.fill(0, at.evtchnPending, at.evtchnPending + at.evtchnBytes);
  body.fill(0xff, at.evtchnMask, at.evtchnMask + at.evtchnBytes);
  // wc_version, wc_sec, wc_nsec: the new host's, and the simulated one has no wall clock.
  body.fill(0, at.evtchnMask + at.evtchnBytes, at.arch);
  body.fill(0, at.frameListList, at.frameListList + width);
  setU32(body, at.p2mCr3, Number(p2mCr3 & 0xffff_ffffn));
  if (width === 8) setU32(body, at.p2mCr3 + 4, Number(p2mCr3 >> 32n));
  // Behind the structure.
  body.fill(0, at.arch + at.archBytes);
  return body;
}

function newStartInfo(page: Uint8Array, width: GuestWidth, pages: number, host: NewHost): Uint8Array {
  const at = START_INFO[width];
  const put = (offset: number, value: number): void => {
    setU32(page, offset, value % 2 ** 32);
    if (width === 8) setU32(page, offset + 4, Math.floor(value / 2 ** 32));
  };
  put(at.nrPages, pages);
  put(at.sharedInfo, host.sharedInfoMfn * PAGE_SIZE);
  setU32(page, at.flags, 0);
  setU32(page, at.storeEvtchn, host.wiring.storeEvtchn);
  setU32(page, at.consoleEvtchn, host.wiring.consoleEvtchn);
  return page;
}

function expectSamePvGuest(before: Image, after: Image, host: NewHost): void {
  const { guestWidth: width } = decodeX86PvInfo(before.records.get('libxc X86_PV_INFO')!);
  const basic = before.records.get('libxc X86_PV_VCPU_BASIC 0')!.subarray(8);
  const { ctrlreg, rdx } = VCPU_CONTEXT[width];
  const cr3 = width === 8 ? u64(basic, ctrlreg + 24) : BigInt(u32(basic, ctrlreg + 12));
  const topMfn = host.mfnOf.get(cr3ToFrame(cr3, width))!;
  expectSameRecords(before, after, {
    'libxc X86_TSC_INFO': countedTsc,
    'libxc SHARED_INFO': (body) => newSharedInfo(body, width, frameToCr3(topMfn, width)),
  });

  const { endPfn, frames } = decodeX86PvP2mFrames(before.records.get('libxc X86_PV_P2M_FRAMES')!);
  const startInfo = long(basic, rdx, width);
  expect([...after.pages.bytes(startInfo)!]).toEqual([
    ...newStartInfo(before.pages.bytes(startInfo)!.slice(), width, endPfn + 1, host),
  ]);
  const leaves = new Set(frames);
  frames.forEach((pfn, leaf) => {
    expectSameLeaf(before, after, { pfn, leaf, endPfn, width }, host);
  });

  const other = differingPages(before, after).filter((pfn) => pfn !== startInfo && !leaves.has(pfn));
  expect(other).toEqual([]);
  // Tables among the pages that were compared, or nothing was localised.
  const tables = before.pages.withData.filter((pfn) => before.pages.type(pfn) !== 0);
  expect(tables.length).toBeGreaterThan(100);
}

/** A leaf of the p2m holds frames of its host: those of the new host, and none exactly where there was none. */
function expectSameLeaf(
  before: Image,
  after: Image,
  at: { readonly pfn: number; readonly leaf: number; readonly endPfn: number; readonly width: GuestWidth },
  host: NewHost,
): void {
  const { pfn, leaf, endPfn, width } = at;
  const fpp = fppOf(width);
  const invalid = width === 8 ? Number(0xffff_ffff_ffff_ffffn) : 0xffff_ffff;
  const old = before.pages.bytes(pfn)!;
  const now = after.pages.bytes(pfn)!;
  expect(after.pages.type(pfn)).toBe(before.pages.type(pfn));
  for (let i = 0; i < fpp; i++) {
    const described = leaf * fpp + i;
    if (described > endPfn) {
      expect(long(now, i * width, width)).toBe(long(old, i * width, width));
      continue;
    }
    const populated = before.pages.bytes(described) !== undefined;
    expect(after.pages.bytes(described) !== undefined).toBe(populated);
    expect(long(now, i * width, width)).toBe(populated ? host.mfnOf.get(described) : invalid);
    // Linux marks entries that are no frames of its own in the two upper bits.
    expect(long(old, i * width, width) < 2 ** (width * 8 - 2)).toBe(populated);
  }
}

function expectSameGuest(before: Image, after: Image, host: NewHost): void {
  if (before.records.has('libxc X86_PV_INFO')) expectSamePvGuest(before, after, host);
  else expectSameHvmGuest(before, after);
}

describe.each(captures)('$name', ({ name, folder, superpages, checkpoints, pages }) => {
  const file = path.join(folder, `${name}.gz`);
  const present = existsSync(file);
  if (!present) console.warn(`skipped: ${name} (no ${name}.gz; XEN_MIGRATION_STREAMS names the folder)`);

  test.skipIf(!present)('is the same guest after a restore and a save, twice', async () => {
    const stream = new Uint8Array(gunzipSync(readFileSync(file)));
    const before = readImage(stream);
    const first = await throughHost(stream, { seed: 11, superpages: true });
    expect(first.restored).toMatchObject({
      checkpoints,
      failedOver: checkpoints > 0,
      populated: { pages, superpages },
      missing: { cpuid: false, msr: false },
      config: before.xl!.config,
    });
    const after = readImage(first.saved);
    expect(after.pages.withData.length).toBe(pages);
    expectSameGuest(before, after, first.host);

    const second = await throughHost(first.saved, { seed: 12, superpages: false });
    expect(second.restored.populated).toEqual({ pages, superpages: 0 });
    expectSameGuest(after, readImage(second.saved), second.host);
  });
});
