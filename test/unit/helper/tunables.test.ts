import { describe, expect, it } from 'vitest';
import { UsageError } from '../../../lib/errors.js';
import { tunablesFrom } from '../../../lib/helper/tunables.js';

describe('limits from the environment', () => {
  it('are none where nothing is set', () => {
    expect(tunablesFrom({ PATH: '/bin', XEN_MIGRATION: '1', XEN_MIGRATE_BANDWIDTH: '' })).toEqual({});
    // Other programs of the package read these.
    expect(tunablesFrom({ XEN_MIGRATE_TMEM: 'refuse', XEN_MIGRATE_SSH: 'ssh -v' })).toEqual({});
  });

  it('are read with their units', () => {
    expect(
      tunablesFrom({
        XEN_MIGRATE_MAX_ITERATIONS: '12',
        XEN_MIGRATE_MIN_REMAINING: '200',
        XEN_MIGRATE_MAX_DOWNTIME_MS: '300',
        XEN_MIGRATE_BANDWIDTH: '100MiB/s',
      }),
    ).toEqual({ maxIterations: 12, minRemaining: 200, maxDowntimeMs: 300, maxBytesPerSecond: 100 << 20 });
    expect(tunablesFrom({ XEN_MIGRATE_BANDWIDTH: '0' })).toEqual({ maxBytesPerSecond: 0 });
    expect(tunablesFrom({ XEN_MIGRATE_MAX_DOWNTIME_MS: '1.5s' })).toEqual({ maxDowntimeMs: 1500 });
  });

  it.each([
    ['XEN_MIGRATE_MAX_ITERATIONS', '0'],
    ['XEN_MIGRATE_MAX_ITERATIONS', '1001'],
    ['XEN_MIGRATE_MAX_ITERATIONS', 'many'],
    ['XEN_MIGRATE_MIN_REMAINING', '-1'],
    ['XEN_MIGRATE_MIN_REMAINING', '1.5'],
    ['XEN_MIGRATE_MAX_DOWNTIME_MS', '0'],
    ['XEN_MIGRATE_MAX_DOWNTIME_MS', 'soon'],
    ['XEN_MIGRATE_BANDWIDTH', '1X'],
    ['XEN_MIGRATE_BANDWIDTH', '-5'],
  ])('are refused: %s=%s', (name, text) => {
    expect(() => tunablesFrom({ [name]: text })).toThrow(UsageError);
    expect(() => tunablesFrom({ [name]: text })).toThrow(`${name}: "${text}"`);
  });

  it('are refused under names that do not exist', () => {
    expect(() => tunablesFrom({ XEN_MIGRATE_BANDWITH: '1' })).toThrow(/XEN_MIGRATE_BANDWITH is not known/);
  });
});
