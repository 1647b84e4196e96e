import { describe, expect, it } from 'vitest';
import type { Channel } from '../../../lib/helper/channel.js';
import { SaveProgress } from '../../../lib/helper/log.js';
import { decodeFrame } from '../../../lib/helper/protocol.js';
import type { Progress } from '../../../lib/progress.js';

/** What the helper says of a save whose reports are these, each with what changed. */
function said(live: boolean, reports: readonly Partial<Progress>[]): string[] {
  const texts: string[] = [];
  const channel = {
    send(frame: Uint8Array) {
      const message = decodeFrame(frame);
      if (message?.kind !== 'progress') throw new Error('not progress');
      texts.push(`${message.what} ${message.done}/${message.total}`);
    },
  } as unknown as Channel;
  const progress = new SaveProgress(channel, live);
  let state = { phase: 'setup', iteration: 0 } as Progress;
  for (const changes of reports) {
    state = { ...state, ...changes };
    progress.report(state);
  }
  return texts;
}

const end: Partial<Progress>[] = [{ phase: 'state' }, { phase: 'complete' }];

describe('SaveProgress', () => {
  it('says where a pass is, each per cent once', () => {
    const reports: Partial<Progress>[] = [
      { phase: 'static-data' },
      { phase: 'stop-and-copy', remaining: 1000 },
      { remaining: 500 },
      { remaining: 499 },
      { remaining: 0 },
      { remaining: 0 },
      ...end,
    ];
    expect(said(false, reports)).toEqual([
      'Start of stream 0/0',
      'Domain now suspended 0/0',
      'Frames 500/1000',
      'Frames 1000/1000',
      'End of stream 0/0',
      'Complete 0/0',
    ]);
  });

  it('has a line for an empty final pass, as the stock helper', () => {
    const reports: Partial<Progress>[] = [
      { phase: 'static-data' },
      { phase: 'pre-copy', iteration: 0, remaining: 8 },
      { remaining: 0 },
      // What is left of the pass before is no pass.
      { phase: 'stop-and-copy' },
      { iteration: 1, remaining: 0 },
      { remaining: 0 },
      ...end,
    ];
    expect(said(true, reports)).toEqual([
      'Start of stream 0/0',
      'Frames iteration 0 8/8',
      'Domain now suspended 0/0',
      'Frames iteration 1 0/0',
      'End of stream 0/0',
      'Complete 0/0',
    ]);
  });
});
