/** TLS between peers: who is let in, and what is said to whom. Certificates: test/certs. */
import { once } from 'node:events';
import { copyFileSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Duplex } from 'node:stream';
import tls from 'node:tls';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import type { XenMigrationError } from '../../../../lib/errors.js';
import { describeForeign } from '../../../../lib/migrate/foreign.js';
import {
  connectPeer,
  listenForPeers,
  type ListenOptions,
  type PeerListener,
} from '../../../../lib/transport/peer/index.js';
import { openConnection } from '../../../../lib/transport/socket.js';
import { drain, pattern } from '../helpers.js';
import { pem, readAll, side } from './helpers.js';

const dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-tls-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
});

interface Service {
  readonly listener: PeerListener;
  readonly port: number;
  readonly address: string;
  /** Names of those who came in. */
  readonly names: (string | undefined)[];
  /** Resolves to the next error that it is told. */
  readonly error: () => Promise<XenMigrationError>;
}

/** A listener that greets whoever comes in. */
async function service(
  options: ListenOptions = { tls: side('server') },
  onPeer: (peer: Duplex) => void = (peer) => peer.end('hello'),
): Promise<Service> {
  const errors: XenMigrationError[] = [];
  let tell: (() => void) | undefined;
  const names: (string | undefined)[] = [];
  const listener = await listenForPeers(
    'tls://127.0.0.1:0',
    {
      ...options,
      onError: (error) => {
        errors.push(error);
        tell?.();
      },
    },
    (peer, { certificateName }) => {
      peer.on('error', () => undefined);
      names.push(certificateName);
      onPeer(peer);
    },
  );
  closers.push(() => listener.close());
  const address = listener.addresses[0] ?? '';
  return {
    listener,
    address,
    port: Number(/\d+$/.exec(address)?.[0]),
    names,
    error: async () => {
      while (errors.length === 0) await new Promise<void>((resolve) => (tell = resolve));
      return errors.shift() as XenMigrationError;
    },
  };
}

/** The connection as what it is. */
function tlsOf(peer: Duplex): tls.TLSSocket {
  if (!(peer instanceof tls.TLSSocket)) throw new Error('no TLS');
  return peer;
}

/** A TLS server as others make them. */
async function foreign(options: tls.TlsOptions): Promise<string> {
  const server = tls.createServer(options, (socket) => {
    socket.on('error', () => undefined);
    socket.end('hello');
  });
  server.on('tlsClientError', () => undefined);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  closers.push(() => server.close());
  return `tls://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
}

const files = (name: string): { cert: Buffer; key: Buffer } => ({
  cert: readFileSync(pem(`${name}.crt`)),
  key: readFileSync(pem(`${name}.key`)),
});

describe('peers that trust each other', () => {
  test('talk, in TLS 1.3, both directions ended by themselves', async () => {
    let version: string | null = '';
    const bytes = pattern(3_000_000);
    const { address, names } = await service({ tls: side('server') }, (peer) => {
      version = tlsOf(peer).getProtocol();
      const { source, sink } = openConnection(peer);
      void drain(source).then(async (all) => {
        await sink.write([all.subarray(0, 100)]);
        await sink.end();
        await source.close();
      });
    });
    const peer = await connectPeer(address, { tls: side('client') });
    const { source, sink } = openConnection(peer);
    await sink.write([bytes]);
    await sink.end();
    expect((await drain(source)).equals(bytes.subarray(0, 100))).toBe(true);
    expect([version, names]).toEqual(['TLSv1.3', ['dom0 a']]);
    peer.destroy();
  });

  test('what the receiver says first is still there after the connecting', async () => {
    const { address } = await service();
    expect(await readAll(await connectPeer(address, { tls: side('client') }))).toBe('hello');
  });

  test('by a name that is not the address', async () => {
    const { port } = await service();
    const tls = side('client', { serverName: 'receiver.example' });
    expect(await readAll(await connectPeer(`tls://127.0.0.1:${port}`, { tls }))).toBe('hello');
    const wrong = side('client', { serverName: 'other.example' });
    await expect(connectPeer(`tls://127.0.0.1:${port}`, { tls: wrong })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
    });
  });

  test('certificates given as bytes', async () => {
    const ca = readFileSync(pem('ca.crt'));
    const { address } = await service({ tls: { ...files('server'), ca } });
    expect(await readAll(await connectPeer(address, { tls: { ...files('client'), ca } }))).toBe('hello');
  });

  test.each([
    [['a.example'], 'client'],
    [['nobody.example', '192.0.2.7'], 'client'],
    [['dom0-b'], 'nameless'],
  ])('one of the names %j: %s', async (allow, name) => {
    const { address, names } = await service({ tls: side('server', { allow }) });
    expect(await readAll(await connectPeer(address, { tls: side(name) }))).toBe('hello');
    expect(names).toHaveLength(1);
  });
});

describe('who is not let in learns why, and so does the receiver', () => {
  const rejected = /closed the connection right after the TLS handshake; it may not accept the certificate/;

  test.each([
    [['b.example'], 'client'],
    // Its CN, which does not count beside DNS names.
    [['dom0 a'], 'client'],
    // A certificate for all of a domain is none for a host.
    [['a.example', '192.0.2.8'], 'wild'],
  ])('a name that is not among %j: %s', async (allow, name) => {
    const { address, error, names } = await service({ tls: side('server', { allow }) });
    await expect(connectPeer(address, { tls: side(name) })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_REFUSED',
      message: expect.stringMatching(rejected) as string,
    });
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
      message: expect.stringMatching(
        /^127\.0\.0\.1:\d+: its certificate, of (dom0 a|wild), has none/,
      ) as string,
    });
    expect(names).toEqual([]);
  });

  test('another CA, at either side', async () => {
    const { address, error, names } = await service();
    await expect(connectPeer(address, { tls: side('other-client') })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_REFUSED',
      message: expect.stringMatching(rejected) as string,
    });
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
      message: expect.stringMatching(/its certificate is of another CA than this side trusts/) as string,
    });
    const other = await service({ tls: side('other-server') });
    await expect(connectPeer(other.address, { tls: side('client') })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
      message: `${other.address}: its certificate is of another CA than this side trusts`,
    });
    expect([names, other.names]).toEqual([[], []]);
  });

  test('no client certificate', async () => {
    const { port, error, names } = await service();
    const socket = tls.connect({ port, host: '127.0.0.1', ca: readFileSync(pem('ca.crt')) });
    const [refused] = (await once(socket, 'error')) as [Error];
    expect((refused as NodeJS.ErrnoException).code).toBe('ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED');
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
      message: expect.stringMatching(/it has shown no certificate$/) as string,
    });
    expect(names).toEqual([]);
  });

  test('certificates that have expired', async () => {
    const { port, error, names } = await service();
    const socket = tls.connect({
      port,
      host: '127.0.0.1',
      ca: readFileSync(pem('ca.crt')),
      ...files('old-client'),
    });
    socket.on('error', () => undefined);
    socket.resume();
    await once(socket, 'close');
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
      message: expect.stringMatching(/has expired$/) as string,
    });
    expect(names).toEqual([]);
    const old = await foreign(files('old-server'));
    await expect(connectPeer(old, { tls: side('client') })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
      message: `${old}: its certificate, or that of its CA, has expired`,
    });
  });

  test('a server of another name', async () => {
    const { address } = await service({ tls: side('elsewhere') });
    await expect(connectPeer(address, { tls: side('client') })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
      message: expect.stringMatching(/its certificate is for another name: .*127\.0\.0\.1/) as string,
    });
  });

  test('a certificate that is made for the other side', async () => {
    const { address, error } = await service();
    await expect(connectPeer(address, { tls: side('server2') })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_REFUSED',
    });
    expect(await error()).toMatchObject({ message: expect.stringMatching(/made for this use/) as string });
    const server = await service({ tls: side('client') });
    await expect(
      connectPeer(server.address, { tls: side('client', { serverName: 'a.example' }) }),
    ).rejects.toThrow(/made for this use/);
  });

  test('nothing older than TLS 1.3, at either side', async () => {
    const { port, error } = await service();
    const ca = readFileSync(pem('ca.crt'));
    const old = tls.connect({ port, host: '127.0.0.1', ca, ...files('client'), maxVersion: 'TLSv1.2' });
    await once(old, 'error');
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_PEER_PROTOCOL',
      message: expect.stringMatching(/it does not speak TLS 1\.3$/) as string,
    });
    const server = await foreign({ ...files('server'), maxVersion: 'TLSv1.2' });
    await expect(connectPeer(server, { tls: side('client') })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_PROTOCOL',
      message: `${server}: it does not speak TLS 1.3`,
    });
  });
});

describe('revocation lists', () => {
  const crl = (name: string): { crl: string } => ({ crl: pem(`${name}.crl`) });

  test('who is in none is let in', async () => {
    const { address, names } = await service({ tls: side('server', crl('none')) });
    expect(await readAll(await connectPeer(address, { tls: side('client', crl('none')) }))).toBe('hello');
    const { address: other } = await service({ tls: side('server', crl('revoked')) });
    expect(await readAll(await connectPeer(other, { tls: side('nameless', crl('revoked')) }))).toBe('hello');
    expect(names).toHaveLength(1);
  });

  test.each([
    ['a sender whose certificate is revoked', 'revoked', /or that of its CA, is revoked$/],
    ['a list that has expired', 'old', /revocation list that this side has .* has expired$/],
    ['the list of another CA', 'other-ca', /this side has no revocation list of the CA/],
  ])('%s: not let in', async (_what, list, message) => {
    const { address, error, names } = await service({ tls: side('server', crl(list)) });
    await expect(connectPeer(address, { tls: side('client') })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_REFUSED',
    });
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
      message: expect.stringMatching(message) as string,
    });
    expect(names).toEqual([]);
  });

  test('a receiver whose certificate is revoked gets no guest', async () => {
    const { address } = await service({ tls: side('server2') });
    await expect(connectPeer(address, { tls: side('client', crl('revoked')) })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_UNTRUSTED',
      message: `${address}: its certificate, or that of its CA, is revoked`,
    });
  });

  test('several in one file, whatever their order', async () => {
    const lists = ['other-ca', 'revoked'].map((name) => readFileSync(pem(`${name}.crl`)));
    for (const all of [lists, [...lists].reverse()]) {
      const { address, error } = await service({ tls: side('server', { crl: Buffer.concat(all) }) });
      await expect(connectPeer(address, { tls: side('client') })).rejects.toThrow();
      expect(await error()).toMatchObject({ message: expect.stringMatching(/is revoked$/) as string });
      expect(await readAll(await connectPeer(address, { tls: side('wild') }))).toBe('hello');
    }
  });

  test('a newer one is used from the next connection on', async () => {
    const file = path.join(dir, 'crl');
    copyFileSync(pem('none.crl'), file);
    const { address, error } = await service({ tls: side('server', { crl: file }) });
    expect(await readAll(await connectPeer(address, { tls: side('client') }))).toBe('hello');
    copyFileSync(pem('revoked.crl'), `${file}.new`);
    renameSync(`${file}.new`, file);
    await expect(connectPeer(address, { tls: side('client') })).rejects.toThrow();
    expect(await error()).toMatchObject({ message: expect.stringMatching(/is revoked$/) as string });
  });

  test.each(['ca.crt', 'make.sh'])('%s is none', async (name) => {
    const given = connectPeer('tls://127.0.0.1:1', { tls: side('client', { crl: pem(name) }) });
    await expect(given).rejects.toThrow(new RegExp(`${name} holds no revocation list in PEM$`));
    const damaged = Buffer.from(
      readFileSync(pem('none.crl'), 'latin1').replace(/[A-Za-z0-9+/]{20}/, 'A'.repeat(20)),
    );
    await expect(connectPeer('tls://127.0.0.1:1', { tls: side('client', { crl: damaged }) })).rejects.toThrow(
      /^the revocation list holds no revocation list/,
    );
  });
});

describe('peers that do not speak TLS', () => {
  test.each([
    ['the preamble of this library', Buffer.from('8d584d49470d0a1a0100010000000000', 'hex')],
    ['xl', Buffer.from('Xen saved domain, xl format\n \0 \r')],
    ['HTTP', Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n')],
    ['zeros', Buffer.alloc(64)],
  ])('a plain sender at a TLS port: %s', async (_what, bytes) => {
    const { port, error } = await service();
    const socket = net.connect(port, '127.0.0.1');
    socket.on('error', () => undefined);
    socket.write(bytes);
    socket.resume();
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_PEER_PROTOCOL',
      message: expect.stringMatching(/: it (does not speak TLS|speaks HTTP and not TLS)$/) as string,
    });
    socket.destroy();
  });

  test.each([
    ['a plain receiver of this library', Buffer.from('8d584d49470d0a1a0100010000000000', 'hex')],
    ['SSH', Buffer.from('SSH-2.0-OpenSSH_9.2\r\n')],
    ['xl', Buffer.from('xl migration receiver ready, send binary domain data.\n')],
  ])('a TLS sender at the port of %s', async (_what, bytes) => {
    const plain = await listenForPeers('127.0.0.1:0', {}, (peer) => {
      peer.on('error', () => undefined).resume();
      peer.write(bytes);
    });
    closers.push(() => plain.close());
    const address = (plain.addresses[0] ?? '').replace('tcp', 'tls');
    await expect(connectPeer(address, { tls: side('client') })).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_PROTOCOL',
      message: `${address}: it does not speak TLS`,
    });
  });

  test('a server that hangs up, one that is silent, and an abort', async () => {
    const rude = await listenForPeers('127.0.0.1:0', {}, (peer) => peer.destroy());
    const silent = await listenForPeers('127.0.0.1:0', {}, (peer) =>
      peer.on('error', () => undefined).resume(),
    );
    closers.push(
      () => rude.close(),
      () => silent.close(),
    );
    const options = { tls: side('client') };
    const at = (listener: PeerListener): string => (listener.addresses[0] ?? '').replace('tcp', 'tls');
    await expect(connectPeer(at(rude), options)).rejects.toMatchObject({
      code: 'ERR_XEN_PEER_LOST',
      message: `${at(rude)}: the connection was lost in the TLS handshake`,
    });
    await expect(connectPeer(at(silent), { ...options, timeoutMs: 60 })).rejects.toMatchObject({
      code: 'ERR_XEN_TIMEOUT',
      phase: 'connect',
      message: expect.stringMatching(/did not finish the TLS handshake within 60 ms/) as string,
    });
    const stop = new AbortController();
    const connecting = connectPeer(at(silent), { ...options, signal: stop.signal });
    setTimeout(() => stop.abort(new Error('stop')), 20);
    await expect(connecting).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
  });

  test('a sender that connects and is silent, and one that goes away', async () => {
    const { port, error, listener } = await service({ tls: side('server'), handshakeMs: 50 });
    // Who waits for us to begin hears from us that this is TLS.
    const silent = net.connect(port, '127.0.0.1');
    silent.on('error', () => undefined);
    const [alert] = (await once(silent, 'data')) as [Buffer];
    expect(alert.toString('hex')).toBe('15030100020228');
    expect(describeForeign(alert)).toMatch(/speaks TLS/);
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_PEER_PROTOCOL',
      message: expect.stringMatching(/: it says nothing: it may not speak TLS$/) as string,
    });
    const stopping = net.connect(port, '127.0.0.1');
    stopping.on('error', () => undefined);
    stopping.write(Buffer.from('1603010200', 'hex'));
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_PEER_LOST',
      message: expect.stringMatching(/it did not finish the TLS handshake in time/) as string,
    });
    const brief = net.connect(port, '127.0.0.1');
    brief.on('error', () => undefined);
    await once(brief, 'connect');
    brief.destroy();
    expect(await error()).toMatchObject({
      message: expect.stringMatching(/without a word|says nothing/) as string,
    });
    // Handshakes under way do not outlive the listener.
    const late = net.connect(port, '127.0.0.1');
    late.on('error', () => undefined);
    await once(late, 'connect');
    const gone = once(late.resume(), 'close');
    await listener.close();
    await gone;
  });

  test('a server that speaks only when spoken to', async () => {
    const { address } = await service({ tls: side('server') }, (peer) => {
      peer.once('data', (chunk: Buffer) => peer.end(chunk));
    });
    const peer = await connectPeer(address, { tls: side('client') });
    peer.write('echo');
    expect(await readAll(peer)).toBe('echo');
  });
});

describe('files', () => {
  test('that are no use are refused before anything is connected', async () => {
    const no = (tls: Partial<ReturnType<typeof side>>): Promise<unknown> =>
      connectPeer('tls://127.0.0.1:1', { tls: side('client', tls) });
    await expect(no({ cert: pem('none') })).rejects.toMatchObject({
      code: 'ERR_XEN_INVALID_ARGUMENT',
      message: expect.stringMatching(/^the certificate cannot be read: ENOENT.*none'$/) as string,
    });
    await expect(no({ ca: dir })).rejects.toThrow(/^the CA certificate cannot be read: EISDIR/);
    await expect(no({ key: pem('server.key') })).rejects.toThrow(
      /server\.key is not the key of .*client\.crt/,
    );
    await expect(no({ key: pem('client.crt') })).rejects.toThrow(/client\.crt holds no private key/);
    await expect(no({ cert: pem('client.key') })).rejects.toThrow(/client\.key holds no certificate in PEM/);
    await expect(no({ ca: pem('make.sh') })).rejects.toThrow(/make\.sh holds no certificate/);
    await expect(no({ cert: pem('old-client.crt'), key: pem('old-client.key') })).rejects.toThrow(
      /old-client\.crt expired on Jan {2}1 00:00:00 2021 GMT/,
    );
    await expect(
      listenForPeers('tls://127.0.0.1:0', { tls: side('server', { ca: 'system' }) }, () => undefined),
    ).rejects.toThrow(/anybody could send guests/);
    await expect(
      listenForPeers('tls://127.0.0.1:0', { tls: side('server', { allow: [] }) }, () => undefined),
    ).rejects.toThrow(/is empty/);
  });

  test('that change are used from the next connection on; bad ones are told of, once, and not used', async () => {
    const [cert, key] = [path.join(dir, 'crt'), path.join(dir, 'key')];
    const put = (from: string, to: string): void => {
      // As one replaces a file that is in use: whole.
      copyFileSync(pem(from), `${to}.new`);
      renameSync(`${to}.new`, to);
    };
    put('server.crt', cert);
    put('server.key', key);
    const { address, error, names } = await service({ tls: { cert, key, ca: pem('ca.crt') } });
    const shown = async (): Promise<string> => {
      const peer = await connectPeer(address, { tls: side('client') });
      const { subject } = tlsOf(peer).getPeerCertificate();
      peer.destroy();
      return String(subject.CN);
    };
    expect(await shown()).toBe('server');
    put('server2.crt', cert);
    // The key is still the old one's.
    expect(await shown()).toBe('server');
    expect(await error()).toMatchObject({
      code: 'ERR_XEN_INVALID_ARGUMENT',
      message: `${key} is not the key of ${cert}`,
    });
    put('server2.key', key);
    expect(await shown()).toBe('server2');
    rmSync(cert);
    expect(await shown()).toBe('server2');
    expect(await error()).toMatchObject({ message: expect.stringMatching(/cannot be read/) as string });
    writeFileSync(cert, 'nothing');
    expect(await shown()).toBe('server2');
    expect(await error()).toMatchObject({ message: expect.stringMatching(/holds no certificate/) as string });
    expect(names).toHaveLength(5);
  });
});
