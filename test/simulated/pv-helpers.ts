/** A PV domain without the host around it: machine memory, the PV part, and a log of what was marked dirty. */
import { MachineMemory } from '../../lib/host/simulated/memory.js';
import { createPvDomain } from '../../lib/host/simulated/pv-domain.js';
import type { PvDomain, PvGuestMap, PvGuestOptions } from '../../lib/host/simulated/pv-types.js';

export interface TestDomain {
  readonly domid: number;
  readonly memory: MachineMemory;
  readonly sharedInfoMfn: number;
  readonly pv: PvDomain;
  readonly dirty: Set<number>;
}

export function makeDomain(
  options: { memory?: MachineMemory; domid?: number; pages?: number; vcpus?: number } = {},
): TestDomain {
  const memory = options.memory ?? new MachineMemory({ totalPages: options.pages ?? 0x8000, seed: 7 });
  const domid = options.domid ?? 1;
  const dirty = new Set<number>();
  const frame = new Float64Array(1);
  memory.allocScattered(domid, 1, frame);
  const sharedInfoMfn = frame[0]!;
  const pv = createPvDomain({
    domid,
    memory,
    maxVcpus: options.vcpus ?? 4,
    sharedInfoMfn,
    seed: 1,
    allocate: (frames) => {
      const mfns = new Float64Array(frames.length);
      const n = memory.allocScattered(domid, frames.length, mfns);
      for (let i = 0; i < n; i++) {
        memory.setM2p(mfns[i]!, frames[i]!);
        frames[i] = mfns[i]!;
      }
      return n;
    },
    release: (mfn) => memory.free(mfn),
    markDirty: (pfn) => dirty.add(pfn),
  });
  return { domid, memory, sharedInfoMfn, pv, dirty };
}

export function buildPv(domain: TestDomain, options: Partial<PvGuestOptions> = {}): PvGuestMap {
  const width = options.width ?? 8;
  domain.pv.setWidth(width);
  return domain.pv.construct({
    width,
    pages: 4096,
    vcpus: 2,
    p2m: 'linear',
    seed: 3,
    storeEvtchn: 1,
    consoleEvtchn: 2,
    ...options,
  });
}
