/**
 * Limits of a live save from the environment: xl has no options for them, and hands its environment on to its helper.
 */
import { UsageError } from '../errors.js';
import { countOf, durationOf, sizeOf } from '../quantities.js';
import type { SaveLimits } from '../save/types.js';

/** The variables, and how they are read. */
const readers = {
  XEN_MIGRATE_MAX_ITERATIONS: (text: string, name: string): SaveLimits => ({
    maxIterations: countOf(text, name, 1, 1000),
  }),
  XEN_MIGRATE_MIN_REMAINING: (text: string, name: string): SaveLimits => ({
    minRemaining: countOf(text, name, 0),
  }),
  XEN_MIGRATE_MAX_DOWNTIME_MS: (text: string, name: string): SaveLimits => ({
    maxDowntimeMs: durationOf(text, name),
  }),
  XEN_MIGRATE_BANDWIDTH: (text: string, name: string): SaveLimits => ({
    maxBytesPerSecond: sizeOf(text, name),
  }),
} as const;

const PREFIX = 'XEN_MIGRATE_';

/** Those of the package's other programs. */
const others = ['XEN_MIGRATE_TMEM', 'XEN_MIGRATE_SSH'];

/**
 * Reads the limits. An empty variable counts as not set.
 *
 * @throws UsageError for a value that cannot be, and for a variable XEN_MIGRATE_… that does not exist: whoever misspells
 *   one would otherwise believe that it holds
 */
export function tunablesFrom(env: Readonly<Record<string, string | undefined>>): SaveLimits {
  const limits: Record<string, unknown> = {};
  for (const [name, text] of Object.entries(env)) {
    if (!name.startsWith(PREFIX) || others.includes(name) || text === undefined || text === '') continue;
    if (!(name in readers)) {
      throw new UsageError(`${name} is not known; there are ${Object.keys(readers).join(', ')}`);
    }
    Object.assign(limits, readers[name as keyof typeof readers](text, name));
  }
  return limits;
}
