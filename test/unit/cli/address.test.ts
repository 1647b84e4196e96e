import { once } from 'node:events';
import { existsSync, mkdtempSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import {
  addressText,
  connectTo,
  isLoopback,
  listenAt,
  parseAddress,
  requirePrivate,
} from '../../../lib/cli/address.js';
import { UsageError } from '../../../lib/errors.js';

const dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-address-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('addresses', () => {
  test.each([
    ['tcp://127.0.0.1:7000', 'tcp://127.0.0.1:7000'],
    ['localhost:7000', 'tcp://localhost:7000'],
    ['TCP://host.example:1', 'tcp://host.example:1'],
    ['[::1]:80', 'tcp://[::1]:80'],
    ['tcp://[fe80::1]:80', 'tcp://[fe80::1]:80'],
    ['unix:///run/x', 'unix:///run/x'],
    ['unix://x.sock', 'unix://x.sock'],
    ['/run/x', 'unix:///run/x'],
    ['./x:1', 'unix://./x:1'],
  ])('%s is %s', (text, meant) => {
    expect(addressText(parseAddress(text))).toBe(meant);
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
    'tcp://',
    'tls://h:1',
    'ssh://h',
  ])('"%s" is none', (text) => {
    expect(() => parseAddress(text)).toThrow(UsageError);
  });
});

describe('plain TCP stays on this machine', () => {
  test.each(['127.0.0.1', '127.8.9.1', '::1', 'localhost'])('%s may', (host) => {
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
  ])('%s may not, but for --insecure', (host) => {
    expect(() => requirePrivate({ kind: 'tcp', host, port: 1 }, false)).toThrow(/--insecure/);
    expect(() => requirePrivate({ kind: 'tcp', host, port: 1 }, true)).not.toThrow();
  });
});

describe('listening', () => {
  const signal = new AbortController().signal;

  test('a Unix socket is for its owner, and is gone afterwards', async () => {
    const address = { kind: 'unix', path: path.join(dir, 'a') } as const;
    const listening = await listenAt(address, (socket) => socket.end('hello'));
    expect(statSync(address.path).mode & 0o777).toBe(0o600);
    const socket = await connectTo(address, signal, 5000);
    const [chunk] = (await once(socket, 'data')) as [Buffer];
    expect(chunk.toString()).toBe('hello');
    socket.destroy();
    await listening.close();
    expect(existsSync(address.path)).toBe(false);
  });

  test('a free port', async () => {
    const listening = await listenAt({ kind: 'tcp', host: '127.0.0.1', port: 0 }, (socket) => socket.end());
    expect(addressText(listening.address)).toMatch(/^tcp:\/\/127\.0\.0\.1:[1-9]\d*$/);
    (await connectTo(listening.address, signal, 5000)).destroy();
    await listening.close();
  });

  test('a socket that a dead process left is replaced, one in use or another file is not', async () => {
    const address = { kind: 'unix', path: path.join(dir, 'b') } as const;
    const first = await listenAt(address, (socket) => socket.destroy());
    await expect(listenAt(address, () => undefined)).rejects.toThrow(/the address is in use/);
    // A server's handle closed without its clean-up is what a killed process leaves.
    const left = path.join(dir, 'left');
    const dead = net.createServer();
    dead.listen(left);
    await once(dead, 'listening');
    renameSync(left, `${left}.kept`);
    dead.close();
    renameSync(`${left}.kept`, left);
    const second = await listenAt({ kind: 'unix', path: left }, () => undefined);
    await second.close();
    await first.close();
    const file = path.join(dir, 'file');
    writeFileSync(file, 'mine');
    await expect(listenAt({ kind: 'unix', path: file }, () => undefined)).rejects.toThrow(/in use/);
    expect(statSync(file).size).toBe(4);
  });

  test('what cannot be connected says why', async () => {
    const refused = { kind: 'tcp', host: '127.0.0.1', port: 1 } as const;
    await expect(connectTo(refused, signal, 5000)).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_LOST',
      message: 'cannot connect to tcp://127.0.0.1:1: nobody listens there',
    });
    await expect(connectTo({ kind: 'unix', path: path.join(dir, 'none') }, signal, 5000)).rejects.toThrow(
      /there is no such socket/,
    );
    const reason = new Error('stop');
    await expect(connectTo(refused, AbortSignal.abort(reason), 5000)).rejects.toBe(reason);
  });
});
