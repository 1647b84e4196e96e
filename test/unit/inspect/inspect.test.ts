import { readFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CancelledError } from '../../../lib/errors.js';
import { formatInspection, inspect, Inspector, type Inspection } from '../../../lib/stream/inspect/index.js';
import { SeenFrames } from '../../../lib/stream/inspect/frames.js';
import * as S from '../../../lib/stream/index.js';
import { MemorySource } from '../../../lib/transport/index.js';
import * as T from '../verify/streams.js';

function look(pieces: readonly T.Piece[] | Uint8Array, options = {}, chunk = Infinity): Inspection {
  const bytes = pieces instanceof Uint8Array ? pieces : T.join(pieces);
  const inspector = new Inspector(options);
  for (let at = 0; at < bytes.length; at += chunk) inspector.feed(bytes.subarray(at, at + chunk));
  return inspector.end();
}

/** A PAGE_DATA record whose pages are filled as told. */
function filled(...entries: [pfn: number, byte: number][]): T.Piece {
  const { bytes } = T.pages(entries.map(([pfn]) => [pfn, 0]));
  entries.forEach(([, byte], i) => bytes.fill(byte, S.pageDataHeadSize(entries.length) + i * 4096));
  return { name: 'PAGE_DATA', bytes };
}

const hvm = T.hvm();
const pv = T.inXl(T.inLibxl(T.pv(4), { emulated: false }), 'pv');

describe('what is in a stream', () => {
  it('a PV guest of xl', () => {
    const config = '{"c_info":{"type":"pv","name":"guest"},"b_info":{"max_vcpus":4,"max_memkb":4448}}';
    const found = look(T.inXl(T.inLibxl(T.pv(4), { emulated: false }), 'pv', config));
    expect(found).toMatchObject({
      format: 'xl',
      complete: true,
      error: undefined,
      problems: 0,
      xl: {
        name: 'guest',
        type: 'pv',
        maxVcpus: 4,
        maxMemoryKib: 4448,
        mandatoryFlags: 3,
        configLength: config.length,
      },
      libxl: { version: 2, options: 0 },
      image: { version: 3, options: 0 },
      domain: { guest: 'x86 PV', xenVersion: '4.17', converted: false, pageShift: 12 },
      pv: {
        guestWidth: 4,
        ptLevels: 3,
        maxPfn: 1111,
        p2mFrames: 2,
        vcpus: [
          { vcpuId: 0, basic: 2800, extended: 128, xsave: 20, msrs: 16 },
          { vcpuId: 1, basic: 2800, extended: 0, xsave: 0, msrs: 0 },
        ],
      },
      hvm: undefined,
      tsc: { mode: 2, khz: 2_400_000, nsec: '5', incarnation: 1 },
      cpuidLeaves: 2,
      msrs: 1,
      pages: {
        entries: 4,
        data: 3,
        byType: { NOTAB: 1, L1TAB: 1, XTAB: 1, 'L3TAB|PINNED': 1 },
        highestPfn: 9,
      },
    });
    expect(JSON.parse(JSON.stringify(found))).toMatchObject({ pv: { maxPfn: 1111 } });
  });

  it('an HVM guest of libxl', () => {
    const found = look(T.inLibxl(hvm, { xenstore: true }));
    expect(found).toMatchObject({
      format: 'libxl',
      domain: { guest: 'x86 HVM' },
      pv: undefined,
      hvm: {
        params: [
          { index: 1, name: 'STORE_PFN', value: '0xfeffc' },
          { index: 17, name: 'CONSOLE_PFN', value: '0xfefff' },
        ],
        context: [
          { name: 'HEADER', records: 1, bytes: 5 },
          { name: 'END', records: 1, bytes: 0 },
        ],
        vcpus: 0,
      },
      emulator: { name: 'qemu-upstream', contextLength: 5, xenstoreEntries: 1 },
      counts: { PAGE_DATA: 2, END: 1, 'libxl END': 1 },
    });
  });

  it('rows with offsets, lengths and a few words', () => {
    const found = look(pv);
    const offset = (name: string): number => T.offsetOf(pv, name);
    expect(found.records.map(({ offset: at, name, length }) => [name, at, length])).toEqual([
      ['xl header', 0, pv[0]!.bytes.length],
      ['libxl header', offset('libxl header'), 16],
      ['LIBXC_CONTEXT', offset('LIBXC_CONTEXT'), 0],
      ['image header', offset('image header'), 24],
      ['domain header', offset('domain header'), 16],
      ['X86_PV_INFO', offset('X86_PV_INFO'), 8],
      ['X86_CPUID_POLICY', offset('X86_CPUID_POLICY'), 48],
      ['X86_MSR_POLICY', offset('X86_MSR_POLICY'), 16],
      ['STATIC_DATA_END', offset('STATIC_DATA_END'), 0],
      ['X86_PV_P2M_FRAMES', offset('X86_PV_P2M_FRAMES'), 24],
      ['PAGE_DATA', offset('PAGE_DATA'), 8 + 24 + 8192 + 8 + 8 + 4096],
      ['X86_TSC_INFO', offset('X86_TSC_INFO'), 24],
      ['SHARED_INFO', offset('SHARED_INFO'), 4096],
      ['X86_PV_VCPU_BASIC', offset('X86_PV_VCPU_BASIC'), 2808],
      ['X86_PV_VCPU_EXTENDED', offset('X86_PV_VCPU_EXTENDED'), 136],
      ['X86_PV_VCPU_XSAVE', offset('X86_PV_VCPU_XSAVE'), 28],
      ['X86_PV_VCPU_MSRS', offset('X86_PV_VCPU_MSRS'), 24],
      ['X86_PV_VCPU_BASIC', T.offsetOf(pv, 'X86_PV_VCPU_BASIC', 1), 2808],
      ['END', offset('END'), 0],
      ['END', offset('libxl END'), 0],
    ]);
    const about = Object.fromEntries(found.records.map((row) => [row.name, row.about]));
    expect(about).toMatchObject({
      X86_PV_INFO: '32-bit guest, 3 page-table levels',
      X86_PV_P2M_FRAMES: 'pfns 0x0–0x457, 2 frames',
      X86_CPUID_POLICY: '2 leaves',
      X86_MSR_POLICY: '1 MSR',
      PAGE_DATA: '4 frames, 3 with data',
      X86_PV_VCPU_BASIC: 'vcpu 1',
    });
  });

  it('PAGE_DATA records that follow each other are one row, or one row each', () => {
    const rows = look(hvm).records.filter((row) => row.name === 'PAGE_DATA');
    expect(rows).toMatchObject([{ records: 2, about: '4 frames, 1 with data' }]);
    const each = look(hvm, { pages: true }).records.filter((row) => row.name === 'PAGE_DATA');
    expect(each).toMatchObject([
      { records: 1, about: '3 frames, 1 with data' },
      { records: 1, about: '1 frame, none with data' },
    ]);
  });

  it('rows are bounded, and the rest counted', () => {
    const found = look(hvm, { maxRecords: 3 });
    expect(found.records).toHaveLength(3);
    expect(found.recordsOmitted).toBe(look(hvm).records.length - 3);
  });

  it('trailing bytes, an unknown record, a converted stream', () => {
    const pieces = T.before(T.replace(hvm, 'domain header', ...T.headers(2, 3, 0).slice(1)), 'END', {
      name: 'x',
      bytes: S.encodeRecord(0x8000_0001),
    });
    const found = look([...pieces, { name: 'x', bytes: Buffer.from('abc') }]);
    expect(found).toMatchObject({
      trailingBytes: 3,
      domain: { converted: true, xenVersion: undefined },
      counts: { unknown: 1 },
    });
  });
});

describe('pages', () => {
  it('zero pages are found whatever the chunks', () => {
    const pieces = T.replace(hvm, 'PAGE_DATA', filled([1, 0], [2, 1], [3, 0], [4, 0]));
    const bytes = Uint8Array.from(T.join(pieces));
    // A page that is zero but for its last byte, and one but for a byte in the middle.
    const end = T.offsetOf(pieces, 'PAGE_DATA', 1);
    bytes[end - 1] = 1;
    bytes[end - 4096 - 2000] = 1;
    for (const chunk of [1, 7, 4095, 4096, 4097, 10_000, Infinity]) {
      expect(look(bytes, {}, chunk).pages).toMatchObject({ data: 4, zero: 1 });
    }
  });

  it('frames sent again, and passes: a lower frame begins a new one', () => {
    const sweep = [filled([1, 1], [2, 1]), filled([3, 1])];
    const found = look(
      T.replace(
        T.without(hvm, 'PAGE_DATA'),
        'X86_TSC_INFO',
        ...sweep,
        filled([1, 1], [3, 1]),
        filled([2, 0]),
      ),
    );
    expect(found.pages).toMatchObject({ frames: 3, framesSentAgain: 3, entries: 6, data: 6, zero: 1 });
    expect(found.iterations).toMatchObject([
      { part: 'transfer', records: 2, dataPages: 3 },
      { part: 'transfer', records: 1, dataPages: 2 },
      { part: 'transfer', records: 1, dataPages: 1, zeroPages: 1 },
    ]);
  });

  it('frames without contents are not sent', () => {
    const found = look(
      T.before(
        hvm,
        'PAGE_DATA',
        T.pages([
          [0x10, 0xf],
          [0x11, 0xe],
        ]),
      ),
    );
    expect(found.pages).toMatchObject({
      frames: 1,
      framesSentAgain: 0,
      entries: 6,
      byType: { XTAB: 3, XALLOC: 1 },
    });
  });

  it('the VERIFY pass is counted by itself', () => {
    const found = look(T.before(hvm, 'X86_TSC_INFO', T.libxc('VERIFY'), filled([0x10, 0], [0x14, 0])));
    expect(found.pages).toMatchObject({ verified: 2, data: 1, frames: 1, framesSentAgain: 0, zero: 0 });
    expect(found.iterations).toMatchObject([
      { part: 'transfer' },
      { part: 'verify', dataPages: 2, zeroPages: 2 },
    ]);
  });

  it('checkpoints are passes of their own', () => {
    const found = look(T.remus(3));
    expect(found).toMatchObject({
      checkpointCount: 3,
      complete: false,
      error: { code: 'ERR_XEN_STREAM_TRUNCATED' },
    });
    expect(found.checkpoints).toEqual([0, 1, 2].map((n) => T.offsetOf(T.remus(3), 'CHECKPOINT', n)));
    expect(found.iterations.map(({ part }) => part)).toEqual(['transfer', 'checkpoint', 'checkpoint']);
    expect(found.pages).toMatchObject({ frames: 1, framesSentAgain: 1 });
  });

  it('COLO states between checkpoints', () => {
    const state = T.libxl('CHECKPOINT_STATE', S.encodeCheckpointState({ id: 0 }));
    const found = look([...T.remus(1), state, T.pages([[1, 0]])]);
    expect(found).toMatchObject({ problems: 0, counts: { CHECKPOINT_STATE: 1, PAGE_DATA: 2 } });
    expect(found.records.find((row) => row.name === 'CHECKPOINT_STATE')).toMatchObject({
      layer: 'libxl',
      about: 'state 0',
    });
  });

  it('frames far apart take bounded memory', () => {
    const seen = new SeenFrames();
    for (let i = 0; i < 20_000; i++) seen.add(i * 65_536);
    expect(seen).toMatchObject({ frames: 16_384, framesAgain: 0, untracked: 20_000 - 16_384 });
    seen.add(1);
    seen.add(1);
    expect(seen).toMatchObject({ frames: 16_385, framesAgain: 0, untracked: 20_000 - 16_384 + 1 });
  });

  it('the highest possible frame', () => {
    const found = look(T.before(hvm, 'PAGE_DATA', filled([2 ** 52 - 1, 1]), filled([2 ** 52 - 1, 1])));
    expect(found.pages).toMatchObject({ highestPfn: 2 ** 52 - 1, frames: 2, framesSentAgain: 1 });
  });
});

describe('streams that are not right', () => {
  it('what the reader sees is noted, and the reading goes on', () => {
    const pieces = T.poke(T.replace(hvm, 'X86_TSC_INFO', T.libxc('X86_TSC_INFO')), 'HVM_PARAMS', 8, 9);
    const found = look(pieces);
    expect(found).toMatchObject({ problems: 2, complete: true });
    const problems = found.records.filter((row) => row.problem !== undefined);
    expect(problems.map(({ name, problem }) => `${name} ${problem!}`)).toEqual([
      'X86_TSC_INFO length: length 0, expected 24',
      'HVM_PARAMS count: count 9, but length 40 has room for 2',
    ]);
  });

  it('a broken PAGE_DATA stands in a row of its own', () => {
    const found = look(T.before(hvm, 'PAGE_DATA', T.libxc('PAGE_DATA', new Uint8Array(24))));
    const rows = found.records.filter((row) => row.name === 'PAGE_DATA');
    expect(rows).toMatchObject([{ problem: 'count: count is 0' }, { records: 2, problem: undefined }]);
  });

  it('configuration that is no JSON', () => {
    expect(look(T.inXl(T.inLibxl(), 'hvm', '{')).problems).toBe(1);
  });

  it('where the framing is lost, what came before is told', () => {
    const found = look(T.poke(hvm, 'HVM_CONTEXT', 7, 0xff));
    expect(found).toMatchObject({
      complete: false,
      error: { code: 'ERR_XEN_STREAM_LIMIT', record: 'HVM_CONTEXT', path: 'length' },
      pages: { entries: 4 },
    });
    expect(look(Buffer.from('hello, world'))).toMatchObject({
      format: 'unknown',
      error: { code: 'ERR_XEN_STREAM_FORMAT' },
    });
    expect(look(new Uint8Array(0)).error?.code).toBe('ERR_XEN_STREAM_TRUNCATED');
  });

  it('random bytes behind good headers, random damage: an inspection and text, never a throw', () => {
    const samples = T.samples().map(({ pieces }) => T.join(pieces));
    fc.assert(
      fc.property(
        fc.constantFrom(...samples),
        fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 6 }),
        fc.integer({ min: 1, max: 20_000 }),
        (sample, changes, chunk) => {
          const bytes = Uint8Array.from(sample);
          for (const [at, value] of changes) bytes[at % bytes.length] = value;
          const found = look(bytes, { maxRecords: 50 }, chunk);
          expect(found).toEqual(look(bytes, { maxRecords: 50 }));
          expect(formatInspection(found)).toMatch(/\n$/);
        },
      ),
      { numRuns: 300 },
    );
  });
});

describe('inspect', () => {
  it('reads a source, and obeys the signal', async () => {
    const bytes = T.join(T.inXl());
    expect(await inspect(new MemorySource([bytes.subarray(0, 100), bytes.subarray(100)]))).toEqual(
      look(bytes),
    );
    const nothing = { position: 0, take: () => undefined, close: () => Promise.resolve() };
    const source = {
      ...nothing,
      wait: (n: number, signal?: AbortSignal) => new MemorySource(bytes).wait(n, signal),
    };
    await expect(inspect(source, { signal: AbortSignal.abort() })).rejects.toBeInstanceOf(CancelledError);
  });
});

describe('text', () => {
  it('shows the overview and the tables', () => {
    const text = formatInspection(look(pv));
    expect(text).toMatch(/^format +xl$/m);
    expect(text).toMatch(/^guest +x86 PV, 32-bit \(pv by xl's configuration\)$/m);
    expect(text).toMatch(/^ +0 +2800 +128 +20 +16$/m);
    expect(text).toMatch(/X86_PV_P2M_FRAMES +24 {2}pfns 0x0–0x457, 2 frames$/m);
    expect(text).not.toMatch(/undefined|NaN| \n/);
  });

  it('a name from a stream cannot talk to the terminal', () => {
    const config = JSON.stringify({ c_info: { type: 'h\u001b[2Jvm', name: 'a\u001b]0;x\u0007b\nc' } });
    const text = formatInspection(look(T.inXl(T.inLibxl(), 'hvm', config)));
    // eslint-disable-next-line no-control-regex -- control characters are what this is about
    expect(text).not.toMatch(/[\u0000-\u0009\u000b-\u001f]/);
    expect(text).toContain('a\\u001b]0;x\\u0007b\\u000ac');
  });

  it('marks problems and says why it ends', () => {
    const text = formatInspection(look(T.poke(T.remus(1), 'HVM_PARAMS', 8, 9)));
    expect(text).toMatch(/^problems +1, marked !/m);
    expect(text).toMatch(/^ends early +the stream ends without its END record/m);
    expect(text).toMatch(/HVM_PARAMS +40 {2}! count: count 9/);
  });
});

describe('captures', () => {
  const folder = path.resolve(import.meta.dirname, '../../golden/streams');
  const capture = (name: string): Buffer => gunzipSync(readFileSync(path.join(folder, `${name}.gz`)));

  it('tinyhvm.migrate', () => {
    const found = look(capture('tinyhvm.migrate'));
    expect(found).toMatchObject({
      complete: true,
      trailingBytes: 44,
      xl: { name: 'tinyhvm', type: 'hvm' },
      domain: { guest: 'x86 HVM', xenVersion: '4.17' },
      hvm: { vcpus: 1 },
      pages: { entries: 1_045_770, data: 9466, zero: 7828, frames: 8176, framesSentAgain: 258 },
    });
    expect(found.iterations.map(({ dataPages }) => dataPages)).toEqual([8176, 258, 258, 258, 258, 258]);
  });

  it('tinyhvm.remus', () => {
    const found = look(capture('tinyhvm.remus'));
    expect(found).toMatchObject({ checkpointCount: 8, complete: false, pages: { framesSentAgain: 258 } });
    expect(found.iterations.filter(({ part }) => part === 'checkpoint')).toHaveLength(7);
  });
});
