/** Connections that are opened for us by a function of the caller. */
import type { Duplex } from 'node:stream';
import { withLimit } from './limits.js';
import { checkPeer } from './wire.js';

/** Opens a new connection to the receiver's host. */
export type Reconnect = (signal: AbortSignal) => Promise<Duplex>;

/**
 * Opens one within its time; `what` says what did not happen otherwise. It is ours: one that comes too late is
 * destroyed, and its errors are borne until somebody else listens.
 */
export async function openWithin(
  phase: string,
  ms: number,
  what: string,
  connect: Reconnect,
  signal: AbortSignal | undefined,
): Promise<Duplex> {
  let connecting: Promise<Duplex> | undefined;
  const ours = (peer: Duplex): Duplex => {
    checkPeer(peer, 'what the connecting function resolves to');
    return peer.on('error', () => undefined);
  };
  try {
    return ours(
      await withLimit(phase, ms, what, signal, (s) => {
        connecting = connect(s);
        return connecting;
      }),
    );
  } catch (error) {
    connecting?.then((late) => ours(late).destroy()).catch(() => undefined);
    throw error;
  }
}
