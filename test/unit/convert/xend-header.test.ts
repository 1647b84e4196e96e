/** The head of xend's save file. */

import { describe, expect, it, test } from 'vitest';
import { StreamFormatError, UsageError } from '../../../lib/errors.js';
import { recogniseFormat } from '../../../lib/stream/index.js';
import { XEND_CONFIG_MAX, XEND_HEADER_SIZE } from '../../../lib/stream/xend/constants.js';
import {
  decodeXendFixedHeader,
  decodeXendHeader,
  encodeXendHeader,
} from '../../../lib/stream/xend/header.js';
import { bytesOf } from './xend-samples.js';

// "LinuxGuestRecord", 10, "(domain ())"[0…10), then the legacy stream.
const FILE = Uint8Array.from(
  Buffer.from(
    '4c696e757847756573745265636f7264' + '0000000a' + '28646f6d61696e203129' + '0080000000000000',
    'hex',
  ),
);

function refused(bytes: Uint8Array): unknown {
  try {
    decodeXendHeader(bytes, { offset: 100 });
  } catch (error) {
    if (!(error instanceof StreamFormatError)) throw error;
    const { code, offset, path } = error;
    return { code: code.replace('ERR_XEN_STREAM_', ''), offset, path };
  }
  return expect.fail('nothing was thrown');
}

function withLength(length: number): Uint8Array {
  const bytes = FILE.slice();
  new DataView(bytes.buffer).setInt32(16, length);
  return bytes;
}

describe('the head of a file of xend', () => {
  it('is read from the bytes', () => {
    expect(recogniseFormat(FILE)).toBe('xend');
    expect(decodeXendFixedHeader(FILE)).toBe(10);
    expect(decodeXendHeader(FILE, { offset: 100 })).toEqual({
      config: bytesOf('(domain 1)'),
      configOffset: 120,
      streamOffset: 130,
    });
  });

  it('is written as it is read', () => {
    const { config, streamOffset } = decodeXendHeader(FILE);
    expect(encodeXendHeader(config)).toEqual(FILE.subarray(0, streamOffset));
  });

  const errors: readonly (readonly [string, Uint8Array, unknown])[] = [
    [
      'a wrong signature',
      FILE.map((byte, i) => (i === 15 ? 0x44 : byte)),
      { code: 'ID', offset: 100, path: 'signature' },
    ],
    ['no length', withLength(0), { code: 'FIELD', offset: 116, path: 'configLength' }],
    ['a negative length', withLength(-1), { code: 'FIELD', offset: 116, path: 'configLength' }],
    [
      'a length above the limit',
      withLength(XEND_CONFIG_MAX + 1),
      { code: 'LIMIT', offset: 116, path: 'configLength' },
    ],
    [
      'a length beyond the end',
      withLength(XEND_CONFIG_MAX),
      { code: 'TRUNCATED', offset: 138, path: 'config' },
    ],
  ];
  test.each(errors)('%s is refused', (_, bytes, error) => {
    expect(refused(bytes)).toEqual(error);
  });

  it('is refused if it is cut off', () => {
    for (let length = 0; length < XEND_HEADER_SIZE; length++) {
      expect(refused(FILE.subarray(0, length))).toEqual({
        code: 'TRUNCATED',
        offset: 100 + length,
        path: undefined,
      });
    }
    for (let length = XEND_HEADER_SIZE; length < XEND_HEADER_SIZE + 10; length++) {
      expect(refused(FILE.subarray(0, length))).toEqual({
        code: 'TRUNCATED',
        offset: 100 + length,
        path: 'config',
      });
    }
  });

  it('is not written with a configuration that nobody would read', () => {
    expect(() => encodeXendHeader(new Uint8Array(0))).toThrow(UsageError);
    expect(() => encodeXendHeader(new Uint8Array(XEND_CONFIG_MAX + 1))).toThrow(UsageError);
    expect(decodeXendFixedHeader(encodeXendHeader(new Uint8Array(XEND_CONFIG_MAX)))).toBe(XEND_CONFIG_MAX);
  });
});
