/** Recognises what a peer speaks instead of the protocol, so that the message can say what went wrong. */
import { printable } from '../bytes/printable.js';

/** Bytes that are worth collecting for `describeForeign`. */
export const FOREIGN_SAMPLE = 64;

/** First bytes, read as Latin-1, and what they mean. */
const known: readonly (readonly [meaning: string, ...prefixes: string[]])[] = [
  [
    'is `xl migrate-receive`, which speaks the wire protocol of xl and not that of this library',
    'xl migration receiver ready',
  ],
  [
    'sent a bare xl save stream without a handshake (use `restore` for a saved guest)',
    'Xen saved domain, xl format',
  ],
  ['sent a bare libxl stream without a handshake', 'LibxlFmt'],
  ['sent a bare libxc stream without a handshake', '\xff\xff\xff\xff\xff\xff\xff\xffXENF'],
  [
    'speaks HTTP',
    ...['GET ', 'HEAD ', 'POST ', 'PUT ', 'DELETE ', 'OPTIONS ', 'CONNECT ', 'PATCH ', 'PRI '],
    'HTTP/',
  ],
  ['speaks SSH', 'SSH-'],
  // A handshake or alert record of SSL 3.0 or any TLS.
  ['speaks TLS, but this connection is a plain one', '\x16\x03', '\x15\x03'],
  ['sent a QEMU migration stream', 'QEVM'],
];

/** What a peer whose first bytes are these is: `speaks HTTP`. Undefined if they are nothing known. */
export function knownForeign(bytes: Uint8Array): string | undefined {
  const text = latin1(bytes);
  return known.find(([, ...prefixes]) => prefixes.some((prefix) => text.startsWith(prefix)))?.[0];
}

/** How a peer whose first bytes are these is to be described: `speaks HTTP`. */
export function describeForeign(bytes: Uint8Array): string {
  const meaning = knownForeign(bytes);
  if (meaning !== undefined) return meaning;
  const text = latin1(bytes);
  const sample = text.slice(0, 16);
  const shown = /^[\x20-\x7e\r\n\t]+$/.test(sample)
    ? `"${printable(sample)}"`
    : Array.from(bytes.subarray(0, 16), (byte) => byte.toString(16).padStart(2, '0')).join(' ');
  return `does not speak the migration protocol of this library (it began with ${shown})`;
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1');
}
