/** However far the use of the addon has come, and however the process ends: the end is a normal one. */
import { describe, expect, it } from 'vitest';
import { play } from './child.js';

const stages = [
  'loaded',
  'no interface',
  'bad argument',
  'created',
  'buffer taken',
  'buffer written',
  'buffer without wrapper',
  'released',
  'many, some released',
  'write under way',
  'blocking read under way',
  'blocking write under way',
  'blocking descriptor idle',
  'blocking descriptor collected',
  'watching',
  'worker in a blocking read',
  'worker holds a map',
];

const endings = [
  { ending: 'return', code: 0, says: '' },
  { ending: 'exit 7', code: 7, says: '' },
  { ending: 'exception', code: 1, says: 'thrown on purpose' },
  { ending: 'rejection', code: 1, says: 'rejected on purpose' },
];

describe.each(stages)('stage: %s', (stage) => {
  it.each(endings)('ends by $ending with exit code $code', async ({ ending, code, says }) => {
    const end = await play(stage, ending);
    expect({ code: end.code, signal: end.signal, stderr: says === '' ? end.stderr : '' }).toEqual({
      code,
      signal: null,
      stderr: '',
    });
    expect(end.stderr).toContain(says);
  });
});
