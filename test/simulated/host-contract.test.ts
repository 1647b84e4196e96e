import { afterEach, beforeEach, describe, it } from 'vitest';
import { SimulatedHost, type SimulatedHostOptions } from '../../lib/testing.js';
import { hostContract } from '../contract/host-contract.js';
import type { ContractSubject } from '../contract/subject.js';

function open(options: SimulatedHostOptions): () => Promise<ContractSubject> {
  return async () => {
    const host = new SimulatedHost({ memory: 256 << 20, seed: 11, ...options });
    let made = 0;
    return {
      host,
      createGuest: async (kind) => {
        const workload = { kind: 'uniform', rate: 5000 } as const;
        return (await host.createGuest({ kind, memory: 16 << 20, workload })).domid;
      },
      emptyConfig: (kind) =>
        JSON.stringify({
          c_info: { type: kind === 'pv32' ? 'pv' : kind, name: `empty-${kind}-${++made}` },
          b_info: { max_vcpus: 2, max_memkb: 16384, target_memkb: 16384 },
        }),
      close: () => host.close(),
    };
  };
}

const runner = { describe, it, beforeEach, afterEach };
const kinds = ['hvm', 'pvh', 'pv', 'pv32'] as const;

hostContract(runner, 'a simulated host', kinds, open({}), { viewsOutliveRelease: true });
hostContract(
  runner,
  'a simulated host that guards its mappings',
  ['hvm', 'pv'],
  open({ guardMappings: true }),
);
hostContract(
  runner,
  'a simulated host whose memory is unscrubbed',
  ['pvh', 'pv'],
  open({ unscrubbedMemory: true }),
  { viewsOutliveRelease: true },
);
