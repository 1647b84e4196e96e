import * as fs from 'node:fs';
import * as os from 'node:os';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { CancelledError, UsageError } from '../../../lib/errors.js';
import * as S from '../../../lib/stream/index.js';
import { verify, Verifier, type VerifyFinding, type VerifyReport } from '../../../lib/stream/verify/index.js';
import { MemorySource, openSource } from '../../../lib/transport/index.js';
import * as T from './streams.js';

function check(pieces: readonly T.Piece[], format: S.StreamFormat | 'auto' = 'auto'): VerifyReport {
  const verifier = new Verifier({ format });
  verifier.feed(T.join(pieces));
  return verifier.end();
}

/** `E ORDER X86_PV_INFO.path`, one for each finding. */
function brief(findings: readonly VerifyFinding[]): string[] {
  return findings.map(({ severity, code, record, path }) => {
    const place = [record, path].filter((s) => s !== undefined).join('.');
    return `${severity === 'error' ? 'E' : 'W'} ${code.replace('ERR_XEN_STREAM_', '')} ${place}`.trimEnd();
  });
}

const NOTAB = 0;

describe('valid streams', () => {
  const remarks: Record<string, string[]> = {
    'libxl, Remus': ['W TRUNCATED'],
  };
  it.each(T.samples())('$name', ({ name, format, pieces }) => {
    for (const told of [format, 'auto'] as const) {
      const report = check(pieces, told);
      expect(brief(report.findings)).toEqual(remarks[name] ?? []);
      expect(report).toMatchObject({
        valid: true,
        format,
        errors: 0,
        suppressed: 0,
        bytes: T.join(pieces).length,
      });
      expect(report.summary.complete).toBe(remarks[name] === undefined);
      expect(JSON.parse(JSON.stringify(report))).toMatchObject({ valid: true });
    }
  });

  it('the summary says what it is', () => {
    expect(check(T.inXl(T.inLibxl(T.pv(4), { emulated: false }), 'pv')).summary).toEqual({
      imageVersion: 3,
      guest: 'x86 PV',
      xenVersion: '4.17',
      converted: false,
      guestWidth: 4,
      maxPfn: 1111,
      vcpus: 2,
      records: {
        LIBXC_CONTEXT: 1,
        X86_PV_INFO: 1,
        X86_CPUID_POLICY: 1,
        X86_MSR_POLICY: 1,
        STATIC_DATA_END: 1,
        X86_PV_P2M_FRAMES: 1,
        PAGE_DATA: 2,
        X86_TSC_INFO: 1,
        SHARED_INFO: 1,
        X86_PV_VCPU_BASIC: 2,
        X86_PV_VCPU_EXTENDED: 1,
        X86_PV_VCPU_XSAVE: 1,
        X86_PV_VCPU_MSRS: 1,
        END: 1,
        'libxl END': 1,
      },
      pageEntries: 4,
      dataPages: 3,
      checkpoints: 0,
      verifyPass: false,
      colo: false,
      complete: true,
      trailingBytes: 0,
    });
  });
});

type Case = [what: string, pieces: T.Piece[], findings: string[]];

const hvm = T.hvm();
const pv = T.pv();
const pv32 = T.pv(4);
const inLibxl = T.inLibxl();
const libxc = T.libxc;
const filler = new Uint8Array(8);

const cases: Record<string, Case[]> = {
  'image header': [
    ['reserved option', T.poke(hvm, 'image header', 17, 2), ['E RESERVED image header.options']],
    ['reserved u16', T.poke(hvm, 'image header', 18, 1), ['E RESERVED image header.reserved']],
    ['reserved u32', T.poke(hvm, 'image header', 23, 1), ['E RESERVED image header.reserved']],
    ['big-endian', T.poke(hvm, 'image header', 17, 1), ['E ENDIANNESS image header.options']],
    ['version 1', T.poke(hvm, 'image header', 15, 1), ['E VERSION image header.version']],
    ['version 4', T.poke(hvm, 'image header', 15, 4), ['E VERSION image header.version']],
    ['id', T.poke(hvm, 'image header', 8, 0), ['E ID image header.id']],
  ],
  'domain header': [
    ['type', T.poke(hvm, 'domain header', 0, 3), ['E GUEST_TYPE domain header.type']],
    ['page shift', T.poke(hvm, 'domain header', 4, 13), ['E PAGE_SHIFT domain header.pageShift']],
    ['reserved', T.poke(hvm, 'domain header', 7, 1), ['E RESERVED domain header.reserved']],
    [
      'converted: no policies, no TSC',
      T.without(
        T.replace(hvm, 'domain header', ...T.headers(2, 3, 0).slice(1)),
        'X86_CPUID_POLICY',
        'X86_MSR_POLICY',
        'X86_TSC_INFO',
      ),
      ['W CONVERTED domain header.xenMajor'],
    ],
  ],
  'records of any type': [
    ['padding', T.poke(hvm, 'HVM_CONTEXT', 8 + 22, 1), ['E PADDING HVM_CONTEXT.padding']],
    [
      'unknown mandatory',
      T.before(hvm, 'END', { name: 'x', bytes: S.encodeRecord(0x13, filler) }),
      ['E TYPE unknown (0x00000013)'],
    ],
    [
      'unknown optional',
      T.before(hvm, 'END', { name: 'x', bytes: S.encodeRecord(0x8000_0001, filler) }),
      ['W TYPE unknown (0x80000001)'],
    ],
    ['END with contents', T.replace(hvm, 'END', libxc('END', filler)), ['E LENGTH END.length']],
    ['TOOLSTACK', T.before(hvm, 'END', libxc('TOOLSTACK')), ['E DEPRECATED TOOLSTACK']],
    [
      'CHECKPOINT_DIRTY_PFN_LIST',
      T.before(hvm, 'END', libxc('CHECKPOINT_DIRTY_PFN_LIST', filler)),
      ['E ORDER CHECKPOINT_DIRTY_PFN_LIST'],
    ],
    [
      'VERIFY, twice and with contents',
      T.before(hvm, 'X86_TSC_INFO', libxc('VERIFY'), libxc('VERIFY', filler)),
      ['E LENGTH VERIFY.length', 'W DUPLICATE VERIFY'],
    ],
    ['length above the limit', T.poke(hvm, 'HVM_CONTEXT', 4, 1, 0, 0, 8), ['E LIMIT HVM_CONTEXT.length']],
    ['bytes after the end', [...hvm, { name: 'x', bytes: filler }], ['W TRAILING']],
  ],
  'static data': [
    [
      'none in version 3',
      T.without(hvm, 'X86_CPUID_POLICY', 'X86_MSR_POLICY', 'STATIC_DATA_END'),
      ['E ORDER PAGE_DATA', 'W MISSING END', 'W MISSING END'],
    ],
    ['none in version 3, PV', T.without(pv, 'STATIC_DATA_END'), ['E ORDER X86_PV_P2M_FRAMES']],
    [
      'missing, and no pages either',
      T.without(hvm, 'STATIC_DATA_END', 'PAGE_DATA'),
      ['E MISSING END', 'W MISSING END'],
    ],
    ['a second end', T.before(hvm, 'PAGE_DATA', libxc('STATIC_DATA_END')), ['E DUPLICATE STATIC_DATA_END']],
    [
      'end with contents',
      T.replace(hvm, 'STATIC_DATA_END', libxc('STATIC_DATA_END', filler)),
      ['E LENGTH STATIC_DATA_END.length'],
    ],
    [
      'policies after the end',
      [...T.without(hvm, 'X86_CPUID_POLICY', 'X86_MSR_POLICY', 'END'), hvm[2]!, hvm[3]!, hvm.at(-1)!],
      ['E ORDER X86_CPUID_POLICY', 'E ORDER X86_MSR_POLICY'],
    ],
    [
      'in version 2',
      T.before(T.hvm(2), 'PAGE_DATA', ...hvm.slice(2, 5)),
      ['E VERSION X86_CPUID_POLICY', 'E VERSION X86_MSR_POLICY', 'E VERSION STATIC_DATA_END'],
    ],
    [
      'lengths',
      T.replace(
        T.replace(hvm, 'X86_CPUID_POLICY', libxc('X86_CPUID_POLICY', new Uint8Array(25))),
        'X86_MSR_POLICY',
        libxc('X86_MSR_POLICY'),
      ),
      ['E LENGTH X86_CPUID_POLICY.length', 'E LENGTH X86_MSR_POLICY.length'],
    ],
    ['flags of an MSR', T.poke(hvm, 'X86_MSR_POLICY', 12, 1), ['E RESERVED X86_MSR_POLICY.entries[0].flags']],
    [
      'policies twice',
      T.before(hvm, 'STATIC_DATA_END', hvm[2]!, hvm[3]!),
      ['W DUPLICATE X86_CPUID_POLICY', 'W DUPLICATE X86_MSR_POLICY'],
    ],
  ],
  PAGE_DATA: [
    ['reserved word', T.poke(hvm, 'PAGE_DATA', 12, 1), ['E RESERVED PAGE_DATA.reserved']],
    ['reserved bits', T.poke(hvm, 'PAGE_DATA', 16 + 8 + 6, 0x10), ['E RESERVED PAGE_DATA.pfns[1]']],
    ['type 5', T.poke(hvm, 'PAGE_DATA', 16 + 8 + 7, 0x50), ['E PAGE_TYPE PAGE_DATA.pfns[1].type']],
    ['type with data, no room', T.poke(hvm, 'PAGE_DATA', 16 + 8 + 7, 0), ['E LENGTH PAGE_DATA.pfns[1]']],
    ['type without data, too long', T.poke(hvm, 'PAGE_DATA', 16 + 7, 0xf0), ['E LENGTH PAGE_DATA.length']],
    ['no entries', T.poke(hvm, 'PAGE_DATA', 8, 0), ['E FIELD PAGE_DATA.count']],
    ['more entries than fit', T.poke(hvm, 'PAGE_DATA', 9, 0xff), ['E FIELD PAGE_DATA.count']],
    ['empty', T.replace(hvm, 'PAGE_DATA', libxc('PAGE_DATA', filler)), ['E LENGTH PAGE_DATA.length']],
    [
      'broken, with padding that is not zero',
      T.replace(hvm, 'PAGE_DATA', {
        name: 'x',
        bytes: Uint8Array.from([1, 0, 0, 0, 4, 0, 0, 0, 9, 9, 9, 9, 0, 0, 5, 0]),
      }),
      ['E LENGTH PAGE_DATA.length', 'E PADDING PAGE_DATA.padding'],
    ],
    [
      'a frame twice',
      T.before(
        hvm,
        'PAGE_DATA',
        T.pages([
          [8, NOTAB],
          [8, 0xf],
        ]),
      ),
      ['W DUPLICATE PAGE_DATA.pfns[1].pfn'],
    ],
    [
      'a frame twice, out of order',
      T.before(
        hvm,
        'PAGE_DATA',
        T.pages([
          [8, 0xf],
          [9, 0xf],
          [7, 0xf],
          [9, 0xf],
          [1, 0xf],
        ]),
      ),
      ['W DUPLICATE PAGE_DATA.pfns[3].pfn'],
    ],
    [
      'out of order, no frame twice',
      T.before(
        hvm,
        'PAGE_DATA',
        T.pages([
          [8, 0xf],
          [3, 0xf],
          [7, 0xf],
        ]),
      ),
      [],
    ],
    [
      'page table of an HVM guest',
      T.before(
        hvm,
        'PAGE_DATA',
        T.pages([
          [8, 0xf],
          [9, 0x9],
        ]),
      ),
      ['W PAGE_TYPE PAGE_DATA.pfns[1].type'],
    ],
    [
      'frame that no x86 guest has',
      T.before(
        hvm,
        'PAGE_DATA',
        T.pages([
          [2 ** 40 - 1, 0xf],
          [2 ** 40, 0xf],
        ]),
      ),
      ['E FIELD PAGE_DATA.pfns[1].pfn'],
    ],
    ['none', T.without(hvm, 'PAGE_DATA'), ['W MISSING END']],
  ],
  'HVM state': [
    ['no HVM_CONTEXT', T.without(hvm, 'HVM_CONTEXT'), ['E MISSING END']],
    ['no HVM_PARAMS', T.without(hvm, 'HVM_PARAMS'), ['W MISSING END']],
    ['no X86_TSC_INFO', T.without(hvm, 'X86_TSC_INFO'), ['W MISSING END']],
    [
      'empty HVM_CONTEXT',
      T.replace(hvm, 'HVM_CONTEXT', libxc('HVM_CONTEXT')),
      ['E LENGTH HVM_CONTEXT.length'],
    ],
    ['HVM_CONTEXT without header', T.poke(hvm, 'HVM_CONTEXT', 8, 2), ['W FIELD HVM_CONTEXT.blob']],
    ['HVM_CONTEXT without end', T.poke(hvm, 'HVM_CONTEXT', 8 + 4, 6), ['W FIELD HVM_CONTEXT.blob']],
    [
      'TSC length',
      T.replace(hvm, 'X86_TSC_INFO', libxc('X86_TSC_INFO', filler)),
      ['E LENGTH X86_TSC_INFO.length'],
    ],
    ['TSC reserved', T.poke(hvm, 'X86_TSC_INFO', 8 + 20, 1), ['E RESERVED X86_TSC_INFO.reserved']],
    ['params count', T.poke(hvm, 'HVM_PARAMS', 8, 3), ['E LENGTH HVM_PARAMS.count']],
    [
      'params length',
      T.replace(hvm, 'HVM_PARAMS', libxc('HVM_PARAMS', new Uint8Array(12))),
      ['E LENGTH HVM_PARAMS.length'],
    ],
    ['params reserved', T.poke(hvm, 'HVM_PARAMS', 12, 1), ['E RESERVED HVM_PARAMS.reserved']],
    ['params empty', T.replace(hvm, 'HVM_PARAMS', libxc('HVM_PARAMS', filler)), ['W FIELD HVM_PARAMS.count']],
    ['param twice', T.poke(hvm, 'HVM_PARAMS', 32, 1), ['W DUPLICATE HVM_PARAMS.entries[1].index']],
    ['param unknown', T.poke(hvm, 'HVM_PARAMS', 32, 200), ['W FIELD HVM_PARAMS.entries[1].index']],
    ['param of 64 bits', T.poke(hvm, 'HVM_PARAMS', 36, 1), ['E FIELD HVM_PARAMS.entries[1].index']],
    [
      'state twice',
      T.before(hvm, 'END', ...hvm.slice(7, 10)),
      ['W DUPLICATE X86_TSC_INFO', 'W DUPLICATE HVM_CONTEXT', 'W DUPLICATE HVM_PARAMS'],
    ],
    ['PV record', T.before(hvm, 'END', pv[2]!), ['E TYPE X86_PV_INFO']],
    ['PV vcpu', T.before(hvm, 'END', T.vcpu('MSRS', 0, new Uint8Array(16))), ['E TYPE X86_PV_VCPU_MSRS']],
  ],
  'PV state': [
    ['HVM record', T.before(pv, 'END', libxc('HVM_CONTEXT', filler)), ['E TYPE HVM_CONTEXT']],
    [
      'no X86_PV_INFO',
      T.without(pv, 'X86_PV_INFO'),
      [
        'E ORDER X86_PV_P2M_FRAMES',
        'E ORDER SHARED_INFO',
        'E ORDER X86_PV_VCPU_BASIC',
        'E ORDER X86_PV_VCPU_BASIC',
        'E MISSING END',
      ],
    ],
    ['second X86_PV_INFO', T.before(pv, 'END', pv[2]!), ['E DUPLICATE X86_PV_INFO']],
    ['width', T.poke(pv, 'X86_PV_INFO', 8, 5), ['E FIELD X86_PV_INFO.guestWidth']],
    ['levels', T.poke(pv, 'X86_PV_INFO', 9, 3), ['E FIELD X86_PV_INFO.ptLevels']],
    ['info reserved', T.poke(pv, 'X86_PV_INFO', 15, 1), ['E RESERVED X86_PV_INFO.reserved']],
    [
      'info longer',
      T.replace(pv, 'X86_PV_INFO', libxc('X86_PV_INFO', Uint8Array.from([8, 4, 0, 0, 0, 0, 0, 0, 0]))),
      ['E LENGTH X86_PV_INFO.length'],
    ],
    [
      'info shorter',
      T.replace(pv, 'X86_PV_INFO', libxc('X86_PV_INFO', Uint8Array.from([8, 4]))),
      ['E LENGTH X86_PV_INFO.length'],
    ],
    ['no P2M_FRAMES', T.without(pv, 'X86_PV_P2M_FRAMES'), ['E ORDER PAGE_DATA', 'E MISSING END']],
    ['P2M_FRAMES count', T.poke(pv, 'X86_PV_P2M_FRAMES', 12, 0xff, 1), ['E LENGTH X86_PV_P2M_FRAMES.length']],
    [
      'P2M_FRAMES order',
      T.poke(pv, 'X86_PV_P2M_FRAMES', 8, 0xff, 0xff),
      ['E FIELD X86_PV_P2M_FRAMES.startPfn'],
    ],
    [
      'P2M_FRAMES length',
      T.replace(pv, 'X86_PV_P2M_FRAMES', libxc('X86_PV_P2M_FRAMES', new Uint8Array(12))),
      ['E LENGTH X86_PV_P2M_FRAMES.length'],
    ],
    [
      'p2m frame out of range',
      T.poke(pv, 'X86_PV_P2M_FRAMES', 24, 0x58, 2),
      ['E FIELD X86_PV_P2M_FRAMES.frames[1]'],
    ],
    ['p2m frame of 64 bits', T.poke(pv, 'X86_PV_P2M_FRAMES', 28, 1), ['E FIELD X86_PV_P2M_FRAMES.frames[1]']],
    [
      'p2m with a gap',
      T.replace(
        pv,
        'X86_PV_P2M_FRAMES',
        libxc('X86_PV_P2M_FRAMES', S.encodeX86PvP2mFrames({ startPfn: 512, endPfn: 599, frames: [3] })),
      ),
      ['E MISSING END'],
    ],
    [
      'p2m in two parts',
      T.replace(
        pv,
        'X86_PV_P2M_FRAMES',
        libxc('X86_PV_P2M_FRAMES', S.encodeX86PvP2mFrames({ startPfn: 0, endPfn: 511, frames: [3] })),
        libxc('X86_PV_P2M_FRAMES', S.encodeX86PvP2mFrames({ startPfn: 512, endPfn: 599, frames: [4] })),
      ),
      [],
    ],
    [
      'page beyond the p2m',
      T.before(
        pv,
        'X86_TSC_INFO',
        T.pages([
          [599, 0xf],
          [600, 0xf],
        ]),
      ),
      ['E FIELD PAGE_DATA.pfns[1].pfn'],
    ],
    ['no SHARED_INFO', T.without(pv, 'SHARED_INFO'), ['E MISSING END']],
    [
      'SHARED_INFO length',
      T.replace(pv, 'SHARED_INFO', libxc('SHARED_INFO', filler)),
      ['E LENGTH SHARED_INFO.length'],
    ],
    [
      'no vcpu 0',
      T.without(
        T.replace(pv, 'X86_PV_VCPU_BASIC'),
        'X86_PV_VCPU_EXTENDED',
        'X86_PV_VCPU_XSAVE',
        'X86_PV_VCPU_MSRS',
      ),
      ['E MISSING END'],
    ],
    [
      'vcpu without a basic state',
      T.before(pv, 'END', T.vcpu('XSAVE', 5, new Uint8Array(16))),
      ['W MISSING X86_PV_VCPU_XSAVE.vcpuId'],
    ],
    [
      'vcpu of the other width',
      T.before(pv, 'END', T.vcpu('BASIC', 2, T.vcpuContext(4))),
      ['E LENGTH X86_PV_VCPU_BASIC.length'],
    ],
    [
      '32-bit vcpu of the other width',
      T.before(pv32, 'END', T.vcpu('BASIC', 2, T.vcpuContext(8))),
      ['E LENGTH X86_PV_VCPU_BASIC.length'],
    ],
    [
      'vcpu length',
      T.before(pv, 'END', T.vcpu('BASIC', 2, new Uint8Array(100))),
      ['E LENGTH X86_PV_VCPU_BASIC.length'],
    ],
    [
      'vcpu number',
      T.before(pv, 'END', T.vcpu('BASIC', 8192, T.vcpuContext(8))),
      ['E FIELD X86_PV_VCPU_BASIC.vcpuId'],
    ],
    ['vcpu reserved', T.poke(pv, 'X86_PV_VCPU_XSAVE', 12, 1), ['E RESERVED X86_PV_VCPU_XSAVE.reserved']],
    [
      'vcpu without contents',
      T.before(pv, 'END', T.vcpu('EXTENDED', 1, new Uint8Array(0))),
      ['W LENGTH X86_PV_VCPU_EXTENDED.length'],
    ],
    [
      'vcpu twice',
      T.before(pv, 'END', T.vcpu('BASIC', 1, T.vcpuContext(8))),
      ['W DUPLICATE X86_PV_VCPU_BASIC'],
    ],
    [
      'EXTENDED too long',
      T.before(pv, 'END', T.vcpu('EXTENDED', 1, new Uint8Array(129))),
      ['E LENGTH X86_PV_VCPU_EXTENDED.length'],
    ],
    [
      'EXTENDED of another vcpu',
      T.before(pv, 'END', T.vcpu('EXTENDED', 1, T.extended(3))),
      ['W FIELD X86_PV_VCPU_EXTENDED.blob.vcpu'],
    ],
    [
      'XSAVE too short',
      T.before(pv, 'END', T.vcpu('XSAVE', 1, new Uint8Array(15))),
      ['E LENGTH X86_PV_VCPU_XSAVE.length'],
    ],
    [
      'MSRS length',
      T.before(pv, 'END', T.vcpu('MSRS', 1, new Uint8Array(17))),
      ['E LENGTH X86_PV_VCPU_MSRS.length'],
    ],
    [
      'MSRS reserved',
      T.poke(pv, 'X86_PV_VCPU_MSRS', 16 + 4, 1),
      ['E RESERVED X86_PV_VCPU_MSRS.msrs[0].reserved'],
    ],
    [
      'frames of a vcpu out of range',
      T.before(pv, 'END', T.vcpu('BASIC', 2, T.vcpuContext(8, 600))),
      [
        'E FIELD X86_PV_VCPU_BASIC.blob.gdt_frames[0]',
        'E FIELD X86_PV_VCPU_BASIC.blob.gdt_frames[1]',
        'E FIELD X86_PV_VCPU_BASIC.blob.ctrlreg[3]',
        'E FIELD X86_PV_VCPU_BASIC.blob.ctrlreg[1]',
      ],
    ],
    [
      'start_info out of range',
      T.replace(pv32, 'X86_PV_VCPU_BASIC', T.vcpu('BASIC', 0, T.vcpuContext(4, 1112))),
      [
        'E FIELD X86_PV_VCPU_BASIC.blob.user_regs.edx',
        'E FIELD X86_PV_VCPU_BASIC.blob.gdt_frames[0]',
        'E FIELD X86_PV_VCPU_BASIC.blob.gdt_frames[1]',
        'E FIELD X86_PV_VCPU_BASIC.blob.ctrlreg[3]',
      ],
    ],
    [
      'GDT entries',
      T.poke(pv, 'X86_PV_VCPU_BASIC', 16 + 4960, 1, 0x1c),
      ['E FIELD X86_PV_VCPU_BASIC.blob.gdt_ents'],
    ],
  ],
  libxl: [
    ['reserved option', T.poke(inLibxl, 'libxl header', 15, 4), ['E RESERVED libxl header.options']],
    [
      'reserved option, upper half',
      T.poke(inLibxl, 'libxl header', 12, 0x80),
      ['E RESERVED libxl header.options'],
    ],
    ['big-endian', T.poke(inLibxl, 'libxl header', 15, 1), ['E ENDIANNESS libxl header.options']],
    ['converted', T.poke(inLibxl, 'libxl header', 15, 2), ['W CONVERTED libxl header.options']],
    ['version', T.poke(inLibxl, 'libxl header', 11, 1), ['E VERSION libxl header.version']],
    [
      'unknown record',
      T.before(inLibxl, 'libxl END', { name: 'x', bytes: S.encodeRecord(6) }),
      ['E TYPE unknown (0x00000006)'],
    ],
    [
      'unknown optional record: libxl knows none',
      T.before(inLibxl, 'libxl END', { name: 'x', bytes: S.encodeRecord(0x8000_0001) }),
      ['E TYPE unknown (0x80000001)'],
    ],
    ['padding', T.poke(inLibxl, 'EMULATOR_CONTEXT', 8 + 15, 1), ['E PADDING EMULATOR_CONTEXT.padding']],
    ['END with contents', T.replace(inLibxl, 'libxl END', T.libxl('END', filler)), ['E LENGTH END.length']],
    [
      'LIBXC_CONTEXT with contents',
      T.replace(inLibxl, 'LIBXC_CONTEXT', T.libxl('LIBXC_CONTEXT', filler)),
      ['E LENGTH LIBXC_CONTEXT.length'],
    ],
    ['no LIBXC_CONTEXT', [inLibxl[0]!, inLibxl.at(-1)!], ['E MISSING END']],
    [
      'second LIBXC_CONTEXT',
      T.before(inLibxl, 'libxl END', T.libxl('LIBXC_CONTEXT'), ...hvm),
      ['E ORDER LIBXC_CONTEXT'],
    ],
    ['emulator id', T.poke(inLibxl, 'EMULATOR_CONTEXT', 8, 3), ['E FIELD EMULATOR_CONTEXT.emulatorId']],
    [
      'emulator length',
      T.replace(inLibxl, 'EMULATOR_CONTEXT', T.libxl('EMULATOR_CONTEXT', filler.subarray(1))),
      ['E LENGTH EMULATOR_CONTEXT.length'],
    ],
    [
      'emulator state twice',
      T.before(inLibxl, 'libxl END', inLibxl.at(-2)!),
      ['W DUPLICATE EMULATOR_CONTEXT'],
    ],
    ['emulator of a PV guest', T.inLibxl(pv), ['E TYPE EMULATOR_CONTEXT']],
    [
      'CHECKPOINT_END without a checkpoint',
      T.before(inLibxl, 'libxl END', T.libxl('CHECKPOINT_END')),
      ['E ORDER CHECKPOINT_END'],
    ],
    [
      'CHECKPOINT_STATE',
      T.before(inLibxl, 'libxl END', T.libxl('CHECKPOINT_STATE', S.encodeCheckpointState({ id: 0 }))),
      ['E ORDER CHECKPOINT_STATE'],
    ],
    ['xenstore data', T.inLibxl(hvm, { xenstore: true }), []],
    ['empty xenstore data', T.before(inLibxl, 'libxl END', T.libxl('EMULATOR_XENSTORE_DATA', filler)), []],
    [
      'xenstore key without value',
      T.before(inLibxl, 'libxl END', T.libxl('EMULATOR_XENSTORE_DATA', Buffer.from('\0\0\0\0\0\0\0\0key\0'))),
      ['E FIELD EMULATOR_XENSTORE_DATA.entries[0].value'],
    ],
    [
      'xenstore value without NUL',
      T.before(
        inLibxl,
        'libxl END',
        T.libxl('EMULATOR_XENSTORE_DATA', Buffer.from('\0\0\0\0\0\0\0\0key\0val')),
      ),
      ['E FIELD EMULATOR_XENSTORE_DATA.entries[0].value'],
    ],
    [
      'absolute xenstore key',
      T.before(
        inLibxl,
        'libxl END',
        T.libxl('EMULATOR_XENSTORE_DATA', Buffer.from('\0\0\0\0\0\0\0\0/key\0v\0')),
      ),
      ['E FIELD EMULATOR_XENSTORE_DATA.entries[0].key'],
    ],
  ],
  checkpoints: [
    ['cut at a checkpoint', T.remus(3), ['W TRUNCATED']],
    ['cut after part of a round', [...T.remus(1), T.pages([[1, 0xf]])], ['W TRUNCATED']],
    [
      'cut inside a record',
      [...T.remus(1), { name: 'x', bytes: T.pages([[1, 0]]).bytes.subarray(0, 99) }],
      ['W TRUNCATED PAGE_DATA'],
    ],
    ['cut before the first CHECKPOINT_END', T.remus(1).slice(0, -1), ['E TRUNCATED']],
    ['ended after a checkpoint', [...T.remus(2), libxc('END'), T.libxl('END')], []],
    [
      'ended after part of a round',
      [...T.remus(2), T.pages([[1, 0xf]]), libxc('END'), T.libxl('END')],
      ['W ORDER PAGE_DATA'],
    ],
    ['libxl END inside', T.replace(T.remus(1), 'CHECKPOINT_END', T.libxl('END')), ['E ORDER END']],
    [
      'incomplete before the first, complaints once',
      [...T.without(T.remus(2), 'HVM_CONTEXT'), libxc('END'), T.libxl('END')],
      ['E MISSING CHECKPOINT'],
    ],
    ['state once for each checkpoint', T.hvmCheckpointed(3), []],
    [
      'state twice in the second',
      [...T.hvmCheckpointed(2).slice(0, -2), hvm[7]!, ...T.hvmCheckpointed(2).slice(-2)],
      ['W DUPLICATE X86_TSC_INFO'],
    ],
    ['libxc stream cut after a checkpoint', T.hvmCheckpointed(2).slice(0, -1), ['W TRUNCATED']],
    [
      'static data again',
      [...T.hvmCheckpointed(1).slice(0, -1), libxc('STATIC_DATA_END'), libxc('CHECKPOINT'), libxc('END')],
      ['E DUPLICATE STATIC_DATA_END'],
    ],
    [
      'COLO',
      [
        ...T.remus(1),
        T.libxl('CHECKPOINT_STATE', S.encodeCheckpointState({ id: 0 })),
        ...T.remus(1).slice(7),
      ],
      ['W TRUNCATED'],
    ],
    [
      'COLO, a state of the other direction',
      [...T.remus(1), T.libxl('CHECKPOINT_STATE', S.encodeCheckpointState({ id: 2 }))],
      ['E FIELD CHECKPOINT_STATE.id', 'W TRUNCATED'],
    ],
  ],
  xl: [
    ['magic', T.poke(T.inXl(), 'xl header', 31, 0), ['E ID xl header.magic']],
    ['byte order', T.poke(T.inXl(), 'xl header', 32, 1, 2, 3, 4), ['E ENDIANNESS xl header.byteorder']],
    ['unknown flag', T.poke(T.inXl(), 'xl header', 36, 7), ['E FLAGS xl header.mandatoryFlags']],
    ['flags of a legacy image', T.poke(T.inXl(), 'xl header', 36, 1), ['E LIMIT header.p2m_size']],
    ['configuration that is no JSON', T.inXl(inLibxl, 'hvm', '{'), ['E CONFIG xl header.config']],
    ['configuration that is no object', T.inXl(inLibxl, 'hvm', '[1]'), ['E CONFIG xl header.config']],
    ['configuration without a type', T.inXl(inLibxl, 'hvm', '{"c_info":{}}'), []],
    ['configuration of an old xl', T.poke(T.inXl(inLibxl, 'hvm', 'name = "x"'), 'xl header', 36, 2), []],
    ['no configuration', T.inXl(inLibxl, 'hvm', ''), []],
    ['configuration length', T.poke(T.inXl(), 'xl header', 49, 9), ['E FIELD xl header.configLength']],
    [
      'configuration of the other type',
      T.inXl(inLibxl, 'pv'),
      ['E CONFIG domain header.type', 'E TYPE EMULATOR_CONTEXT'],
    ],
    ['PVH guest with an emulator', T.inXl(inLibxl, 'pvh'), ['E TYPE EMULATOR_CONTEXT']],
    ['HVM guest without an emulator', T.inXl(T.inLibxl(hvm, { emulated: false })), ['W MISSING END']],
    [
      "xl's hand-over after the end",
      [...T.inXl(), { name: 'x', bytes: Buffer.from('domain is yours, you are cleared to unpause\0') }],
      ['W TRAILING'],
    ],
  ],
};

describe.each(Object.entries(cases))('%s', (_name, list) => {
  it.each(list)('%s', (_what, pieces, findings) => {
    const report = check(pieces);
    expect(brief(report.findings)).toEqual(findings);
    expect(report.valid).toBe(!findings.some((finding) => finding.startsWith('E')));
    expect(report.errors + report.warnings).toBe(findings.length);
    for (const { offset, message } of report.findings) {
      expect(offset).toBeLessThanOrEqual(T.join(pieces).length);
      expect(message).not.toMatch(/[\n\r]|undefined|NaN/);
    }
  });
});

describe('offsets', () => {
  it.each<[string, T.Piece[], number]>([
    ['padding', T.poke(hvm, 'HVM_CONTEXT', 8 + 22, 1), T.offsetOf(hvm, 'HVM_CONTEXT') + 30],
    ['reserved bits of an entry', T.poke(hvm, 'PAGE_DATA', 30, 0x10), T.offsetOf(hvm, 'PAGE_DATA') + 24],
    [
      'a field of a vcpu',
      T.poke(pv, 'X86_PV_VCPU_BASIC', 16 + 4984 + 24 + 3, 9),
      T.offsetOf(pv, 'X86_PV_VCPU_BASIC') + 16 + 5008,
    ],
    ['a p2m frame', T.poke(pv, 'X86_PV_P2M_FRAMES', 24, 0x58, 2), T.offsetOf(pv, 'X86_PV_P2M_FRAMES') + 24],
    ['emulator id', T.poke(inLibxl, 'EMULATOR_CONTEXT', 8, 3), T.offsetOf(inLibxl, 'EMULATOR_CONTEXT') + 8],
    ['trailing bytes', [...hvm, hvm[0]!], T.join(hvm).length],
    [
      'a record that is not there',
      T.without(hvm, 'HVM_CONTEXT'),
      T.offsetOf(T.without(hvm, 'HVM_CONTEXT'), 'END'),
    ],
  ])('%s', (_what, pieces, offset) => {
    expect(check(pieces).findings.map((finding) => finding.offset)).toEqual([offset]);
  });
});

describe('formats', () => {
  it.each<[string, Uint8Array, string, string]>([
    ['nothing', new Uint8Array(0), 'unknown', 'E TRUNCATED'],
    ['seven bytes', new Uint8Array(7).fill(0xff), 'unknown', 'E TRUNCATED'],
    ['garbage', Buffer.from('hello, world'), 'unknown', 'E FORMAT'],
    ['a legacy image', Uint8Array.from([0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]), 'legacy', 'E TRUNCATED header'],
    ["xend's", Buffer.from('LinuxGuestRecord'), 'xend', 'E TRUNCATED xend header'],
  ])('%s', (_what, bytes, format, finding) => {
    const verifier = new Verifier();
    verifier.feed(bytes);
    const report = verifier.end();
    expect(report.format).toBe(format);
    expect(brief(report.findings)).toEqual([finding]);
  });

  it('a format that was named is not guessed', () => {
    expect(brief(check(hvm, 'xl').findings)).toEqual(['E ID xl header.magic']);
    expect(brief(check(inLibxl, 'libxc').findings)).toEqual(['E MARKER image header.marker']);
  });
});

describe('many findings', () => {
  it('five of a kind are kept, a hundred in all, and the rest counted', () => {
    const bad = T.before(hvm, 'END', ...Array.from({ length: 500 }, () => libxc('TOOLSTACK')));
    const report = check(bad);
    expect(report).toMatchObject({ errors: 500, suppressed: 495, valid: false });
    const kinds = Array.from({ length: 150 }, (_, i) => ({ name: 'x', bytes: S.encodeRecord(0x100 + i) }));
    const all = check(T.before(bad, 'END', ...kinds));
    expect(all).toMatchObject({ errors: 650, suppressed: 550 });
    expect(all.findings).toHaveLength(100);
  });

  it('warnings do not push errors out', () => {
    const optional = Array.from({ length: 300 }, (_, i) => ({
      name: 'x',
      bytes: S.encodeRecord(0x8000_0000 + i),
    }));
    const report = check(T.before(T.without(hvm, 'HVM_CONTEXT'), 'END', ...optional));
    expect(report.findings.filter((f) => f.severity === 'error')).toHaveLength(1);
    expect(report.warnings).toBe(300);
  });
});

describe('verify', () => {
  it('reads a source to its end, whatever its chunks', async () => {
    const bytes = T.join([...T.inXl(), { name: 'x', bytes: Buffer.from('tail') }]);
    const whole = await verify(new MemorySource(bytes));
    for (const size of [1, 7, 4096]) {
      const pieces: Uint8Array[] = [];
      for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.subarray(at, at + size));
      expect(await verify(new MemorySource(pieces))).toEqual(whole);
    }
    expect(whole.summary.trailingBytes).toBe(4);
  });

  it('passes over page contents where the source can, and says the same', async () => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-'));
    const file = path.join(folder, 'stream');
    try {
      for (const { name, pieces } of T.samples()) {
        const all = T.join(pieces);
        // Whole, cut in page contents, cut behind them.
        const cut = T.offsetOf(pieces, 'PAGE_DATA') + 3000;
        for (const bytes of [all, all.subarray(0, cut), all.subarray(0, cut + 3000)]) {
          fs.writeFileSync(file, bytes);
          const expected = await verify(new MemorySource(bytes));
          for (const skipPages of [false, true]) {
            const source = await openSource(file);
            expect({ name, ...(await verify(source, { skipPages })) }).toEqual({ name, ...expected });
            expect(source.position).toBe(bytes.length);
            await source.close();
          }
        }
      }
    } finally {
      fs.rmSync(folder, { recursive: true });
    }
  });

  it('reads almost nothing of a file that is almost all pages', async () => {
    const zeros = T.pages(Array.from({ length: 1000 }, (_, i) => [i, 0] as const));
    const bytes = T.join(T.before(hvm, 'PAGE_DATA', ...Array.from({ length: 5 }, () => zeros)));
    let taken = 0;
    let skipped = 0;
    const memory = new MemorySource(bytes);
    const source = {
      position: 0,
      take: (max: number) => {
        const view = memory.take(Math.min(max, 100));
        taken += view?.length ?? 0;
        return view;
      },
      wait: (want: number) => memory.wait(want),
      skip: (max: number) => {
        skipped += max;
        memory.take(max);
        return max;
      },
      close: () => memory.close(),
    };
    expect((await verify(source, { skipPages: true })).valid).toBe(true);
    expect(taken + skipped).toBe(bytes.length);
    expect(taken).toBeLessThan(50_000);
  });

  it('a Verifier passes over page contents and nothing else', () => {
    const verifier = new Verifier();
    expect(() => verifier.pass(1)).toThrow(UsageError);
    const at = T.offsetOf(hvm, 'PAGE_DATA') + S.pageDataHeadSize(3);
    verifier.feed(T.join(hvm).subarray(0, at));
    expect(verifier.unneeded).toBe(4096);
    expect(() => verifier.pass(4097)).toThrow(UsageError);
    verifier.pass(96);
    expect(verifier.unneeded).toBe(4000);
    verifier.pass(4000);
    verifier.feed(T.join(hvm).subarray(at + 4096));
    expect(verifier.end()).toEqual(check(hvm));
  });

  it('stops at the end of the stream when told, and takes no byte more', async () => {
    const source = new MemorySource(T.join([...T.inXl(), { name: 'x', bytes: Buffer.from('tail') }]));
    const report = await verify(source, { trailing: false });
    expect(report).toMatchObject({ valid: true, warnings: 0 });
    expect(Buffer.from(source.take(100)!).toString()).toBe('tail');
  });

  it('stops reading where the framing is lost', async () => {
    const source = new MemorySource(T.join(T.poke(hvm, 'image header', 0, 0)));
    expect((await verify(source, { format: 'libxc', trailing: false })).valid).toBe(false);
    expect(source.position).toBe(24);
  });

  it('passes on what the source rejects with, and obeys the signal', async () => {
    const source = new MemorySource(T.join(hvm));
    const failure = new Error('no');
    const broken = {
      position: 0,
      take: () => undefined,
      wait: () => Promise.reject(failure),
      close: () => source.close(),
    };
    await expect(verify(broken)).rejects.toBe(failure);
    const signal = AbortSignal.abort();
    const waiting = { ...broken, wait: (n: number, s?: AbortSignal) => source.wait(n, s) };
    await expect(verify(waiting, { signal })).rejects.toBeInstanceOf(CancelledError);
  });

  it('a Verifier takes nothing after its report', () => {
    const verifier = new Verifier();
    verifier.feed(T.join(hvm));
    const report = verifier.end();
    verifier.feed(T.join(hvm));
    expect(verifier.want).toBe(0);
    expect(verifier.end()).toBe(report);
    expect(report.bytes).toBe(T.join(hvm).length);
  });
});
