/** Connecting to a peer by its address. */
import { once } from 'node:events';
import net from 'node:net';
import type { Duplex } from 'node:stream';
import { PeerError, TimeoutError, UsageError } from '../../errors.js';
import { cancellation } from '../failure.js';
import { parsePeerAddress, peerAddressText, requirePrivate, type PeerAddress } from './address.js';
import { spawnPeer } from './child.js';
import { socketKind } from './inherited.js';
import { socketErrorText } from './texts.js';
import { loadTls, type PeerTls } from './tls.js';
import { secured } from './tls-connect.js';

/** What `ssh://` starts on the other host: the receiver of a stock Xen. */
export const REMOTE_COMMAND = 'xl migrate-receive';
const CONNECT_MS = 10_000;
/** ms of silence after which the system asks whether the peer is still there. */
export const KEEP_ALIVE = 30_000;

export interface ConnectOptions {
  /** Stops the connecting. What is connected is the caller's. */
  readonly signal?: AbortSignal | undefined;
  /** ms until the connection must stand, TLS included. Default 10 000. For ssh it is given to ssh. */
  readonly timeoutMs?: number | undefined;
  /** For `tls://`. */
  readonly tls?: PeerTls | undefined;
  /** Allows plain TCP beyond this machine: the guest's memory then travels unencrypted. */
  readonly insecure?: boolean | undefined;
  /**
   * For `ssh://`: the ssh to use, as a command line without quoting or as its words. It must take OpenSSH's options.
   * Default: `$XEN_MIGRATE_SSH`, or `ssh`.
   */
  readonly sshCommand?: string | readonly string[] | undefined;
  /**
   * For `ssh://`: the command that the other host's shell runs. Default `xl migrate-receive`, which every Xen host has;
   * `xen-migrate receive --stdio` is this package's.
   */
  readonly remoteCommand?: string | undefined;
}

/**
 * Connects to a peer and resolves to the connection, for `startMigrate`'s `peer`. It is the caller's; destroy it, or
 * give it away. With `ssh://` and `exec:` it resolves as soon as the program runs; what becomes of it is told by reads and
 * writes, which fail with what the program wrote to its standard error.
 *
 * Rejects with PeerError: `ERR_XEN_PEER_LOST` if nobody answers, `ERR_XEN_PEER_PROTOCOL` if it does not speak TLS,
 * `ERR_XEN_PEER_UNTRUSTED` if its certificate is not accepted here, `ERR_XEN_PEER_REFUSED` if it does not accept ours.
 * With TimeoutError (phase `connect`); with TransportError if a program cannot be started; with UsageError for an address
 * that cannot be connected to, for plain TCP to another machine without `insecure`, and for files of `tls` that are no
 * use; with the signal's reason.
 *
 * @param address As `parsePeerAddress` reads or returns it: tcp, tls, unix, ssh, exec, or fd for a connected socket
 */
export async function connectPeer(
  address: PeerAddress | string,
  options: ConnectOptions = {},
): Promise<Duplex> {
  const to = typeof address === 'string' ? parsePeerAddress(address) : address;
  const { signal, timeoutMs = CONNECT_MS } = options;
  if (!(timeoutMs > 0)) throw new UsageError(`timeoutMs must be more than 0, not ${timeoutMs}`);
  if (signal?.aborted === true) throw cancellation(signal.reason, `connecting to ${peerAddressText(to)}`);
  requirePrivate(to, options.insecure);
  if (options.tls !== undefined && to.kind !== 'tls') {
    throw new UsageError(`${peerAddressText(to)} is no tls:// address, and certificates were given`);
  }
  switch (to.kind) {
    case 'unix':
      return connected(net.connect({ path: to.path, allowHalfOpen: true }), to, timeoutMs, signal);
    case 'tcp':
      return connected(
        net.connect({ host: to.host, port: to.port, allowHalfOpen: true, ...socketFacts }),
        to,
        timeoutMs,
        signal,
      );
    case 'tls':
      return connectTls(to, options.tls, timeoutMs, signal);
    case 'ssh': {
      const [program, ...args] = sshLine(to, options, timeoutMs);
      return spawnPeer(program, args, { name: `ssh ${to.host}`, signal });
    }
    case 'exec':
      return spawnPeer('/bin/sh', ['-c', to.command], { name: shortened(to.command), signal });
    case 'fd':
      return inherited(to.fd, options.insecure);
    case 'systemd':
    case 'stdio':
      throw new UsageError(`${peerAddressText(to)} is an address to receive from, not to connect to`);
  }
}

const socketFacts = { noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE };

/** A connected socket that the parent passed. It is closed if it may not be used. */
async function inherited(fd: number, insecure: boolean | undefined): Promise<net.Socket> {
  const { family, listens } = await socketKind(fd);
  if (listens) throw new UsageError(`fd ${fd} is a socket that listens; a connected one is needed`);
  const socket = new net.Socket({ fd, allowHalfOpen: true });
  if (family === 'unix') return socket;
  try {
    const { remoteAddress: host, remotePort: port } = socket;
    if (host === undefined || port === undefined) {
      throw new PeerError('ERR_XEN_PEER_LOST', `fd ${fd} is a socket that is not connected`);
    }
    requirePrivate({ kind: 'tcp', host, port }, insecure);
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** Waits until a socket is connected. Destroys it if that fails. */
async function connected(
  socket: net.Socket,
  to: PeerAddress,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<net.Socket> {
  const where = peerAddressText(to);
  const stop = new AbortController();
  const onAbort = (): void => stop.abort();
  const limit = { over: false };
  const timer = setTimeout(
    () => {
      limit.over = true;
      stop.abort();
    },
    Math.min(timeoutMs, 2 ** 31 - 1),
  );
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    await once(socket, 'connect', { signal: stop.signal });
    return socket;
  } catch (cause) {
    socket.on('error', () => undefined);
    socket.destroy();
    if (signal?.aborted === true) throw cancellation(signal.reason, `connecting to ${where}`);
    if (limit.over) throw new TimeoutError('connect', timeoutMs, `${where} does not answer`, { cause });
    throw new PeerError('ERR_XEN_PEER_LOST', `cannot connect to ${where}: ${socketErrorText(cause)}`, {
      cause,
    });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  }
}

/** The TCP connection first, so that its errors are those of TCP; then TLS over it. */
async function connectTls(
  to: PeerAddress & { kind: 'tls' },
  options: PeerTls | undefined,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<Duplex> {
  const where = peerAddressText(to);
  if (options === undefined) throw new UsageError(`${where} needs certificates (tls)`);
  const material = await loadTls(options);
  const started = performance.now();
  const tcp = net.connect({ host: to.host, port: to.port, allowHalfOpen: true, ...socketFacts });
  await connected(tcp, to, timeoutMs, signal);
  // An address of the link names an interface, which is nothing for a certificate.
  const name = options.serverName ?? to.host.replace(/%.*$/, '');
  const left = timeoutMs - (performance.now() - started);
  return secured(tcp, { where, name, material, leftMs: Math.max(1, left), timeoutMs, signal });
}

/** ssh that asks nothing, has no terminal, and gives up in time. What the user's own command line says comes first, and holds. */
function sshLine(
  { host, user, port }: PeerAddress & { kind: 'ssh' },
  { sshCommand, remoteCommand = REMOTE_COMMAND }: ConnectOptions,
  timeoutMs: number,
): [string, ...string[]] {
  const line = sshCommand ?? process.env['XEN_MIGRATE_SSH'] ?? 'ssh';
  const [program, ...own] = typeof line === 'string' ? line.trim().split(/\s+/) : line;
  if (program === undefined || program === '') throw new UsageError('the ssh command is empty');
  if (remoteCommand.trim() === '') throw new UsageError('the remote command is empty');
  const seconds = Math.max(1, Math.ceil(Math.min(timeoutMs, 2 ** 31 - 1) / 1000));
  return [
    program,
    ...own,
    '-T',
    ...['-o', 'BatchMode=yes', '-o', `ConnectTimeout=${seconds}`],
    ...(port === undefined ? [] : ['-p', String(port)]),
    '--',
    user === undefined ? host : `${user}@${host}`,
    remoteCommand,
  ];
}

function shortened(command: string): string {
  return command.length <= 60 ? command : `${command.slice(0, 57)}...`;
}
