/** Addresses of peers: where a receiver listens and a sender connects. */
import net from 'node:net';
import { UsageError } from '../../errors.js';

/** A place to listen at or to connect to. `parsePeerAddress` reads one. */
export type PeerAddress =
  /** A Unix socket. */
  | { readonly kind: 'unix'; readonly path: string }
  /** Plain TCP: nothing is encrypted, nobody is known. Port 0 of a listener is any free one. */
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  /** TLS 1.3, with certificates of both sides. */
  | { readonly kind: 'tls'; readonly host: string; readonly port: number }
  /** A command on another host, started by ssh, whose standard streams are the connection. */
  | {
      readonly kind: 'ssh';
      readonly host: string;
      readonly user?: string | undefined;
      readonly port?: number | undefined;
    }
  /** A command of the shell here, whose standard streams are the connection. */
  | { readonly kind: 'exec'; readonly command: string }
  /** A socket that this process was started with. */
  | { readonly kind: 'fd'; readonly fd: number }
  /** The sockets that systemd gave this process, or those of this name. */
  | { readonly kind: 'systemd'; readonly name?: string | undefined }
  /** Standard input and output. */
  | { readonly kind: 'stdio' };

const FORMS =
  'tcp://HOST:PORT, tls://HOST:PORT, unix:///PATH, ssh://[USER@]HOST[:PORT], exec:COMMAND, fd://N, systemd or stdio';

/**
 * Reads `tcp://HOST:PORT`, `tls://HOST:PORT`, `unix:///PATH`, `ssh://[USER@]HOST[:PORT]`, `exec:COMMAND`, `fd://N`,
 * `systemd`, `systemd:NAME`, `stdio`, and without a scheme `HOST:PORT`, `[V6]:PORT`, `/PATH`, `./PATH`.
 *
 * @throws UsageError
 */
export function parsePeerAddress(text: string): PeerAddress {
  return parse(text) ?? wrong(text);
}

function parse(text: string): PeerAddress | undefined {
  if (/^\.{0,2}\//.test(text)) return noNul({ kind: 'unix', path: text });
  if (text === 'stdio') return { kind: 'stdio' };
  if (text === 'systemd') return { kind: 'systemd' };
  if (/^systemd:[^:/]+$/.test(text)) return { kind: 'systemd', name: text.slice('systemd:'.length) };
  if (/^exec:/i.test(text)) {
    const command = text.slice('exec:'.length);
    return command.trim() === '' ? undefined : { kind: 'exec', command };
  }
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(text)?.[1]?.toLowerCase();
  const rest = scheme === undefined ? text : text.slice(scheme.length + '://'.length);
  switch (scheme) {
    case 'unix':
      return rest === '' ? undefined : noNul({ kind: 'unix', path: rest });
    case 'tls':
    case 'tcp':
    case undefined: {
      const place = hostAndPort(rest);
      if (place?.port === undefined) return undefined;
      return { kind: scheme ?? 'tcp', host: place.host, port: place.port };
    }
    case 'ssh': {
      const at = rest.lastIndexOf('@');
      const user = at === -1 ? undefined : rest.slice(0, at);
      const place = hostAndPort(rest.slice(at + 1));
      // What begins with a dash would be an option to ssh.
      const usable = user === undefined || /^[^-\s][^\s@]*$/.test(user);
      if (place === undefined || place.port === 0 || !usable) return undefined;
      return { kind: 'ssh', user, ...place };
    }
    case 'fd':
      return /^\d{1,6}$/.test(rest) ? { kind: 'fd', fd: Number(rest) } : undefined;
    default:
      return undefined;
  }
}

/** Node takes a NUL for the end of the path, and one at its beginning for something else. */
function noNul(address: PeerAddress & { kind: 'unix' }): PeerAddress | undefined {
  return address.path.includes('\0') ? undefined : address;
}

function hostAndPort(text: string): { host: string; port: number | undefined } | undefined {
  const match = /^(?:\[([0-9a-f:.]+(?:%\w+)?)\]|([^-:/@\s[\]][^:/@\s[\]]*))(?::(\d{1,5}))?$/i.exec(text);
  const host = match?.[1] ?? match?.[2];
  if (host === undefined) return undefined;
  const port = match?.[3] === undefined ? undefined : Number(match[3]);
  return port !== undefined && port > 65535 ? undefined : { host, port };
}

function wrong(text: string): never {
  throw new UsageError(`"${text}" is no address; give ${FORMS}`);
}

/** The address as it is written. */
export function peerAddressText(address: PeerAddress): string {
  switch (address.kind) {
    case 'unix':
      return `unix://${address.path}`;
    case 'tcp':
    case 'tls':
      return `${address.kind}://${bracketed(address.host)}:${address.port}`;
    case 'ssh': {
      const user = address.user === undefined ? '' : `${address.user}@`;
      const port = address.port === undefined ? '' : `:${address.port}`;
      return `ssh://${user}${bracketed(address.host)}${port}`;
    }
    case 'exec':
      return `exec:${address.command}`;
    case 'fd':
      return `fd://${address.fd}`;
    case 'systemd':
      return address.name === undefined ? 'systemd' : `systemd:${address.name}`;
    case 'stdio':
      return 'stdio';
  }
}

function bracketed(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

/** True for names and numbers that never leave this machine. */
export function isLoopback(host: string): boolean {
  if (host === 'localhost' || host === '::1') return true;
  const v4 = host.replace(/^::ffff:/i, '');
  return net.isIPv4(v4) && v4.startsWith('127.');
}

/**
 * Refuses to send a guest's memory over a network in the clear unless that was asked for. Throws UsageError.
 *
 * A name is looked at as it is written: what it resolves to may change between the look and the use.
 */
export function requirePrivate(address: PeerAddress, insecure: boolean | undefined): void {
  if (address.kind !== 'tcp' || insecure === true || isLoopback(address.host)) return;
  throw new UsageError(
    `${peerAddressText(address)} is not on this machine, and plain TCP would carry the guest's memory unencrypted and ` +
      'let anybody send one; use tls:// or ssh://, or insecure (--insecure) if the network is trusted',
  );
}
