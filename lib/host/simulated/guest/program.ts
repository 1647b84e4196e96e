/**
 * The program that a simulated guest runs: it writes pages by its workload, and with each write it proves that the
 * page was what it had left there. A ledger in guest memory holds the generation of each data page; the registers
 * hold the number of steps. The sum of all generations, the ledger and the pages have to agree, so a migration that
 * loses a write is found out even if it loses it consistently.
 */
import { mix32, Xoshiro } from '../prng.js';
import type { FrameRange } from '../pv-types.js';
import { ENTRIES_PER_PAGE, MAX_RANGES, readBootPage, writeBootPage, type BootPage } from './boot-page.js';
import type { GuestMemory } from './guest-memory.js';
import { isZeroPage, rewritePage, verifyPage, writePage } from './page-content.js';
import { guestFaults, type GuestFault, type Registers } from './registers.js';
import { DEFAULT_RATE, type Workload } from './workload.js';

/** What a full sweep over the guest's memory found. */
export interface CheckResult {
  /** Pages looked at. */
  readonly pagesChecked: number;
  /** Wrong pages now, and those that the workload came across before. */
  readonly errors: number;
  /** Page writes of the workload since the guest was made. */
  readonly steps: number;
  readonly firstError?: { readonly pfn: number; readonly kind: GuestFault } | undefined;
}

/** The kernel under the program, where there is one: PV guests. */
export interface ProgramKernel {
  /** Its work between `every` steps of the program. Returns what it found wrong. */
  tick(): { readonly pfn: number; readonly kind: GuestFault } | undefined;
  /** Steps between two ticks. */
  readonly every: number;
  /** Looks at all that is the kernel's, changing nothing. */
  check(): {
    readonly faults: number;
    readonly first: { readonly pfn: number; readonly kind: GuestFault } | undefined;
  };
}

/** Pages of a region of a guest that its program finds at index `first`. */
function pagesFor(entries: number): number {
  return Math.ceil(entries / ENTRIES_PER_PAGE);
}

function traceSum(sum: number, entry: number): number {
  return mix32(sum ^ entry);
}

/** Lays a program out over the pages that a guest has for it. */
export function planProgram(ranges: readonly FrameRange[], workload: Workload, seed: number): BootPage {
  const kept = ranges.filter((range) => range.count > 0).slice(0, MAX_RANGES);
  const total = kept.reduce((sum, range) => sum + range.count, 0);
  const trace = workload.kind === 'trace' ? (workload.trace ?? new Uint32Array(0)) : new Uint32Array(0);
  const tracePages = pagesFor(trace.length);
  const filled = Math.min(1, Math.max(0, workload.filled ?? 0.5));
  let dataPages = Math.floor(total * filled);
  while (dataPages > 0 && 1 + pagesFor(dataPages) + tracePages + dataPages > total) dataPages--;
  if (total < 1 + tracePages) throw new RangeError('the guest is too small for its program');
  const ledgerPages = pagesFor(dataPages);
  const dataFirst = 1 + ledgerPages + tracePages;
  const rate = workload.rate ?? DEFAULT_RATE;
  return {
    seed: mix32(seed),
    workload: dataPages === 0 || (workload.kind === 'trace' && trace.length === 0) ? 'idle' : workload.kind,
    rate: rate === Infinity ? 0 : Math.max(1, Math.floor(rate)),
    maxSteps: workload.maxSteps ?? 0,
    hotPages: Math.max(1, Math.min(dataPages, workload.hotPages ?? Math.ceil(dataPages / 64))),
    hotPercent: workload.hotPercent ?? 95,
    ledgerFirst: 1,
    traceFirst: 1 + ledgerPages,
    traceEntries: trace.length,
    traceSum: trace.reduce(traceSum, 0),
    dataFirst,
    dataPages,
    idlePages: total - dataFirst - dataPages,
    ranges: kept,
  };
}

export class GuestProgram {
  readonly boot: BootPage;
  readonly #memory: GuestMemory;
  readonly #kernel: ProgramKernel | undefined;
  readonly #bootPfn: number;
  readonly #rng: Xoshiro;
  #step: number;
  #errors: number;
  #firstErrorPfn: number;
  #firstErrorKind: number;

  private constructor(
    memory: GuestMemory,
    kernel: ProgramKernel | undefined,
    boot: BootPage,
    registers: Registers,
  ) {
    this.#memory = memory;
    this.#kernel = kernel;
    this.boot = boot;
    this.#bootPfn = registers.bootPfn;
    this.#rng = new Xoshiro(0);
    this.#rng.state.set(registers.rng);
    this.#step = registers.step;
    this.#errors = registers.errors;
    this.#firstErrorPfn = registers.firstErrorPfn;
    this.#firstErrorKind = registers.firstErrorKind;
  }

  /** Writes a new program with its data into empty guest memory. */
  static create(
    memory: GuestMemory,
    kernel: ProgramKernel | undefined,
    boot: BootPage,
    trace: Uint32Array | undefined,
  ): GuestProgram {
    const bootPfn = boot.ranges[0]?.first ?? 0;
    const words = memory.locate(bootPfn);
    writeBootPage(words, memory.at, boot);
    memory.markDirty(bootPfn);
    const program = new GuestProgram(memory, kernel, boot, {
      bootPfn,
      step: 0,
      rng: new Xoshiro(boot.seed).state,
      errors: 0,
      firstErrorPfn: 0,
      firstErrorKind: 0,
    });
    program.#fill(trace);
    return program;
  }

  /** Goes on where the registers say. Undefined if the boot page is not there: the guest cannot run. */
  static resume(
    memory: GuestMemory,
    kernel: ProgramKernel | undefined,
    registers: Registers,
  ): GuestProgram | undefined {
    const words = memory.locate(registers.bootPfn);
    const boot = readBootPage(words, memory.at);
    return boot === undefined ? undefined : new GuestProgram(memory, kernel, boot, registers);
  }

  get steps(): number {
    return this.#step;
  }

  get errors(): number {
    return this.#errors;
  }

  registers(): Registers {
    return {
      bootPfn: this.#bootPfn,
      step: this.#step,
      rng: this.#rng.state.slice(),
      errors: this.#errors,
      firstErrorPfn: this.#firstErrorPfn,
      firstErrorKind: this.#firstErrorKind,
    };
  }

  /** Steps that the workload still wants to do: 0 when it rests or is idle. */
  get appetite(): number {
    if (this.boot.workload === 'idle') return 0;
    return this.boot.maxSteps === 0 ? Infinity : Math.max(0, this.boot.maxSteps - this.#step);
  }

  /** Does `n` steps, or fewer if the workload rests before. */
  run(n: number): void {
    const end = this.#step + Math.min(n, this.appetite);
    while (this.#step < end) this.#write(this.#pick());
  }

  /** Looks at every page of the program, changing nothing. */
  check(): CheckResult {
    const { boot } = this;
    const memory = this.#memory;
    let errors = this.#errors;
    let first = this.#firstError();
    let pages = 1;
    const fail = (pfn: number, kind: GuestFault): void => {
      errors++;
      first ??= { pfn, kind };
    };
    if (readBootPage(memory.locate(this.#bootPfn), memory.at) === undefined) fail(this.#bootPfn, 'boot-page');
    let writes = 0;
    for (let d = 0; d < boot.dataPages; d++) {
      const generation = this.#generation(d);
      writes += generation - 1;
      const pfn = this.#pfnOf(boot.dataFirst + d);
      const fault = verifyPage(memory.locate(pfn), memory.at, boot.seed, pfn, generation);
      if (fault !== undefined) fail(pfn, fault);
    }
    pages += boot.dataFirst - 1 + boot.dataPages;
    if (writes !== this.#step) fail(this.#pfnOf(boot.ledgerFirst), 'ledger');
    let sum = 0;
    for (let i = 0; i < boot.traceEntries; i++) sum = traceSum(sum, this.#traceEntry(i));
    if (sum !== boot.traceSum) fail(this.#pfnOf(boot.traceFirst), 'contents');
    for (let i = 0; i < boot.idlePages; i++) {
      const pfn = this.#pfnOf(boot.dataFirst + boot.dataPages + i);
      if (!isZeroPage(memory.locate(pfn), memory.at)) fail(pfn, 'not-zero');
    }
    pages += boot.idlePages;
    const kernel = this.#kernel?.check();
    errors += kernel?.faults ?? 0;
    first ??= kernel?.first;
    return { pagesChecked: pages, errors, steps: this.#step, firstError: first };
  }

  #firstError(): { pfn: number; kind: GuestFault } | undefined {
    const kind = guestFaults[this.#firstErrorKind - 1];
    return kind === undefined ? undefined : { pfn: this.#firstErrorPfn, kind };
  }

  /** pfn of the program's page `index`. */
  #pfnOf(index: number): number {
    for (const range of this.boot.ranges) {
      if (index < range.count) return range.first + index;
      index -= range.count;
    }
    throw new RangeError('page index out of the guest');
  }

  #generation(d: number): number {
    const words = this.#memory.locate(this.#pfnOf(this.boot.ledgerFirst + Math.floor(d / ENTRIES_PER_PAGE)));
    return words[this.#memory.at + (d % ENTRIES_PER_PAGE)] as number;
  }

  #traceEntry(i: number): number {
    const words = this.#memory.locate(this.#pfnOf(this.boot.traceFirst + Math.floor(i / ENTRIES_PER_PAGE)));
    return words[this.#memory.at + (i % ENTRIES_PER_PAGE)] as number;
  }

  #pick(): number {
    const { boot } = this;
    switch (boot.workload) {
      case 'sweep':
        return this.#step % boot.dataPages;
      case 'trace':
        return this.#traceEntry(this.#step % boot.traceEntries) % boot.dataPages;
      case 'hot-set':
        return this.#rng.below(100) < boot.hotPercent
          ? this.#rng.below(boot.hotPages)
          : this.#rng.below(boot.dataPages);
      case 'uniform':
      case 'idle':
        return this.#rng.below(boot.dataPages);
    }
  }

  #write(d: number): void {
    const { boot } = this;
    const memory = this.#memory;
    const ledgerPfn = this.#pfnOf(boot.ledgerFirst + Math.floor(d / ENTRIES_PER_PAGE));
    const ledger = memory.locate(ledgerPfn);
    const entry = memory.at + (d % ENTRIES_PER_PAGE);
    const generation = ledger[entry] as number;
    const pfn = this.#pfnOf(boot.dataFirst + d);
    const fault = rewritePage(memory.locate(pfn), memory.at, boot.seed, pfn, generation);
    ledger[entry] = generation + 1;
    memory.markDirty(pfn);
    memory.markDirty(ledgerPfn);
    this.#step++;
    if (fault !== undefined) this.#remember(pfn, fault);
    const kernel = this.#kernel;
    if (kernel === undefined || this.#step % kernel.every !== 0) return;
    const noticed = kernel.tick();
    if (noticed !== undefined) this.#remember(noticed.pfn, noticed.kind);
  }

  #remember(pfn: number, fault: GuestFault): void {
    if (this.#errors++ > 0) return;
    this.#firstErrorPfn = Math.max(0, pfn);
    this.#firstErrorKind = guestFaults.indexOf(fault) + 1;
  }

  #fill(trace: Uint32Array | undefined): void {
    const { boot } = this;
    const memory = this.#memory;
    for (let p = 0; p < pagesFor(boot.traceEntries); p++) {
      const pfn = this.#pfnOf(boot.traceFirst + p);
      const words = memory.locate(pfn);
      const part = trace?.subarray(p * ENTRIES_PER_PAGE, (p + 1) * ENTRIES_PER_PAGE);
      if (part !== undefined) words.set(part, memory.at);
      memory.markDirty(pfn);
    }
    for (let p = 0; p < pagesFor(boot.dataPages); p++) {
      const pfn = this.#pfnOf(boot.ledgerFirst + p);
      const words = memory.locate(pfn);
      const entries = Math.min(ENTRIES_PER_PAGE, boot.dataPages - p * ENTRIES_PER_PAGE);
      words.fill(1, memory.at, memory.at + entries);
      memory.markDirty(pfn);
    }
    for (let d = 0; d < boot.dataPages; d++) {
      const pfn = this.#pfnOf(boot.dataFirst + d);
      writePage(memory.locate(pfn), memory.at, boot.seed, pfn, 1);
      memory.markDirty(pfn);
    }
  }
}
