import { once } from 'node:events';
import { existsSync, mkdtempSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Duplex, PassThrough } from 'node:stream';
import { afterAll, describe, expect, test } from 'vitest';
import { connectPeer, listenForPeers, stdioPeer } from '../../../../lib/transport/peer/index.js';
import { socketKind, systemdSockets } from '../../../../lib/transport/peer/inherited.js';
import { readAll, side } from './helpers.js';

const dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-listen-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const greet = (peer: Duplex): void => void peer.end('hello');
const drop = (peer: Duplex): void => void peer.destroy();

describe('sockets of our own', () => {
  test('a Unix socket is for its owner, and is gone afterwards', async () => {
    const file = path.join(dir, 'a');
    const origins: string[] = [];
    const listening = await listenForPeers(`unix://${file}`, {}, (peer, { from }) => {
      origins.push(from);
      greet(peer);
    });
    expect(listening).toMatchObject({ addresses: [`unix://${file}`], given: false });
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(await readAll(await connectPeer(file))).toBe('hello');
    expect(origins).toEqual([`unix://${file}`]);
    await listening.close();
    await listening.close();
    expect(existsSync(file)).toBe(false);
  });

  test('a free port; both directions end by themselves', async () => {
    let origin = '';
    const listening = await listenForPeers('127.0.0.1:0', {}, (peer, { from }) => {
      origin = from;
      void readAll(peer).then((text) => peer.end(`you said ${text}`));
    });
    const [address = ''] = listening.addresses;
    expect(address).toMatch(/^tcp:\/\/127\.0\.0\.1:[1-9]\d*$/);
    const peer = await connectPeer(address);
    peer.end('this');
    expect(await readAll(peer)).toBe('you said this');
    expect(origin).toMatch(/^127\.0\.0\.1:\d+$/);
    await listening.close();
    await expect(connectPeer(address)).rejects.toThrow(/nobody listens there/);
  });

  test('a socket that a dead process left is replaced, one in use or another file is not', async () => {
    const file = path.join(dir, 'b');
    const first = await listenForPeers(file, {}, drop);
    await expect(listenForPeers(file, {}, drop)).rejects.toThrow(/the address is in use/);
    // A server's handle closed without its clean-up is what a killed process leaves.
    const left = path.join(dir, 'left');
    const dead = net.createServer();
    dead.listen(left);
    await once(dead, 'listening');
    renameSync(left, `${left}.kept`);
    dead.close();
    renameSync(`${left}.kept`, left);
    const second = await listenForPeers(left, {}, drop);
    await second.close();
    await first.close();
    const plain = path.join(dir, 'file');
    writeFileSync(plain, 'mine');
    await expect(listenForPeers(plain, {}, drop)).rejects.toThrow(/in use/);
    expect(statSync(plain).size).toBe(4);
  });

  test('what cannot be connected says why', async () => {
    await expect(connectPeer('127.0.0.1:1')).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_LOST',
      message: 'cannot connect to tcp://127.0.0.1:1: nobody listens there',
    });
    await expect(connectPeer(path.join(dir, 'none'))).rejects.toThrow(/there is no such socket/);
    await expect(
      connectPeer('127.0.0.1:1', { signal: AbortSignal.abort(new Error('stop')) }),
    ).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
    await expect(connectPeer('127.0.0.1:1', { timeoutMs: 0 })).rejects.toThrow(/timeoutMs/);
  });

  test('what makes no sense is refused', async () => {
    const tls = side('server');
    await expect(connectPeer('10.0.0.1:1')).rejects.toThrow(/--insecure/);
    await expect(listenForPeers('0.0.0.0:0', {}, drop)).rejects.toThrow(/--insecure/);
    await expect(connectPeer('tls://localhost:1')).rejects.toThrow(/needs certificates/);
    await expect(listenForPeers('tls://localhost:0', {}, drop)).rejects.toThrow(/needs certificates/);
    await expect(connectPeer('localhost:1', { tls })).rejects.toThrow(/is no tls:\/\/ address/);
    await expect(listenForPeers('localhost:0', { tls }, drop)).rejects.toThrow(/is no tls:\/\/ address/);
    for (const address of ['systemd', 'stdio']) {
      await expect(connectPeer(address)).rejects.toThrow(/to receive from, not to connect to/);
    }
    for (const address of ['ssh://host', 'exec:true']) {
      await expect(listenForPeers(address, {}, drop)).rejects.toThrow(/to connect to, not to listen at/);
    }
  });

  test('an aborted connect', async () => {
    const silent = net.createServer();
    silent.listen(path.join(dir, 'silent'));
    await once(silent, 'listening');
    const stop = new AbortController();
    const connecting = connectPeer(path.join(dir, 'silent'), { signal: stop.signal });
    stop.abort(new Error('stop'));
    await expect(connecting).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
    silent.close();
  });
});

describe('standard input and output', () => {
  test('are one connection', async () => {
    const [input, output] = [new PassThrough(), new PassThrough()];
    const peer = stdioPeer(input, output);
    input.end('question');
    expect(await readAll(peer)).toBe('question');
    const answer = readAll(output);
    peer.end('answer');
    expect(await answer).toBe('answer');
    const terminal = Object.assign(new PassThrough(), { isTTY: true });
    expect(() => stdioPeer(terminal, output)).toThrow(/not to a terminal/);
  });
});

describe('what systemd says', () => {
  const env = (fds?: string, names?: string, pid = '7'): Record<string, string | undefined> => ({
    LISTEN_PID: pid,
    LISTEN_FDS: fds,
    LISTEN_FDNAMES: names,
  });

  test('descriptors from 3 on, with their names; the variables are used up', () => {
    const given: Record<string, string | undefined> = { ...env('2', 'a:b'), OTHER: 'x' };
    expect(systemdSockets(given, undefined, 7)).toEqual([
      { fd: 3, name: 'a' },
      { fd: 4, name: 'b' },
    ]);
    expect(given).toEqual({ OTHER: 'x' });
    expect(systemdSockets(env('2', 'a:b'), 'b', 7)).toEqual([{ fd: 4, name: 'b' }]);
    expect(systemdSockets(env('1'), undefined, 7)).toEqual([{ fd: 3, name: undefined }]);
  });

  test.each([
    [env(), /gave no sockets/],
    [{}, /gave no sockets/],
    [env('1', undefined, '8'), /for process 8, and this is 7/],
    [env('1', undefined, '7x'), /for process 7x/],
    [env('0'), /LISTEN_FDS is "0"/],
    [env('-1'), /LISTEN_FDS/],
    [env('1e3'), /LISTEN_FDS/],
    [env('999999'), /LISTEN_FDS/],
    [env('2', 'a'), /1 names for 2 sockets/],
    [env('2', 'a:b:c'), /3 names/],
  ])('%j is refused', (given, message) => {
    expect(() => systemdSockets(given as Record<string, string>, undefined, 7)).toThrow(message);
  });

  test('a name that is not there', () => {
    expect(() => systemdSockets(env('2', 'a:b'), 'c', 7)).toThrow(/no socket named c; there are a, b/);
  });
});

describe('what a descriptor is', () => {
  const fdOf = (handle: unknown): number => (handle as { _handle: { fd: number } })._handle.fd;

  test('of sockets that listen and of connected ones', async () => {
    for (const at of [path.join(dir, 'kind'), { host: '127.0.0.1', port: 0 }]) {
      const family = typeof at === 'string' ? 'unix' : 'tcp';
      const server = net.createServer();
      server.listen(at);
      await once(server, 'listening');
      expect(await socketKind(fdOf(server))).toEqual({ family, listens: true });
      const accepted = once(server, 'connection');
      const client = net.connect(server.address() as never);
      const [socket] = (await accepted) as [net.Socket];
      expect(await socketKind(fdOf(socket))).toEqual({ family, listens: false });
      client.destroy();
      socket.destroy();
      server.close();
    }
  });

  test('what is no socket', async () => {
    await expect(socketKind(9999)).rejects.toThrow(/fd 9999 is not open/);
    await expect(listenForPeers('fd://9999', {}, drop)).rejects.toThrow(/not open/);
  });
});
