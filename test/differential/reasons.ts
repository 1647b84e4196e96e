/**
 * Why our verdict may differ from that of verify-stream-v2. docs/design/verifier.md explains them; the tests hold that
 * every difference has one of these reasons, and that no reason is idle.
 */

import { StreamErrorCode as C } from '../../lib/stream/index.js';
import type { VerifyFinding, VerifyReport } from '../../lib/stream/verify/index.js';
import type { Verdict } from './oracle.js';

/** A check that verify-stream-v2 does not have, by the finding that it makes. */
export interface ExtraCheck {
  readonly reason: string;
  readonly code: string;
  /** Exact name, or any. */
  readonly record?: string;
  /** What the field's path has to look like; by default there is none. */
  readonly path?: RegExp | 'any';
}

export const EXTRA_CHECKS: readonly ExtraCheck[] = [
  {
    reason: 'libxl options: it looks at their lower half',
    code: C.RESERVED,
    record: 'libxl header',
    path: /^options$/,
  },
  { reason: 'xl mandatory flags', code: C.FLAGS, record: 'xl header', path: 'any' },
  {
    reason: 'xl files without the v2 flag: it reads a v2 stream all the same',
    code: C.LIMIT,
    record: 'header',
    path: /^p2m_size$/,
  },
  { reason: 'lengths above what receivers take', code: C.LIMIT, path: 'any' },
  { reason: 'xl byte order', code: C.ENDIANNESS, record: 'xl header', path: 'any' },
  { reason: 'big-endian streams: it tests no bit at all', code: C.ENDIANNESS, path: /^options$/ },
  { reason: 'xl configuration length', code: C.FIELD, record: 'xl header', path: /^configLength$/ },
  { reason: 'xl configuration', code: C.CONFIG, record: 'xl header', path: 'any' },
  { reason: "guest type against xl's configuration", code: C.CONFIG, record: 'domain header', path: 'any' },
  { reason: 'order of records', code: C.ORDER },
  { reason: 'records that may stand once', code: C.DUPLICATE },
  { reason: 'records that must be there', code: C.MISSING },
  {
    reason: 'records of the other guest type, emulators of guests without',
    code: C.TYPE,
    path: undefined as never,
  },
  {
    reason: 'width and levels of a PV guest together',
    code: C.FIELD,
    record: 'X86_PV_INFO',
    path: /^ptLevels$/,
  },
  { reason: 'number of p2m frames', code: C.LENGTH, record: 'X86_PV_P2M_FRAMES', path: /^length$/ },
  {
    reason: 'range of the p2m',
    code: C.FIELD,
    record: 'X86_PV_P2M_FRAMES',
    path: /^(startPfn|frames\[\d+\])$/,
  },
  { reason: 'range of pfns', code: C.FIELD, record: 'PAGE_DATA', path: /^pfns\[\d+\]\.pfn$/ },
  { reason: 'size of a vcpu state', code: C.LENGTH, record: 'X86_PV_VCPU_BASIC', path: /^length$/ },
  { reason: 'size of a vcpu state', code: C.LENGTH, record: 'X86_PV_VCPU_EXTENDED', path: /^length$/ },
  { reason: 'size of a vcpu state', code: C.LENGTH, record: 'X86_PV_VCPU_XSAVE', path: /^length$/ },
  { reason: 'size of a vcpu state', code: C.LENGTH, record: 'X86_PV_VCPU_MSRS', path: /^length$/ },
  { reason: 'number of a vcpu', code: C.FIELD, record: 'X86_PV_VCPU_BASIC', path: /^vcpuId$/ },
  { reason: 'number of a vcpu', code: C.FIELD, record: 'X86_PV_VCPU_EXTENDED', path: /^vcpuId$/ },
  { reason: 'number of a vcpu', code: C.FIELD, record: 'X86_PV_VCPU_XSAVE', path: /^vcpuId$/ },
  { reason: 'number of a vcpu', code: C.FIELD, record: 'X86_PV_VCPU_MSRS', path: /^vcpuId$/ },
  { reason: 'frames of a vcpu', code: C.FIELD, record: 'X86_PV_VCPU_BASIC', path: /^blob\./ },
  { reason: 'reserved word of a vcpu MSR', code: C.RESERVED, record: 'X86_PV_VCPU_MSRS', path: /^msrs/ },
  { reason: 'flags of an MSR of the policy', code: C.RESERVED, record: 'X86_MSR_POLICY', path: /^entries/ },
  {
    reason: 'HVM parameters have 32 bits',
    code: C.FIELD,
    record: 'HVM_PARAMS',
    path: /^entries\[\d+\]\.index$/,
  },
  {
    reason: 'CHECKPOINT_STATE is 4 bytes at least',
    code: C.LENGTH,
    record: 'CHECKPOINT_STATE',
    path: /^length$/,
  },
];

export function extraCheckOf(finding: VerifyFinding): ExtraCheck | undefined {
  return EXTRA_CHECKS.find(({ code, record, path }) => {
    if (code !== finding.code || (record !== undefined && record !== finding.record)) return false;
    if (path === 'any') return true;
    return path === undefined ? finding.path === undefined : path.test(finding.path ?? '');
  });
}

/** Where verify-stream-v2 refuses what receivers take. */
export interface FalseAlarm {
  readonly reason: string;
  applies(verdict: Verdict, report: VerifyReport): boolean;
}

const warned = (report: VerifyReport, code: string): boolean =>
  report.findings.some((finding) => finding.severity === 'warning' && finding.code === code);

export const FALSE_ALARMS: readonly FalseAlarm[] = [
  {
    reason: 'optional records: it knows no optional bit',
    applies: ({ exit, text }, report) =>
      exit === 1 && /Unrecognised record type 0x[89a-f][0-9a-f]{7}$/.test(text) && warned(report, C.TYPE),
  },
  {
    reason: 'xenstore data: on Python 3 it takes every NUL for something else',
    applies: ({ exit, text }, report) =>
      exit === 1 &&
      text.includes('Data not NUL terminated') &&
      report.summary.records['EMULATOR_XENSTORE_DATA'] !== undefined,
  },
  {
    reason: 'checkpoints in a libxl stream: it reads on as if there were none',
    applies: (_verdict, report) => readsOtherwise(report),
  },
  {
    reason: 'a checkpointed stream may end without END',
    applies: ({ exit, text }, report) =>
      exit === 1 &&
      text.includes('Stream truncated') &&
      warned(report, C.TRUNCATED) &&
      report.summary.checkpoints > 0,
  },
];

/**
 * True if the two read different records: in a libxl stream libxl's records follow a CHECKPOINT, and verify-stream-v2
 * goes on with libxc's. What either finds behind it proves nothing.
 */
export function readsOtherwise(report: VerifyReport): boolean {
  return report.format !== 'libxc' && report.summary.records['CHECKPOINT'] !== undefined;
}
