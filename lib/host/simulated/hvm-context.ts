/**
 * The HVM context of a simulated domain: framing as Xen checks it, and the records that a simulated guest has.
 *
 * A context is a sequence of records; each has a descriptor before its body (public/arch-x86/hvm/save.h):
 *
 *     off  size  field
 *       0     2  typecode
 *       2     2  instance (vcpu, or number of a device)
 *       4     4  length of the body
 *
 * The first is HEADER (typecode 1): magic u32, version u32, changeset u64, cpuid u32, gtsc_khz u32. The last is END
 * (typecode 0) without a body. CPU (typecode 2) begins with the FXSAVE image of 512 bytes, then rax.
 */
import { Errno } from '../../abi/errno.js';
import { setU16, setU32, setU64n, u16, u32 } from '../../bytes/le.js';
import { mix32, Xoshiro } from './prng.js';
import { REGISTERS_OFFSET, REGISTERS_SIZE } from './pv-types.js';
import { refusal } from './refuse.js';

const DESCRIPTOR_SIZE = 8;
const HEADER_MAGIC = 0x5438_1286;
const HEADER_VERSION = 1;
const HEADER_SIZE = 24;
/** Offset of rax in the CPU record. */
const CPU_RAX = 512;

/** Typecodes of the records that matter here. */
export const HvmSave = {
  END: 0,
  HEADER: 1,
  CPU: 2,
  LAPIC: 5,
  LAPIC_REGS: 6,
  MTRR: 14,
  TSC_ADJUST: 19,
} as const;
/** Highest typecode that Xen 4.14 to 4.22 know. */
const MAX_TYPECODE = 20;

/** Body lengths of the records of each vcpu. */
const VCPU_RECORDS: readonly (readonly [typecode: number, length: number])[] = [
  [HvmSave.CPU, 1032],
  [HvmSave.LAPIC, 24],
  [HvmSave.LAPIC_REGS, 1024],
  [HvmSave.MTRR, 240],
  [HvmSave.TSC_ADJUST, 8],
];
/** Largest context that is taken: Xen's buffer for the most vcpus is smaller. */
const MAX_CONTEXT = 8 << 20;

/** Body offset of the first record of this kind and instance, or -1. The context has passed `checkContext`. */
function findRecord(context: Uint8Array, typecode: number, instance: number): number {
  for (let at = 0; at + DESCRIPTOR_SIZE <= context.length; at += DESCRIPTOR_SIZE + u32(context, at + 4)) {
    if (u16(context, at) === typecode && u16(context, at + 2) === instance) return at + DESCRIPTOR_SIZE;
  }
  return -1;
}

/** Refuses what Xen would refuse for its framing. Bodies are opaque, but for the header's magic. */
export function checkContext(context: Uint8Array, maxVcpus: number, domid: number): void {
  const refuse = (why: string, errno: number = Errno.EINVAL): Error =>
    refusal('XEN_DOMCTL_sethvmcontext', errno, why, domid);
  if (context.length > MAX_CONTEXT) throw refuse('longer than any context');
  for (let at = 0, first = true; ; first = false) {
    if (at + DESCRIPTOR_SIZE > context.length) {
      throw refuse(`no END record in ${context.length} bytes`, Errno.ENODATA);
    }
    const typecode = u16(context, at);
    const instance = u16(context, at + 2);
    const length = u32(context, at + 4);
    const body = at + DESCRIPTOR_SIZE;
    if (first) {
      if (typecode !== HvmSave.HEADER || length !== HEADER_SIZE || body + length > context.length) {
        throw refuse('the first record is no header', Errno.ENODATA);
      }
      if (u32(context, body) !== HEADER_MAGIC || u32(context, body + 4) !== HEADER_VERSION) {
        throw refuse('the header is one of another architecture');
      }
    } else if (typecode === HvmSave.END) return;
    else if (length > context.length - body) throw refuse(`record at ${at} is cut off`);
    else if (typecode > MAX_TYPECODE) throw refuse(`unknown record type ${typecode} at ${at}`);
    if (VCPU_RECORDS.some(([known]) => known === typecode) && instance >= maxVcpus) {
      throw refuse(`record at ${at} is for vcpu ${instance} of ${maxVcpus}`);
    }
    at = body + length;
  }
}

/** The context of a new simulated guest. What no one reads is filled by the seed, so that a mix-up shows. */
export function newContext(vcpus: number, seed: number): Uint8Array {
  const each = VCPU_RECORDS.reduce((sum, [, length]) => sum + DESCRIPTOR_SIZE + length, 0);
  const context = new Uint8Array(DESCRIPTOR_SIZE + 24 + vcpus * each + DESCRIPTOR_SIZE);
  let at = 0;
  const begin = (typecode: number, instance: number, length: number): number => {
    setU16(context, at, typecode);
    setU16(context, at + 2, instance);
    setU32(context, at + 4, length);
    const body = at + DESCRIPTOR_SIZE;
    at = body + length;
    return body;
  };
  const header = begin(HvmSave.HEADER, 0, 24);
  setU32(context, header, HEADER_MAGIC);
  setU32(context, header + 4, HEADER_VERSION);
  for (const [typecode, length] of VCPU_RECORDS) {
    for (let vcpu = 0; vcpu < vcpus; vcpu++) {
      const body = begin(typecode, vcpu, length);
      const rng = new Xoshiro(mix32(seed ^ (typecode << 16) ^ vcpu));
      for (let i = 0; i < length; i += 4) setU32(context, body + i, rng.next());
      if (typecode === HvmSave.CPU && vcpu === 0) setU64n(context, body + CPU_RAX, 0);
    }
  }
  begin(HvmSave.END, 0, 0);
  return context;
}

/** Registers of the guest program in vcpu 0, zeros if the context has none. */
export function contextRegisters(context: Uint8Array): Uint8Array {
  const body = findRecord(context, HvmSave.CPU, 0);
  if (body < 0) return new Uint8Array(REGISTERS_SIZE);
  return context.slice(body + REGISTERS_OFFSET, body + REGISTERS_OFFSET + REGISTERS_SIZE);
}

/** Leaves the program's registers in vcpu 0. */
export function setContextRegisters(context: Uint8Array, registers: Uint8Array): void {
  const body = findRecord(context, HvmSave.CPU, 0);
  if (body >= 0) context.set(registers, body + REGISTERS_OFFSET);
}

/** What the suspend hypercall returned to the guest: 0 on another host, 1 if the suspend was cancelled. */
export function setContextRax(context: Uint8Array, value: number): void {
  const body = findRecord(context, HvmSave.CPU, 0);
  if (body >= 0) setU64n(context, body + CPU_RAX, value);
}
