/** What all x86 guests have: CPU policy and TSC. */
import { LibxcRecord } from '../stream/libxc/constants.js';
import { encodeX86TscInfo } from '../stream/libxc/x86.js';
import type { SaveContext } from './context.js';

/** Writes X86_CPUID_POLICY and X86_MSR_POLICY; a record without content is left out. */
export async function writeCpuPolicy({ control, domain, out }: SaveContext): Promise<void> {
  const { cpuid, msrs } = await domain.cpuPolicy();
  control.throwIfCancelled();
  if (cpuid.length > 0) await out.record(LibxcRecord.X86_CPUID_POLICY, cpuid);
  if (msrs.length > 0) await out.record(LibxcRecord.X86_MSR_POLICY, msrs);
}

/** Writes X86_TSC_INFO. */
export async function writeTscInfo({ control, domain, out }: SaveContext): Promise<void> {
  const tsc = await domain.tscInfo();
  control.throwIfCancelled();
  await out.record(LibxcRecord.X86_TSC_INFO, encodeX86TscInfo(tsc));
}
