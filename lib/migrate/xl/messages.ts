/**
 * The fixed messages of `xl migrate` and `xl migrate-receive`: what they are and how they are recognised, no I/O.
 *
 * | # | direction           | bytes                                                                   |
 * |---|---------------------|-------------------------------------------------------------------------|
 * | 1 | receiver → sender   | banner: `xl migration receiver ready, send binary domain data.` LF      |
 * | 2 | sender → receiver   | xl header and libxl stream                                              |
 * | 3 | receiver → sender   | ready: `domain received, ready to unpause` NUL                          |
 * | 4 | sender → receiver   | permission: `domain is yours, you are cleared to unpause` NUL           |
 * | 5 | receiver → sender   | report: `my copy unpause results are as follows` NUL, then a status     |
 * | 6 | receiver → sender   | the permission's text, if the status is not 0 and the copy there is gone |
 *
 * The status is one byte: 0 if the guest runs, else the negative of libxl's error. docs/reference/xl-wire.md has the
 * whole picture.
 */
import { printable } from '../../bytes/printable.js';

/** Which message. */
export type XlMessage = 'banner' | 'ready' | 'permission' | 'report';

/** The messages' bytes. The banner alone ends with a line feed instead of a NUL. */
export const XL_MESSAGES: Readonly<Record<XlMessage, Uint8Array>> = {
  banner: bytesOf('xl migration receiver ready, send binary domain data.\n'),
  ready: bytesOf('domain received, ready to unpause\0'),
  permission: bytesOf('domain is yours, you are cleared to unpause\0'),
  report: bytesOf('my copy unpause results are as follows\0'),
};

/** The report's status of a guest that runs. */
export const XL_STATUS_OK = 0;

/** The status that this side gives for every failure of its own: ERROR_FAIL. */
export const XL_STATUS_FAIL = 3;

/** Names of libxl's errors, by the report's status. */
const LIBXL_ERRORS: Readonly<Record<number, string>> = {
  1: 'NONSPECIFIC',
  2: 'VERSION',
  3: 'FAIL',
  4: 'NI',
  5: 'NOMEM',
  6: 'INVAL',
  7: 'BADFAIL',
  8: 'GUEST_TIMEDOUT',
  9: 'TIMEDOUT',
  10: 'NOPARAVIRT',
  11: 'NOT_READY',
};

/**
 * The report with its status.
 *
 * | off | size | field                                       |
 * |-----|------|---------------------------------------------|
 * | 0   | 39   | `my copy unpause results are as follows` NUL |
 * | 39  | 1    | status                                      |
 */
export function encodeReport(status: number): Uint8Array {
  const { report } = XL_MESSAGES;
  const bytes = new Uint8Array(report.length + 1);
  bytes.set(report);
  bytes[report.length] = status;
  return bytes;
}

/** `status 3, ERROR_FAIL`. */
export function statusText(status: number): string {
  const name = LIBXL_ERRORS[status];
  return name === undefined ? `status ${status}` : `status ${status}, ERROR_${name}`;
}

/** A message's text as people read it. */
export function messageText(message: XlMessage): string {
  return decoder.decode(XL_MESSAGES[message].subarray(0, -1));
}

/** The most bytes of foreign matter that a message of ours quotes. */
export const QUOTED_MAX = 160;

/** Bytes of a peer for a message to people: text in quotation marks if it is text, else numbers. */
export function quoted(bytes: Uint8Array): string {
  const sample = bytes.subarray(0, QUOTED_MAX);
  const text = decoder.decode(sample);
  if (isText(sample)) return `"${printable(text)}"`;
  return Array.from(sample.subarray(0, 16), (byte) => byte.toString(16).padStart(2, '0')).join(' ');
}

/** True for what a program writes for people, and for what xl writes: text that may end with a NUL. */
export function isText(bytes: Uint8Array): boolean {
  const text = bytes.at(-1) === 0 ? bytes.subarray(0, -1) : bytes;
  // ESC is there for the colours of login messages.
  return text.every((byte) => (byte >= 0x20 ? byte !== 0x7f : [0x09, 0x0a, 0x0d, 0x1b].includes(byte)));
}

const decoder = new TextDecoder();

function bytesOf(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}
