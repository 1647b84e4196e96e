/** Bodies of the libxl records. */

import { setU32, u32 } from '../../bytes/le.js';
import { UsageError } from '../../errors.js';
import { NOWHERE, type Place } from '../codes.js';
import { checkTableLimit, checkU32, fieldError } from '../fields.js';
import {
  CHECKPOINT_STATE_SIZE,
  EMULATOR_HEADER_SIZE,
  LibxlRecord,
  XENSTORE_ENTRIES_MAX,
} from './constants.js';
import { checkLibxlLength } from './lengths.js';

/**
 * The header of both emulator records.
 *
 *     offset  size  field
 *          0     4  id     0 unknown, 1 qemu-traditional, 2 qemu-upstream; receivers do not check it
 *          4     4  index  0
 *          8     n  contents
 */
export interface EmulatorHeader {
  /** A number of EmulatorId. */
  readonly emulatorId: number;
  readonly index: number;
}

/** EMULATOR_XENSTORE_DATA. */
export interface EmulatorXenstoreData extends EmulatorHeader {
  /**
   * Keys and values, in order; keys are relative to the device model's directory. One character for each byte
   * (latin1), since xenstore values are bytes.
   */
  readonly entries: readonly (readonly [key: string, value: string])[];
}

const XENSTORE_DATA = 'EMULATOR_XENSTORE_DATA';

/**
 * Reads EMULATOR_XENSTORE_DATA: after the emulator header NUL-terminated strings, key and value by turns.
 * Throws StreamFormatError: LENGTH; FIELD for a key that is empty or begins with "/", a key without a value, a string
 * without its NUL; LIMIT.
 */
export function decodeEmulatorXenstoreData(body: Uint8Array, place: Place = NOWHERE): EmulatorXenstoreData {
  checkLibxlLength(LibxlRecord.EMULATOR_XENSTORE_DATA, body, place);
  const entries: [string, string][] = [];
  let at = EMULATOR_HEADER_SIZE;
  const string = (part: 'key' | 'value'): string => {
    const path = `entries[${entries.length}].${part}`;
    const nul = body.indexOf(0, at);
    if (nul < 0) {
      const reason = at === body.length ? 'a key without a value' : 'no NUL before the end of the record';
      throw fieldError(place, XENSTORE_DATA, path, at, reason);
    }
    if (part === 'key' && (nul === at || body[at] === SLASH)) {
      const reason = nul === at ? 'is empty' : 'begins with "/"';
      throw fieldError(place, XENSTORE_DATA, path, at, reason);
    }
    const text = latin1(body.subarray(at, nul));
    at = nul + 1;
    return text;
  };
  while (at < body.length) {
    const key = string('key');
    checkTableLimit(place, XENSTORE_DATA, entries.length + 1, XENSTORE_ENTRIES_MAX);
    entries.push([key, string('value')]);
  }
  return { ...emulatorHeader(body), entries };
}

/** Writes an EMULATOR_XENSTORE_DATA body. Throws UsageError for strings that cannot stand in it. */
export function encodeEmulatorXenstoreData(data: EmulatorXenstoreData): Uint8Array {
  let size = EMULATOR_HEADER_SIZE;
  for (const [key, value] of data.entries) size += key.length + value.length + 2;
  const body = new Uint8Array(size);
  let at = writeEmulatorHeader(body, data);
  for (const [key, value] of data.entries) {
    if (key === '' || key.startsWith('/')) throw new UsageError(`xenstore key ${JSON.stringify(key)}`);
    for (const text of [key, value]) {
      for (let i = 0; i < text.length; i++) {
        const byte = text.charCodeAt(i);
        if (byte === 0 || byte > 0xff) throw new UsageError(`xenstore string ${JSON.stringify(text)}`);
        body[at++] = byte;
      }
      at++;
    }
  }
  return body;
}

/** EMULATOR_CONTEXT. */
export interface EmulatorContext extends EmulatorHeader {
  /** The device model's state. A view of the body. */
  readonly blob: Uint8Array;
}

/** Reads EMULATOR_CONTEXT: after the emulator header the device model's state. Throws StreamFormatError: LENGTH. */
export function decodeEmulatorContext(body: Uint8Array, place: Place = NOWHERE): EmulatorContext {
  checkLibxlLength(LibxlRecord.EMULATOR_CONTEXT, body, place);
  return { ...emulatorHeader(body), blob: body.subarray(EMULATOR_HEADER_SIZE) };
}

/** Writes an EMULATOR_CONTEXT body. The state is copied. */
export function encodeEmulatorContext(context: EmulatorContext): Uint8Array {
  const body = new Uint8Array(EMULATOR_HEADER_SIZE + context.blob.length);
  body.set(context.blob, writeEmulatorHeader(body, context));
  return body;
}

/**
 * Reads CHECKPOINT_STATE: a u32 id, a number of CheckpointState. Bytes after it (the specification has 4 of padding in
 * the body) are ignored. Throws StreamFormatError: LENGTH.
 */
export function decodeCheckpointState(body: Uint8Array, place: Place = NOWHERE): { readonly id: number } {
  checkLibxlLength(LibxlRecord.CHECKPOINT_STATE, body, place);
  return { id: u32(body, 0) };
}

/** Writes a CHECKPOINT_STATE body: 4 bytes, as libxl does. */
export function encodeCheckpointState(state: { readonly id: number }): Uint8Array {
  const body = new Uint8Array(CHECKPOINT_STATE_SIZE);
  setU32(body, 0, checkU32(state.id, 'checkpoint state'));
  return body;
}

const SLASH = 0x2f;

function emulatorHeader(body: Uint8Array): EmulatorHeader {
  return { emulatorId: u32(body, 0), index: u32(body, 4) };
}

function writeEmulatorHeader(body: Uint8Array, { emulatorId, index }: EmulatorHeader): number {
  setU32(body, 0, checkU32(emulatorId, 'emulator id'));
  setU32(body, 4, checkU32(index, 'emulator index'));
  return EMULATOR_HEADER_SIZE;
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
}
