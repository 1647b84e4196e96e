import { describe, expect, test } from 'vitest';
import { ExitCode } from '../../../lib/cli/command.js';
import { errorLine, exitCodeOf, Interrupted } from '../../../lib/cli/exit.js';
import {
  AddonError,
  CancelledError,
  GuestError,
  HypercallError,
  PeerError,
  StreamFormatError,
  TimeoutError,
  TransportError,
  UsageError,
  XenstoreError,
  withCleanupError,
} from '../../../lib/errors.js';

const quiet = new AbortController().signal;

describe('exit codes', () => {
  const unknown = { guest: { host: 'unknown', state: 'unknown' } } as const;
  test.each<[unknown, number]>([
    [new UsageError('x'), ExitCode.USAGE],
    [new UsageError('the configuration cannot be read', { phase: 'setup' }), ExitCode.FAILED],
    [new PeerError('ERR_XEN_PEER_LOST', 'x'), ExitCode.PEER],
    [new PeerError('ERR_XEN_PEER_REFUSED', 'x'), ExitCode.PEER],
    [new PeerError('ERR_XEN_PEER_PROTOCOL', 'x'), ExitCode.PEER],
    [new PeerError('ERR_XEN_HANDOVER_UNKNOWN', 'x', unknown), ExitCode.GUEST_UNKNOWN],
    [new HypercallError('unpause', 5, 'x', unknown), ExitCode.GUEST_UNKNOWN],
    [new TimeoutError('stall', 1, 'x'), ExitCode.TIMEOUT],
    [new AddonError('ERR_XEN_ADDON_MISSING', 'x'), ExitCode.NO_HYPERVISOR],
    [new XenstoreError('open', 13, 'x'), ExitCode.NO_HYPERVISOR],
    [new XenstoreError('XS_READ', 13, 'x'), ExitCode.FAILED],
    [new XenstoreError('open', 2, 'x', { guest: { host: 'source', state: 'running' } }), ExitCode.FAILED],
    [new GuestError('ERR_XEN_GUEST_NOT_DESTROYED', 'x'), ExitCode.NOT_RELEASED],
    [new GuestError('ERR_XEN_GUEST_CRASHED', 'x'), ExitCode.FAILED],
    [new StreamFormatError('ERR_XEN_STREAM_TRUNCATED', 'x', { offset: 1 }), ExitCode.FAILED],
    [new TransportError('x'), ExitCode.FAILED],
    [new CancelledError('x'), ExitCode.FAILED],
    [new TypeError('x'), ExitCode.FAILED],
    ['not even an error', ExitCode.FAILED],
  ])('%s', (error, code) => {
    expect(exitCodeOf(error, quiet)).toBe(code);
  });

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('cancelled by %s', (name, code) => {
    const reason = new Interrupted(name);
    expect(exitCodeOf(reason, AbortSignal.abort(reason))).toBe(code);
    expect(exitCodeOf(new CancelledError('x', { cause: reason }), AbortSignal.abort(reason))).toBe(code);
    // What failed for another reason keeps its own code, and a lost guest comes before all.
    expect(exitCodeOf(new PeerError('ERR_XEN_PEER_LOST', 'x'), AbortSignal.abort(reason))).toBe(5);
  });

  test('no two meanings share a code', () => {
    const codes = Object.values(ExitCode);
    expect(new Set(codes).size).toBe(codes.length);
  });
});

describe('the line', () => {
  test('says where the guest is', () => {
    const at = (host: 'source' | 'destination' | 'unknown', state: 'running' | 'unknown') =>
      errorLine(new PeerError('ERR_XEN_PEER_LOST', 'gone', { guest: { host, state } }));
    expect(at('source', 'running')).toBe('gone; the guest is running at the source');
    expect(at('source', 'unknown')).toBe('gone; the guest is still at the source');
    expect(at('destination', 'running')).toBe('gone; the guest is running at the destination');
    expect(at('unknown', 'unknown')).toBe('gone');
  });

  test('adds failures of the clean-up', () => {
    const error = new TransportError('no space left');
    withCleanupError(error, new Error('log-dirty stays on'));
    expect(errorLine(error)).toBe('no space left; while cleaning up: log-dirty stays on');
  });

  test('is one line, whatever a peer sent', () => {
    expect(errorLine(new PeerError('ERR_XEN_PEER_REFUSED', 'a\nb\u001b[31m\u202e'))).toBe(
      'a\\u000ab\\u001b[31m\\u202e',
    );
    expect(errorLine(new RangeError('x'))).toBe('unexpected error: x');
    expect(errorLine(undefined)).toBe('unexpected error: undefined');
  });
});
