import path from 'node:path';
import type { Duplex } from 'node:stream';
import { fileURLToPath } from 'node:url';
import type { PeerTls } from '../../../../lib/transport/peer/index.js';

const folder = fileURLToPath(new URL('../../../certs', import.meta.url));

/** Path of a test certificate's file. */
export function pem(file: string): string {
  return path.join(folder, file);
}

/** Certificate, key and CA of one side. */
export function side(name: string, more: Partial<PeerTls> = {}): PeerTls {
  return { cert: pem(`${name}.crt`), key: pem(`${name}.key`), ca: pem('ca.crt'), ...more };
}

/** All that a peer sends until it ends. Rejects as it fails. */
export async function readAll(peer: Duplex): Promise<string> {
  const chunks: Buffer[] = [];
  await new Promise<void>((resolve, reject) => {
    peer.on('data', (chunk: Buffer) => chunks.push(chunk));
    peer.on('end', resolve).on('error', reject);
    peer.on('close', () => reject(new Error('closed')));
  });
  return Buffer.concat(chunks).toString();
}

/** Resolves when a stream is closed, also if it has been already. */
export async function closed(stream: Duplex): Promise<void> {
  stream.on('error', () => undefined);
  if (!stream.closed) await new Promise((resolve) => stream.on('close', resolve));
}
