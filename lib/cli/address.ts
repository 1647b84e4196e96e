/** Addresses of the command line: where `receive` listens and `migrate` connects. */
import net from 'node:net';
import { once } from 'node:events';
import { stat, unlink } from 'node:fs/promises';
import { debug } from '../debug.js';
import { PeerError, TimeoutError, TransportError, UsageError } from '../errors.js';

/** A place to listen at or connect to. */
export type Address =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

/**
 * `tcp://host:port`, `unix:///path`, or without a scheme `host:port`, `[v6]:port`, `/path`, `./path`. Throws UsageError.
 */
export function parseAddress(text: string): Address {
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(text)?.[1]?.toLowerCase();
  if (scheme === 'unix') {
    const path = text.slice('unix://'.length);
    if (path !== '') return { kind: 'unix', path };
  } else if (scheme === 'tcp' || scheme === undefined) {
    const rest = scheme === undefined ? text : text.slice('tcp://'.length);
    if (scheme === undefined && /^\.{0,2}\//.test(rest)) return { kind: 'unix', path: rest };
    const match = /^(?:\[([^\]]*)\]|([^:]*)):(\d{1,5})$/.exec(rest);
    const host = match?.[1] ?? match?.[2] ?? '';
    const port = Number(match?.[3]);
    if (host !== '' && port <= 65535) return { kind: 'tcp', host, port };
  } else {
    throw new UsageError(`"${text}": this version connects over tcp:// and unix:// only`);
  }
  throw new UsageError(`"${text}" is no address; give tcp://HOST:PORT or unix:///PATH`);
}

/** The address as it is written. */
export function addressText(address: Address): string {
  if (address.kind === 'unix') return `unix://${address.path}`;
  const host = address.host.includes(':') ? `[${address.host}]` : address.host;
  return `tcp://${host}:${address.port}`;
}

/** True for names and numbers that never leave this machine. */
export function isLoopback(host: string): boolean {
  if (host === 'localhost' || host === '::1') return true;
  return net.isIPv4(host) && host.startsWith('127.');
}

/**
 * Refuses to send a guest's memory over a network in the clear unless that was asked for. Throws UsageError.
 *
 * A name is looked at as it is written: what it resolves to may change between the look and the use.
 */
export function requirePrivate(address: Address, insecure: boolean): void {
  if (address.kind === 'unix' || insecure || isLoopback(address.host)) return;
  throw new UsageError(
    `${addressText(address)} is not on this machine, and plain TCP would carry the guest's memory unencrypted and let ` +
      'anybody send one; use an ssh tunnel to a loopback address, or say --insecure if the network is trusted',
  );
}

/** Connects. Rejects with PeerError, TimeoutError, or the signal's reason. */
export async function connectTo(
  address: Address,
  signal: AbortSignal,
  timeoutMs: number,
): Promise<net.Socket> {
  const socket =
    address.kind === 'unix' ? net.connect(address.path) : net.connect(address.port, address.host);
  const limit = AbortSignal.timeout(timeoutMs);
  try {
    await once(socket, 'connect', { signal: AbortSignal.any([signal, limit]) });
    return socket;
  } catch (cause) {
    socket.destroy();
    if (signal.aborted) throw signal.reason;
    const where = addressText(address);
    if (limit.aborted) throw new TimeoutError('connect', timeoutMs, `${where} does not answer`, { cause });
    throw new PeerError('ERR_XEN_PEER_LOST', `cannot connect to ${where}: ${errorText(cause)}`, { cause });
  }
}

/** A server that listens. */
export interface Listening {
  readonly server: net.Server;
  /** The address, with the port that was given if 0 was asked for. */
  readonly address: Address;
  /** Stops listening and removes a Unix socket. Connections go on. */
  close(): Promise<void>;
}

/** Listens. A Unix socket that is left over from a dead process is replaced. Rejects with TransportError. */
export async function listenAt(
  address: Address,
  onConnection: (socket: net.Socket) => void,
): Promise<Listening> {
  const server = net.createServer({ allowHalfOpen: true, noDelay: true }, onConnection);
  try {
    await listen(server, address);
  } catch (error) {
    if (!(await isLeftOver(address, error))) throw cannotListen(address, error);
    try {
      await unlink((address as { path: string }).path);
      await listen(server, address);
    } catch (again) {
      throw cannotListen(address, again);
    }
  }
  // A connection that could not be accepted (no descriptor left) is none of ours.
  server.on('error', (error) => debug('listening at %s: %O', addressText(address), error));
  const bound = server.address();
  return {
    server,
    address:
      address.kind === 'tcp' && typeof bound === 'object' && bound !== null
        ? { ...address, port: bound.port }
        : address,
    close: () => new Promise((resolve) => void server.close(() => resolve())),
  };
}

async function listen(server: net.Server, address: Address): Promise<void> {
  // Whoever may connect may hand us a guest: a Unix socket is for its owner.
  const before = address.kind === 'unix' ? process.umask(0o177) : undefined;
  try {
    if (address.kind === 'unix') server.listen(address.path);
    else server.listen(address.port, address.host);
  } finally {
    if (before !== undefined) process.umask(before);
  }
  await once(server, 'listening');
}

/** True if the path is a socket that nobody listens at any more. */
async function isLeftOver(address: Address, error: unknown): Promise<boolean> {
  if (address.kind !== 'unix' || (error as NodeJS.ErrnoException).code !== 'EADDRINUSE') return false;
  try {
    if (!(await stat(address.path)).isSocket()) return false;
    const probe = net.connect(address.path);
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

function cannotListen(address: Address, cause: unknown): TransportError {
  return new TransportError(`cannot listen at ${addressText(address)}: ${errorText(cause)}`, { cause });
}

const texts: Readonly<Record<string, string>> = {
  EADDRINUSE: 'the address is in use',
  EADDRNOTAVAIL: 'this machine does not have the address',
  EACCES: 'permission denied',
  ECONNREFUSED: 'nobody listens there',
  ENOENT: 'there is no such socket',
  ENOTFOUND: 'the name is unknown',
  EHOSTUNREACH: 'the host cannot be reached',
  ENETUNREACH: 'the network cannot be reached',
};

function errorText(error: unknown): string {
  // A name with several addresses fails with all of their errors in one.
  const first: unknown = error instanceof AggregateError ? error.errors[0] : error;
  const { code, message } = first as NodeJS.ErrnoException;
  return texts[code ?? ''] ?? message;
}
