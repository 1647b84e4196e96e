/** Watching a descriptor: what is left when it is over. What it reports: blocking-fd.test.ts. */
import { describe, it } from 'vitest';
import { expectPlayed } from './child.js';

describe('watchReadable', () => {
  it('gives its own descriptor back when it is closed', () => expectPlayed('watches that were closed'));
  it('names the call that failed', () => expectPlayed('watching without descriptors left'));
});
