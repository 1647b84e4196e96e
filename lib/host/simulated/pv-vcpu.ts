/**
 * The vcpus of a PV domain, as the hypervisor keeps them: contexts with machine frames in them, checked as Xen checks
 * them (arch_set_info_guest and the domctls beside it).
 *
 *     kind      body
 *     basic     vcpu_guest_context, 5168 or 2800 bytes, of the domain's width
 *     extended  xen_domctl_ext_vcpucontext, 64 bytes
 *                 0  4  vcpu            24  2  syscall32_cs      32  8  vmce.caps
 *                 4  4  size            26  2  sysenter_cs       40  8  vmce.mci_ctl2_bank0
 *                 8  8  syscall32_eip   28  1  syscall32_disables_events
 *                16  8  sysenter_eip    29  1  sysenter_disables_events    48  8  vmce.mci_ctl2_bank1
 *     xsave     u64 xcr0, u64 xcr0_accum, xsave area: 512 legacy (FXSAVE), 64 header, the rest
 *     msrs      n × { u32 index, u32 reserved 0, u64 value }
 *
 * The first 512 bytes of a basic context and of the xsave area are the same registers: setting one sets the other.
 */
import { Errno } from '../../abi/errno.js';
import {
  cr3ToFrame,
  GDT_ENTS_PER_FRAME,
  MAX_GDT_ENTS,
  VCPU_CONTEXT,
  VGCF_ONLINE,
  type GuestWidth,
} from '../../abi/pv.js';
import { setU32, setU64n, u32, u64, u64n } from '../../bytes/le.js';
import type { VcpuStateKind } from '../host.js';
import { FrameType, type PvMmu } from './pv-mmu.js';
import { REGISTERS_OFFSET, REGISTERS_SIZE } from './pv-types.js';
import { refusal } from './refuse.js';

/** Bytes of one vcpu in the shared area: the larger context. */
export const CONTEXT_STRIDE = VCPU_CONTEXT[8].size;
const LEGACY_AREA = 512;
const XSAVE_HEADER = 16;
const XSAVE_SMALLEST = XSAVE_HEADER + LEGACY_AREA + 64;
/** x87, SSE, AVX. */
const XCR0 = 7;
const XSAVE_SIZE = XSAVE_SMALLEST + 256;
const EXTENDED_SIZE = 64;
const EXTENDED_UP_TO_VMCE = 32;
/** The MSRs that Xen migrates for PV vcpus. */
const KNOWN_MSRS = [0x48, 0x140, 0xc000_0103, 0xc001_1027, 0xc001_1019, 0xc001_101a, 0xc001_101b];
const CTRLREG_CR3 = 3;
const CTRLREG_USER = 1;

/** Reads an unsigned long of the guest. */
export function readLong(bytes: Uint8Array, at: number, width: GuestWidth): number {
  return width === 8 ? u64n(bytes, at) : u32(bytes, at);
}

/** Writes an unsigned long of the guest. -1 writes all ones. */
export function writeLong(bytes: Uint8Array, at: number, width: GuestWidth, value: number): void {
  if (value < 0) bytes.fill(0xff, at, at + width);
  else if (width === 8) setU64n(bytes, at, value);
  else setU32(bytes, at, value);
}

/** Offset of a control register in a context. */
export function ctrlreg(width: GuestWidth, index: number): number {
  return VCPU_CONTEXT[width].ctrlreg + index * width;
}

/** Frame of the kernel's page tables in a context. */
export function kernelTable(context: Uint8Array, width: GuestWidth): number {
  const at = ctrlreg(width, CTRLREG_CR3);
  return cr3ToFrame(width === 8 ? u64(context, at) : BigInt(u32(context, at)), width);
}

/** Frame of the user page tables in a 64-bit context, -1 if there are none. */
export function userTable(context: Uint8Array, width: GuestWidth): number {
  if (width === 4) return -1;
  const value = u64(context, ctrlreg(width, CTRLREG_USER));
  return value === 0n ? -1 : cr3ToFrame(value, width);
}

/** What the vcpus need of the domain. */
export interface PvVcpuDomain {
  readonly domid: number;
  readonly width: GuestWidth;
  readonly mmu: PvMmu;
}

export class PvVcpus {
  /** Contexts, one each `CONTEXT_STRIDE`, in shared memory: the running guest changes them from its own thread. */
  readonly contexts: Uint8Array;
  readonly #domain: PvVcpuDomain;
  readonly #known: boolean[] = [];
  readonly #extended: (Uint8Array | undefined)[] = [];
  readonly #xsave: (Uint8Array | undefined)[] = [];
  readonly #msrs: (Uint8Array | undefined)[] = [];

  constructor(domain: PvVcpuDomain, count: number) {
    this.#domain = domain;
    this.contexts = new Uint8Array(new SharedArrayBuffer(count * CONTEXT_STRIDE));
  }

  /** The live context of a vcpu. */
  context(vcpu: number): Uint8Array {
    const at = vcpu * CONTEXT_STRIDE;
    return this.contexts.subarray(at, at + VCPU_CONTEXT[this.#domain.width].size);
  }

  /** True once a context was set. */
  isInitialised(vcpu: number): boolean {
    return this.#known[vcpu] === true;
  }

  online(vcpu: number): boolean {
    const flags = u32(this.context(vcpu), VCPU_CONTEXT[this.#domain.width].flags);
    return this.isInitialised(vcpu) && (flags & VGCF_ONLINE) !== 0;
  }

  /** A copy, as XEN_DOMCTL_getvcpucontext and its like give it; empty if there is nothing of this kind. */
  state(vcpu: number, kind: VcpuStateKind): Uint8Array {
    switch (kind) {
      case 'basic':
        if (!this.isInitialised(vcpu)) {
          throw this.#refuse('XEN_DOMCTL_getvcpucontext', Errno.ENODATA, `vcpu ${vcpu} has no context`);
        }
        return new Uint8Array(this.context(vcpu));
      case 'extended':
        return this.#extended[vcpu]?.slice() ?? emptyExtended(vcpu);
      case 'xsave':
        return this.#xsaveOf(vcpu);
      case 'msrs':
        return this.#msrs[vcpu]?.slice() ?? new Uint8Array(0);
    }
  }

  set(vcpu: number, kind: VcpuStateKind, state: Uint8Array): void {
    switch (kind) {
      case 'basic':
        this.#setBasic(vcpu, state);
        return;
      case 'extended':
        this.#setExtended(state);
        return;
      case 'xsave':
        this.#setXsave(vcpu, state);
        return;
      case 'msrs':
        this.#setMsrs(vcpu, state);
        return;
    }
  }

  /** The program's registers of vcpu 0. */
  registers(): Uint8Array {
    return this.context(0).slice(REGISTERS_OFFSET, REGISTERS_OFFSET + REGISTERS_SIZE);
  }

  setRegisters(registers: Uint8Array): void {
    this.context(0).set(registers.subarray(0, REGISTERS_SIZE), REGISTERS_OFFSET);
    // XSTATE_BV: they are in use now.
    const xsave = this.#xsave[0];
    if (xsave !== undefined)
      xsave[XSAVE_HEADER + LEGACY_AREA] = (xsave[XSAVE_HEADER + LEGACY_AREA] as number) | 3;
  }

  #refuse(syscall: string, errno: number, why: string): Error {
    return refusal(syscall, errno, why, this.#domain.domid);
  }

  #setBasic(vcpu: number, state: Uint8Array): void {
    const { mmu, width } = this.#domain;
    const syscall = 'XEN_DOMCTL_setvcpucontext';
    const layout = VCPU_CONTEXT[width];
    if (state.length !== layout.size) {
      throw this.#refuse(syscall, Errno.EINVAL, `a context has ${layout.size} bytes, not ${state.length}`);
    }
    const ents = readLong(state, layout.gdtEnts, width);
    if (ents > MAX_GDT_ENTS) throw this.#refuse(syscall, Errno.EINVAL, `${ents} GDT entries`);
    const gdt: number[] = [];
    for (let i = 0; i < Math.ceil(ents / GDT_ENTS_PER_FRAME); i++) {
      gdt.push(readLong(state, layout.gdtFrames + i * width, width));
    }
    const tables = [kernelTable(state, width)];
    if (userTable(state, width) >= 0) tables.push(userTable(state, width));

    if (this.isInitialised(vcpu)) {
      this.#mustMatch(vcpu, tables, gdt);
    } else {
      // What was taken is given back if a later frame refuses: a refused context changes nothing.
      const taken: number[] = [];
      const take = (mfn: number, type: number): void => {
        if (mmu.get(mfn, type) === 0) {
          taken.push(mfn);
          return;
        }
        for (const used of taken.reverse()) mmu.put(used);
        throw this.#refuse(syscall, Errno.EINVAL, `vcpu ${vcpu}: ${mmu.reason}`);
      };
      for (const mfn of gdt) take(mfn, FrameType.SEGMENT);
      for (const mfn of tables) take(mfn, mmu.topLevel);
      this.#known[vcpu] = true;
    }
    this.context(vcpu).set(state);
  }

  /** Xen changes neither page tables nor GDT of a vcpu that has them. */
  #mustMatch(vcpu: number, tables: readonly number[], gdt: readonly number[]): void {
    const { width } = this.#domain;
    const layout = VCPU_CONTEXT[width];
    const now = this.context(vcpu);
    const same =
      tables[0] === kernelTable(now, width) &&
      (tables[1] ?? -1) === userTable(now, width) &&
      gdt.length === Math.ceil(readLong(now, layout.gdtEnts, width) / GDT_ENTS_PER_FRAME) &&
      gdt.every((mfn, i) => mfn === readLong(now, layout.gdtFrames + i * width, width));
    if (same) return;
    const why = `vcpu ${vcpu} has other page tables or another GDT already`;
    throw this.#refuse('XEN_DOMCTL_setvcpucontext', Errno.EOPNOTSUPP, why);
  }

  #setExtended(state: Uint8Array): void {
    const syscall = 'XEN_DOMCTL_set_ext_vcpucontext';
    if (state.length < EXTENDED_UP_TO_VMCE || state.length > 128) {
      throw this.#refuse(syscall, Errno.EINVAL, `${state.length} bytes`);
    }
    // The vcpu number that counts is the one inside, as with the hypercall.
    const vcpu = u32(state, 0);
    if (vcpu >= this.contexts.length / CONTEXT_STRIDE) {
      throw this.#refuse(syscall, Errno.ESRCH, `no vcpu ${vcpu}`);
    }
    if (u32(state, 4) < EXTENDED_UP_TO_VMCE) {
      throw this.#refuse(syscall, Errno.EINVAL, `size field ${u32(state, 4)}`);
    }
    this.#extended[vcpu] = new Uint8Array(state);
  }

  #xsaveOf(vcpu: number): Uint8Array {
    if (!this.isInitialised(vcpu)) return new Uint8Array(0);
    const stored = this.#xsave[vcpu];
    const out = stored?.slice() ?? new Uint8Array(XSAVE_SIZE);
    if (stored === undefined) {
      out[0] = XCR0;
      out[8] = XCR0;
      // XSTATE_BV: x87 and SSE are in use, AVX is in its initial state.
      out[XSAVE_HEADER + LEGACY_AREA] = 3;
    }
    out.set(this.context(vcpu).subarray(0, LEGACY_AREA), XSAVE_HEADER);
    return out;
  }

  #setXsave(vcpu: number, state: Uint8Array): void {
    const syscall = 'XEN_DOMCTL_setvcpuextstate';
    if (state.length < XSAVE_HEADER) throw this.#refuse(syscall, Errno.EINVAL, `${state.length} bytes`);
    if (state.length < XSAVE_SMALLEST) {
      // No more than XCR0: all components in their initial state, nothing to keep.
      if (state.length !== XSAVE_HEADER) throw this.#refuse(syscall, Errno.EINVAL, `${state.length} bytes`);
      return;
    }
    if (((state[0] as number) & 1) === 0 || (u32(state, 0) & ~u32(state, 8)) !== 0) {
      throw this.#refuse(syscall, Errno.EINVAL, 'XCR0 without x87, or more than it ever was');
    }
    this.#xsave[vcpu] = new Uint8Array(state);
    this.context(vcpu).set(state.subarray(XSAVE_HEADER, XSAVE_HEADER + LEGACY_AREA));
  }

  #setMsrs(vcpu: number, state: Uint8Array): void {
    const syscall = 'XEN_DOMCTL_set_vcpu_msrs';
    if (state.length % 16 !== 0) throw this.#refuse(syscall, Errno.EINVAL, `${state.length} bytes`);
    for (let at = 0; at < state.length; at += 16) {
      const index = u32(state, at);
      if (u32(state, at + 4) !== 0 || !KNOWN_MSRS.includes(index)) {
        throw this.#refuse(syscall, Errno.EINVAL, `MSR 0x${index.toString(16)}`);
      }
    }
    this.#msrs[vcpu] = new Uint8Array(state);
  }
}

function emptyExtended(vcpu: number): Uint8Array {
  const out = new Uint8Array(EXTENDED_SIZE);
  setU32(out, 0, vcpu);
  setU32(out, 4, EXTENDED_SIZE);
  // vmce.caps: LMCE is not offered, but the bit that Xen always gives its guests is.
  out[EXTENDED_UP_TO_VMCE] = 2;
  return out;
}
