import { beforeEach, describe, expect, it } from 'vitest';
import { PageType } from '../../lib/abi/pages.js';
import { HypercallError } from '../../lib/errors.js';
import { MachineMemory } from '../../lib/host/simulated/memory.js';
import { FrameType, PvMmu } from '../../lib/host/simulated/pv-mmu.js';
import { auditTypes, entry, makeDomain, populate, setEntry, type TestDomain } from './pv-helpers.js';

const PRESENT = 1n;
const RW = 2n;
const PSE = 0x80n;
const pte = (mfn: number, flags: bigint): bigint => (BigInt(mfn) << 12n) | flags;

/** A domain with 64 pages and nothing in them. */
class Bench {
  readonly domain: TestDomain;
  readonly mfns: Float64Array;
  readonly mmu: PvMmu;

  constructor(width: 4 | 8, memory = new MachineMemory({ totalPages: 4096, seed: 5 }), domid = 1) {
    this.domain = makeDomain({ memory, domid });
    this.domain.pv.setWidth(width);
    this.mfns = Float64Array.from({ length: 64 }, (_, i) => i);
    populate(memory, domid, this.mfns);
    this.mmu = new PvMmu({ domid, width, frames: memory, markDirty: (pfn) => this.domain.dirty.add(pfn) });
  }

  set(table: number, slot: number, target: number, flags = PRESENT): void {
    setEntry(this.domain.memory, this.mfns[table]!, slot, pte(this.mfns[target]!, flags));
  }

  pin(level: number, page: number): void {
    this.domain.pv.pinTables(Uint8Array.of(level), Float64Array.of(this.mfns[page]!));
  }

  type(page: number): number {
    return this.domain.memory.typeOf(this.mfns[page]!);
  }

  /** 4 → 3 → 2 → 1 → page 10 writable, page 11 read-only. */
  chain(): void {
    this.set(4, 0, 3);
    this.set(3, 0, 2);
    this.set(2, 0, 1);
    this.set(1, 0, 10, PRESENT | RW);
    this.set(1, 1, 11);
  }

  /** A complete 32-bit address space: 3 (level 3), 5 (its last level 2), 2, 1. */
  pae(): void {
    this.set(3, 0, 2);
    this.set(3, 3, 5);
    this.set(2, 0, 1);
    this.set(5, 0, 1);
    this.set(1, 0, 10, PRESENT | RW);
  }
}

describe('page types of a 64-bit guest', () => {
  let b: Bench;
  beforeEach(() => {
    b = new Bench(8);
    b.chain();
  });

  it('a pin gives types to all tables below it, and marks them as written', () => {
    b.pin(4, 4);
    expect([4, 3, 2, 1, 10, 11].map((p) => b.type(p))).toEqual([0xc, 3, 2, 1, 0, 0]);
    expect([...b.domain.dirty].sort()).toEqual([1, 2, 3, 4]);
    expect(b.mmu.typeOf(b.mfns[10]!)).toBe(FrameType.WRITABLE);
    auditTypes(b.domain);
  });

  it('an unpin gives them back; the types stay until another use', () => {
    b.pin(4, 4);
    b.domain.dirty.clear();
    expect(b.mmu.unpin(b.mfns[4]!)).toBe(0);
    expect([...b.domain.dirty].sort()).toEqual([1, 2, 3, 4]);
    expect([4, 3, 2, 1].map((p) => b.type(p))).toEqual([4, 3, 2, 1]);
    expect(b.mmu.get(b.mfns[1]!, FrameType.WRITABLE)).toBe(0);
    expect(b.type(1)).toBe(PageType.NOTAB);
    expect(b.mmu.unpin(b.mfns[4]!)).toBeGreaterThan(0);
    b.mmu.put(b.mfns[1]!);
    auditTypes(b.domain);
  });

  it('fills in the sixteen entries of Xen, whatever was there', () => {
    b.set(4, 256, 20, PRESENT | RW);
    setEntry(b.domain.memory, b.mfns[4]!, 271, 0xffff_ffff_ffff_ffffn);
    b.pin(4, 4);
    for (let slot = 256; slot < 272; slot++) {
      const e = entry(b.domain.memory, b.mfns[4]!, slot);
      expect(e.flags & 1n).toBe(1n);
      if (slot === 258) expect(e.frame).toBe(b.mfns[4]!);
      else expect(b.domain.memory.ownerOf(e.frame)).not.toBe(1);
    }
    expect(entry(b.domain.memory, b.mfns[4]!, 255).raw).toBe(0n);
    expect(entry(b.domain.memory, b.mfns[4]!, 272).raw).toBe(0n);
    auditTypes(b.domain);
  });

  it('counts each use', () => {
    b.set(2, 5, 1);
    b.set(1, 2, 10, PRESENT | RW);
    b.pin(4, 4);
    b.pin(1, 1);
    expect(b.mmu.usesOf(b.mfns[1]!)).toBe(3);
    expect(b.mmu.usesOf(b.mfns[10]!)).toBe(2);
    expect(b.type(1)).toBe(9);
    auditTypes(b.domain);
  });

  it('passes over entries that are not present', () => {
    setEntry(b.domain.memory, b.mfns[2]!, 7, 0xdead_beef_0000_0ffen);
    b.pin(4, 4);
    expect(entry(b.domain.memory, b.mfns[2]!, 7).raw).toBe(0xdead_beef_0000_0ffen);
  });

  const refused: readonly (readonly [string, (b: Bench) => void, RegExp])[] = [
    [
      'a frame that the domain does not have',
      (x) => setEntry(x.domain.memory, x.mfns[1]!, 9, pte(5, 1n)),
      /not a frame/,
    ],
    [
      'a frame number beyond the machine',
      (x) => setEntry(x.domain.memory, x.mfns[3]!, 9, pte(0xff_ffff_ffff, 1n)),
      /not a frame/,
    ],
    ['a superpage', (x) => x.set(2, 9, 20, PRESENT | PSE), /superpage/],
    ['a writable mapping of a page table', (x) => x.set(1, 9, 2, PRESENT | RW), /in use as a level 2 table/],
    ['a table at two levels', (x) => x.set(2, 9, 3), /in use as a level 3 table/],
    ['a table that names itself', (x) => x.set(3, 9, 3), /in use as a level 3 table/],
  ];
  it.each(refused)('refuses %s, and gives back all uses', (_what, spoil, why) => {
    spoil(b);
    expect(() => b.pin(4, 4)).toThrow(why);
    expect([4, 3, 2, 1, 10].map((p) => b.mmu.usesOf(b.mfns[p]!))).toEqual([0, 0, 0, 0, 0]);
    expect(b.type(4)).toBe(0);
    auditTypes(b.domain);
    // What it refused for is all that was wrong.
    for (const [table, slot] of [
      [1, 9],
      [2, 9],
      [3, 9],
    ] as const)
      setEntry(b.domain.memory, b.mfns[table]!, slot, 0n);
    b.pin(4, 4);
    auditTypes(b.domain);
  });

  it('refuses with EINVAL and the name of the hypercall', () => {
    b.set(2, 9, 20, PRESENT | PSE);
    try {
      b.pin(4, 4);
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(HypercallError);
      expect((error as HypercallError).errno).toBe(22);
      expect((error as HypercallError).syscall).toBe('MMUEXT_PIN_L4_TABLE');
    }
  });

  it('refuses a pin at another level, twice, of others, and at no level', () => {
    b.pin(4, 4);
    expect(() => b.pin(3, 4)).toThrow(/in use as a level 4/);
    expect(() => b.pin(4, 4)).toThrow(/pinned already/);
    expect(() => b.pin(0, 20)).toThrow(HypercallError);
    expect(() => b.pin(5, 20)).toThrow(HypercallError);
    const other = new Bench(8, b.domain.memory, 2);
    expect(() => b.domain.pv.pinTables(Uint8Array.of(1), other.mfns.subarray(0, 1))).toThrow(/not a frame/);
    auditTypes(b.domain);
  });

  it('keeps the pins before the one it refuses', () => {
    b.pin(1, 1);
    expect(() => b.domain.pv.pinTables(Uint8Array.of(4, 2), Float64Array.of(b.mfns[4]!, 3))).toThrow();
    expect(b.type(4)).toBe(0xc);
  });

  it('refuses a page that is mapped writable as a table', () => {
    b.set(1, 5, 30, PRESENT | RW);
    b.pin(4, 4);
    expect(() => b.pin(1, 30)).toThrow(/writable memory/);
  });

  it('changes one entry, with the counts, and marks the table', () => {
    b.pin(4, 4);
    b.domain.dirty.clear();
    const set = (slot: number, page: number, flags: number): number => {
      const raw = pte(b.mfns[page]!, BigInt(flags));
      return b.mmu.update(b.mfns[1]!, slot, Number(raw & 0xffff_ffffn), Number(raw >> 32n));
    };
    expect(set(0, 12, 3)).toBe(0);
    expect([...b.domain.dirty]).toEqual([1]);
    expect(b.mmu.usesOf(b.mfns[10]!)).toBe(0);
    expect(b.mmu.usesOf(b.mfns[12]!)).toBe(1);
    expect(set(0, 2, 3)).toBeGreaterThan(0);
    expect(entry(b.domain.memory, b.mfns[1]!, 0).frame).toBe(b.mfns[12]!);
    // The same frame again, then read-only.
    expect(set(0, 12, 3)).toBe(0);
    expect(set(0, 12, 1)).toBe(0);
    expect(b.mmu.usesOf(b.mfns[12]!)).toBe(0);
    expect(b.mmu.update(b.mfns[4]!, 256, 0, 0)).toBeGreaterThan(0);
    expect(b.mmu.update(b.mfns[30]!, 0, 0, 0)).toBeGreaterThan(0);
    // Taking the level 2 entry away releases the level 1 table and all below it.
    expect(b.mmu.update(b.mfns[2]!, 0, 0, 0)).toBe(0);
    expect(b.mmu.usesOf(b.mfns[1]!)).toBe(0);
    auditTypes(b.domain);
  });

  it('forgets types with the frame', () => {
    b.pin(4, 4);
    b.domain.memory.free(b.mfns[4]!);
    const again = new Float64Array(4096);
    const n = b.domain.memory.allocScattered(9, 4096, again);
    const at = again.subarray(0, n).indexOf(b.mfns[4]!);
    expect(at).toBeGreaterThanOrEqual(0);
    expect(b.domain.memory.typeOf(b.mfns[4]!)).toBe(0);
    expect(b.domain.memory.typeInfoOf(b.mfns[4]!)).toBe(0);
  });
});

describe('page types of a 32-bit guest', () => {
  let b: Bench;
  beforeEach(() => {
    b = new Bench(4);
    b.pae();
  });

  it('validates a level 3 table with four entries, and clears the rest', () => {
    for (let slot = 4; slot < 512; slot++)
      setEntry(b.domain.memory, b.mfns[3]!, slot, 0xffff_ffff_ffff_ffffn);
    b.pin(3, 3);
    expect([3, 5, 2, 1].map((p) => b.type(p))).toEqual([0xb, 2, 2, 1]);
    for (let slot = 4; slot < 512; slot++) expect(entry(b.domain.memory, b.mfns[3]!, slot).raw).toBe(0n);
    auditTypes(b.domain);
  });

  it('ends the last level 2 table in the compat M2P, and no other', () => {
    setEntry(b.domain.memory, b.mfns[5]!, 428, 0xffff_ffff_ffff_ffffn);
    b.set(2, 428, 1);
    b.pin(3, 3);
    const first = entry(b.domain.memory, b.mfns[5]!, 428);
    expect(first.frame).toBe(b.domain.memory.compatM2pMfn);
    expect(first.flags & (PSE | RW | PRESENT)).toBe(PSE | PRESENT);
    expect(entry(b.domain.memory, b.mfns[2]!, 428).frame).toBe(b.mfns[1]!);
    expect(b.mmu.update(b.mfns[5]!, 428, 0, 0)).toBeGreaterThan(0);
    expect(b.mmu.update(b.mfns[2]!, 428, 0, 0)).toBe(0);
    expect(b.mmu.update(b.mfns[3]!, 3, 0, 0)).toBeGreaterThan(0);
    expect(b.mmu.update(b.mfns[3]!, 4, 0, 0)).toBeGreaterThan(0);
    expect(b.mmu.update(b.mfns[3]!, 0, 0, 0)).toBe(0);
    auditTypes(b.domain);
  });

  it('refuses a level 3 table without its last entry', () => {
    setEntry(b.domain.memory, b.mfns[3]!, 3, 0n);
    expect(() => b.pin(3, 3)).toThrow(/without its last entry/);
    auditTypes(b.domain);
  });

  it('refuses to share the last level 2 table', () => {
    b.set(6, 3, 5);
    b.pin(3, 3);
    expect(() => b.pin(3, 6)).toThrow(/two address spaces/);
    auditTypes(b.domain);
  });

  it('refuses the last level 2 table in another place', () => {
    b.set(3, 1, 5);
    expect(() => b.pin(3, 3)).toThrow(/in use as a level 2 table/);
    auditTypes(b.domain);
  });

  it('knows no level 4', () => {
    expect(() => b.pin(4, 3)).toThrow(/cannot be pinned at level 4/);
  });
});
