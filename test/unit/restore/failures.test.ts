import { describe, expect, it } from 'vitest';
import { Errno } from '../../../lib/abi/errno.js';
import { HvmParam } from '../../../lib/abi/hvm.js';
import { PAGE_SIZE, PageType } from '../../../lib/abi/pages.js';
import { frameToCr3, VCPU_CONTEXT } from '../../../lib/abi/pv.js';
import { setU32, setU64, setU64n } from '../../../lib/bytes/le.js';
import {
  CancelledError,
  HypercallError,
  PeerError,
  StreamFormatError,
  TransportError,
  UsageError,
  XenMigrationError,
} from '../../../lib/errors.js';
import { restore, startRestore } from '../../../lib/restore/restore.js';
import type { RestoreOptions } from '../../../lib/restore/types.js';
import { LibxcRecord, LibxlRecord, StreamReader } from '../../../lib/stream/index.js';
import { encodeX86PvVcpu } from '../../../lib/stream/libxc/pv.js';
import { MemorySource } from '../../../lib/transport/index.js';
import { FAKE_DOMID, FakeHost, type FakeOptions } from './fake-host.js';
import * as S from './streams.js';

/** The library's errors, with what some of them tell. */
type AnyError = XenMigrationError & {
  readonly offset?: number;
  readonly record?: string;
  readonly path?: string;
  readonly errno?: number;
};

/** Runs a restore that has to fail, and checks that it left nothing behind. */
async function failure(
  from: Uint8Array | MemorySource,
  fake: FakeOptions,
  options: RestoreOptions = {},
): Promise<{ error: AnyError; host: FakeHost }> {
  const host = new FakeHost(fake);
  const error: unknown = await restore(host, { from, ...options }).then(
    () => new Error('it succeeded'),
    (reason: unknown) => reason,
  );
  if (!XenMigrationError.is(error)) throw error;
  expect(host.leaks()).toEqual([]);
  expect(host.running).toBe(false);
  expect(host.destroyed).toBe(host.created);
  expect(error.guest).toEqual({ host: 'none', state: 'gone' });
  return { error, host };
}

const HVM = { hvm: true } as const;
const PV = { hvm: false } as const;
const vcpu = (type: number, vcpuId: number, blob: Uint8Array): Uint8Array =>
  S.record(type, encodeX86PvVcpu({ vcpuId, blob }));

function bentContext(change: (context: Uint8Array, layout: (typeof VCPU_CONTEXT)[8]) => void): Uint8Array {
  const context = S.vcpuContext(8);
  change(context, VCPU_CONTEXT[8]);
  return S.join(S.tscRecord(), S.sharedInfo(), vcpu(LibxcRecord.X86_PV_VCPU_BASIC, 0, context));
}

const pvPagesBut = (pfn: number, bytes: Uint8Array, type?: number): Uint8Array =>
  S.pageData(
    S.pvPages(8).map((page) =>
      page.pfn === pfn ? { pfn, bytes, type: type ?? page.type ?? PageType.NOTAB } : page,
    ),
  );

interface Case {
  readonly name: string;
  readonly stream: Uint8Array;
  readonly code: string;
  readonly record?: string;
  readonly path?: string;
  readonly message?: RegExp;
}

const hvmAfterStatic = (...parts: Uint8Array[]): Uint8Array =>
  S.join(S.headers('hvm'), S.policies(), S.STATIC_DATA_END, ...parts);
const pages = S.pageData(S.HVM_PAGES);

const hvmCases: Case[] = [
  {
    name: 'PAGE_DATA before STATIC_DATA_END',
    stream: S.join(S.headers('hvm'), S.policies(), pages, S.hvmState(), S.END),
    code: 'ERR_XEN_STREAM_ORDER',
    record: 'PAGE_DATA',
  },
  {
    name: 'a second STATIC_DATA_END',
    stream: hvmAfterStatic(S.STATIC_DATA_END),
    code: 'ERR_XEN_STREAM_DUPLICATE',
    record: 'STATIC_DATA_END',
  },
  {
    name: 'STATIC_DATA_END after it was inferred',
    stream: S.join(S.headers('hvm', 2), pages, S.STATIC_DATA_END),
    code: 'ERR_XEN_STREAM_DUPLICATE',
    record: 'STATIC_DATA_END',
  },
  {
    name: 'no STATIC_DATA_END at all',
    stream: S.join(S.headers('hvm'), S.hvmState(), S.END),
    code: 'ERR_XEN_STREAM_ORDER',
    record: 'END',
  },
  {
    name: 'a policy after STATIC_DATA_END',
    stream: hvmAfterStatic(S.policies()),
    code: 'ERR_XEN_STREAM_ORDER',
    record: 'X86_CPUID_POLICY',
  },
  {
    name: 'no HVM_CONTEXT',
    stream: hvmAfterStatic(pages, S.hvmParams(), S.END),
    code: 'ERR_XEN_STREAM_MISSING',
    record: 'HVM_CONTEXT',
  },
  {
    name: 'an empty HVM_CONTEXT',
    stream: hvmAfterStatic(pages, S.record(LibxcRecord.HVM_CONTEXT)),
    code: 'ERR_XEN_STREAM_LENGTH',
    record: 'HVM_CONTEXT',
  },
  {
    name: 'a PV record',
    stream: hvmAfterStatic(S.pvInfo(8)),
    code: 'ERR_XEN_STREAM_TYPE',
    record: 'X86_PV_INFO',
    message: /not a record of an x86 HVM guest/,
  },
  {
    name: 'P2M_FRAMES, before static data',
    stream: S.join(S.headers('hvm'), S.p2mFrames()),
    code: 'ERR_XEN_STREAM_TYPE',
    record: 'X86_PV_P2M_FRAMES',
  },
  {
    name: 'TOOLSTACK',
    stream: hvmAfterStatic(S.record(LibxcRecord.TOOLSTACK)),
    code: 'ERR_XEN_STREAM_TYPE',
    record: 'TOOLSTACK',
  },
  {
    name: 'an unknown mandatory record',
    stream: hvmAfterStatic(S.record(0x13, new Uint8Array(5))),
    code: 'ERR_XEN_STREAM_TYPE',
    message: /must not be skipped/,
  },
  {
    name: "COLO's list of dirty pages",
    stream: hvmAfterStatic(S.record(LibxcRecord.CHECKPOINT_DIRTY_PFN_LIST, new Uint8Array(8))),
    code: 'ERR_XEN_STREAM_TYPE',
    record: 'CHECKPOINT_DIRTY_PFN_LIST',
  },
  {
    name: 'a pfn beyond physical addresses',
    stream: hvmAfterStatic(S.pageData([{ pfn: 0 }, { pfn: 2 ** 51 }])),
    code: 'ERR_XEN_STREAM_FIELD',
    record: 'PAGE_DATA',
    path: 'pfns[1].pfn',
  },
  {
    name: 'a ring that is no frame',
    stream: hvmAfterStatic(pages, S.hvmParams([[HvmParam.STORE_PFN, 1n << 60n]])),
    code: 'ERR_XEN_STREAM_FIELD',
    record: 'HVM_PARAMS',
    path: 'entries[0].value',
  },
  {
    name: 'a PV guest for an HVM domain',
    stream: S.pvStream(8),
    code: 'ERR_XEN_STREAM_GUEST_TYPE',
    record: 'domain header',
    path: 'type',
  },
];

const pvCases: Case[] = [
  {
    name: 'P2M_FRAMES before STATIC_DATA_END',
    stream: S.join(S.headers('pv'), S.pvInfo(8), S.p2mFrames()),
    code: 'ERR_XEN_STREAM_ORDER',
    record: 'X86_PV_P2M_FRAMES',
  },
  {
    name: 'P2M_FRAMES before PV_INFO',
    stream: S.join(S.headers('pv'), S.STATIC_DATA_END, S.p2mFrames()),
    code: 'ERR_XEN_STREAM_ORDER',
    record: 'X86_PV_P2M_FRAMES',
    message: /before X86_PV_INFO/,
  },
  {
    name: 'SHARED_INFO before PV_INFO',
    stream: S.join(S.headers('pv'), S.sharedInfo()),
    code: 'ERR_XEN_STREAM_ORDER',
    record: 'SHARED_INFO',
  },
  {
    name: 'a vcpu before PV_INFO',
    stream: S.join(S.headers('pv'), S.vcpuRecords(8)),
    code: 'ERR_XEN_STREAM_ORDER',
    record: 'X86_PV_VCPU_BASIC',
  },
  {
    name: 'PAGE_DATA before P2M_FRAMES',
    stream: S.join(S.headers('pv'), S.pvInfo(8), S.STATIC_DATA_END, S.pageData([{ pfn: 0 }])),
    code: 'ERR_XEN_STREAM_FIELD',
    record: 'PAGE_DATA',
    path: 'pfns[0].pfn',
  },
  {
    name: 'a second PV_INFO',
    stream: S.join(S.headers('pv'), S.pvInfo(8), S.pvInfo(8)),
    code: 'ERR_XEN_STREAM_DUPLICATE',
    record: 'X86_PV_INFO',
  },
  {
    name: 'an HVM record',
    stream: S.join(S.headers('pv'), S.hvmParams()),
    code: 'ERR_XEN_STREAM_TYPE',
    record: 'HVM_PARAMS',
  },
  {
    name: 'an HVM guest for a PV domain',
    stream: S.hvmStream(),
    code: 'ERR_XEN_STREAM_GUEST_TYPE',
  },
  {
    name: 'a pfn beyond the last one, without data',
    stream: S.pvStream(8, { memory: [S.pageData([{ pfn: 0 }, { pfn: 16, type: PageType.XTAB }])] }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'pfns[1].pfn',
  },
  {
    name: 'fewer p2m frames than pfns',
    stream: S.pvStream(8, { frames: S.p2mFrames([9], 0, 0xffff_ffff) }),
    code: 'ERR_XEN_STREAM_LENGTH',
    record: 'X86_PV_P2M_FRAMES',
  },
  {
    name: 'p2m frames told twice',
    stream: S.pvStream(8, { frames: S.join(S.p2mFrames(), S.p2mFrames()) }),
    code: 'ERR_XEN_STREAM_DUPLICATE',
    record: 'X86_PV_P2M_FRAMES',
  },
  {
    name: 'p2m frames with a gap',
    stream: S.pvStream(8, { frames: S.join(S.p2mFrames(), S.p2mFrames([9], 0xffff_fe00, 0xffff_ffff)) }),
    code: 'ERR_XEN_STREAM_MISSING',
    record: 'X86_PV_P2M_FRAMES',
  },
  {
    name: 'a p2m frame beyond the last pfn',
    stream: S.pvStream(8, { frames: S.p2mFrames([16]) }),
    code: 'ERR_XEN_STREAM_FIELD',
    record: 'X86_PV_P2M_FRAMES',
    path: 'frames[0]',
  },
  {
    name: 'a p2m frame that is a page table',
    stream: S.pvStream(8, { frames: S.p2mFrames([S.PV.l1]) }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'frames[0]',
    message: /has type L1TAB\|PINNED, expected NOTAB/,
  },
  {
    name: 'a p2m frame without memory',
    stream: S.pvStream(8, { frames: S.p2mFrames([14]) }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'frames[0]',
    message: /has no memory/,
  },
  {
    name: 'a page-table entry beyond the last pfn',
    stream: S.pvStream(8, {
      memory: [
        pvPagesBut(
          7,
          S.table([
            [0, 3],
            [77, 16],
          ]),
        ),
      ],
    }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'pages[7].entries[77]',
  },
  {
    name: 'a page-table entry with all bits',
    stream: S.pvStream(8, { memory: [pvPagesBut(7, new Uint8Array(PAGE_SIZE).fill(0xff))] }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'pages[7].entries[0]',
  },
  {
    name: 'a superpage in an L2',
    stream: S.pvStream(8, { memory: [pvPagesBut(8, S.table([[5, 0, 0xe7n]]))] }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'pages[8].entries[5]',
  },
  {
    name: 'an L4 of a 32-bit guest',
    stream: S.pvStream(4, {
      memory: [S.pageData([{ pfn: 5, type: PageType.L4TAB, bytes: S.table([[0, 6]]) }])],
    }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'pages[0].entries[0]',
  },
  {
    name: 'no SHARED_INFO',
    stream: S.pvStream(8, { state: S.vcpuRecords(8) }),
    code: 'ERR_XEN_STREAM_MISSING',
    record: 'SHARED_INFO',
  },
  {
    name: 'no vcpu 0',
    stream: S.pvStream(8, { state: S.join(S.sharedInfo(), S.vcpuRecords(8, 1)) }),
    code: 'ERR_XEN_STREAM_MISSING',
    message: /vcpu 0/,
  },
  {
    name: 'a vcpu that the domain has not',
    stream: S.pvStream(8, { state: S.vcpuRecords(8, 2) }),
    code: 'ERR_XEN_STREAM_FIELD',
    record: 'X86_PV_VCPU_BASIC',
    path: 'vcpuId',
  },
  {
    name: "a context of the other width's size",
    stream: S.pvStream(8, { state: S.vcpuRecords(4) }),
    code: 'ERR_XEN_STREAM_LENGTH',
    record: 'X86_PV_VCPU_BASIC',
  },
  {
    name: 'an EXTENDED blob for another vcpu than its record',
    stream: S.pvStream(8, {
      state: vcpu(LibxcRecord.X86_PV_VCPU_EXTENDED, 0, Uint8Array.of(1, 0, 0, 0, 8, 0, 0, 0)),
    }),
    code: 'ERR_XEN_STREAM_FIELD',
    record: 'X86_PV_VCPU_EXTENDED',
    path: 'blob.vcpu',
  },
  {
    name: 'an XSAVE blob of a megabyte',
    stream: S.pvStream(8, { state: vcpu(LibxcRecord.X86_PV_VCPU_XSAVE, 0, new Uint8Array(1 << 20)) }),
    code: 'ERR_XEN_STREAM_LIMIT',
    record: 'X86_PV_VCPU_XSAVE',
  },
  {
    name: 'a start_info beyond the last pfn',
    stream: S.pvStream(8, { state: bentContext((c, l) => setU64n(c, l.rdx, 16)) }),
    code: 'ERR_XEN_STREAM_FIELD',
    record: 'X86_PV_VCPU_BASIC',
    path: 'context.rdx',
  },
  {
    name: 'a start_info of all ones',
    stream: S.pvStream(8, { state: bentContext((c, l) => setU64(c, l.rdx, 0xffff_ffff_ffff_ffffn)) }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'context.rdx',
  },
  {
    name: 'a start_info that is a page table',
    stream: S.pvStream(8, { state: bentContext((c, l) => setU64n(c, l.rdx, S.PV.l1)) }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'context.rdx',
  },
  {
    name: 'more GDT entries than a guest can have',
    stream: S.pvStream(8, { state: bentContext((c, l) => setU32(c, l.gdtEnts, 7169)) }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'context.gdtEnts',
  },
  {
    name: 'a GDT frame without memory',
    stream: S.pvStream(8, { state: bentContext((c, l) => setU64n(c, l.gdtFrames, 14)) }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'context.gdtFrames[0]',
  },
  {
    name: 'a CR3 that is not the top level',
    stream: S.pvStream(8, { state: bentContext((c, l) => setU64(c, l.ctrlreg + 24, frameToCr3(6, 8))) }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'context.ctrlreg[3]',
    message: /has type L3TAB, expected L4TAB/,
  },
  {
    name: 'a user page table that is none',
    stream: S.pvStream(8, { state: bentContext((c, l) => setU64(c, l.ctrlreg + 8, frameToCr3(0, 8) | 1n)) }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'context.ctrlreg[1]',
  },
  {
    name: 'a start_info whose ring is out of range',
    stream: S.pvStream(8, { memory: [pvPagesBut(S.PV.startInfo, new Uint8Array(PAGE_SIZE).fill(0x99))] }),
    code: 'ERR_XEN_STREAM_FIELD',
    path: 'startInfo.storeMfn',
  },
];

async function check({ stream, code, record, path, message }: Case, fake: FakeOptions): Promise<void> {
  const { error } = await failure(stream, fake, { domid: FAKE_DOMID });
  expect(error).toBeInstanceOf(StreamFormatError);
  const format = error;
  expect(format.code).toBe(code);
  if (record !== undefined) expect(format.record).toBe(record);
  if (path !== undefined) expect(format.path).toBe(path);
  if (message !== undefined) expect(format.message).toMatch(message);
  expect(format.offset).toBeGreaterThan(0);
  expect(format.offset).toBeLessThanOrEqual(stream.length);
}

describe('an HVM restore refuses', () => {
  it.each(hvmCases)('$name', async (one) => check(one, HVM));
});

describe('a PV restore refuses', () => {
  it.each(pvCases)('$name', async (one) => check(one, PV));
});

describe('optional records', () => {
  it('are skipped, in both layers', async () => {
    const optional = S.record(0x8000_0001, new Uint8Array(9));
    const stream = S.xl(hvmAfterStatic(optional, pages, S.hvmState(), S.END), [optional]);
    const host = new FakeHost(HVM);
    await restore(host, { from: stream });
    expect(host.running).toBe(true);
  });
});

describe('libxl records', () => {
  it.each([
    [
      'CHECKPOINT_STATE',
      S.record(LibxlRecord.CHECKPOINT_STATE, new Uint8Array(4)),
      'ERR_XEN_STREAM_TYPE',
      HVM,
    ],
    ['an unknown one', S.record(6), 'ERR_XEN_STREAM_TYPE', HVM],
    ['EMULATOR_CONTEXT for PV', S.deviceModel(1)[1]!, 'ERR_XEN_STREAM_TYPE', PV],
    [
      'an absolute key',
      S.record(LibxlRecord.EMULATOR_XENSTORE_DATA, xenstore('/a\0b\0')),
      'ERR_XEN_STREAM_FIELD',
      HVM,
    ],
    [
      'an odd string',
      S.record(LibxlRecord.EMULATOR_XENSTORE_DATA, xenstore('a\0b\0c\0')),
      'ERR_XEN_STREAM_FIELD',
      HVM,
    ],
    [
      'xenstore data of megabytes',
      S.record(LibxlRecord.EMULATOR_XENSTORE_DATA, xenstore('a\0\0'.repeat(1 << 20))),
      'ERR_XEN_STREAM_LIMIT',
      HVM,
    ],
  ])('%s', async (_name, bytes, code, fake) => {
    const stream = S.xl(fake.hvm ? S.hvmStream() : S.pvStream(8), [bytes]);
    const { error } = await failure(stream, fake);
    expect(error.code).toBe(code);
  });

  it('of a device model before the libxc stream', async () => {
    const stream = S.xl(S.hvmStream());
    const at = stream.length - S.libxl(S.hvmStream()).length + 16;
    const { error } = await failure(
      S.join(stream.subarray(0, at), S.deviceModel(1), stream.subarray(at)),
      HVM,
    );
    expect(error.code).toBe('ERR_XEN_STREAM_ORDER');
  });

  it('without any libxc stream', async () => {
    const { error } = await failure(S.libxl(new Uint8Array(0)).subarray(0, 16), HVM);
    expect(error.code).toBe('ERR_XEN_STREAM_TRUNCATED');
    const empty = S.join(S.libxl(new Uint8Array(0)).subarray(0, 16), S.LIBXL_END);
    expect((await failure(empty, HVM)).error.code).toBe('ERR_XEN_STREAM_MISSING');
  });
});

function xenstore(text: string): Uint8Array {
  return S.join(Uint8Array.of(2, 0, 0, 0, 0, 0, 0, 0), Buffer.from(text, 'latin1'));
}

describe('limits', () => {
  it('scattered pfns cost no more than a bounded bitmap', async () => {
    const scattered = Array.from({ length: 20_000 }, (_, i) => ({ pfn: i * 40_000, type: PageType.XALLOC }));
    const { error } = await failure(
      S.hvmStream([S.pageData(scattered)]),
      { hvm: true, maxPages: 30_000 },
      {
        domid: FAKE_DOMID,
      },
    );
    expect(error.code).toBe('ERR_XEN_STREAM_LIMIT');
    expect(error.path).toMatch(/^pfns\[16\d\d\d\]\.pfn$/);
  });

  it('a guest of 2^32 pfns that sends none costs nothing', async () => {
    const count = 2 ** 32 / 512;
    const head = S.p2mFrames([0], 0, 0xffff_ffff).subarray(0, 16);
    setU32(head, 4, 8 + count * 8);
    const before = S.join(S.headers('pv'), S.pvInfo(8), S.STATIC_DATA_END, head);
    const zeros = new Uint8Array(1 << 20);
    const source = new MemorySource([
      before,
      ...Array.from({ length: (count * 8) >> 20 }, () => zeros),
      S.pvState(8),
      S.END,
    ]);
    const { error } = await failure(source, PV, { domid: FAKE_DOMID });
    expect(error.code).toBe('ERR_XEN_STREAM_FIELD');
  });

  it('more pages than the domain may have', async () => {
    const { error, host } = await failure(
      S.hvmStream([S.pageData(S.plainPages(0, 9))]),
      { hvm: true, maxPages: 8 },
      {
        domid: FAKE_DOMID,
      },
    );
    expect(error).toBeInstanceOf(HypercallError);
    expect(error.errno).toBe(Errno.ENOMEM);
    expect(error.message).toBe(
      'XENMEM_populate_physmap: 1 pages could not be allocated: the domain has 8 of at most 8 pages',
    );
    expect(host.destroyed).toBe(false);
  });
});

describe('the caller', () => {
  it('has to give a domain or a configuration where the stream has none', async () => {
    for (const stream of [S.hvmStream(), S.libxl(S.hvmStream())]) {
      const { error, host } = await failure(stream, HVM);
      expect(error).toBeInstanceOf(UsageError);
      expect(host.calls).toEqual([]);
    }
  });

  it('cannot restore into a domain that runs', async () => {
    const { error } = await failure(S.hvmStream(), { hvm: true, paused: false }, { domid: FAKE_DOMID });
    expect(error).toBeInstanceOf(UsageError);
  });

  it('is told of bytes after the end if it wants', async () => {
    const stream = S.xl(S.hvmStream());
    const { error } = await failure(S.join(stream, new Uint8Array(3)), HVM, { refuseTrailing: true });
    expect(error.code).toBe('ERR_XEN_STREAM_TRAILING');
    expect(error.offset).toBe(stream.length);
    await restore(new FakeHost(HVM), { from: stream, refuseTrailing: true });
  });

  it('is told of a format that it did not mean', async () => {
    const { error } = await failure(S.hvmStream(), HVM, { format: 'xl' });
    expect(error.code).toBe('ERR_XEN_STREAM_ID');
  });

  it('learns of a failed clean-up beside the first error', async () => {
    const { error } = await failure(S.xl(S.hvmStream()).subarray(0, -9), {
      hvm: true,
      onCall: (_, name) => {
        if (name === 'closeDomain') throw new HypercallError('close', 5, 'stuck');
      },
    });
    expect(error.code).toBe('ERR_XEN_STREAM_TRUNCATED');
    expect(error.cleanupErrors).toHaveLength(1);
  });
});

/** Every length outside of page contents and long bodies, and some within them. */
function* lengthsOf(stream: Uint8Array): Generator<number> {
  const reader = new StreamReader();
  for (let at = 0; at < stream.length;) {
    const piece = stream.subarray(at, at + reader.want);
    reader.feed(piece);
    for (let n = 0; n < piece.length; n += piece.length > 256 ? 67 : 1) yield at + n;
    at += piece.length;
  }
}

const small = S.plainPages(0, 1);
const smallHvm = S.xl(S.hvmStream([S.pageData(small)]), S.deviceModel(1));
const smallPv = S.xl(S.pvStream(8));

describe.each([
  ['HVM', smallHvm, { hvm: true, maxPages: 4 }],
  ['PV', smallPv, { hvm: false, maxPages: 16 }],
] as const)('%s: whatever goes wrong', (_name, stream, fake) => {
  async function callsOf(): Promise<string[]> {
    const host = new FakeHost(fake);
    await restore(host, { from: stream });
    return host.calls;
  }

  it('a call that fails, any of them: the restore fails with its error', async () => {
    const calls = await callsOf();
    for (const [n, name] of calls.entries()) {
      const injected = new HypercallError(name, Errno.EIO, 'injected');
      const { error } = await failure(stream, {
        ...fake,
        onCall: (i) => {
          if (i === n) throw injected;
        },
      });
      expect(error).toBe(injected);
      expect(error.phase).toBeDefined();
    }
  });

  it('a cancel at any call: the restore ends there, unless the guest runs already', async () => {
    const calls = await callsOf();
    for (const n of calls.keys()) {
      const controller = new AbortController();
      const options = {
        ...fake,
        onCall: (i: number) => {
          if (i === n) controller.abort(new Error('enough'));
        },
      };
      if (n === calls.length - 1) {
        const host = new FakeHost(options);
        await restore(host, { from: stream, signal: controller.signal });
        expect(host.running).toBe(true);
        continue;
      }
      const { error } = await failure(stream, options, { signal: controller.signal });
      expect(error).toBeInstanceOf(CancelledError);
      expect((error.cause as Error).message).toBe('enough');
    }
  });

  it('a stream that ends, after any of its bytes', async () => {
    for (const length of lengthsOf(stream)) {
      const { error } = await failure(stream.subarray(0, length), fake);
      expect(error.code).toBe('ERR_XEN_STREAM_TRUNCATED');
      expect(error.offset).toBe(length);
    }
  });

  it('a source that fails, or a peer that goes', async () => {
    for (const reason of [
      new TransportError('reading: disk on fire'),
      new PeerError('ERR_XEN_PEER_LOST', 'reading: gone'),
    ]) {
      for (let length = 1; length < stream.length; length += 97) {
        const source = new MemorySource(stream.subarray(0, length));
        source.wait = async () => {
          if (source.position < length) return true;
          throw reason;
        };
        const { error } = await failure(source, fake);
        expect(error).toBe(reason);
      }
    }
  });
});

describe('cancel', () => {
  it('ends a restore that waits for bytes', async () => {
    const stream = S.xl(S.hvmStream());
    const host = new FakeHost(HVM);
    const source = new MemorySource(stream.subarray(0, 5000));
    let waiting = (): void => undefined;
    const waits = new Promise<void>((resolve) => {
      waiting = resolve;
    });
    source.wait = (_want, signal) => {
      if (source.position < 5000) return Promise.resolve(true);
      waiting();
      return new Promise((_resolve, reject) => {
        signal?.addEventListener('abort', () => {
          reject(signal.reason as Error);
        });
      });
    };
    const job = startRestore(host, { from: source });
    await waits;
    job.cancel('no more');
    await expect(job.result).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED', cause: 'no more' });
    expect(job.status.state).toBe('cancelled');
    expect(host.destroyed).toBe(true);
    expect(host.leaks()).toEqual([]);
  });

  it('works where the source never makes it wait', async () => {
    const again = S.join(
      ...Array.from({ length: 20_000 }, () => S.pageData([{ pfn: 1, type: PageType.XALLOC }])),
    );
    const host = new FakeHost({ hvm: true, maxPages: 2 });
    const endless = new MemorySource(new Uint8Array(0));
    let rest: Uint8Array = S.join(S.headers('hvm'), S.STATIC_DATA_END);
    let rounds = 0;
    endless.take = (max) => {
      if (rest.length === 0) {
        rest = again;
        rounds++;
      }
      const view = rest.subarray(0, max);
      rest = rest.subarray(view.length);
      return view;
    };
    const job = startRestore(host, { from: endless, domid: FAKE_DOMID });
    setTimeout(() => {
      job.cancel();
    }, 1);
    await expect(job.result).rejects.toBeInstanceOf(CancelledError);
    expect(rounds).toBeGreaterThan(0);
  });

  it('before it began', async () => {
    const { error, host } = await failure(S.xl(S.hvmStream()), HVM, { signal: AbortSignal.abort('never') });
    expect(error).toBeInstanceOf(CancelledError);
    expect(host.calls).toEqual([]);
  });
});
