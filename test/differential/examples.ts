/** For each reason of reasons.ts a stream that shows it. */

import * as S from '../../lib/stream/index.js';
import * as T from '../unit/verify/streams.js';

type Example = readonly [format: S.StreamFormat, pieces: readonly T.Piece[]];

const hvm = T.hvm();
const pv = T.pv();
const inLibxl = T.inLibxl();
const inXl = T.inXl();

const params = Array.from({ length: S.TABLE_ENTRIES_MAX + 1 }, () => ({ index: 1, value: 1n }));

export const examples: Readonly<Record<string, Example>> = {
  'big-endian streams: it tests no bit at all': ['libxc', T.poke(hvm, 'image header', 17, 1)],
  'libxl options: it looks at their lower half': ['libxl', T.poke(inLibxl, 'libxl header', 12, 0x80)],
  'xl byte order': ['xl', T.poke(inXl, 'xl header', 32, 1, 2, 3, 4)],
  'xl mandatory flags': ['xl', T.poke(inXl, 'xl header', 36, 7)],
  'xl files without the v2 flag: it reads a v2 stream all the same': [
    'xl',
    T.poke(T.inXl(hvm), 'xl header', 36, 1),
  ],
  'xl configuration length': ['xl', T.poke(inXl, 'xl header', 49, 9)],
  'xl configuration': ['xl', T.inXl(inLibxl, 'hvm', '{')],
  "guest type against xl's configuration": ['xl', T.inXl(inLibxl, 'pv')],
  'lengths above what receivers take': [
    'libxc',
    T.replace(hvm, 'HVM_PARAMS', T.libxc('HVM_PARAMS', S.encodeHvmParams({ entries: params }))),
  ],
  'order of records': ['libxc', T.without(hvm, 'STATIC_DATA_END')],
  'records that may stand once': ['libxc', T.before(hvm, 'PAGE_DATA', T.libxc('STATIC_DATA_END'))],
  'records that must be there': ['libxc', T.without(hvm, 'HVM_CONTEXT')],
  'records of the other guest type, emulators of guests without': [
    'libxc',
    T.before(hvm, 'END', T.libxc('SHARED_INFO', new Uint8Array(4096))),
  ],
  'width and levels of a PV guest together': ['libxc', T.poke(pv, 'X86_PV_INFO', 9, 3)],
  'number of p2m frames': ['libxc', T.poke(pv, 'X86_PV_P2M_FRAMES', 13, 8)],
  'range of the p2m': ['libxc', T.poke(pv, 'X86_PV_P2M_FRAMES', 24, 0x58, 2)],
  'range of pfns': ['libxc', T.before(pv, 'X86_TSC_INFO', T.pages([[600, 0xf]]))],
  'size of a vcpu state': ['libxc', T.before(pv, 'END', T.vcpu('BASIC', 1, T.vcpuContext(4)))],
  'number of a vcpu': ['libxc', T.before(pv, 'END', T.vcpu('BASIC', 8192, T.vcpuContext(8)))],
  'frames of a vcpu': ['libxc', T.before(pv, 'END', T.vcpu('BASIC', 2, T.vcpuContext(8, 600)))],
  'reserved word of a vcpu MSR': ['libxc', T.poke(pv, 'X86_PV_VCPU_MSRS', 16 + 4, 1)],
  'flags of an MSR of the policy': ['libxc', T.poke(hvm, 'X86_MSR_POLICY', 12, 1)],
  'HVM parameters have 32 bits': ['libxc', T.poke(hvm, 'HVM_PARAMS', 36, 1)],
  'CHECKPOINT_STATE is 4 bytes at least': [
    'libxl',
    T.before(inLibxl, 'libxl END', T.libxl('CHECKPOINT_STATE', new Uint8Array(2))),
  ],
  'optional records: it knows no optional bit': [
    'libxc',
    T.before(hvm, 'END', { name: 'x', bytes: S.encodeRecord(0x8000_0001) }),
  ],
  'xenstore data: on Python 3 it takes every NUL for something else': [
    'libxl',
    T.inLibxl(hvm, { xenstore: true }),
  ],
  'checkpoints in a libxl stream: it reads on as if there were none': [
    'libxl',
    [...T.remus(), T.libxc('END'), T.libxl('END')],
  ],
  'a checkpointed stream may end without END': ['libxc', T.hvmCheckpointed().slice(0, -1)],
};
