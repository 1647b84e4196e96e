/** State of PV vcpus, with machine frames replaced by pfns. */
import {
  cr3ToFrame,
  frameToCr3,
  GDT_ENTS_PER_FRAME,
  MAX_GDT_ENTS,
  VCPU_CONTEXT,
  type GuestWidth,
} from '../abi/pv.js';
import { setU32, setU64, setU64n, u32, u64, u64n } from '../bytes/le.js';
import { GuestError } from '../errors.js';
import { INVALID_FRAME } from '../host/host.js';
import { LibxcRecord } from '../stream/libxc/constants.js';
import { encodeX86PvVcpu } from '../stream/libxc/pv.js';
import { SaveErrorCode } from './codes.js';
import type { SaveContext } from './context.js';
import { hex } from './guest-frames.js';

/** pfn of a machine frame of the guest, else INVALID_FRAME. */
type PfnOf = (mfn: number) => number;

/**
 * Writes BASIC, EXTENDED, XSAVE and MSRS of every vcpu that is online, in this order; a kind of state that a vcpu does
 * not have is left out.
 *
 * Throws GuestError if a register names a frame that is not the guest's.
 */
export async function writeVcpus(context: SaveContext, width: GuestWidth, pfnOf: PfnOf): Promise<void> {
  const { control, domain, info, out } = context;
  for (let vcpuId = 0; vcpuId <= info.maxVcpuId; vcpuId++) {
    const online = await domain.vcpuOnline(vcpuId);
    control.throwIfCancelled();
    if (!online) continue;
    for (const [kind, type] of [
      ['basic', LibxcRecord.X86_PV_VCPU_BASIC],
      ['extended', LibxcRecord.X86_PV_VCPU_EXTENDED],
      ['xsave', LibxcRecord.X86_PV_VCPU_XSAVE],
      ['msrs', LibxcRecord.X86_PV_VCPU_MSRS],
    ] as const) {
      let blob = await domain.vcpuState(vcpuId, kind);
      control.throwIfCancelled();
      if (kind === 'basic') blob = normaliseVcpu(blob, vcpuId, width, pfnOf);
      if (blob.length > 0) await out.record(type, encodeX86PvVcpu({ vcpuId, blob }));
    }
  }
}

/**
 * A copy of a vcpu_guest_context (layout: abi/pv.ts) with pfns in rdx of vcpu 0 (start_info, third argument of the
 * suspend hypercall), gdt_frames, ctrlreg[3] and, for 64-bit guests with a user page table, ctrlreg[1].
 */
export function normaliseVcpu(
  context: Uint8Array,
  vcpuId: number,
  width: GuestWidth,
  pfnOf: PfnOf,
): Uint8Array {
  const layout = VCPU_CONTEXT[width];
  if (context.length !== layout.size) {
    throw vcpuError(vcpuId, `context of ${context.length} bytes instead of ${layout.size}`);
  }
  const copy = context.slice();
  const read = (at: number): bigint => (width === 8 ? u64(copy, at) : BigInt(u32(copy, at)));
  const write = (at: number, value: bigint): void => {
    if (width === 8) setU64(copy, at, value);
    else setU32(copy, at, Number(value));
  };
  const toPfn = (what: string, mfn: number): number => {
    const pfn = pfnOf(mfn);
    if (pfn === INVALID_FRAME) throw vcpuError(vcpuId, `${what}: mfn ${hex(mfn)} is not in the guest's p2m`);
    return pfn;
  };

  if (vcpuId === 0) {
    write(
      layout.rdx,
      BigInt(toPfn(width === 8 ? 'user_regs.rdx' : 'user_regs.edx', frameNumber(copy, layout.rdx, width))),
    );
  }

  const gdtEnts = width === 8 ? u64n(copy, layout.gdtEnts) : u32(copy, layout.gdtEnts);
  if (gdtEnts > MAX_GDT_ENTS) throw vcpuError(vcpuId, `gdt_ents is ${gdtEnts}, more than ${MAX_GDT_ENTS}`);
  for (let i = 0; i < Math.ceil(gdtEnts / GDT_ENTS_PER_FRAME); i++) {
    const at = layout.gdtFrames + i * width;
    write(at, BigInt(toPfn(`gdt_frames[${i}]`, frameNumber(copy, at, width))));
  }

  const cr3 = layout.ctrlreg + 3 * width;
  write(cr3, frameToCr3(toPfn('ctrlreg[3]', cr3ToFrame(read(cr3), width)), width));
  // 64-bit kernels have a second table for user mode; bit 0 of what is sent says that it is valid.
  const cr1 = layout.ctrlreg + width;
  if (width === 8 && u64(copy, cr1) !== 0n) {
    const pfn = toPfn('ctrlreg[1]', cr3ToFrame(u64(copy, cr1), 8));
    setU64n(copy, cr1, pfn * 4096 + 1);
  }
  return copy;
}

/** A register that holds a frame number. */
function frameNumber(bytes: Uint8Array, at: number, width: GuestWidth): number {
  return width === 8 ? u64n(bytes, at) : u32(bytes, at);
}

function vcpuError(vcpuId: number, reason: string): GuestError {
  return new GuestError(SaveErrorCode.VCPU_STATE, `vcpu ${vcpuId}: ${reason}`);
}
