import { beforeEach, describe, expect, it } from 'vitest';
import { Errno } from '../../lib/abi/errno.js';
import { VCPU_CONTEXT } from '../../lib/abi/pv.js';
import { setU32, setU64, setU64n, u32 } from '../../lib/bytes/le.js';
import { HypercallError } from '../../lib/errors.js';
import type { VcpuStateKind } from '../../lib/host/host.js';
import { REGISTERS_OFFSET, REGISTERS_SIZE } from '../../lib/host/simulated/pv-types.js';
import { auditTypes, buildPv, cr3Of, makeDomain, populate, type TestDomain } from './pv-helpers.js';
import { putImage, takeImage, type PvImage } from './pv-image.js';

function errnoOf(work: () => void): number {
  try {
    work();
  } catch (error) {
    expect(error).toBeInstanceOf(HypercallError);
    return (error as HypercallError).errno;
  }
  return 0;
}

/** An image that was put into a domain, but for its vcpus; and the contexts that belong there, with frames. */
function waiting(width: 4 | 8): { domain: TestDomain; contexts: Uint8Array[] } {
  const source = makeDomain();
  buildPv(source, { width });
  source.pv.suspend(undefined);
  const image: PvImage = takeImage(source, 4096);
  const contexts: Uint8Array[] = [];
  const domain = makeDomain({ seed: 20 });
  const set = domain.pv.setVcpuState.bind(domain.pv);
  // The image's writer translates frames; what it would set is caught here, and pins are left out.
  domain.pv.setVcpuState = (vcpu: number, kind: VcpuStateKind, state: Uint8Array): void => {
    if (kind === 'basic') contexts[vcpu] = state.slice();
  };
  const pin = domain.pv.pinTables.bind(domain.pv);
  domain.pv.pinTables = () => undefined;
  putImage(domain, image);
  domain.pv.setVcpuState = set;
  domain.pv.pinTables = pin;
  return { domain, contexts };
}

describe.each([4, 8] as const)('vcpu contexts, %i-byte words', (width) => {
  const layout = VCPU_CONTEXT[width];
  let domain: TestDomain;
  let context: Uint8Array;
  const setLong = (at: number, value: number): void => {
    if (width === 8) setU64n(context, at, value);
    else setU32(context, at, value);
  };
  const set = (): number => errnoOf(() => domain.pv.setVcpuState(0, 'basic', context));

  beforeEach(() => {
    const w = waiting(width);
    domain = w.domain;
    context = w.contexts[0]!;
  });

  it('takes a good one, which makes its tables tables', () => {
    expect(domain.pv.vcpuOnline(0)).toBe(false);
    expect(set()).toBe(0);
    expect(domain.pv.vcpuOnline(0)).toBe(true);
    expect(domain.pv.vcpuState(0, 'basic')).toEqual(context);
    expect(domain.memory.typeOf(cr3Of(domain))).toBe(width === 8 ? 4 : 3);
    auditTypes(domain);
  });

  const bad: readonly (readonly [string, () => void])[] = [
    ['of another size', () => (context = context.subarray(1))],
    ['of the other width', () => (context = new Uint8Array(VCPU_CONTEXT[width === 8 ? 4 : 8].size))],
    ['with too many GDT entries', () => setLong(layout.gdtEnts, 7169)],
    ['with a GDT frame of nobody', () => setLong(layout.gdtFrames, 77)],
    ['with a page table as GDT', () => setLong(layout.gdtFrames, (setTop(), cr3Frame()))],
    ['with page tables of nobody', () => setCr3(123)],
    ['with plain memory as page tables', () => {
      const plain = Float64Array.of(5000);
      populate(domain.memory, domain.domid, plain);
      domain.memory.pageWords(plain[0]!).fill(0xffff_ffff);
      setCr3(plain[0]!);
    }],
  ]; // prettier-ignore
  let topFrame = 0;
  const setTop = (): void => {
    const probe = waiting(width);
    probe.domain.pv.setVcpuState(0, 'basic', probe.contexts[0]!);
    topFrame = cr3Of(probe.domain);
  };
  const cr3Frame = (): number => topFrame;
  const setCr3 = (frame: number): void => {
    const at = layout.ctrlreg + 3 * width;
    if (width === 8) setU64(context, at, BigInt(frame) << 12n);
    else setU32(context, at, ((frame << 12) | (frame >>> 20)) >>> 0);
  };

  it.each(bad)('refuses one %s', (_what, spoil) => {
    spoil();
    expect(set()).toBe(Errno.EINVAL);
    expect(domain.pv.vcpuOnline(0)).toBe(false);
    expect(errnoOf(() => domain.pv.vcpuState(0, 'basic'))).toBe(Errno.ENODATA);
    auditTypes(domain);
  });

  it('refuses other page tables or another GDT for a vcpu that has them', () => {
    expect(set()).toBe(0);
    expect(set()).toBe(0);
    setLong(layout.gdtEnts, 513);
    setLong(layout.gdtFrames + width, 1);
    expect(set()).toBe(Errno.EOPNOTSUPP);
    auditTypes(domain);
  });

  it('is down without VGCF_online', () => {
    context[layout.flags] = context[layout.flags]! & ~0x20;
    expect(set()).toBe(0);
    expect(domain.pv.vcpuOnline(0)).toBe(false);
  });

  it('keeps the other kinds of state, and refuses bad ones', () => {
    const setKind = (kind: VcpuStateKind, state: Uint8Array): number =>
      errnoOf(() => domain.pv.setVcpuState(0, kind, state));
    expect(set()).toBe(0);
    const extended = new Uint8Array(64).fill(7);
    setU32(extended, 0, 1);
    setU32(extended, 4, 64);
    expect(setKind('extended', extended)).toBe(0);
    // The number inside counts.
    expect(domain.pv.vcpuState(1, 'extended')).toEqual(extended);
    expect(u32(domain.pv.vcpuState(0, 'extended'), 0)).toBe(0);
    setU32(extended, 0, 9);
    expect(setKind('extended', extended)).toBe(Errno.ESRCH);
    setU32(extended, 0, 0);
    setU32(extended, 4, 31);
    expect(setKind('extended', extended)).toBe(Errno.EINVAL);
    expect(setKind('extended', new Uint8Array(31))).toBe(Errno.EINVAL);
    expect(setKind('extended', new Uint8Array(129))).toBe(Errno.EINVAL);

    const msrs = new Uint8Array(32);
    setU32(msrs, 0, 0x140);
    setU32(msrs, 16, 0xc000_0103);
    expect(setKind('msrs', msrs)).toBe(0);
    expect(domain.pv.vcpuState(0, 'msrs')).toEqual(msrs);
    expect(setKind('msrs', msrs.subarray(0, 17))).toBe(Errno.EINVAL);
    setU32(msrs, 4, 1);
    expect(setKind('msrs', msrs)).toBe(Errno.EINVAL);
    setU32(msrs, 4, 0);
    setU32(msrs, 0, 0x1234);
    expect(setKind('msrs', msrs)).toBe(Errno.EINVAL);

    expect(setKind('xsave', new Uint8Array(15))).toBe(Errno.EINVAL);
    expect(setKind('xsave', new Uint8Array(600).fill(1, 0, 1))).toBe(Errno.EINVAL);
    expect(setKind('xsave', new Uint8Array(600))).toBe(Errno.EINVAL);
    expect(setKind('xsave', new Uint8Array(16))).toBe(0);
  });

  it('has one set of XMM registers in two kinds of state', () => {
    expect(set()).toBe(0);
    const xsave = domain.pv.vcpuState(0, 'xsave');
    expect(xsave.subarray(16, 528)).toEqual(context.subarray(0, 512));
    const registers = Uint8Array.from({ length: REGISTERS_SIZE }, (_, i) => i);
    xsave.set(registers, 16 + REGISTERS_OFFSET);
    domain.pv.setVcpuState(0, 'xsave', xsave);
    expect(domain.pv.registers()).toEqual(registers);
    expect(
      domain.pv.vcpuState(0, 'basic').subarray(REGISTERS_OFFSET, REGISTERS_OFFSET + REGISTERS_SIZE),
    ).toEqual(registers);
    expect(domain.pv.vcpuState(0, 'xsave')).toEqual(xsave);
  });
});

describe('a PV domain', () => {
  it('has no state before it is given some', () => {
    const { pv, memory, sharedInfoMfn } = makeDomain();
    expect(pv.width).toBe(8);
    expect(pv.maxGpfn()).toBe(0);
    expect(pv.registers()).toEqual(new Uint8Array(REGISTERS_SIZE));
    expect(pv.vcpuState(0, 'xsave')).toHaveLength(0);
    expect(pv.vcpuState(0, 'msrs')).toHaveLength(0);
    expect(pv.resume('restored')).toBeUndefined();
    expect(() => pv.suspend(undefined)).toThrow(/no vcpu/);
    expect(memory.pfnOf(sharedInfoMfn)).toBe(-1);
  });
});
