/** Where a simulated HVM or PVH guest has its memory, as Xen's domain builder lays it out. */
import { HvmParam } from '../../abi/hvm.js';
import type { DmaPages } from './device-model.js';
import type { FrameRange } from './pv-types.js';

/** VGA and ROM hole of HVM guests: 640 KiB to 768 KiB. */
const VGA_HOLE: FrameRange = { first: 0xa0, count: 0x20 };
/** RAM below 4 GiB ends here. */
const LOW_END = 0xf_0000;
const HIGH_START = 0x10_0000;
/** Special pages end here (X86_HVM_END_SPECIAL_REGION). */
const SPECIAL_END = 0xf_f000;
const IOREQ_SERVER_PAGES = 8;
/** Buffers that the device model writes to. */
const DMA: DmaPages = { first: 0xc0, count: 8 };

export interface HvmLayout {
  /** All RAM, ascending. */
  readonly ram: readonly FrameRange[];
  /** What is left to the guest's program. */
  readonly program: readonly FrameRange[];
  readonly dma: DmaPages | undefined;
  readonly params: readonly (readonly [index: number, value: bigint])[];
}

export function hvmLayout(type: 'hvm' | 'pvh', pages: number): HvmLayout {
  const hvm = type === 'hvm';
  const special = SPECIAL_END - 8 - (hvm ? IOREQ_SERVER_PAGES : 0);
  const lowEnd = Math.min(pages, LOW_END);
  const lowStart = hvm ? VGA_HOLE.first + VGA_HOLE.count : 0;
  const below: FrameRange[] = hvm ? [{ first: 0, count: VGA_HOLE.first }] : [];
  const high: FrameRange[] = pages > LOW_END ? [{ first: HIGH_START, count: pages - LOW_END }] : [];
  const reserved = hvm ? DMA.count : 0;
  const params: [number, bigint][] = [
    [HvmParam.STORE_PFN, BigInt(SPECIAL_END - 4)],
    [HvmParam.IOREQ_PFN, BigInt(SPECIAL_END - 3)],
    [HvmParam.BUFIOREQ_PFN, BigInt(SPECIAL_END - 5)],
    [HvmParam.PAGING_RING_PFN, BigInt(SPECIAL_END - 8)],
    [HvmParam.MONITOR_RING_PFN, BigInt(SPECIAL_END - 7)],
    [HvmParam.SHARING_RING_PFN, BigInt(SPECIAL_END - 6)],
    [HvmParam.CONSOLE_PFN, BigInt(SPECIAL_END - 1)],
    [HvmParam.IDENT_PT, BigInt(SPECIAL_END - 2) << 12n],
  ];
  if (hvm) {
    params.push([HvmParam.IOREQ_SERVER_PFN, BigInt(special)]);
    params.push([HvmParam.NR_IOREQ_SERVER_PAGES, BigInt(IOREQ_SERVER_PAGES)]);
  }
  return {
    ram: [
      ...below,
      { first: lowStart, count: lowEnd - lowStart },
      { first: special, count: SPECIAL_END - special },
      ...high,
    ],
    program: [...below, { first: lowStart + reserved, count: lowEnd - lowStart - reserved }, ...high],
    dma: hvm ? DMA : undefined,
    params,
  };
}
