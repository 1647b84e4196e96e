/**
 * The device model of a simulated HVM guest. It does DMA while the guest runs, and tells the hypervisor which pages it
 * wrote only while its own log-dirty is on, as QEMU does: a migration that forgets to switch it on loses these writes,
 * and `check` finds them missing. The state of a real QEMU is kept as it came.
 *
 * Its own state:
 *
 *     off  size  field
 *       0     4  magic
 *       4     4  first pfn of the DMA pages
 *       8     4  DMA pages
 *      12     4  writes so far; write n went to page n % pages
 *      16  2032  seeded filling, so that the blob has some size
 */
import { setU32, u32 } from '../../bytes/le.js';
import type { DeviceModelState } from '../../toolstack/toolstack.js';
import { INVALID_FRAME } from '../host.js';
import type { DomainState } from './domain-state.js';
import type { CheckResult } from './guest/program.js';
import { mix32, Xoshiro } from './prng.js';

const MAGIC = 0x444d_4d58; // "XMMD"
const STATE_SIZE = 2048;
const STATE_FIELDS = 16;
/** LIBXL's number of an upstream QEMU. */
const EMULATOR_QEMU = 2;
const DMA_INTERVAL_MS = 10;
const PAGE_WORDS = 1024;

/** Where the device model of a new guest has its DMA buffers. */
export interface DmaPages {
  readonly first: number;
  readonly count: number;
}

function fillDma(words: Uint32Array, write: number): void {
  for (let i = 0; i < PAGE_WORDS; i++) words[i] = mix32(write + i);
  words[0] = write;
}

function xenstoreOf(pairs: readonly (readonly [string, string])[]): Uint8Array {
  return new TextEncoder().encode(pairs.map(([key, value]) => `${key}\0${value}\0`).join(''));
}

export class SimulatedDeviceModel {
  /** Whether it tells the hypervisor about its writes. */
  logDirty = false;
  readonly #domain: DomainState;
  #state: DeviceModelState;
  /** Undefined for the state of a device model that is not this one. */
  #dma: DmaPages | undefined;
  #writes = 0;
  #timer: NodeJS.Timeout | undefined;

  /** @internal Made by its host. */
  constructor(domain: DomainState, dma: DmaPages | undefined) {
    this.#domain = domain;
    this.#dma = dma;
    this.#state = {
      emulator: EMULATOR_QEMU,
      xenstore: xenstoreOf([
        ['physmap/f0000000/start_addr', 'f0000000'],
        ['physmap/f0000000/size', '800000'],
        ['physmap/f0000000/name', 'vga.vram'],
      ]),
      context: this.#encode(),
    };
  }

  get running(): boolean {
    return this.#timer !== undefined;
  }

  /** DMA writes so far. */
  get writes(): number {
    return this.#writes;
  }

  /** QMP cont. */
  start(): void {
    if (this.#timer !== undefined) return;
    this.#timer = setInterval(() => this.#write(), DMA_INTERVAL_MS);
    this.#timer.unref();
  }

  /** QMP stop, and its state saved. */
  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    if (this.#dma !== undefined) this.#state = { ...this.#state, context: this.#encode() };
  }

  /** A copy. Of a stopped device model. */
  state(): DeviceModelState {
    const { emulator, xenstore, context } = this.#state;
    return { emulator, xenstore: xenstore.slice(), context: context.slice() };
  }

  load(state: DeviceModelState): void {
    const { emulator, xenstore, context } = state;
    this.#state = { emulator, xenstore: xenstore.slice(), context: context.slice() };
    const own = context.length === STATE_SIZE && u32(context, 0) === MAGIC;
    this.#dma = own ? { first: u32(context, 4), count: u32(context, 8) } : undefined;
    this.#writes = own ? u32(context, 12) : 0;
  }

  /** Compares the DMA pages with what was written to them. Undefined if all are right. */
  check(): CheckResult['firstError'] {
    const dma = this.#dma;
    if (dma === undefined) return undefined;
    const expected = new Uint32Array(PAGE_WORDS);
    for (let k = 0; k < dma.count; k++) {
      const pfn = dma.first + k;
      // The last write that went to page k; 0 is none.
      const write = this.#writes - ((this.#writes - k + dma.count) % dma.count);
      if (write > 0) fillDma(expected, write);
      else expected.fill(0);
      const mfn = this.#domain.mfnOf(pfn);
      if (mfn === INVALID_FRAME) return { pfn, kind: 'dma' };
      const words = this.#domain.memory.pageWords(mfn);
      if (!words.every((word, i) => word === expected[i])) return { pfn, kind: 'dma' };
    }
    return undefined;
  }

  #write(): void {
    const dma = this.#dma;
    if (dma === undefined) return;
    const write = this.#writes + 1;
    const pfn = dma.first + (write % dma.count);
    const mfn = this.#domain.mfnOf(pfn);
    if (mfn === INVALID_FRAME) return;
    fillDma(this.#domain.memory.pageWords(mfn), write);
    this.#writes = write;
    if (this.logDirty) this.#domain.logDirty.mark(pfn);
  }

  #encode(): Uint8Array {
    const context = new Uint8Array(STATE_SIZE);
    setU32(context, 0, MAGIC);
    setU32(context, 4, this.#dma?.first ?? 0);
    setU32(context, 8, this.#dma?.count ?? 0);
    setU32(context, 12, this.#writes);
    const rng = new Xoshiro(this.#domain.seed);
    for (let at = STATE_FIELDS; at < STATE_SIZE; at += 4) setU32(context, at, rng.next());
    return context;
  }
}
