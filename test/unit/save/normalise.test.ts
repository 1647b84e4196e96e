import { describe, expect, it } from 'vitest';
import type { GuestWidth } from '../../../lib/abi/pv.js';
import type { XenMigrationError } from '../../../lib/errors.js';
import { INVALID_FRAME } from '../../../lib/host/host.js';
import { normalisePageTable } from '../../../lib/save/normalise.js';
import { Normalised } from '../../../lib/save/ops.js';

const COMPAT = 0x777;
const MFN = 0x12_3456;
const PFN = 0xabc;
/** Frames above 2^20 and 2^32 · 4 KiB: both words of an entry take part. */
const HIGH_MFN = 0xf_1234_5678;
const HIGH_PFN = 0x8_7654_3210;

const guest = (width: GuestWidth) => ({
  width,
  compatFirstMfn: COMPAT,
  pfnOf: (mfn: number) => (mfn === MFN ? PFN : mfn === HIGH_MFN ? HIGH_PFN : mfn === 0 ? 0 : INVALID_FRAME),
});

const entry = (frame: number, low = 0x67, high = 0): bigint =>
  (BigInt(frame) << 12n) | BigInt(low) | (BigInt(high) << 32n);

/** A table in the middle of other memory, and room for its copy in the middle of more. */
function normalise(
  width: GuestWidth,
  level: number,
  entries: ReadonlyMap<number, bigint>,
  standsStill = false,
): { fate: Normalised; entry: (i: number) => bigint; untouched: boolean } {
  const page = new Uint32Array(3072).fill(0xdead_beef);
  page.fill(0, 1024, 2048);
  for (const [i, pte] of entries) {
    page[1024 + 2 * i] = Number(pte & 0xffff_ffffn);
    page[1025 + 2 * i] = Number(pte >> 32n);
  }
  const out = new Uint32Array(4096).fill(0x5a5a_5a5a);
  const fate = normalisePageTable(guest(width), 0x99, level, page, 1024, out, 2048, standsStill);
  return {
    fate,
    entry: (i) => (BigInt(out[2049 + 2 * i]!) << 32n) | BigInt(out[2048 + 2 * i]!),
    untouched:
      out.subarray(0, 2048).every((w) => w === 0x5a5a_5a5a) &&
      out.subarray(3072).every((w) => w === 0x5a5a_5a5a),
  };
}

const kinds: [GuestWidth, number][] = [
  [8, 1],
  [8, 2],
  [8, 3],
  [8, 4],
  [4, 1],
  [4, 2],
  [4, 3],
];

describe.each(kinds)('a table of a guest of %d bytes, level %d', (width, level) => {
  it('gets pfns, keeps all other bits, and lets absent entries be', () => {
    const {
      fate,
      entry: at,
      untouched,
    } = normalise(
      width,
      level,
      new Map([
        [0, entry(MFN)],
        [1, entry(HIGH_MFN, 0xe67 & ~0x80, 0xfff0_0000)],
        [2, entry(0xdead, 0xffe & ~1, 0x8000_0000)],
        [3, entry(0)],
      ]),
    );
    expect(fate).toBe(Normalised.COPIED);
    expect(at(0)).toBe(entry(PFN));
    expect(at(1)).toBe(entry(HIGH_PFN, 0xe67, 0xfff0_0000));
    expect(at(2)).toBe(entry(0xdead, 0xffe, 0x8000_0000));
    expect(at(3)).toBe(entry(0));
    expect(at(511)).toBe(0n);
    expect(untouched).toBe(true);
  });

  it('cannot go while it names a frame of somebody else', () => {
    const foreign = new Map([[3, entry(0x4444)]]);
    expect(normalise(width, level, foreign).fate).toBe(Normalised.NOT_NOW);
    let error: XenMigrationError | undefined;
    try {
      normalise(width, level, foreign, true);
    } catch (caught) {
      error = caught as XenMigrationError;
    }
    expect(error).toMatchObject({
      name: 'GuestError',
      code: 'ERR_XEN_GUEST_PAGE_TABLE',
      message: `entry 3 of the level-${level} table at pfn 0x99: mfn 0x4444 is not in the guest's p2m`,
    });
  });

  it('has no superpages above level 1', () => {
    const large = new Map([[2, entry(MFN, 0xe7)]]);
    if (level === 1) {
      // Bit 7 is PAT there.
      expect(normalise(width, level, large).entry(2)).toBe(entry(PFN, 0xe7));
    } else {
      expect(() => normalise(width, level, large)).toThrow(
        expect.objectContaining({
          code: 'ERR_XEN_GUEST_SUPERPAGE',
          message: `entry 2 of the level-${level} table at pfn 0x99 maps a superpage: cannot migrate`,
        }) as Error,
      );
    }
  });
});

describe('slots that belong to Xen become zero', () => {
  const full = (level: number): ReadonlyMap<number, bigint> =>
    // 428 names the compat M2P as far as it is looked at; elsewhere its frame would be a foreign one.
    new Map(Array.from({ length: 512 }, (_, i) => [i, entry(MFN, level === 1 ? 0x67 : 0x67)]));

  const zeros = (width: GuestWidth, level: number, entries: ReadonlyMap<number, bigint>): number[] => {
    const { entry: at } = normalise(width, level, entries);
    return Array.from({ length: 512 }, (_, i) => i).filter((i) => at(i) === 0n);
  };

  const range = (from: number, to: number): number[] =>
    Array.from({ length: to - from + 1 }, (_, i) => from + i);

  it('64-bit: 256 to 271 of level 4, none elsewhere', () => {
    expect(zeros(8, 4, full(4))).toEqual(range(256, 271));
    for (const level of [1, 2, 3]) expect(zeros(8, level, full(level))).toEqual([]);
  });

  it('64-bit: whatever stands in them', () => {
    const entries = new Map(full(4));
    entries.set(256, entry(0x4444));
    entries.set(271, entry(MFN, 0xe7));
    expect(zeros(8, 4, entries)).toEqual(range(256, 271));
    expect(normalise(8, 4, new Map([[255, entry(0x4444)]])).fate).toBe(Normalised.NOT_NOW);
    expect(normalise(8, 4, new Map([[272, entry(0x4444)]])).fate).toBe(Normalised.NOT_NOW);
  });

  it('32-bit: 4 to 511 of level 3', () => {
    expect(zeros(4, 3, full(3))).toEqual(range(4, 511));
    expect(zeros(4, 1, full(1))).toEqual([]);
  });

  it('32-bit: 428 to 511 of the level-2 table that leads to the M2P', () => {
    expect(zeros(4, 2, full(2))).toEqual([]);
    const last = new Map(full(2));
    last.set(428, entry(COMPAT));
    last.set(500, entry(0x4444));
    expect(zeros(4, 2, last)).toEqual(range(428, 511));
    // The same number in a 64-bit guest is a frame of somebody else.
    expect(normalise(8, 2, last).fate).toBe(Normalised.NOT_NOW);
  });

  it('32-bit: no host without a compat M2P makes one up', () => {
    const page = new Uint32Array(1024);
    const out = new Uint32Array(1024);
    page[856] = 0xffff_f067;
    page[857] = 0xffff_ffff;
    const none = { ...guest(4), compatFirstMfn: INVALID_FRAME };
    expect(normalisePageTable(none, 1, 2, page, 0, out, 0, false)).toBe(Normalised.NOT_NOW);
  });

  it('32-bit guests have no level 4', () => {
    expect(() => normalise(4, 4, new Map())).toThrow(
      expect.objectContaining({ code: 'ERR_XEN_GUEST_PAGE_TABLE' }) as Error,
    );
  });
});
