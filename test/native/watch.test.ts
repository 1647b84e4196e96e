/** Watching a descriptor: what is left when it is over. What it reports: blocking-fd.test.ts. */
import { describe, it } from 'vitest';
import { expectPlayed } from './child.js';

// The sanitizer itself needs descriptors, and takes their absence for broken objects.
const sanitized = process.env['XEN_MIGRATION_TEST_ASAN'] === '1';

describe('watchReadable', () => {
  it('gives its own descriptor back when it is closed', () => expectPlayed('watches that were closed'));
  it.skipIf(sanitized)('names the call that failed', () => expectPlayed('watching without descriptors left'));
});
