import { describe, expect, it } from 'vitest';
import {
  CancelledError,
  GuestError,
  HypercallError,
  PeerError,
  StreamFormatError,
  TimeoutError,
  TransportError,
  UsageError,
} from '../../../lib/errors.js';
import { errnoOf } from '../../../lib/helper/errno.js';
import { StreamErrorCode } from '../../../lib/stream/codes.js';

const node = (code: string, errno?: number): Error => Object.assign(new Error(code), { code, errno });
const truncated = new StreamFormatError(StreamErrorCode.TRUNCATED, 'ends', { offset: 4 });

describe('errno for libxl', () => {
  it.each<[string, unknown, number]>([
    ['of a hypercall', new HypercallError('x', 7, 'too big'), 7],
    ['of Node, negative', new TransportError('w', { cause: node('ENOSPC', -28) }), 28],
    ['of the addon, positive', new PeerError('ERR_XEN_PEER_LOST', 'w', { cause: node('EPIPE', 32) }), 32],
    ['of a code alone', new TransportError('w', { cause: node('ECONNRESET') }), 104],
    ['deep down', new TransportError('a', { cause: new TransportError('b', { cause: node('EIO', -5) }) }), 5],
    ['of a cancellation', new CancelledError('stop', { cause: node('EPIPE', 32) }), 125],
    ['of a stream cut off', truncated, 61],
    ['of a bad stream', new StreamFormatError(StreamErrorCode.TYPE, 'bad', { offset: 4 }), 74],
    ['of a timeout', new TimeoutError('suspend', 5, 'late'), 110],
    ['of bad arguments', new UsageError('no'), 22],
    ['of the guest', new GuestError('ERR_XEN_GUEST_CRASHED', 'crashed'), 5],
    ['of a defect', new TypeError('undefined'), 22],
    ['of no error at all', 'text', 22],
  ])('%s', (_name, error, expected) => {
    expect(errnoOf(error)).toBe(expected);
  });
});
