import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it } from 'vitest';
import { LogDirty } from '../../lib/host/simulated/log-dirty.js';
import { SimulatedHost, type SimulatedGuest } from '../../lib/testing.js';
import { until } from './move-guest.js';

const hosts: SimulatedHost[] = [];

afterEach(async () => {
  await Promise.all(hosts.splice(0).map((host) => host.close()));
});

/** A copy of the guest's memory by pfn. */
class Shadow {
  readonly #pages = new Map<number, Uint8Array>();
  readonly #guest: SimulatedGuest;
  readonly #mfns = new Map<number, number>();

  constructor(guest: SimulatedGuest) {
    this.#guest = guest;
    guest.state.forEachPage((pfn, mfn) => {
      this.#mfns.set(pfn, mfn);
      this.#pages.set(pfn, new Uint8Array(4096));
    });
  }

  get pfns(): number[] {
    return [...this.#pages.keys()];
  }

  copy(pfn: number): void {
    this.#pages.get(pfn)?.set(this.#guest.state.memory.page(this.#mfns.get(pfn)!));
  }

  /** pfns whose page is not what the copy says. */
  differences(): number[] {
    const out: number[] = [];
    for (const [pfn, bytes] of this.#pages) {
      if (Buffer.compare(bytes, this.#guest.state.memory.page(this.#mfns.get(pfn)!)) !== 0) out.push(pfn);
    }
    return out;
  }
}

/**
 * Copies a guest's memory while the guest writes to it as fast as it can, by the dirty bitmap alone. `lose` drops the
 * first mark.
 */
async function follow(
  guest: SimulatedGuest,
  host: SimulatedHost,
  rounds: number,
  lose: boolean,
): Promise<number[]> {
  const domain = await host.openDomain(guest.domid);
  const n = (await domain.maxGpfn()) + 1;
  const bitmap = new Uint32Array(Math.ceil(n / 32));
  await domain.enableLogDirty();
  const shadow = new Shadow(guest);
  let todo = shadow.pfns;
  for (let round = 0; round <= rounds; round++) {
    const last = round === rounds;
    for (const pfn of todo) shadow.copy(pfn);
    // The guest writes after what was copied, and before the marks are taken.
    const { steps } = guest.stats();
    await until(() => guest.stats().steps > steps + 128);
    if (last) await host.toolstack.suspend(guest.domid, { live: true });
    await domain.logDirty('clean', bitmap, n, last);
    todo = [];
    for (let pfn = 0; pfn < n; pfn++) {
      if (((bitmap[pfn >>> 5]! >>> (pfn & 31)) & 1) === 0) continue;
      if (!lose || todo.length > 0) todo.push(pfn);
      else lose = false;
    }
    if (last) for (const pfn of todo) shadow.copy(pfn);
  }
  expect((await domain.logDirty('peek', bitmap, n)).dirtyCount).toBe(0);
  await domain.disableLogDirty();
  return shadow.differences();
}

/** Marks 128 pages in turn, each again as soon as its mark was taken. */
const marker = `
  const { workerData, parentPort } = require('node:worker_threads');
  const { bitmap, marks } = workerData;
  for (let n = 0; n < marks; n++) {
    const bit = 1 << (n & 31);
    const word = (n >>> 5) & 3;
    while ((Atomics.load(bitmap, word) & bit) !== 0);
    Atomics.or(bitmap, word, bit);
  }
  parentPort.postMessage('done');`;

describe('the bitmap', () => {
  it('loses no mark between two threads', async () => {
    const marks = 40_000;
    const log = new LogDirty(128, 1);
    log.enable();
    const worker = new Worker(marker, { eval: true, workerData: { bitmap: log.bitmap, marks } });
    let done = false;
    worker.once('message', () => (done = true));
    const bitmap = new Uint32Array(4);
    let taken = 0;
    while (!done) {
      for (let i = 0; i < 1000; i++) taken += log.read('clean', bitmap, 128, false).dirtyCount;
      await new Promise((resolve) => setImmediate(resolve));
    }
    taken += log.read('clean', bitmap, 128, false).dirtyCount;
    expect(taken).toBe(marks);
  });
});

describe('every page that a guest writes is marked', () => {
  for (const kind of ['pvh', 'pv', 'pv32'] as const) {
    for (const workload of ['uniform', 'hot-set', 'sweep'] as const) {
      it(`${kind}, ${workload}, at full speed`, async () => {
        const host = new SimulatedHost({ seed: 21, memory: 128 << 20 });
        hosts.push(host);
        const guest = await host.createGuest({
          kind,
          memory: 8 << 20,
          workload: { kind: workload, rate: Infinity, hotPages: 20 },
        });
        for (let turn = 0; turn < 3; turn++) {
          const { steps } = guest.stats();
          await until(() => guest.stats().steps > steps + 100);
          expect(await follow(guest, host, 20, false)).toEqual([]);
          await host.toolstack.resume(guest.domid);
        }
        expect((await guest.check()).errors).toBe(0);
      });
    }
  }

  it('and a lost mark would show', async () => {
    const host = new SimulatedHost({ seed: 21, memory: 128 << 20 });
    hosts.push(host);
    const guest = await host.createGuest({ memory: 8 << 20, workload: { kind: 'hot-set', rate: Infinity } });
    await until(() => guest.stats().steps > 100);
    // One round, and one mark of it lost: the ledger's first page, or the first page of the hot set.
    expect((await follow(guest, host, 0, true)).length).toBe(1);
  });
});
