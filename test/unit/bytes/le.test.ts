import fc from 'fast-check';
import { expect, test } from 'vitest';
import * as le from '../../../lib/bytes/le.js';

const offset = fc.integer({ min: 0, max: 7 });

test('numbers read back as DataView reads them', () => {
  fc.assert(
    fc.property(offset, fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn }), (o, v) => {
      const b = new Uint8Array(24);
      const d = new DataView(b.buffer);
      expect(le.setU64(b, o, v)).toBe(8);
      expect(d.getBigUint64(o, true)).toBe(v);
      expect(le.u64(b, o)).toBe(v);
      expect(le.u32(b, o)).toBe(d.getUint32(o, true));
      expect(le.u16(b, o)).toBe(d.getUint16(o, true));
      expect(le.u32be(b, o)).toBe(d.getUint32(o));
      expect(le.u16be(b, o)).toBe(d.getUint16(o));
      expect(le.u64be(b, o)).toBe(d.getBigUint64(o));
      expect(le.u64n(b, o)).toBe(Number(v >> 32n) * 2 ** 32 + Number(v & 0xffff_ffffn));
      le.setU64be(b, o, v);
      expect(d.getBigUint64(o)).toBe(v);
    }),
  );
});

test('setters write what DataView reads, and nothing beside it', () => {
  fc.assert(
    fc.property(offset, fc.nat(0xffff_ffff), fc.maxSafeNat(), (o, v, big) => {
      const b = new Uint8Array(24).fill(0xa5);
      const d = new DataView(b.buffer);
      le.setU32(b, o, v);
      expect(d.getUint32(o, true)).toBe(v);
      expect(b[o + 4]).toBe(0xa5);
      le.setU32be(b, o, v);
      expect(d.getUint32(o)).toBe(v);
      le.setU16(b, o, v & 0xffff);
      expect(d.getUint16(o, true)).toBe(v & 0xffff);
      le.setU16be(b, o, v & 0xffff);
      expect(d.getUint16(o)).toBe(v & 0xffff);
      le.setU64n(b, o, big);
      expect(d.getBigUint64(o, true)).toBe(BigInt(big));
      expect(b[o + 8]).toBe(0xa5);
    }),
  );
});

test('isZero looks at its range only', () => {
  const b = Uint8Array.of(1, 0, 0, 2);
  expect(le.isZero(b)).toBe(false);
  expect(le.isZero(b, 1, 3)).toBe(true);
  expect(le.isZero(b, 1)).toBe(false);
  expect(le.isZero(b, 2, 2)).toBe(true);
});
