/** Listening for peers. */
import { once } from 'node:events';
import { stat, unlink } from 'node:fs/promises';
import net from 'node:net';
import type { Duplex, Readable, Writable } from 'node:stream';
import { debug } from '../../debug.js';
import { TransportError, UsageError, XenMigrationError } from '../../errors.js';
import { cancellation } from '../failure.js';
import {
  isLoopback,
  parsePeerAddress,
  peerAddressText,
  requirePrivate,
  type PeerAddress,
} from './address.js';
import { KEEP_ALIVE } from './connect.js';
import { socketKind, systemdSockets } from './inherited.js';
import { PairDuplex } from './pair.js';
import { TlsDoor } from './tls-door.js';
import { socketErrorText } from './texts.js';
import { SYSTEM_CA, TlsFiles, type PeerTls } from './tls.js';

export interface ListenOptions {
  /** Stops the setting up. `close` ends what listens. */
  readonly signal?: AbortSignal | undefined;
  /** For `tls://`, and for TCP sockets of `systemd` and `fd://`. The files are read anew once they have changed. */
  readonly tls?: PeerTls | undefined;
  /** Allows plain TCP beyond this machine: then everybody on the way can read a guest's memory, and anybody send a guest. */
  readonly insecure?: boolean | undefined;
  /** ms that a TLS handshake may take. Default 10 000. */
  readonly handshakeMs?: number | undefined;
  /**
   * Told of connections that never became a peer, because their TLS handshake failed, and of certificate files that
   * changed and cannot be used. Nothing has to be done about either.
   */
  readonly onError?: ((error: XenMigrationError) => void) | undefined;
}

/** Who is at the other end. */
export interface PeerOrigin {
  /** Where it connected from, for instance `10.0.0.7:51034`, or the socket that it came by. */
  readonly from: string;
  /** What the certificate that it has shown calls it; undefined without TLS. */
  readonly certificateName: string | undefined;
}

/** A listener. */
export interface PeerListener {
  /** Its addresses, with the port that was given where 0 was asked for. */
  readonly addresses: readonly string[];
  /** True if it listens to nothing: the connections that it was started with have been given to `onPeer`, and no more come. */
  readonly given: boolean;
  /** Stops listening and removes a Unix socket that it made. Connections that are peers go on. Idempotent. */
  close(): Promise<void>;
}

/**
 * Listens at an address, and calls `onPeer` with each connection, for `startReceive`'s `from`: they are the callee's, and
 * must be destroyed or given away. What `onPeer` throws is a defect.
 *
 * * `tcp://`, `tls://`, `unix://`: a socket is made. A Unix socket is for its owner alone, and replaces one that nobody
 *   listens at any more.
 * * `systemd`: the sockets of the unit's socket units, or the one connection of a unit with `Accept=yes`.
 * * `fd://N`: a socket that the parent process passed, listening or connected.
 * * `stdio`: standard input and output are the one connection.
 *
 * Rejects with UsageError for an address that cannot be listened at, for plain TCP beyond this machine without `insecure`,
 * and for files of `tls` that are no use; with TransportError if the system refuses; with the signal's reason.
 */
export async function listenForPeers(
  address: PeerAddress | string,
  options: ListenOptions,
  onPeer: (peer: Duplex, origin: PeerOrigin) => void,
): Promise<PeerListener> {
  const at = typeof address === 'string' ? parsePeerAddress(address) : address;
  requirePrivate(at, options.insecure);
  const door = await openDoor(at, options, onPeer);
  if (options.signal?.aborted === true) throw cancellation(options.signal.reason, 'listening');
  switch (at.kind) {
    case 'unix':
    case 'tcp':
    case 'tls':
      return listener(door, [await listenAt(at, door)]);
    case 'fd':
      return inherited([at], door, options);
    case 'systemd': {
      const sockets = systemdSockets(process.env, at.name);
      return inherited(sockets, door, options);
    }
    case 'stdio':
      onPeer(stdioPeer(process.stdin, process.stdout), { from: 'stdio', certificateName: undefined });
      return { addresses: ['stdio'], given: true, close: async () => undefined };
    case 'ssh':
    case 'exec':
      throw new UsageError(`${peerAddressText(at)} is an address to connect to, not to listen at`);
  }
}

/** Standard input and output, or streams in their place, as one connection. Throws UsageError if it is a terminal. */
export function stdioPeer(input: Readable, output: Writable): Duplex {
  if ((input as { isTTY?: boolean }).isTTY === true || (output as { isTTY?: boolean }).isTTY === true) {
    throw new UsageError('standard input and output must be connected to a sender, not to a terminal');
  }
  return new PairDuplex(input, output);
}

/** Resolves when the connection is in, or was not let in. */
type Enter = (socket: net.Socket, from: string) => Promise<void>;

/** Where connections of one listener go in: as they are, or through TLS. */
interface Door {
  readonly plain: Enter;
  readonly secure: Enter | undefined;
  /** Cuts the connections that are on their way in. */
  close(): void;
}

async function openDoor(
  at: PeerAddress,
  options: ListenOptions,
  onPeer: (peer: Duplex, origin: PeerOrigin) => void,
): Promise<Door> {
  const plain: Enter = async (socket, from) => onPeer(socket, { from, certificateName: undefined });
  if (options.tls === undefined) {
    if (at.kind === 'tls') throw new UsageError(`${peerAddressText(at)} needs certificates (tls)`);
    return { plain, secure: undefined, close: () => undefined };
  }
  if (at.kind !== 'tls' && at.kind !== 'fd' && at.kind !== 'systemd') {
    throw new UsageError(`${peerAddressText(at)} is no tls:// address, and certificates were given`);
  }
  if (options.tls.ca === SYSTEM_CA && options.tls.allow === undefined) {
    throw new UsageError("with the system's CAs anybody could send guests; say who may (allow)");
  }
  if (options.tls.allow?.length === 0) throw new UsageError('the list of senders that are allowed is empty');
  const tls = new TlsDoor(await TlsFiles.open(options.tls), options, onPeer);
  return { plain, secure: (socket, from) => tls.enter(socket, from), close: () => tls.close() };
}

/** One socket that listens. */
interface Bound {
  readonly server: net.Server;
  readonly text: string;
}

function listener(door: Door, bound: readonly Bound[], others: readonly string[] = []): PeerListener {
  return {
    addresses: [...bound.map(({ text }) => text), ...others],
    given: bound.length === 0,
    // Not waited for: a server's `close` calls back when its last connection has ended.
    close: async () => {
      for (const { server } of bound) server.close();
      door.close();
    },
  };
}

/** @param scheme What connections go through: `tls` for TLS */
function makeServer(door: Door, scheme: PeerAddress['kind'], text: () => string): net.Server {
  const enter = scheme === 'tls' && door.secure !== undefined ? door.secure : door.plain;
  const facts = { allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE };
  const server = net.createServer(facts, (socket) => void enter(socket, fromOf(socket, text())));
  // A connection that could not be accepted (no descriptor left) is none of ours.
  server.on('error', (error) => debug('listening at %s: %O', text(), error));
  return server;
}

function fromOf(socket: net.Socket, otherwise: string): string {
  const { remoteAddress, remotePort } = socket;
  if (remoteAddress === undefined || remotePort === undefined) return otherwise;
  return `${remoteAddress.includes(':') ? `[${remoteAddress}]` : remoteAddress}:${remotePort}`;
}

async function listenAt(at: PeerAddress & { kind: 'unix' | 'tcp' | 'tls' }, door: Door): Promise<Bound> {
  let text = peerAddressText(at);
  const server = makeServer(door, at.kind, () => text);
  try {
    await listen(server, at);
  } catch (error) {
    if (!(await isLeftOver(at, error))) throw cannotListen(text, error);
    try {
      await unlink((at as { path: string }).path);
      await listen(server, at);
    } catch (again) {
      throw cannotListen(text, again);
    }
  }
  const bound = server.address();
  if (at.kind !== 'unix' && typeof bound === 'object' && bound !== null) {
    text = peerAddressText({ ...at, port: bound.port });
  }
  return { server, text };
}

async function listen(server: net.Server, at: PeerAddress & { kind: 'unix' | 'tcp' | 'tls' }): Promise<void> {
  // Whoever may connect may hand us a guest: a Unix socket is for its owner.
  const before = at.kind === 'unix' ? process.umask(0o177) : undefined;
  try {
    if (at.kind === 'unix') server.listen(at.path);
    else server.listen(at.port, at.host);
  } finally {
    if (before !== undefined) process.umask(before);
  }
  await once(server, 'listening');
}

/** True if the path is a socket that nobody listens at any more. */
async function isLeftOver(at: PeerAddress, error: unknown): Promise<boolean> {
  if (at.kind !== 'unix' || (error as NodeJS.ErrnoException).code !== 'EADDRINUSE') return false;
  try {
    if (!(await stat(at.path)).isSocket()) return false;
    const probe = net.connect(at.path);
    try {
      await once(probe, 'connect');
      return false;
    } finally {
      probe.destroy();
    }
  } catch (probed) {
    return (probed as NodeJS.ErrnoException).code === 'ECONNREFUSED';
  }
}

function cannotListen(where: string, cause: unknown): TransportError {
  return new TransportError(`cannot listen at ${where}: ${socketErrorText(cause)}`, { cause });
}

/** Sockets that were there before us: those that listen are listened at, those that are connected are peers. */
async function inherited(
  sockets: readonly { readonly fd: number; readonly name?: string | undefined }[],
  door: Door,
  { insecure }: ListenOptions,
): Promise<PeerListener> {
  const bound: Bound[] = [];
  const given: { socket: net.Socket; text: string; scheme: 'tls' | 'tcp' | 'unix' }[] = [];
  try {
    for (const { fd, name } of sockets) {
      const { family, listens } = await socketKind(fd);
      const scheme = family === 'unix' ? 'unix' : door.secure === undefined ? 'tcp' : 'tls';
      const label = `fd ${fd}${name === undefined || name === '' ? '' : ` (${name})`}`;
      if (listens) bound.push(await listenAtFd(fd, label, scheme, door, insecure));
      else {
        const socket = new net.Socket({ fd, allowHalfOpen: true });
        socket.on('error', () => undefined);
        given.push({ socket, text: label, scheme });
        if (scheme !== 'unix') requireLocal(socket.localAddress ?? '', scheme, label, insecure);
      }
    }
  } catch (error) {
    for (const { server } of bound) server.close();
    for (const { socket } of given) socket.destroy();
    throw error;
  }
  await Promise.all(
    given.map(({ socket, text, scheme }) => {
      const enter = scheme === 'tls' && door.secure !== undefined ? door.secure : door.plain;
      return enter(socket, fromOf(socket, text));
    }),
  );
  return listener(
    door,
    bound,
    given.map(({ text }) => text),
  );
}

async function listenAtFd(
  fd: number,
  label: string,
  scheme: 'tls' | 'tcp' | 'unix',
  door: Door,
  insecure: boolean | undefined,
): Promise<Bound> {
  let text = label;
  const server = makeServer(door, scheme, () => text);
  try {
    server.listen({ fd });
    await once(server, 'listening');
    const at = server.address();
    if (scheme !== 'unix' && typeof at === 'object' && at !== null) {
      text = peerAddressText({ kind: scheme, host: at.address, port: at.port });
      requireLocal(at.address, scheme, text, insecure);
    } else if (typeof at === 'string' && at !== '') text = peerAddressText({ kind: 'unix', path: at });
    return { server, text };
  } catch (cause) {
    server.close();
    throw XenMigrationError.is(cause) ? cause : cannotListen(label, cause);
  }
}

/** Plain TCP of a socket that others made. */
function requireLocal(
  host: string,
  scheme: 'tls' | 'tcp',
  text: string,
  insecure: boolean | undefined,
): void {
  if (scheme === 'tls' || insecure === true || isLoopback(host)) return;
  throw new UsageError(
    `${text} can be reached from other machines, and plain TCP would let anybody send a guest; give certificates (tls), ` +
      'or insecure (--insecure) if the network is trusted',
  );
}
