/** Small streams of both kinds of guests, put together record by record so that a test can leave out or bend any. */
import { HvmParam } from '../../../lib/abi/hvm.js';
import { PAGE_SIZE, PageType } from '../../../lib/abi/pages.js';
import { frameToCr3, type GuestWidth, SHARED_INFO, START_INFO, VCPU_CONTEXT } from '../../../lib/abi/pv.js';
import { setU32, setU64, setU64n } from '../../../lib/bytes/le.js';
import {
  DomainType,
  encodeHeaders,
  encodeLibxlHeader,
  encodeRecord,
  encodeXlHeader,
  LibxcRecord,
  LibxlRecord,
  pageDataHeadSize,
  writePageDataHead,
} from '../../../lib/stream/index.js';
import { encodeHvmParams } from '../../../lib/stream/libxc/hvm.js';
import { encodeX86PvInfo, encodeX86PvP2mFrames, encodeX86PvVcpu } from '../../../lib/stream/libxc/pv.js';
import { encodeX86TscInfo } from '../../../lib/stream/libxc/x86.js';
import { encodeEmulatorContext, encodeEmulatorXenstoreData } from '../../../lib/stream/libxl/records.js';

/** One PAGE_DATA entry. */
export interface TestPage {
  readonly pfn: number;
  readonly type?: number;
  readonly bytes?: Uint8Array;
}

export function join(...parts: readonly (Uint8Array | readonly Uint8Array[])[]): Uint8Array {
  return new Uint8Array(
    Buffer.concat(parts.flatMap((part) => (part instanceof Uint8Array ? [part] : [...part]))),
  );
}

/** A page that differs from every other, in every word. */
export function pageOf(seed: number): Uint8Array {
  const words = new Uint32Array(PAGE_SIZE / 4);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(seed + 1, 0x9e37_79b1) ^ (i * 0x0101_0101);
  return new Uint8Array(words.buffer);
}

export function pageData(pages: readonly TestPage[]): Uint8Array {
  const head = new Uint8Array(pageDataHeadSize(pages.length));
  const types = pages.map(({ type }) => type ?? PageType.NOTAB);
  writePageDataHead(
    head,
    pages.map(({ pfn }) => pfn),
    types,
    pages.length,
  );
  const contents = pages
    .filter((_, i) => types[i]! < PageType.BROKEN)
    .map((page) => page.bytes ?? pageOf(page.pfn));
  return join(head, contents);
}

/** Plain pages `from`…`to`−1. */
export function plainPages(from: number, to: number): TestPage[] {
  return Array.from({ length: to - from }, (_, i) => ({ pfn: from + i }));
}

export const CONFIG = '{"c_info":{"type":"pvh","name":"test"},"b_info":{"max_memkb":1024}}';
export const CPUID = new Uint8Array(24).fill(0x11);
export const MSRS = new Uint8Array(16).fill(0x22);
export const TSC = { mode: 1, khz: 2_400_000, nsec: 123_456_789n, incarnation: 5 };
export const HVM_CONTEXT = Uint8Array.from({ length: 100 }, (_, i) => i);

export const record = encodeRecord;
export const END = record(LibxcRecord.END);
export const CHECKPOINT = record(LibxcRecord.CHECKPOINT);
export const VERIFY = record(LibxcRecord.VERIFY);
export const STATIC_DATA_END = record(LibxcRecord.STATIC_DATA_END);
export const LIBXL_END = record(LibxlRecord.END);
export const CHECKPOINT_END = record(LibxlRecord.CHECKPOINT_END);
export const tscRecord = (): Uint8Array => record(LibxcRecord.X86_TSC_INFO, encodeX86TscInfo(TSC));
export const policies = (): Uint8Array =>
  join(record(LibxcRecord.X86_CPUID_POLICY, CPUID), record(LibxcRecord.X86_MSR_POLICY, MSRS));

export const headers = (type: 'pv' | 'hvm', version = 3): Uint8Array =>
  encodeHeaders({
    type: type === 'pv' ? DomainType.X86_PV : DomainType.X86_HVM,
    xenMajor: 4,
    xenMinor: 17,
    version,
  });

/** Wraps a libxc stream as xl does. `tail`: libxl records between the libxc stream and END. */
export function xl(libxc: Uint8Array, tail: readonly Uint8Array[] = [], config = CONFIG): Uint8Array {
  return join(encodeXlHeader({ config }), libxl(libxc, tail));
}

export function libxl(libxc: Uint8Array, tail: readonly Uint8Array[] = [LIBXL_END]): Uint8Array {
  const end = tail.includes(LIBXL_END) ? [] : [LIBXL_END];
  return join(encodeLibxlHeader(), record(LibxlRecord.LIBXC_CONTEXT), libxc, [...tail], end);
}

export function deviceModel(fill: number): Uint8Array[] {
  const entries = [['physmap/0/size', fill.toString(16)]] as const;
  return [
    record(
      LibxlRecord.EMULATOR_XENSTORE_DATA,
      encodeEmulatorXenstoreData({ emulatorId: 2, index: 0, entries }),
    ),
    record(
      LibxlRecord.EMULATOR_CONTEXT,
      encodeEmulatorContext({ emulatorId: 2, index: 0, blob: new Uint8Array(40).fill(fill) }),
    ),
  ];
}

export const STORE_PFN = 60;
export const CONSOLE_PFN = 61;

export const hvmParams = (
  entries: readonly (readonly [number, number | bigint])[] = [
    [HvmParam.STORE_PFN, STORE_PFN],
    [HvmParam.CONSOLE_PFN, CONSOLE_PFN],
    [HvmParam.PAE_ENABLED, 1],
    [HvmParam.IDENT_PT, 0xfe_ffe0_00n],
  ],
): Uint8Array =>
  record(
    LibxcRecord.HVM_PARAMS,
    encodeHvmParams({ entries: entries.map(([index, value]) => ({ index, value: BigInt(value) })) }),
  );

export const hvmState = (context: Uint8Array = HVM_CONTEXT): Uint8Array =>
  join(tscRecord(), record(LibxcRecord.HVM_CONTEXT, context), hvmParams());

/** Pages 0…3, 8…9 and the rings of an HVM guest, with a hole that is told. */
export const HVM_PAGES: readonly TestPage[] = [
  ...plainPages(0, 4),
  { pfn: 4, type: PageType.XTAB },
  ...plainPages(8, 10),
  { pfn: STORE_PFN },
  { pfn: CONSOLE_PFN },
];

export function hvmStream(memory: readonly Uint8Array[] = [pageData(HVM_PAGES)], version = 3): Uint8Array {
  const staticData = version === 3 ? join(policies(), STATIC_DATA_END) : new Uint8Array(0);
  return join(headers('hvm', version), staticData, memory, hvmState(), END);
}

/**
 * A PV guest of 16 pfns: what each of them is.
 *
 *     0 data, 1 start_info, 2 xenstore ring, 3 console ring, 4 GDT, 5 top table, 6 its child, 7 L1 (in a 64-bit guest
 *     5 L4, 6 L3, 8 L2, 7 L1), 9 p2m leaf, 10 user top table, 12 hole, 13 a page that only an L1 entry mentions
 */
export const PV = {
  startInfo: 1,
  store: 2,
  console: 3,
  gdt: 4,
  top: 5,
  l1: 7,
  leaf: 9,
  user: 10,
  maxPfn: 15,
};

/** A page table: [index, pfn, flags]. */
export function table(entries: readonly (readonly [number, number, bigint?])[]): Uint8Array {
  const page = new Uint8Array(PAGE_SIZE);
  for (const [i, pfn, flags = 0x67n] of entries) setU64(page, i * 8, (BigInt(pfn) << 12n) | flags);
  return page;
}

export const NX = 1n << 63n;

export function pvPages(width: GuestWidth): TestPage[] {
  const startInfo = pageOf(1);
  setU64n(startInfo, START_INFO[width].storeMfn, PV.store);
  setU64n(startInfo, START_INFO[width].consoleMfn, PV.console);
  if (width === 4) {
    setU32(startInfo, START_INFO[4].storeMfn, PV.store);
    setU32(startInfo, START_INFO[4].storeEvtchn, 99);
    setU32(startInfo, START_INFO[4].consoleMfn, PV.console);
  }
  const l1 = table([
    [0, 0, NX | 0x67n],
    [1, PV.startInfo],
    [2, 13],
    [3, 13],
    [5, 0x1234, 0x66n],
    [511, PV.leaf],
  ]);
  const tables: TestPage[] =
    width === 8
      ? [
          { pfn: 5, type: PageType.L4TAB | PageType.PINNED, bytes: table([[0, 6]]) },
          { pfn: 6, type: PageType.L3TAB, bytes: table([[0, 8]]) },
          { pfn: 7, type: PageType.L1TAB | PageType.PINNED, bytes: l1 },
          { pfn: 8, type: PageType.L2TAB, bytes: table([[0, 7]]) },
          { pfn: PV.leaf },
          { pfn: PV.user, type: PageType.L4TAB, bytes: table([]) },
        ]
      : [
          { pfn: 5, type: PageType.L3TAB | PageType.PINNED, bytes: table([[0, 8, 1n]]) },
          { pfn: 6 },
          { pfn: 7, type: PageType.L1TAB | PageType.PINNED, bytes: l1 },
          { pfn: 8, type: PageType.L2TAB, bytes: table([[0, 7]]) },
          { pfn: PV.leaf },
          { pfn: PV.user },
        ];
  return [
    { pfn: 0 },
    { pfn: PV.startInfo, bytes: startInfo },
    { pfn: PV.store },
    { pfn: PV.console },
    { pfn: PV.gdt },
    ...tables,
    { pfn: 11 },
    { pfn: 12, type: PageType.XTAB },
  ];
}

export function vcpuContext(width: GuestWidth, vcpu = 0): Uint8Array {
  const layout = VCPU_CONTEXT[width];
  const context = new Uint8Array(layout.size).fill(0x5a);
  const word = (at: number, value: bigint): void => {
    if (width === 8) setU64(context, at, value);
    else setU32(context, at, Number(value));
  };
  word(layout.flags, 4n);
  word(layout.rdx, vcpu === 0 ? BigInt(PV.startInfo) : 0x7777n);
  word(layout.gdtEnts, 16n);
  word(layout.gdtFrames, BigInt(PV.gdt));
  word(layout.ctrlreg + 3 * width, frameToCr3(PV.top, width));
  word(layout.ctrlreg + width, width === 8 ? frameToCr3(PV.user, 8) | 1n : 0n);
  return context;
}

export function sharedInfoPage(): Uint8Array {
  return pageOf(0x51);
}

export const pvInfo = (width: GuestWidth): Uint8Array =>
  record(LibxcRecord.X86_PV_INFO, encodeX86PvInfo({ guestWidth: width }));

export const p2mFrames = (
  frames: readonly number[] = [PV.leaf],
  startPfn = 0,
  endPfn = PV.maxPfn,
): Uint8Array => record(LibxcRecord.X86_PV_P2M_FRAMES, encodeX86PvP2mFrames({ startPfn, endPfn, frames }));

export function vcpuRecords(width: GuestWidth, vcpuId = 0): Uint8Array {
  const extended = new Uint8Array(128).fill(0x33);
  setU32(extended, 0, vcpuId);
  setU32(extended, 4, 128);
  const of = (type: number, blob: Uint8Array): Uint8Array => record(type, encodeX86PvVcpu({ vcpuId, blob }));
  return join(
    of(LibxcRecord.X86_PV_VCPU_BASIC, vcpuContext(width, vcpuId)),
    of(LibxcRecord.X86_PV_VCPU_EXTENDED, extended),
    of(LibxcRecord.X86_PV_VCPU_XSAVE, new Uint8Array(64).fill(0x44)),
    of(LibxcRecord.X86_PV_VCPU_MSRS, new Uint8Array(16).fill(0x55)),
  );
}

export const sharedInfo = (): Uint8Array => record(LibxcRecord.SHARED_INFO, sharedInfoPage());

export const pvState = (width: GuestWidth): Uint8Array =>
  join(tscRecord(), sharedInfo(), vcpuRecords(width, 0), vcpuRecords(width, 1));

export interface PvParts {
  readonly version?: number;
  readonly memory?: readonly Uint8Array[];
  readonly info?: Uint8Array;
  readonly frames?: Uint8Array;
  readonly state?: Uint8Array;
}

export function pvStream(width: GuestWidth, parts: PvParts = {}): Uint8Array {
  const { version = 3 } = parts;
  return join(
    headers('pv', version),
    parts.info ?? pvInfo(width),
    version === 3 ? join(policies(), STATIC_DATA_END) : new Uint8Array(0),
    parts.frames ?? p2mFrames(),
    parts.memory ?? [pageData(pvPages(width))],
    parts.state ?? pvState(width),
    END,
  );
}

/** Offset of shared_info fields that tests look at. */
export const sharedInfoLayout = SHARED_INFO;
