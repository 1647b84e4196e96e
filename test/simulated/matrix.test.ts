/**
 * Every kind of guest × every workload × live or not: a guest is saved, restored on another host and left paused there.
 * Then both copies stand still, and their memory and state are compared page by page and field by field, straight from
 * the hosts' machine memory, without a stream between. Last, the restored guest runs and checks itself.
 */
import { afterEach, describe, expect, test } from 'vitest';
import { pageTableLevel, PAGE_SIZE, PageType } from '../../lib/abi/pages.js';
import {
  cr3ToFrame,
  LEGACY_MAX_VCPUS,
  SHARED_INFO,
  START_INFO,
  VCPU_CONTEXT,
  VCPU_INFO_SIZE,
  VGCF_ONLINE,
  type GuestWidth,
} from '../../lib/abi/pv.js';
import { HvmParam, SAVED_HVM_PARAMS } from '../../lib/abi/hvm.js';
import { isZero, u32, u64, u64n } from '../../lib/bytes/le.js';
import { INVALID_FRAME, type Domain, type VcpuStateKind } from '../../lib/host/host.js';
import type { DomainState } from '../../lib/host/simulated/domain-state.js';
import type { GuestKind } from '../../lib/host/simulated/guest.js';
import type { Workload, WorkloadKind } from '../../lib/host/simulated/guest/workload.js';
import { SimulatedHost } from '../../lib/host/simulated/host.js';
import { restore } from '../../lib/restore/restore.js';
import { save } from '../../lib/save/save.js';
import { decodeX86PvP2mFrames } from '../../lib/stream/libxc/pv.js';
import { MemorySink } from '../../lib/transport/index.js';
import { readImage } from './image.js';

const MIB = 1 << 20;
const PFN_BITS = 0x000f_ffff_ffff_f000n;
const VCPUS = 2;

const hosts: SimulatedHost[] = [];
afterEach(async () => {
  await Promise.all(hosts.splice(0).map((host) => host.close()));
});

function newHost(seed: number): SimulatedHost {
  const host = new SimulatedHost({ seed, memory: 256 * MIB, unscrubbedMemory: true });
  hosts.push(host);
  return host;
}

const workloads: Record<WorkloadKind, Workload> = {
  idle: { kind: 'idle' },
  uniform: { kind: 'uniform', rate: 40_000 },
  'hot-set': { kind: 'hot-set', rate: 40_000 },
  sweep: { kind: 'sweep', rate: 40_000 },
  trace: { kind: 'trace', rate: 40_000, trace: Uint32Array.of(5, 900, 17, 5, 6, 1400, 3) },
};

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** pfns of a domain's pages, ascending. */
function pfnsOf(state: DomainState): number[] {
  const pfns: number[] = [];
  state.forEachPage((pfn) => pfns.push(pfn));
  return pfns.sort((a, b) => a - b);
}

/** mfn of each pfn. */
function mfnsOf(state: DomainState): Map<number, number> {
  const mfns = new Map<number, number>();
  state.forEachPage((pfn, mfn) => mfns.set(pfn, mfn));
  return mfns;
}

/** A page table with pfns in it instead of mfns, and what belongs to Xen left out: an independent reading of the rules. */
function canonicalTable(state: DomainState, page: Uint8Array, level: number, width: GuestWidth): string {
  const entries: string[] = [];
  const compat = u64(page, 428 * 8);
  const last = width === 4 && level === 2 && Number((compat & PFN_BITS) >> 12n) === state.memory.compatM2pMfn;
  for (let i = 0; i < 512; i++) {
    const raw = u64(page, i * 8);
    const xen =
      (width === 8 && level === 4 && i >= 256 && i <= 271) ||
      (width === 4 && level === 3 && i > 3) ||
      (last && i >= 428);
    if (xen) entries.push('xen');
    else if ((raw & 1n) === 0n) entries.push(raw.toString(16));
    else {
      const pfn = state.memory.pfnOf(Number((raw & PFN_BITS) >> 12n));
      expect(pfn).not.toBe(INVALID_FRAME);
      entries.push(`${(raw & ~PFN_BITS).toString(16)}@${pfn}`);
    }
  }
  return entries.join(' ');
}

/** A frame of the p2m as the pfns that its machine frames have; `entries` of it are in use. */
function canonicalLeaf(state: DomainState, page: Uint8Array, entries: number, width: GuestWidth): string {
  const pfns = Array.from({ length: entries }, (_, i) => {
    const mfn = width === 8 ? u64n(page, i * 8) : u32(page, i * 4);
    return state.memory.ownerOf(mfn) === state.domid ? state.memory.pfnOf(mfn) : INVALID_FRAME;
  });
  return pfns.join(' ');
}

async function compareHvm(
  [here, there]: readonly [DomainState, DomainState],
  [source, destination]: readonly [Domain, Domain],
): Promise<void> {
  expect(pfnsOf(there)).toEqual(pfnsOf(here));
  const params = new Map<number, bigint>();
  for (const index of SAVED_HVM_PARAMS) {
    params.set(index, await source.hvmParam(index));
    expect(await destination.hvmParam(index), `param ${index}`).toBe(params.get(index));
  }
  // The rings' other ends are other domains' now: restore clears them.
  const cleared = [HvmParam.STORE_PFN, HvmParam.CONSOLE_PFN, HvmParam.IOREQ_PFN, HvmParam.BUFIOREQ_PFN]
    .map((index) => Number(params.get(index)))
    .filter((pfn) => pfn !== 0);
  for (const pfn of pfnsOf(here)) {
    const arrived = there.page(pfn);
    if (cleared.includes(pfn)) expect(isZero(arrived), `page ${pfn}`).toBe(true);
    else expect(Buffer.compare(arrived, here.page(pfn)), `page ${pfn}`).toBe(0);
  }
  expect(hex(await destination.hvmContext())).toBe(hex(await source.hvmContext()));
}

/** The state of one vcpu with pfns in it instead of mfns. */
function canonicalBasic(state: DomainState, bytes: Uint8Array, width: GuestWidth): string {
  const layout = VCPU_CONTEXT[width];
  const copy = bytes.slice();
  const frames: string[] = [];
  const long = (at: number): bigint => (width === 8 ? u64(copy, at) : BigInt(u32(copy, at)));
  const take = (at: number, frame: number): void => {
    frames.push(`${at}: ${frame === INVALID_FRAME ? 'none' : state.memory.pfnOf(frame)}`);
    copy.fill(0, at, at + width);
  };
  const gdtFrames = Math.ceil(Number(long(layout.gdtEnts)) / 512);
  for (let i = 0; i < gdtFrames; i++)
    take(layout.gdtFrames + i * width, Number(long(layout.gdtFrames + i * width)));
  const cr3 = layout.ctrlreg + 3 * width;
  take(cr3, cr3ToFrame(long(cr3), width));
  if (width === 8) {
    const user = layout.ctrlreg + width;
    take(user, long(user) === 0n ? INVALID_FRAME : cr3ToFrame(long(user), width));
  }
  // A receiver says that the vcpu is up, whatever the flag was.
  copy[layout.flags] = (copy[layout.flags] as number) | VGCF_ONLINE;
  return `${frames.join(', ')} ${hex(copy)}`;
}

async function comparePv(
  [here, there]: readonly [DomainState, DomainState],
  [source, destination]: readonly [Domain, Domain],
  stream: Uint8Array,
  width: GuestWidth,
): Promise<void> {
  const { records } = readImage(stream);
  const p2m = decodeX86PvP2mFrames(records.get('libxc X86_PV_P2M_FRAMES')!, { offset: 0 }, width);
  const fpp = PAGE_SIZE / width;
  const leaves = new Map([...p2m.frames].map((pfn, i) => [pfn, i]));
  const pfns = pfnsOf(here);
  expect(pfnsOf(there)).toEqual(pfns);
  const [froms, tos] = [mfnsOf(here), mfnsOf(there)];

  const { rdx } = VCPU_CONTEXT[width];
  const basic = await source.vcpuState(0, 'basic');
  const startInfoPfn = here.memory.pfnOf(Number(width === 8 ? u64(basic, rdx) : u32(basic, rdx)));

  let tables = 0;
  for (const pfn of pfns) {
    const from = here.memory.page(froms.get(pfn)!);
    const to = there.memory.page(tos.get(pfn)!);
    const type = here.memory.typeOf(froms.get(pfn)!);
    const level = pageTableLevel(type);
    const leaf = leaves.get(pfn);
    if (level > 0) {
      tables++;
      const name = `L${level} in page ${pfn}`;
      expect(canonicalTable(there, to, level, width), name).toBe(canonicalTable(here, from, level, width));
      if (type & PageType.PINNED) expect(there.memory.typeOf(tos.get(pfn)!), name).toBe(type);
    } else if (leaf !== undefined) {
      const used = Math.min(fpp, p2m.endPfn + 1 - leaf * fpp);
      const name = `p2m frame ${leaf}`;
      expect(canonicalLeaf(there, to, used, width), name).toBe(canonicalLeaf(here, from, used, width));
      expect(Buffer.compare(from.subarray(used * width), to.subarray(used * width)), name).toBe(0);
    } else if (pfn === startInfoPfn) {
      expectStartInfo([here, there], from, to, width);
    } else expect(Buffer.compare(from, to), `page ${pfn}`).toBe(0);
  }
  expect(tables).toBeGreaterThan(4);

  for (let vcpu = 0; vcpu < VCPUS; vcpu++) {
    expect(await destination.vcpuOnline(vcpu)).toBe(await source.vcpuOnline(vcpu));
    const [was, is] = await Promise.all([
      source.vcpuState(vcpu, 'basic'),
      destination.vcpuState(vcpu, 'basic'),
    ]);
    if (vcpu === 0) {
      // start_info by its mfn.
      for (const bytes of [was, is]) {
        const state = bytes === was ? here : there;
        expect(state.memory.pfnOf(Number(width === 8 ? u64(bytes, rdx) : u32(bytes, rdx)))).toBe(
          startInfoPfn,
        );
        bytes.fill(0, rdx, rdx + width);
      }
    }
    expect(canonicalBasic(there, is, width)).toBe(canonicalBasic(here, was, width));
    for (const kind of ['extended', 'xsave', 'msrs'] satisfies VcpuStateKind[])
      expect(hex(await destination.vcpuState(vcpu, kind)), kind).toBe(
        hex(await source.vcpuState(vcpu, kind)),
      );
  }
  expectSharedInfo(here.memory.page(here.sharedInfoMfn), there.memory.page(there.sharedInfoMfn), width);
}

/** What the builder of a domain writes is the new host's; all else is as it was. */
function expectStartInfo(
  [, there]: readonly [DomainState, DomainState],
  from: Uint8Array,
  to: Uint8Array,
  width: GuestWidth,
): void {
  const layout = START_INFO[width];
  const [was, is] = [from.slice(), to.slice()];
  for (const at of [layout.storeMfn, layout.consoleMfn]) {
    // The kernel left pfns; it finds mfns.
    const pfn = width === 8 ? u64n(was, at) : u32(was, at);
    expect(there.memory.pfnOf(width === 8 ? u64n(is, at) : u32(is, at))).toBe(pfn);
  }
  const long: number[] = [layout.nrPages, layout.sharedInfo, layout.storeMfn, layout.consoleMfn];
  for (const bytes of [was, is]) {
    for (const at of long) bytes.fill(0, at, at + width);
    for (const at of [layout.flags, layout.storeEvtchn, layout.consoleEvtchn]) bytes.fill(0, at, at + 4);
  }
  expect(hex(is)).toBe(hex(was));
}

function expectSharedInfo(was: Uint8Array, is: Uint8Array, width: GuestWidth): void {
  const layout = SHARED_INFO[width];
  const wanted = was.slice(layout.arch, layout.arch + layout.archBytes);
  wanted.fill(0, layout.frameListList - layout.arch, layout.frameListList - layout.arch + width);
  expect(hex(is.subarray(layout.arch, layout.arch + layout.archBytes))).toBe(hex(wanted));
  for (let i = 0; i < LEGACY_MAX_VCPUS; i++) {
    const info = was.slice(i * VCPU_INFO_SIZE, (i + 1) * VCPU_INFO_SIZE);
    info.fill(0, layout.pendingSel, layout.pendingSel + width);
    expect(hex(is.subarray(i * VCPU_INFO_SIZE, (i + 1) * VCPU_INFO_SIZE)), `vcpu_info[${i}]`).toBe(hex(info));
  }
  expect(isZero(is, layout.evtchnPending, layout.evtchnPending + layout.evtchnBytes)).toBe(true);
  const mask = is.subarray(layout.evtchnMask, layout.evtchnMask + layout.evtchnBytes);
  expect(mask.every((byte) => byte === 0xff)).toBe(true);
}

const kinds: readonly GuestKind[] = ['pvh', 'hvm', 'pv', 'pv32'];
const cases = kinds.flatMap((kind) =>
  Object.values(workloads).flatMap((workload) => [true, false].map((live) => ({ kind, workload, live }))),
);

describe('a guest, saved and restored, is the same page by page', () => {
  test.each(cases)('$kind, $workload.kind, live: $live', async ({ kind, workload, live }) => {
    const here = newHost(1);
    const there = newHost(2);
    const guest = await here.createGuest({ kind, memory: 8 * MIB, vcpus: VCPUS, workload, seed: 11 });
    if (workload.kind !== 'idle') await expect.poll(() => guest.stats().steps).toBeGreaterThan(500);
    const sink = new MemorySink();
    const saved = await save(here, { domid: guest.domid, to: sink, live, afterwards: 'suspended' });
    if (!live) expect(saved.iterations).toHaveLength(1);
    else if (workload.kind !== 'idle') expect(saved.iterations.length).toBeGreaterThan(1);
    const restored = await restore(there, { from: sink.bytes, run: false });

    const states = [here.inspect(guest.domid).state, there.inspect(restored.domid).state] as const;
    const domains = [await here.openDomain(guest.domid), await there.openDomain(restored.domid)] as const;
    if (restored.guestType === 'hvm') await compareHvm(states, domains);
    else await comparePv(states, domains, sink.bytes, kind === 'pv' ? 8 : 4);
    const [policy, policyThere] = [await domains[0].cpuPolicy(), await domains[1].cpuPolicy()];
    expect(hex(policyThere.cpuid)).toBe(hex(policy.cpuid));
    expect(hex(policyThere.msrs)).toBe(hex(policy.msrs));
    const [tsc, tscThere] = [await domains[0].tscInfo(), await domains[1].tscInfo()];
    expect(tscThere).toEqual({ ...tsc, incarnation: tsc.incarnation + 1 });
    await Promise.all(domains.map((domain) => domain.close()));

    const arrived = there.guest(restored.domid);
    const { steps } = arrived.stats();
    await there.toolstack.unpause(restored.domid);
    if (workload.kind !== 'idle') await expect.poll(() => arrived.stats().steps).toBeGreaterThan(steps);
    expect(await arrived.check()).toMatchObject({ errors: 0 });
  });
});
