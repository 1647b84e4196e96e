/** What this host says when it is asked what became of a migration to it. */
import type { Host } from '../host/host.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import type { MigrationStanding } from './frames.js';
import { SyncPoint } from './session.js';
import { settleReceiver } from './settle.js';

export interface Answer {
  readonly standing: MigrationStanding;
  readonly domid: number | undefined;
  /** Of an arrived guest: what it was told to do. */
  readonly state: 'running' | 'paused' | undefined;
}

/**
 * Looks the migration up among the notes. One whose receiver died is put right first, so that the answer decides.
 *
 * A host that keeps no notes cannot know: `pending` for ever.
 */
export async function answerQuery(host: Host, toolstack: Toolstack, id: string): Promise<Answer> {
  const undecided: Answer = { standing: 'pending', domid: undefined, state: undefined };
  const { notes } = toolstack;
  if (notes === undefined) return undecided;
  const note = await notes.read('receiver', id);
  if (note === undefined) return { standing: 'absent', domid: undefined, state: undefined };
  const state = note.paused ? 'paused' : 'running';
  if (note.point >= SyncPoint.RUNNING) return { standing: 'arrived', domid: note.domid, state };
  if (await notes.isAlive(note.owner)) return undecided;
  // Whoever else puts it right at this moment is not disturbed.
  const mine = await notes.claim(note);
  if (mine === undefined) return undecided;
  const { standing, domid } = await settleReceiver(host, toolstack, mine);
  return { standing, domid, state: standing === 'arrived' ? state : undefined };
}
