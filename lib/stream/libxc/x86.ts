/** Records that PV and HVM guests of x86 have in common: TSC, CPUID policy, MSR policy. */

import { setU32, setU64, u32, u64 } from '../../bytes/le.js';
import { NOWHERE, type Place } from '../codes.js';
import { checkTableLimit, checkU32, checkU64 } from '../fields.js';
import {
  CPUID_LEAF_SIZE,
  LibxcRecord,
  MSR_ENTRY_SIZE,
  TABLE_ENTRIES_MAX,
  TSC_INFO_SIZE,
} from './constants.js';
import { checkLibxcLength } from './lengths.js';

/** X86_TSC_INFO, as XEN_DOMCTL_gettscinfo tells it. */
export interface X86TscInfo {
  readonly mode: number;
  readonly khz: number;
  readonly nsec: bigint;
  readonly incarnation: number;
  /** Always set by the decoder. */
  readonly reserved?: number;
}

/**
 * Reads X86_TSC_INFO.
 *
 *     offset  size  field
 *          0     4  mode
 *          4     4  khz
 *          8     8  nsec
 *         16     4  incarnation
 *         20     4  reserved
 *
 * Throws StreamFormatError: LENGTH.
 */
export function decodeX86TscInfo(body: Uint8Array, place: Place = NOWHERE): X86TscInfo {
  checkLibxcLength(LibxcRecord.X86_TSC_INFO, body, place);
  return {
    mode: u32(body, 0),
    khz: u32(body, 4),
    nsec: u64(body, 8),
    incarnation: u32(body, 16),
    reserved: u32(body, 20),
  };
}

/** Writes an X86_TSC_INFO body: 24 bytes. */
export function encodeX86TscInfo(info: X86TscInfo): Uint8Array {
  const body = new Uint8Array(TSC_INFO_SIZE);
  setU32(body, 0, checkU32(info.mode, 'mode'));
  setU32(body, 4, checkU32(info.khz, 'khz'));
  setU64(body, 8, checkU64(info.nsec, 'nsec'));
  setU32(body, 16, checkU32(info.incarnation, 'incarnation'));
  setU32(body, 20, checkU32(info.reserved ?? 0, 'reserved'));
  return body;
}

/** One leaf of X86_CPUID_POLICY. */
export interface CpuidLeaf {
  readonly leaf: number;
  /** CPUID_NO_SUBLEAF if the leaf has none. */
  readonly subleaf: number;
  readonly a: number;
  readonly b: number;
  readonly c: number;
  readonly d: number;
}

/**
 * The leaves of X86_CPUID_POLICY, one after the other.
 *
 *     offset  size  field, for each leaf
 *          0     4  leaf
 *          4     4  subleaf     0xFFFFFFFF: none
 *          8  4 × 4  a, b, c, d
 *
 * Throws StreamFormatError: LENGTH, at once.
 */
export function cpuidLeaves(body: Uint8Array, place: Place = NOWHERE): IterableIterator<CpuidLeaf> {
  checkLibxcLength(LibxcRecord.X86_CPUID_POLICY, body, place);
  return leavesOf(body);
}

function* leavesOf(body: Uint8Array): Generator<CpuidLeaf> {
  for (let at = 0; at < body.length; at += CPUID_LEAF_SIZE) {
    yield {
      leaf: u32(body, at),
      subleaf: u32(body, at + 4),
      a: u32(body, at + 8),
      b: u32(body, at + 12),
      c: u32(body, at + 16),
      d: u32(body, at + 20),
    };
  }
}

/** All leaves of X86_CPUID_POLICY. Throws as `cpuidLeaves`, and LIMIT. */
export function decodeX86CpuidPolicy(body: Uint8Array, place: Place = NOWHERE): CpuidLeaf[] {
  const leaves = cpuidLeaves(body, place);
  checkTableLimit(place, 'X86_CPUID_POLICY', body.length / CPUID_LEAF_SIZE, TABLE_ENTRIES_MAX);
  return [...leaves];
}

/** Writes an X86_CPUID_POLICY body. */
export function encodeX86CpuidPolicy(leaves: readonly CpuidLeaf[]): Uint8Array {
  const body = new Uint8Array(leaves.length * CPUID_LEAF_SIZE);
  leaves.forEach((entry, i) => {
    const at = i * CPUID_LEAF_SIZE;
    const { leaf, subleaf, a, b, c, d } = entry;
    [leaf, subleaf, a, b, c, d].forEach((word, n) => setU32(body, at + 4 * n, checkU32(word, 'CPUID leaf')));
  });
  return body;
}

/** One entry of X86_MSR_POLICY. */
export interface MsrEntry {
  readonly index: number;
  /** None is defined. */
  readonly flags: number;
  readonly value: bigint;
}

/**
 * The entries of X86_MSR_POLICY, one after the other.
 *
 *     offset  size  field, for each MSR
 *          0     4  idx
 *          4     4  flags  0
 *          8     8  val
 *
 * Throws StreamFormatError: LENGTH, at once.
 */
export function msrEntries(body: Uint8Array, place: Place = NOWHERE): IterableIterator<MsrEntry> {
  checkLibxcLength(LibxcRecord.X86_MSR_POLICY, body, place);
  return msrsOf(body);
}

function* msrsOf(body: Uint8Array): Generator<MsrEntry> {
  for (let at = 0; at < body.length; at += MSR_ENTRY_SIZE) {
    yield { index: u32(body, at), flags: u32(body, at + 4), value: u64(body, at + 8) };
  }
}

/** All entries of X86_MSR_POLICY. Throws as `msrEntries`, and LIMIT. */
export function decodeX86MsrPolicy(body: Uint8Array, place: Place = NOWHERE): MsrEntry[] {
  const entries = msrEntries(body, place);
  checkTableLimit(place, 'X86_MSR_POLICY', body.length / MSR_ENTRY_SIZE, TABLE_ENTRIES_MAX);
  return [...entries];
}

/** Writes an X86_MSR_POLICY body. */
export function encodeX86MsrPolicy(entries: readonly MsrEntry[]): Uint8Array {
  const body = new Uint8Array(entries.length * MSR_ENTRY_SIZE);
  entries.forEach((entry, i) => {
    const at = i * MSR_ENTRY_SIZE;
    setU32(body, at, checkU32(entry.index, 'MSR index'));
    setU32(body, at + 4, checkU32(entry.flags, 'MSR flags'));
    setU64(body, at + 8, checkU64(entry.value, 'MSR value'));
  });
  return body;
}
