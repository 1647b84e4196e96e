import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { PeerError, TimeoutError } from '../../../lib/errors.js';
import {
  commonVersion,
  decodeFrame,
  decodeFrameHeader,
  decodePreamble,
  encodeFrame,
  encodePreamble,
  FRAME_HEADER_LENGTH,
  FrameType,
  MAX_BODY,
  MAX_REASON,
  reasonOf,
  versionsText,
  type Frame,
} from '../../../lib/migrate/frames.js';
import { describeForeign } from '../../../lib/migrate/foreign.js';
import { failureRules, Session, SyncPoint } from '../../../lib/migrate/session.js';

const id = '01234567-89ab-4cde-8f01-23456789abcd';
const reason = { code: 'ERR_XEN_TIMEOUT', message: 'too late' };

function decode(bytes: Uint8Array): Frame {
  const { type, length } = decodeFrameHeader(bytes);
  expect(bytes.length).toBe(FRAME_HEADER_LENGTH + length);
  return decodeFrame(type, bytes.subarray(FRAME_HEADER_LENGTH));
}

function bodyOf(body: unknown): Uint8Array {
  return Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
}

describe('frames', () => {
  const offer = {
    id,
    software: 's/1',
    name: 'web1',
    hvm: true,
    memory: 2 ** 34,
    paused: false,
    compression: [],
  };
  test.each<Frame>([
    { type: FrameType.HELLO, offer },
    { type: FrameType.HELLO, offer: { ...offer, name: undefined, hvm: false, paused: true } },
    {
      type: FrameType.HELLO,
      offer: { ...offer, hvm: undefined, memory: undefined, compression: ['zstd', 'gzip'] },
    },
    { type: FrameType.READY, id, version: 1, software: 's/1', compression: undefined, host: undefined },
    { type: FrameType.READY, id, version: 1, software: 's/1', compression: 'gzip', host: 'boot-1' },
    { type: FrameType.QUERY, id },
    { type: FrameType.STATUS, id, standing: 'arrived', domid: 5, state: 'running', host: 'boot-1' },
    { type: FrameType.STATUS, id, standing: 'absent', domid: undefined, state: undefined, host: undefined },
    { type: FrameType.RESTORED, domid: 5, bytes: 123 },
    { type: FrameType.YOURS, id },
    { type: FrameType.RUNNING, domid: 5, state: 'paused' },
    { type: FrameType.RELEASED },
    { type: FrameType.REFUSED, reason },
    { type: FrameType.FAILED, reason, gone: true },
  ])('$type comes back as it was', (frame) => {
    expect(decode(encodeFrame(frame))).toEqual(frame);
  });

  test('bytes of YOURS', () => {
    const body = `{"id":"${id}"}`;
    expect(Buffer.from(encodeFrame({ type: FrameType.YOURS, id }))).toEqual(
      Buffer.concat([Buffer.from('050000002d000000', 'hex'), Buffer.from(body)]),
    );
  });

  test('the longest texts fit', () => {
    const long = { code: 'E'.repeat(64), message: '\u0001'.repeat(MAX_REASON) };
    const bytes = encodeFrame({ type: FrameType.FAILED, reason: long, gone: false });
    expect(bytes.length - FRAME_HEADER_LENGTH).toBeLessThanOrEqual(MAX_BODY);
    expect(decode(bytes)).toMatchObject({ reason: { message: '\\u0001'.repeat(MAX_REASON) } });
    const name = '\u0001'.repeat(256);
    expect(encodeFrame({ type: FrameType.HELLO, offer: { ...offer, name } }).length).toBeLessThan(MAX_BODY);
  });

  test('unknown members are ignored', () => {
    expect(decodeFrame(FrameType.YOURS, bodyOf({ id, more: [1] }))).toEqual({ type: 5, id });
  });

  test.each<[number, unknown]>([
    [FrameType.HELLO, ''],
    [FrameType.HELLO, '[]'],
    [FrameType.HELLO, 'null'],
    [FrameType.HELLO, '{"id":'],
    [FrameType.HELLO, { ...offer, id: 'x' }],
    [FrameType.HELLO, { ...offer, id: id.toUpperCase() }],
    [FrameType.HELLO, { ...offer, memory: -1 }],
    [FrameType.HELLO, { ...offer, memory: 1.5 }],
    [FrameType.HELLO, { ...offer, memory: 2 ** 60 }],
    [FrameType.HELLO, { ...offer, memory: '1' }],
    [FrameType.HELLO, { ...offer, hvm: 1 }],
    [FrameType.HELLO, { ...offer, name: 'x'.repeat(257) }],
    [FrameType.HELLO, { ...offer, software: null }],
    [FrameType.HELLO, `{"__proto__":${JSON.stringify(offer)}}`],
    [FrameType.READY, { id, version: 1 }],
    [FrameType.RESTORED, { domid: 1 }],
    [FrameType.YOURS, {}],
    [FrameType.RUNNING, { domid: 1, state: 'dancing' }],
    [FrameType.FAILED, { ...reason }],
    [FrameType.REFUSED, { code: 'x' }],
    [FrameType.REFUSED, { code: 'x', message: 'x'.repeat(MAX_REASON + 1) }],
    [99, {}],
  ])('refused: %i %j', (type, body) => {
    expect(() => decodeFrame(type, bodyOf(body))).toThrow(PeerError);
  });

  test('a body that is no UTF-8', () => {
    expect(() => decodeFrame(FrameType.RELEASED, Uint8Array.of(0x7b, 0xff, 0x7d))).toThrow(/no JSON text/);
  });

  test.each([
    ['ff000000' + '02000000', 'unknown type 0xff'],
    ['01000000' + '01400000', 'of 16385 bytes; at most 16384'],
    ['03000000' + '00000000', 'unknown type 0x3'],
  ])('header %s', (hex, text) => {
    expect(() => decodeFrameHeader(Buffer.from(hex, 'hex'))).toThrow(text);
  });

  test('any bytes as a body: a frame or a PeerError', () => {
    const types = Object.values(FrameType);
    fc.assert(
      fc.property(
        fc.constantFrom(...types),
        fc.oneof(
          fc.uint8Array(),
          fc.json().map((s) => Buffer.from(s)),
        ),
        (type, bytes) => {
          try {
            decodeFrame(type, bytes);
          } catch (error) {
            expect(error).toBeInstanceOf(PeerError);
          }
        },
      ),
    );
  });
});

describe('versions', () => {
  test('bytes of the preamble', () => {
    expect(Buffer.from(encodePreamble()).toString('hex')).toBe(
      '8d584d49470d0a1a' + '0100' + '0100' + '00000000',
    );
  });
  test.each<[[number, number], [number, number], number | undefined]>([
    [[1, 1], [1, 1], 1],
    [[1, 3], [1, 2], 2],
    [[2, 3], [1, 2], 2],
    [[3, 4], [1, 2], undefined],
    [[1, 1], [2, 3], undefined],
  ])('%j and %j speak %s', ([a, b], [c, d], common) => {
    expect(commonVersion({ lowest: a, highest: b }, { lowest: c, highest: d })).toBe(common);
  });
  test('impossible ones', () => {
    expect(() => decodePreamble(encodePreamble({ lowest: 3, highest: 2 }))).toThrow(PeerError);
    expect(() => decodePreamble(encodePreamble({ lowest: 0, highest: 2 }))).toThrow(PeerError);
    expect(versionsText({ lowest: 1, highest: 1 })).toBe('1');
    expect(versionsText({ lowest: 1, highest: 3 })).toBe('1 to 3');
  });
});

describe('foreign peers', () => {
  test.each([
    ['xl migration receiver ready, send binary domain data.\n', 'is `xl migrate-receive`'],
    ['Xen saved domain, xl format\n \0 \r', 'bare xl save stream'],
    ['LibxlFmt', 'bare libxl stream'],
    ['\xff\xff\xff\xff\xff\xff\xff\xffXENF', 'bare libxc stream'],
    ['GET / HTTP/1.1\r\n', 'speaks HTTP'],
    ['PRI * HTTP/2.0', 'speaks HTTP'],
    ['SSH-2.0-x', 'speaks SSH'],
    ['\x16\x03\x01', 'speaks TLS'],
    ['\x15\x03\x03', 'speaks TLS'],
    ['QEVM', 'QEMU migration stream'],
    ['hello\r\nworld', '(it began with "hello\\u000d\\u000aworld")'],
    ['\x00\x01', '(it began with 00 01)'],
  ])('%j', (text, meaning) => {
    expect(describeForeign(Buffer.from(text, 'latin1'))).toContain(meaning);
  });
});

describe('the session', () => {
  test('passes its points in order, and no other way', () => {
    const session = new Session('sender');
    expect(() => session.pass(SyncPoint.READY)).toThrow(/does not follow/);
    for (const point of Object.values(SyncPoint).slice(1)) {
      session.pass(point);
      expect(session.point).toBe(point);
      expect(session.committed).toBe(point >= SyncPoint.YOURS);
    }
    expect(session.passedAt).toHaveLength(8);
    expect(() => session.pass(SyncPoint.RELEASED)).toThrow(/does not follow/);
  });

  test('at every point exactly one end may let the guest run', () => {
    for (const point of Object.values(SyncPoint)) {
      const sender = failureRules.sender[point] === 'resume';
      const receiver = ['run', 'destination'].includes(failureRules.receiver[point] as string);
      expect([sender, receiver].filter(Boolean), `point ${point}`).toHaveLength(1);
    }
  });
});

test('reasons', () => {
  expect(reasonOf(new TimeoutError('stall', 5, 'x'))).toEqual({ code: 'ERR_XEN_TIMEOUT', message: 'x' });
  expect(reasonOf(new RangeError('y'))).toEqual({ code: 'ERR_XEN_INTERNAL', message: 'y' });
  expect(reasonOf('z').message).toBe('z');
  expect(reasonOf(new Error('a'.repeat(9999))).message).toHaveLength(MAX_REASON);
});
