/** Which protocol is spoken over a connection, and who speaks it for this side. */
import type { Duplex } from 'node:stream';
import { PeerError, UsageError } from '../errors.js';
import { SocketSource } from '../transport/socket.js';
import { describeForeign, FOREIGN_SAMPLE } from './foreign.js';
import { MAGIC, protocolError } from './frames.js';
import { otherEnd, Wire, type MigrationWire } from './wire.js';
import { XlReceiverWire, XlSenderWire } from './xl/wire.js';

/** The library's own protocol (docs/reference/handshake.md), or xl's (docs/reference/xl-wire.md). */
export type MigrationProtocol = 'xen-migration' | 'xl';

/** The `x` of `xl migration receiver ready, …`. */
const XL_BANNER_FIRST = 0x78;

/**
 * A sender's end of a connection that stands. By default whatever the receiver greets with is spoken.
 *
 * @param leavesPaused Of a receiver that is xl: it was started with -p
 */
export async function openSenderWire(
  peer: Duplex,
  wanted: MigrationProtocol | 'auto' = 'auto',
  leavesPaused = false,
  signal?: AbortSignal,
): Promise<MigrationWire> {
  if (peer.readableObjectMode || peer.writableObjectMode) {
    throw new UsageError('a stream of objects cannot be a connection');
  }
  const protocol = wanted === 'auto' ? await protocolOf(peer, otherEnd('sender'), signal) : wanted;
  return protocol === 'xl' ? new XlSenderWire(peer, leavesPaused) : new Wire(peer, 'sender');
}

/** A receiver's end of a connection. Who receives greets first, so that it has to be told what to speak. */
export function openReceiverWire(peer: Duplex, protocol: MigrationProtocol = 'xen-migration'): MigrationWire {
  return protocol === 'xl' ? new XlReceiverWire(peer) : new Wire(peer, 'receiver');
}

/**
 * The protocol that a receiver speaks, by its first byte, which stays to be read. Rejects with PeerError that describes
 * whoever speaks neither.
 */
async function protocolOf(
  peer: Duplex,
  who: string,
  signal: AbortSignal | undefined,
): Promise<MigrationProtocol> {
  const source = new SocketSource(peer, { name: who, onClose: 'detach' });
  let first: Uint8Array | undefined;
  try {
    if (!(await source.wait(FOREIGN_SAMPLE, signal))) {
      throw new PeerError('ERR_XEN_PEER_LOST', `${who} closed the connection without a word`);
    }
    first = Uint8Array.from(source.take(FOREIGN_SAMPLE) ?? []);
  } finally {
    await source.close();
    if (first !== undefined && !peer.readableEnded && !peer.destroyed) peer.unshift(first);
  }
  if (first[0] === MAGIC[0]) return 'xen-migration';
  if (first[0] === XL_BANNER_FIRST) return 'xl';
  throw protocolError(`${who} ${describeForeign(first)}`);
}
