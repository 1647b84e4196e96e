import { describe, expect, it } from 'vitest';
import { OWNER_NONE, REGION_FRAMES } from '../../lib/host/simulated/machine-frames.js';
import { MachineMemory } from '../../lib/host/simulated/memory.js';
import { INVALID_FRAME } from '../../lib/host/host.js';

describe('machine memory', () => {
  it('gives runs of frames side by side, zeroed, with their owner', () => {
    const memory = new MachineMemory({ totalPages: 4 * REGION_FRAMES, seed: 3 });
    const out = new Float64Array(1024);
    for (let batch = 0; batch < 20; batch++) {
      expect(memory.allocRun(7, 1024, out)).toBe(1024);
      for (let i = 1; i < 1024; i++) expect(out[i]).toBe(out[0]! + i);
      expect(memory.regionOf(out[0]!)).toBe(memory.regionOf(out[1023]!));
      expect(memory.ownerOf(out[5]!)).toBe(7);
      expect(memory.pfnOf(out[5]!)).toBe(INVALID_FRAME);
      expect(memory.page(out[1023]!).every((b) => b === 0)).toBe(true);
    }
    expect(memory.freePages).toBe(4 * REGION_FRAMES - 20 * 1024);
  });

  it('scatters by its seed: repeatable, different for another seed, each frame once', () => {
    const take = (seed: number) => {
      const memory = new MachineMemory({ totalPages: 2 * REGION_FRAMES, seed, baseMfn: 0x200_0000 });
      const out = new Float64Array(5000);
      expect(memory.allocScattered(1, 5000, out)).toBe(5000);
      return out;
    };
    const a = take(1);
    expect(take(1)).toEqual(a);
    expect(take(2)).not.toEqual(a);
    expect(new Set(a).size).toBe(5000);
    let neighbours = 0;
    for (let i = 1; i < a.length; i++) if (a[i] === a[i - 1]! + 1) neighbours++;
    expect(neighbours).toBeLessThan(20);
  });

  it('gives out every frame once and no more, runs and scattered mixed', () => {
    const total = REGION_FRAMES + 300;
    const memory = new MachineMemory({ totalPages: total, seed: 5 });
    const seen = new Set<number>();
    const out = new Float64Array(700);
    let got = 0;
    for (let round = 0; ; round++) {
      const n = round % 3 === 0 ? memory.allocRun(1, 700, out) : memory.allocScattered(1, 300, out);
      for (let i = 0; i < n; i++) {
        expect(memory.has(out[i]!)).toBe(true);
        seen.add(out[i]!);
      }
      got += n;
      if (n === 0) break;
    }
    expect(got).toBe(total);
    expect(seen.size).toBe(total);
    expect(memory.freePages).toBe(0);
    expect(memory.allocSuperpage(1)).toBe(INVALID_FRAME);
  });

  it('scrubs a frame before another domain gets it', () => {
    const memory = new MachineMemory({ totalPages: 64, seed: 1 });
    const out = new Float64Array(64);
    memory.allocRun(1, 64, out);
    for (let i = 0; i < 64; i++) memory.page(out[i]!).fill(0xaa);
    memory.setM2p(out[3]!, 99);
    memory.setType(out[3]!, 9);
    for (let i = 0; i < 63; i++) memory.free(out[i]!);
    expect(memory.ownerOf(out[3]!)).toBe(OWNER_NONE);
    expect(memory.pfnOf(out[3]!)).toBe(INVALID_FRAME);
    const again = new Float64Array(63);
    expect(memory.allocScattered(2, 64, again)).toBe(63);
    for (let i = 0; i < 63; i++) {
      expect(memory.page(again[i]!).every((b) => b === 0)).toBe(true);
      expect(memory.typeOf(again[i]!)).toBe(0);
    }
    expect(memory.page(out[63]!)[0]).toBe(0xaa);
  });

  it('uses the memory of an empty region again, and gives it back when asked to', () => {
    const memory = new MachineMemory({ totalPages: 2 * REGION_FRAMES, seed: 1 });
    const out = new Float64Array(100);
    memory.allocRun(1, 100, out);
    const region = memory.regions[0]!;
    expect(region.length).toBe(REGION_FRAMES * 4096);
    memory.page(out[5]!).fill(1);
    const first = out[0];
    for (const mfn of out) memory.free(mfn);
    expect(memory.freePages).toBe(2 * REGION_FRAMES);
    expect(memory.allocRun(1, 100, out)).toBe(100);
    expect(out[0]).toBe(first);
    expect(memory.regions[0]).toBe(region);
    expect(memory.page(out[5]!).every((b) => b === 0)).toBe(true);
    memory.trim();
    expect(memory.regions[0]).toBe(region);
    for (const mfn of out) memory.free(mfn);
    memory.trim();
    expect(memory.regions[0]!.length).toBe(0);
    expect(memory.allocRun(1, 1, out)).toBe(1);
  });

  it('aligns superpages', () => {
    const memory = new MachineMemory({ totalPages: 4096, seed: 1 });
    const out = new Float64Array(1);
    memory.allocRun(1, 1, out);
    const mfn = memory.allocSuperpage(1);
    expect((mfn - memory.baseMfn) % 512).toBe(0);
    expect(mfn).not.toBe(out[0]);
    expect(memory.freePages).toBe(4096 - 513);
  });

  it('finds free runs between used frames', () => {
    const memory = new MachineMemory({ totalPages: 1024, seed: 1 });
    const all = new Float64Array(1024);
    expect(memory.allocRun(1, 1024, all)).toBe(1024);
    for (let i = 100; i < 200; i++) memory.free(all[i]!);
    const out = new Float64Array(100);
    expect(memory.allocRun(2, 80, out)).toBe(80);
    expect(out[0]).toBe(all[100]);
    expect(memory.allocRun(2, 50, out)).toBe(20);
    const owned: number[] = [];
    memory.forEachOwned(2, (mfn) => owned.push(mfn));
    expect(owned).toEqual(Array.from(all.subarray(100, 200)));
  });
});
