import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  isKnownPageType,
  pageTableLevel,
  pageTypeHasData,
  pageTypeName,
  pageTypeNeedsMemory,
} from '../../../lib/abi/pages.js';
import { cr3ToFrame, frameToCr3 } from '../../../lib/abi/pv.js';

test('a 64-bit CR3 is the frame shifted, a 32-bit one is rotated so that 20 bits are enough for 4 KiB alignment', () => {
  expect(frameToCr3(0x12345, 8)).toBe(0x1234_5000n);
  expect(frameToCr3(0x12345, 4)).toBe(0x1234_5000n);
  // frames from 4 GiB on: the high bits come in at the bottom
  expect(frameToCr3(0x100000, 4)).toBe(1n);
  expect(frameToCr3(0x1abcde, 4)).toBe(0xabcd_e001n);
  fc.assert(fc.property(fc.nat(0xffff_ffff), (frame) => cr3ToFrame(frameToCr3(frame, 4), 4) === frame));
  fc.assert(fc.property(fc.nat(0xff_ffff_ffff), (frame) => cr3ToFrame(frameToCr3(frame, 8), 8) === frame));
});

test('page types: which exist, which carry data, which are populated', () => {
  const all = Array.from({ length: 16 }, (_, i) => i);
  expect(all.filter((t) => !isKnownPageType(t))).toEqual([5, 6, 7, 8]);
  expect(all.filter((t) => isKnownPageType(t) && pageTypeHasData(t))).toEqual([0, 1, 2, 3, 4, 9, 10, 11, 12]);
  expect(all.filter((t) => isKnownPageType(t) && pageTypeNeedsMemory(t))).toEqual([
    0, 1, 2, 3, 4, 9, 10, 11, 12, 14,
  ]);
  expect(all.map(pageTableLevel)).toEqual([0, 1, 2, 3, 4, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0]);
  expect([0, 4, 9, 13, 14, 15, 6].map(pageTypeName)).toEqual([
    'NOTAB',
    'L4TAB',
    'L1TAB|PINNED',
    'BROKEN',
    'XALLOC',
    'XTAB',
    'unknown (0x6)',
  ]);
});
