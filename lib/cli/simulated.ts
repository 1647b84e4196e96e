/** The simulated guests that stand in for real ones. */
import { UsageError } from '../errors.js';
import type { GuestKind, SimulatedGuest } from '../host/simulated/guest.js';
import type { SimulatedHost } from '../host/simulated/host.js';
import { DEFAULT_RATE, type Workload, type WorkloadKind } from '../host/simulated/guest/workload.js';
import { countOf, sizeOf } from '../quantities.js';
import { bytesText, countText } from './format.js';
import { choiceOf } from './values.js';

/** Options that describe a simulated guest. */
export const guestOptions = {
  memory: { type: 'string' },
  vcpus: { type: 'string' },
  workload: { type: 'string' },
  rate: { type: 'string' },
  seed: { type: 'string' },
} as const;

/** Their lines of `--help`. */
export function guestHelp(memory: string): string {
  return `  --memory SIZE         its memory, for instance 64M or 2G (default ${memory})
  --vcpus N             its virtual processors (default 1)
  --workload KIND       what it does: idle, uniform, hot-set or sweep (default hot-set)
  --rate N              pages that it writes a second (default ${countText(DEFAULT_RATE)})
  --seed N              decides its contents and which pages it writes (default 1)
`;
}

/** Options of the commands that work on a guest: with `--host sim`, one is made for the occasion. */
export const simGuestOptions = { 'sim-guest': { type: 'string' }, ...guestOptions } as const;

/** Their lines of `--help`, and that of `--host`. */
export function simGuestHelp(memory: string): string {
  return `  --host HOST           xen: this machine (default); sim: a simulated host, with a guest made for the occasion:
  --sim-guest KIND      pvh, hvm, pv or pv32 (default pvh)
${guestHelp(memory)}`;
}

/** A simulated guest as the options describe it. */
export interface GuestPlan {
  readonly kind: GuestKind;
  readonly memory: number;
  readonly vcpus: number;
  readonly workload: Workload & { readonly rate: number };
  readonly seed: number;
}

const KINDS: readonly GuestKind[] = ['pvh', 'hvm', 'pv', 'pv32'];
const WORKLOADS: readonly WorkloadKind[] = ['idle', 'uniform', 'hot-set', 'sweep'];

/** Reads the options. Throws UsageError. */
export function guestPlan(
  values: { readonly [K in keyof typeof guestOptions]?: string | undefined },
  kind: string,
  kindOption: string,
  memory: string,
): GuestPlan {
  const bytes = sizeOf(values.memory ?? memory, '--memory');
  if (bytes % 4096 !== 0 || bytes < 1 << 20 || bytes > 2 ** 36) {
    throw new UsageError(`--memory: ${bytesText(bytes)} is not between 1 MiB and 64 GiB in pages of 4 KiB`);
  }
  return {
    kind: choiceOf(kind, kindOption, KINDS),
    memory: bytes,
    vcpus: countOf(values.vcpus ?? '1', '--vcpus', 1, 128),
    workload: {
      kind: choiceOf(values.workload ?? 'hot-set', '--workload', WORKLOADS),
      rate: countOf(values.rate ?? String(DEFAULT_RATE), '--rate', 1),
    },
    seed: countOf(values.seed ?? '1', '--seed', 0, 0xffff_ffff),
  };
}

/** `pvh guest, 512 MiB, 1 vcpu, writes 20,000 pages/s (hot-set)`. */
export function planText(plan: GuestPlan): string {
  const { kind, memory, vcpus, workload } = plan;
  const does =
    workload.kind === 'idle' ? 'idle' : `writes ${countText(workload.rate)} pages/s (${workload.kind})`;
  return `${kind} guest, ${bytesText(memory)}, ${vcpus} ${vcpus === 1 ? 'vcpu' : 'vcpus'}, ${does}`;
}

/** Makes the guest, running. */
export function createGuest(host: SimulatedHost, plan: GuestPlan, name: string): Promise<SimulatedGuest> {
  return host.createGuest({ ...plan, name });
}
