/** What the checks of all layers share. */

import { StreamFormatError } from '../../errors.js';
import { StreamErrorCode } from '../codes.js';
import type { RecordEvent } from '../events.js';
import { RECORD_HEADER_SIZE } from '../framing.js';
import type { FindingList, VerifySummary } from './report.js';

/** Shared by the checkers of one verification. */
export interface VerifyContext {
  readonly findings: FindingList;
  readonly summary: VerifySummary;
  /** Guest type that xl's configuration names. */
  configType: 'pv' | 'hvm' | 'pvh' | undefined;
}

/** A place in a record: byte `at` of its body, or its header for the default. */
export function placeIn(
  event: { readonly offset: number; readonly name: string },
  path?: string,
  at = -RECORD_HEADER_SIZE,
): { offset: number; record: string; path: string | undefined } {
  return { offset: event.offset + RECORD_HEADER_SIZE + at, record: event.name, path };
}

/** Runs a decoder; what it throws becomes a finding. */
export function attempt<T>(findings: FindingList, decode: () => T): T | undefined {
  try {
    return decode();
  } catch (error) {
    if (!(error instanceof StreamFormatError)) throw error;
    findings.thrown(error);
    return undefined;
  }
}

/** Counts a record, and checks what every record must keep: its length's rule and zero padding. True if it is whole. */
export function checkFrame(context: VerifyContext, event: RecordEvent, mustBeEmpty: boolean): boolean {
  const { findings } = context;
  checkPadding(findings, event, event.body.length, event.padding);
  if (event.violation !== undefined) {
    findings.thrown(event.violation);
    return false;
  }
  if (mustBeEmpty && event.body.length > 0) {
    const message = `length ${event.body.length}, expected 0`;
    findings.error(StreamErrorCode.LENGTH, placeIn(event, 'length', -4), message);
    return false;
  }
  return true;
}

/** Padding is zero when written; receivers ignore it. */
export function checkPadding(
  findings: FindingList,
  event: { readonly offset: number; readonly name: string },
  length: number,
  padding: Uint8Array,
): void {
  const at = padding.findIndex((byte) => byte !== 0);
  if (at < 0) return;
  findings.error(StreamErrorCode.PADDING, placeIn(event, 'padding', length + at), 'padding is not zero');
}

/** Reports a reserved field that is not zero. */
export function checkReserved(
  findings: FindingList,
  event: { readonly offset: number; readonly name: string },
  value: number,
  at: number,
  path = 'reserved',
): void {
  if (value === 0) return;
  const message = `0x${value.toString(16)} in a reserved field`;
  findings.error(StreamErrorCode.RESERVED, placeIn(event, path, at), message);
}

/** Counts a record in the summary. */
export function countRecord(summary: VerifySummary, name: string): void {
  const key = name.startsWith('unknown') ? 'unknown' : name;
  summary.records[key] = (summary.records[key] ?? 0) + 1;
}
