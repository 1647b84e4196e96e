/** The two headers at the start of a libxc stream. */

import { PAGE_SHIFT } from '../../abi/pages.js';
import { setU16, setU16be, setU32, setU32be, setU64be, u16, u16be, u32, u32be } from '../../bytes/le.js';
import { UsageError, type StreamFormatError } from '../../errors.js';
import { formatError, NOWHERE, StreamErrorCode, type Place } from '../codes.js';
import type { DomainHeader, ImageHeader } from '../events.js';
import {
  DHDR_SIZE,
  DomainType,
  HEADERS_SIZE,
  IHDR_ID,
  IHDR_MARKER,
  IHDR_OPT_BIG_ENDIAN,
  IHDR_SIZE,
  IHDR_VERSION_2,
  IHDR_VERSION_3,
} from './constants.js';

export const IMAGE_HEADER = 'image header';
export const DOMAIN_HEADER = 'domain header';

/**
 * Reads the image header. All of it is big-endian, whatever the options say.
 *
 *     offset  size  field
 *          0     8  marker    all ones
 *          8     4  id        "XENF"
 *         12     4  version   2 or 3
 *         16     2  options   bit 0: what follows is big-endian; others reserved
 *         18     6  reserved
 *
 * Throws StreamFormatError: MARKER, ID, VERSION, ENDIANNESS; TRUNCATED for fewer than 24 bytes.
 */
export function decodeImageHeader(bytes: Uint8Array, place: Place = NOWHERE): ImageHeader {
  needBytes(bytes, IHDR_SIZE, IMAGE_HEADER, place);
  const fail = (code: StreamErrorCode, path: string, at: number, reason: string): StreamFormatError =>
    formatError(code, reason, { offset: place.offset + at, record: IMAGE_HEADER, path });

  if (u32be(bytes, 0) !== 0xffff_ffff || u32be(bytes, 4) !== 0xffff_ffff) {
    throw fail(StreamErrorCode.MARKER, 'marker', 0, 'is not all ones');
  }
  const id = u32be(bytes, 8);
  if (id !== IHDR_ID) throw fail(StreamErrorCode.ID, 'id', 8, `is ${hex(id)}, not ${hex(IHDR_ID)} ("XENF")`);
  const version = u32be(bytes, 12);
  if (version < IHDR_VERSION_2 || version > IHDR_VERSION_3) {
    throw fail(StreamErrorCode.VERSION, 'version', 12, `version ${version} is neither 2 nor 3`);
  }
  const options = u16be(bytes, 16);
  if ((options & IHDR_OPT_BIG_ENDIAN) !== 0) {
    throw fail(StreamErrorCode.ENDIANNESS, 'options', 16, 'big-endian streams are not supported');
  }
  return { version, options, reserved: u16be(bytes, 18) * 0x1_0000_0000 + u32be(bytes, 20) };
}

/** Writes an image header; version 3, little-endian and zero reserved bytes unless told otherwise. 24 bytes. */
export function encodeImageHeader(header: Partial<ImageHeader> = {}): Uint8Array {
  const { version = IHDR_VERSION_3, options = 0, reserved = 0 } = header;
  const bytes = new Uint8Array(IHDR_SIZE);
  setU64be(bytes, 0, IHDR_MARKER);
  setU32be(bytes, 8, IHDR_ID);
  setU32be(bytes, 12, version);
  setU16be(bytes, 16, options);
  setU16be(bytes, 18, Math.floor(reserved / 0x1_0000_0000));
  setU32be(bytes, 20, reserved % 0x1_0000_0000);
  return bytes;
}

/**
 * Reads the domain header.
 *
 *     offset  size  field
 *          0     4  type        1 x86 PV, 2 x86 HVM (PVH too)
 *          4     2  page_shift  12
 *          6     2  reserved
 *          8     4  xen_major   0: converted from a legacy stream
 *         12     4  xen_minor   for major 0: the converter's version
 *
 * Throws StreamFormatError: GUEST_TYPE, PAGE_SHIFT; TRUNCATED for fewer than 16 bytes.
 */
export function decodeDomainHeader(bytes: Uint8Array, place: Place = NOWHERE): DomainHeader {
  const header = readDomainHeader(bytes, place);
  const problem = domainHeaderProblem(header, place);
  if (problem !== undefined) throw problem;
  return header;
}

/** Reads the domain header's fields and judges none of them. Throws only TRUNCATED. */
export function readDomainHeader(bytes: Uint8Array, place: Place = NOWHERE): DomainHeader {
  needBytes(bytes, DHDR_SIZE, DOMAIN_HEADER, place);
  return {
    type: u32(bytes, 0),
    pageShift: u16(bytes, 4),
    xenMajor: u32(bytes, 8),
    xenMinor: u32(bytes, 12),
    reserved: u16(bytes, 6),
  };
}

/** What is wrong with a domain header, or undefined. */
export function domainHeaderProblem(
  header: DomainHeader,
  place: Place = NOWHERE,
): StreamFormatError | undefined {
  const { type, pageShift } = header;
  if (type !== DomainType.X86_PV && type !== DomainType.X86_HVM) {
    const reason = `guest type ${type} is neither 1 (x86 PV) nor 2 (x86 HVM)`;
    const where = { offset: place.offset, record: DOMAIN_HEADER, path: 'type' };
    return formatError(StreamErrorCode.GUEST_TYPE, reason, where);
  }
  if (pageShift !== PAGE_SHIFT) {
    const where = { offset: place.offset + 4, record: DOMAIN_HEADER, path: 'pageShift' };
    return formatError(StreamErrorCode.PAGE_SHIFT, `page shift ${pageShift} is not 12`, where);
  }
  return undefined;
}

/** Writes a domain header. 16 bytes. */
export function encodeDomainHeader(
  header: Omit<DomainHeader, 'pageShift'> & { readonly pageShift?: number },
): Uint8Array {
  const bytes = new Uint8Array(DHDR_SIZE);
  setU32(bytes, 0, header.type);
  setU16(bytes, 4, header.pageShift ?? PAGE_SHIFT);
  setU16(bytes, 6, header.reserved ?? 0);
  setU32(bytes, 8, header.xenMajor);
  setU32(bytes, 12, header.xenMinor);
  return bytes;
}

/** What the start of a libxc stream says. */
export interface StreamHeaders {
  readonly type: number;
  readonly xenMajor: number;
  readonly xenMinor: number;
  /** Image version, 3 if left out. */
  readonly version?: number;
}

/** Both headers in one block of 40 bytes, as Xen's newest writer sends them. Throws UsageError for a wrong type. */
export function encodeHeaders({
  type,
  xenMajor,
  xenMinor,
  version = IHDR_VERSION_3,
}: StreamHeaders): Uint8Array {
  if (type !== DomainType.X86_PV && type !== DomainType.X86_HVM) throw new UsageError(`guest type ${type}`);
  const bytes = new Uint8Array(HEADERS_SIZE);
  bytes.set(encodeImageHeader({ version }));
  bytes.set(encodeDomainHeader({ type, xenMajor, xenMinor }), IHDR_SIZE);
  return bytes;
}

function needBytes(bytes: Uint8Array, size: number, record: string, place: Place): void {
  if (bytes.length >= size) return;
  const offset = place.offset + bytes.length;
  throw formatError(StreamErrorCode.TRUNCATED, `${bytes.length} of ${size} bytes`, { offset, record });
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, '0')}`;
}
