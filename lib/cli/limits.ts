/** Options of `demo`, `migrate` and `save` that steer the copying. */
import type { SaveLimits } from '../save/types.js';
import { countOf, durationOf, sizeOf } from '../quantities.js';

export const limitOptions = {
  bandwidth: { type: 'string' },
  'max-iterations': { type: 'string' },
  'max-downtime': { type: 'string' },
} as const;

export const limitHelp = `  --bandwidth RATE      most bytes a second while the guest runs, for instance 100M; 0 for no limit
  --max-iterations N    most passes before the guest is stopped (default 5)
  --max-downtime TIME   stop the guest as soon as it would stand still no longer than this, for instance 50ms
`;

/** Reads the options. Throws UsageError. */
export function limitsFrom(
  values: { readonly [K in keyof typeof limitOptions]?: string | undefined },
  bandwidth?: string,
): SaveLimits {
  const rate = values.bandwidth ?? bandwidth;
  const passes = values['max-iterations'];
  const downtime = values['max-downtime'];
  return {
    maxBytesPerSecond: rate === undefined ? undefined : sizeOf(rate, '--bandwidth'),
    maxIterations: passes === undefined ? undefined : countOf(passes, '--max-iterations', 1, 1000),
    maxDowntimeMs: downtime === undefined ? undefined : durationOf(downtime, '--max-downtime'),
  };
}
