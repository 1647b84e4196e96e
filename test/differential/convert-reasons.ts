/** Where our conversion deliberately differs from that of convert-legacy-stream, and why. */

import type { StreamFormatError } from '../../lib/errors.js';
import { LibxlRecord } from '../../lib/stream/libxl/constants.js';
import type { Conversion, ConverterFormat } from '../legacy/oracle.js';

/** An image that both take. */
export interface Both {
  readonly guest: 'pv' | 'hvm';
  readonly format: ConverterFormat;
  /** Complete checkpoints that we found. */
  readonly checkpoints: number;
  readonly ours: Uint8Array;
  readonly theirs: Uint8Array;
}

/** Both take the image and write something else. */
export interface Difference {
  readonly reason: string;
  readonly applies: (both: Both) => boolean;
}

/** Whether these words stand somewhere at an 8-byte boundary. */
function has(bytes: Uint8Array, words: readonly number[]): boolean {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const pattern = Buffer.alloc(4 * words.length);
  words.forEach((word, i) => pattern.writeUInt32LE(word, 4 * i));
  for (let at = view.indexOf(pattern); at >= 0; at = view.indexOf(pattern, at + 1))
    if (at % 8 === 0) return true;
  return false;
}

/** Whether there is an EMULATOR_XENSTORE_DATA: u32 type, length, emulator and index, then the first name. */
function hasDeviceMemory(bytes: Uint8Array): boolean {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = view.indexOf('physmap/'); at >= 0; at = view.indexOf('physmap/', at + 1))
    if (at >= 16 && at % 8 === 0 && view.readUInt32LE(at - 16) === LibxlRecord.EMULATOR_XENSTORE_DATA)
      return true;
  return false;
}

const NO_LIST = 'no list of vcpus: upstream then reads none, we vcpu 0 as Xen did';

const EMPTY_PAGE_DATA = [1, 8, 0, 0];

/** A PV stream of upstream's without vcpus: the image has no list of them, or it is empty. */
function withoutVcpus(guest: 'pv' | 'hvm', theirs: Uint8Array): boolean {
  return guest === 'pv' && ![0xaf8, 0x1438].some((size) => has(theirs, [4, size]));
}

export const DIFFERENCES: readonly Difference[] = [
  {
    reason:
      'Remus: upstream ends at the first checkpoint, what comes out of ours is the last one that is whole',
    applies: ({ checkpoints }) => checkpoints > 1,
  },
  {
    reason: 'a batch of lost pfns alone: upstream writes PAGE_DATA without entries, which receivers refuse',
    applies: ({ theirs, ours }) => has(theirs, EMPTY_PAGE_DATA) && !has(ours, EMPTY_PAGE_DATA),
  },
  {
    reason: 'device memory of a PV guest: upstream writes EMULATOR_XENSTORE_DATA, which libxl refuses there',
    applies: ({ guest, format, theirs, ours }) =>
      guest === 'pv' && format === 'libxl' && hasDeviceMemory(theirs) && !hasDeviceMemory(ours),
  },
  {
    reason: NO_LIST,
    applies: ({ guest, theirs, ours }) => withoutVcpus(guest, theirs) && !withoutVcpus(guest, ours),
  },
];

/** What upstream did with an image that it takes. */
export interface Theirs extends Conversion {
  readonly guest: 'pv' | 'hvm';
  readonly format: ConverterFormat;
}

/** Upstream takes the image, we refuse it. */
export interface Refusal {
  readonly reason: string;
  readonly applies: (error: StreamFormatError, theirs: Theirs) => boolean;
}

function refusal(reason: string, code: string, says: RegExp, also?: (theirs: Theirs) => boolean): Refusal {
  return {
    reason,
    applies: (error, theirs) =>
      new RegExp(`^ERR_XEN_STREAM_${code}$`).test(error.code) &&
      says.test(error.message) &&
      (also?.(theirs) ?? true),
  };
}

export const REFUSALS: readonly Refusal[] = [
  refusal(
    'a page that the guest cannot have',
    'FIELD',
    /^page batch\.pfns.* is not below the guest's p2m_size/,
  ),
  refusal('a page type that does not exist', 'PAGE_TYPE', /^page batch\.pfns/),
  refusal('bits above a pfn: upstream cuts them off', 'FIELD', /^page batch\.pfns.* is no pfn and type/),
  refusal('more unmapped frames than the guest has', 'LIMIT', /^unmapped pfns\.count/),
  refusal('p2m frames that the guest cannot have', 'FIELD', /^p2m frame list\.frames/),
  refusal('a p2m_size that no guest has', 'FORMAT', /is neither a libxc, a libxl nor/),
  refusal('words of another size than was said', 'FIELD', /^header\.p2m_size: the words are of/),
  refusal('vcpus above the highest', 'FIELD', /^VCPU_INFO\.online: vcpu \d+ is above max_id/),
  refusal('two lists of vcpus', 'DUPLICATE', /^VCPU_INFO/),
  refusal('a negative number of the highest vcpu', 'LIMIT', /^VCPU_INFO\.max_id: \d+ is above/),
  refusal(
    '−1 before anything else, where a PV image has its marker; no writer puts it there',
    'GUEST_TYPE',
    /^header\.marker/,
  ),
  refusal('no state of Xen, which receivers refuse', 'LENGTH', /^HVM context/),
  refusal('two blocks of a kind', 'DUPLICATE', /^extended info\.blocks\.id/),
  refusal('xsave states without room', 'FIELD', /^extended info\.xcnt/),
  refusal('a NUL in a name of device memory', 'FIELD', /^TOOLSTACK.*\.name: the name ends before/),
  refusal(NO_LIST, 'TRUNCATED', /^(vcpu|shared info)/, ({ guest, output }) => withoutVcpus(guest, output)),
  {
    reason: 'damage behind the first checkpoint, where upstream has stopped',
    applies: (error, { read = Infinity }) => error.offset >= read,
  },
];

export function refusalOf(error: StreamFormatError, theirs: Theirs): Refusal | undefined {
  return REFUSALS.find(({ applies }) => applies(error, theirs));
}

/** Upstream refuses the image, or cannot, and we take it. */
export interface Acceptance {
  readonly reason: string;
  /** Of upstream's complaint. */
  readonly says: RegExp;
}

export const ACCEPTANCES: readonly Acceptance[] = [
  { reason: 'QEMU records of xend, libxl 4.0 and the first Remus', says: /Unrecognised Qemu sig/ },
  { reason: 'chunk −21', says: /Unrecognised chunk -21/ },
  { reason: 'tmem that may be dropped, compressed checkpoints', says: /^RuntimeError: todo/ },
  { reason: 'names of device memory that are not UTF-8', says: /^UnicodeDecodeError/ },
];

export function acceptanceOf(text: string): Acceptance | undefined {
  return ACCEPTANCES.find(({ says }) => says.test(text));
}
