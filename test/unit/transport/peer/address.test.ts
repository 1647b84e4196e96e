import { describe, expect, test } from 'vitest';
import { UsageError } from '../../../../lib/errors.js';
import {
  isLoopback,
  parsePeerAddress,
  peerAddressText,
  requirePrivate,
} from '../../../../lib/transport/peer/address.js';

describe('addresses', () => {
  test.each([
    ['tcp://127.0.0.1:7000', 'tcp://127.0.0.1:7000'],
    ['localhost:7000', 'tcp://localhost:7000'],
    ['TCP://host.example:1', 'tcp://host.example:1'],
    ['[::1]:80', 'tcp://[::1]:80'],
    ['tcp://[fe80::1%eth0]:80', 'tcp://[fe80::1%eth0]:80'],
    ['tls://host2:8002', 'tls://host2:8002'],
    ['tls://[::1]:0', 'tls://[::1]:0'],
    ['unix:///run/x', 'unix:///run/x'],
    ['unix://x.sock', 'unix://x.sock'],
    ['/run/x', 'unix:///run/x'],
    ['./x:1', 'unix://./x:1'],
    ['ssh://host2', 'ssh://host2'],
    ['ssh://root@host2.example:2222', 'ssh://root@host2.example:2222'],
    ['ssh://root@[fe80::2]', 'ssh://root@[fe80::2]'],
    ['exec:ssh host2 xl migrate-receive', 'exec:ssh host2 xl migrate-receive'],
    ['fd://3', 'fd://3'],
    ['systemd', 'systemd'],
    ['systemd:tls', 'systemd:tls'],
    ['stdio', 'stdio'],
  ])('%s is %s', (text, meant) => {
    const address = parsePeerAddress(text);
    expect(peerAddressText(address)).toBe(meant);
    expect(parsePeerAddress(meant)).toEqual(address);
  });
  test.each([
    '',
    'x',
    ':80',
    'host:',
    'host:99999',
    'host:x',
    '::1:80',
    'unix://',
    'unix:///a\0b',
    'tcp://',
    'tcp://user@host:1',
    'tcp://a b:1',
    'tls://host',
    'ssh://',
    'ssh://-oProxyCommand=reboot',
    'ssh://-l@host',
    'ssh://host:0',
    'ssh://a b',
    'ssh://[host]',
    'exec:',
    'exec: ',
    'fd://x',
    'fd://-1',
    'systemd:',
    'http://h:1',
  ])('"%s" is none', (text) => {
    expect(() => parsePeerAddress(text)).toThrow(UsageError);
  });
});

describe('plain TCP stays on this machine', () => {
  test.each(['127.0.0.1', '127.8.9.1', '::1', 'localhost', '::ffff:127.0.0.1'])('%s may', (host) => {
    expect(isLoopback(host)).toBe(true);
    expect(() => requirePrivate({ kind: 'tcp', host, port: 1 }, false)).not.toThrow();
  });
  test.each([
    '0.0.0.0',
    '::',
    '10.0.0.1',
    '128.0.0.1',
    'localhost.example',
    '127.0.0.1.example',
    '2130706433',
    '::ffff:10.0.0.1',
  ])('%s may not, but for --insecure', (host) => {
    expect(() => requirePrivate({ kind: 'tcp', host, port: 1 }, undefined)).toThrow(/--insecure/);
    expect(() => requirePrivate({ kind: 'tcp', host, port: 1 }, true)).not.toThrow();
    expect(() => requirePrivate({ kind: 'tls', host, port: 1 }, false)).not.toThrow();
  });
});
