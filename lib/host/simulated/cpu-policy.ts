/**
 * CPU policies of simulated hosts: leaves and MSRs as X86_CPUID_POLICY and X86_MSR_POLICY carry them.
 *
 *     leaf, 24 bytes: u32 leaf, u32 subleaf (0xffffffff: has none), u32 eax, ebx, ecx, edx
 *     MSR, 16 bytes:  u32 index, u32 flags (0), u64 value
 */
import { Errno } from '../../abi/errno.js';
import { setU32, setU64, u32 } from '../../bytes/le.js';
import type { CpuPolicy } from '../host.js';
import { refusal } from './refuse.js';

const LEAF_SIZE = 24;
const MSR_SIZE = 16;
const NO_SUBLEAF = 0xffff_ffff;
/** MSR_PLATFORM_INFO and MSR_ARCH_CAPABILITIES: the MSRs that a policy has. */
const POLICY_MSRS: readonly number[] = [0xce, 0x10a];
/** More leaves than any policy of Xen 4.14 to 4.22 has. */
const MAX_LEAVES = 512;
/** Highest basic and extended leaf of Xen's own limits. */
const MAX_BASIC_LEAF = 0x20;
const MAX_EXTENDED_LEAF = 0x8000_0021;

/** A feature that the machine does not have. */
export interface MissingFeature {
  readonly leaf: number;
  /** Default: leaves without subleaves. */
  readonly subleaf?: number | undefined;
  readonly register: 'eax' | 'ebx' | 'ecx' | 'edx';
  readonly mask: number;
}

const REGISTERS = ['eax', 'ebx', 'ecx', 'edx'] as const;

/** A plausible policy of a small x86-64 machine. */
export function defaultPolicy(): CpuPolicy {
  const leaves: readonly (readonly number[])[] = [
    [0x0, NO_SUBLEAF, 0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
    [0x1, NO_SUBLEAF, 0x306c3, 0x0001_0800, 0xf7fa_3203, 0x1fcb_fbff],
    [0x7, 0, 0, 0x0000_27ab, 0, 0xac00_0400],
    [0xd, 0, 7, 0x340, 0x340, 0],
    [0xd, 1, 1, 0, 0, 0],
    [0xd, 2, 0x100, 0x240, 0, 0],
    [0x4000_0000, NO_SUBLEAF, 0x4000_0005, 0x566e_6558, 0x6558_4d4d, 0x4d4d_566e],
    [0x8000_0000, NO_SUBLEAF, 0x8000_0008, 0, 0, 0],
    [0x8000_0001, NO_SUBLEAF, 0, 0, 0x21, 0x2c10_0800],
    [0x8000_0007, NO_SUBLEAF, 0, 0, 0, 0x100],
    [0x8000_0008, NO_SUBLEAF, 0x3027, 0, 0, 0],
  ];
  const cpuid = new Uint8Array(leaves.length * LEAF_SIZE);
  leaves.forEach((words, i) => words.forEach((word, k) => setU32(cpuid, i * LEAF_SIZE + 4 * k, word)));
  const msrs = new Uint8Array(POLICY_MSRS.length * MSR_SIZE);
  POLICY_MSRS.forEach((index, i) => {
    setU32(msrs, i * MSR_SIZE, index);
    setU64(msrs, i * MSR_SIZE + 8, index === 0xce ? 0x8000_0000n : 0n);
  });
  return { cpuid, msrs };
}

function hex(v: number): string {
  return `0x${v.toString(16).padStart(8, '0')}`;
}

/** Refuses a policy that the machine cannot honour. The message names the leaf or MSR, as Xen's err_leaf would. */
export function checkPolicy(policy: CpuPolicy, missing: readonly MissingFeature[], domid: number): void {
  const { cpuid, msrs } = policy;
  const refuse = (errno: number, why: string): Error =>
    refusal('XEN_DOMCTL_set_cpu_policy', errno, why, domid);
  if (cpuid.length % LEAF_SIZE !== 0 || msrs.length % MSR_SIZE !== 0) {
    throw refuse(Errno.EINVAL, 'not a whole number of leaves and MSRs');
  }
  if (cpuid.length / LEAF_SIZE > MAX_LEAVES) throw refuse(Errno.E2BIG, 'too many leaves');
  for (let at = 0; at < cpuid.length; at += LEAF_SIZE) {
    const leaf = u32(cpuid, at);
    const subleaf = u32(cpuid, at + 4);
    const where = `leaf ${hex(leaf)}, subleaf ${hex(subleaf)}`;
    const inRange =
      leaf <= MAX_BASIC_LEAF ||
      (leaf >= 0x4000_0000 && leaf <= 0x4000_01ff) ||
      (leaf >= 0x8000_0000 && leaf <= MAX_EXTENDED_LEAF);
    if (!inRange) throw refuse(Errno.ERANGE, `${where}: unknown leaf`);
    for (const feature of missing) {
      if (feature.leaf !== leaf || (feature.subleaf ?? NO_SUBLEAF) !== subleaf) continue;
      const value = u32(cpuid, at + 8 + 4 * REGISTERS.indexOf(feature.register));
      if ((value & feature.mask) !== 0) {
        throw refuse(Errno.EINVAL, `${where}: this CPU lacks ${feature.register} ${hex(feature.mask)}`);
      }
    }
  }
  for (let at = 0; at < msrs.length; at += MSR_SIZE) {
    const index = u32(msrs, at);
    if (!POLICY_MSRS.includes(index)) throw refuse(Errno.ERANGE, `MSR ${hex(index)} is in no policy`);
    if (u32(msrs, at + 4) !== 0) throw refuse(Errno.EINVAL, `MSR ${hex(index)}: flags are reserved`);
  }
}
