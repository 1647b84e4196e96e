/** What a sender says when a migration fails by the receiver, or by what the receiver has left unsaid. */
import { PeerError, UsageError, XenMigrationError } from '../errors.js';
import { frameName, FrameType, protocolError, type Frame } from './frames.js';
import { withLimit } from './limits.js';
import { peerFailure } from './wire.js';

/** What errors call the other side. */
export const RECEIVER = 'the receiver';

/** ms to wait for the receiver's own account of a failure that showed here as a broken connection. */
const ACCOUNT = 1000;

/** The error for a frame that ends the migration, or that should not come now. */
export function unexpectedFrame(frame: Frame, wanted: string): PeerError {
  if (frame.type === FrameType.REFUSED) return peerFailure(RECEIVER, 'refused', frame.reason);
  if (frame.type === FrameType.FAILED) return peerFailure(RECEIVER, 'failed', frame.reason);
  return protocolError(`${RECEIVER} sent ${frameName(frame.type)} where ${wanted} was due`);
}

/**
 * The receiver's own reason, if it gave one, is worth more than the broken connection that it caused. Resolves to it, or to
 * `failure`.
 *
 * @param answer What the receiver says next; undefined if it is not to be heard
 */
export async function accountOf(failure: unknown, answer: Promise<Frame> | undefined): Promise<unknown> {
  const broken = XenMigrationError.is(failure) && /^ERR_XEN_(PEER_LOST|TRANSPORT)$/.test(failure.code);
  if (!broken || answer === undefined) return failure;
  try {
    const frame = await withLimit('farewell', ACCOUNT, '', undefined, () => answer);
    return frame.type === FrameType.FAILED ? unexpectedFrame(frame, '') : failure;
  } catch {
    return failure;
  }
}

/** xl would run it, and say no word of that. */
export function pausedToXl(domid: number): UsageError {
  return new UsageError(
    `domain ${domid} is paused, and ${RECEIVER} is xl, which runs what it receives unless it is started as ` +
      '`xl migrate-receive -p`: start it so, and say so (peerLeavesPaused, --peer-leaves-paused), or unpause the guest first',
    { domid },
  );
}

/** How a handover that is not known to have come about can be resolved. */
export interface HandoverFacts {
  readonly domid: number;
  readonly id: string;
  /** The receiver can be asked later on; xl cannot. */
  readonly askable: boolean;
  /** This host has a note of the migration, for `recover`. */
  readonly noted: boolean;
}

/** The receiver was told to run the guest, and nobody knows whether it does. */
export function unknownHandover(cause: XenMigrationError, facts: HandoverFacts): PeerError {
  const { domid, id, askable, noted } = facts;
  const ask =
    noted && askable
      ? `Once the destination can be asked, \`xen-migrate recover\` resolves it (migration ${id}); by hand: if`
      : 'If';
  const byHand = noted
    ? `the guest is there, \`xen-migrate recover --destroy ${id}\` or \`xl destroy ${domid}\`; ` +
      `if it certainly is not, \`xen-migrate recover --resume ${id}\``
    : `the guest is there, destroy domain ${domid} here; if it certainly is not, resume domain ${domid} (migration ${id})`;
  return new PeerError(
    'ERR_XEN_HANDOVER_UNKNOWN',
    `${RECEIVER} was told to run the guest and its answer did not come (${cause.message}), so it is not known which side has it. ` +
      `The copy here, domain ${domid}, was left suspended. ${ask} ${byHand}`,
    { cause, phase: 'handshake', domid, guest: { host: 'unknown', state: 'unknown' } },
  );
}
