/** What became of a migration whose last answer was lost: asked of the receiver's host over a new connection. */
import { debug } from '../debug.js';
import { PeerError, TimeoutError } from '../errors.js';
import { now } from '../job.js';
import { sleep } from '../save/throttle.js';
import { frameName, FrameType, protocolError, type Frame } from './frames.js';
import { msText, withLimit } from './limits.js';
import { openWithin, type Reconnect } from './opening.js';
import { connected, otherEnd, peerFailure, Wire } from './wire.js';

/** A host's word on a migration to it. */
export type Status = Extract<Frame, { type: typeof FrameType.STATUS }>;

/** ms that one attempt may take to connect, and then to answer, which is after a login if the connection is ssh's. */
const CONNECT_MS = 10_000;
const ANSWER_MS = 30_000;
/** ms between attempts: doubled after each, up to the longest. */
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 5000;

/**
 * Asks until there is an answer that decides, for `ms` at most. Never rejects.
 *
 * @param peerHost `NoteStore.incarnation` of the host that was migrated to; the word of any other counts for nothing
 * @returns What the host says (`arrived` or `absent`), or why nobody could be asked
 */
export async function askAgain(
  reconnect: Reconnect,
  id: string,
  peerHost: string | undefined,
  ms: number,
  signal?: AbortSignal,
): Promise<Status | { readonly failure: unknown }> {
  const deadline = now() + ms;
  let failure: unknown;
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(pause * 2, LONGEST_PAUSE_MS)) {
    if (deadline <= now() || signal?.aborted === true) break;
    try {
      const status = await askOnce(reconnect, id, deadline, signal);
      if (status.standing !== 'pending') return decided(status, peerHost);
      failure = new PeerError('ERR_XEN_PEER_LOST', 'the destination has not decided yet');
    } catch (error) {
      debug('migration %s: asking again: %O', id, error);
      failure = error;
    }
    const wait = Math.min(pause, deadline - now());
    if (wait <= 0) break;
    await sleep(wait, signal);
  }
  return { failure: failure ?? new TimeoutError('resolve', ms, `no answer within ${msText(ms)}`) };
}

/** A host that was booted since, or another one, knows nothing of what happened there before. */
function decided(status: Status, peerHost: string | undefined): Status | { readonly failure: unknown } {
  // That it has the guest is for any host to say: nobody has a guest of this id by accident.
  if (status.standing === 'arrived' || (peerHost !== undefined && status.host === peerHost)) return status;
  return {
    failure: protocolError(
      'the destination that answers knows nothing of the migration, but is not the host that it went to, or was booted since',
    ),
  };
}

async function askOnce(
  reconnect: Reconnect,
  id: string,
  deadline: number,
  signal: AbortSignal | undefined,
): Promise<Status> {
  const left = (ms: number): number => Math.max(1, Math.min(ms, deadline - now()));
  const unreachable = 'the destination could not be connected';
  const peer = await openWithin('resolve', left(CONNECT_MS), unreachable, reconnect, signal);
  const wire = new Wire(peer, 'sender');
  try {
    return await withLimit(
      'resolve',
      left(ANSWER_MS),
      'the destination did not answer',
      signal,
      async (s) => {
        await connected(peer, otherEnd('sender'), s);
        // The receiver greets first; xl, which cannot be asked, is recognised by its greeting.
        await wire.greet(s);
        await wire.send({ type: FrameType.QUERY, id });
        const frame = await wire.receive(s);
        if (frame.type === FrameType.REFUSED) throw peerFailure('the destination', 'refused', frame.reason);
        if (frame.type !== FrameType.STATUS || frame.id !== id) {
          throw protocolError(`the destination sent ${frameName(frame.type)} where STATUS was due`);
        }
        return frame;
      },
    );
  } finally {
    wire.destroy(new PeerError('ERR_XEN_PEER_LOST', 'the question was answered'));
  }
}
