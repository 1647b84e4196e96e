import { afterEach, describe, expect, it } from 'vitest';
import { u16, u32 } from '../../lib/bytes/le.js';
import { ShutdownReason } from '../../lib/host/host.js';
import { Pace } from '../../lib/host/simulated/guest/pace.js';
import {
  SimulatedHost,
  type CreateGuestOptions,
  type SimulatedGuest,
  type Workload,
} from '../../lib/testing.js';
import { digest, putGuest, takeGuest, until, type Image, type MoveOptions } from './move-guest.js';

const hosts: SimulatedHost[] = [];

function newHost(seed: number): SimulatedHost {
  const host = new SimulatedHost({ seed, memory: 1 << 30 });
  hosts.push(host);
  return host;
}

afterEach(async () => {
  await Promise.all(hosts.splice(0).map((host) => host.close()));
});

const MEMORY = 8 << 20;
/** First word of a page under a workload. */
const DATA_MARK = 0x4547_4150;

async function pair(
  options: CreateGuestOptions,
): Promise<{ source: SimulatedHost; destination: SimulatedHost; guest: SimulatedGuest }> {
  const source = newHost(1);
  const destination = newHost(2);
  return { source, destination, guest: await source.createGuest({ memory: MEMORY, ...options }) };
}

/** Moves a guest, tampered with on the way, and runs it on the other side. */
async function move(
  options: CreateGuestOptions & MoveOptions,
  tamper: (image: Image, guest: SimulatedGuest) => void = () => undefined,
): Promise<SimulatedGuest> {
  const { source, destination, guest } = await pair(options);
  await until(() => guest.stats().steps > 50 || options.workload?.kind === 'idle');
  const image = await takeGuest(source, guest.domid, options);
  tamper(image, guest);
  const domid = await putGuest(destination, image);
  await source.toolstack.destroy(guest.domid);
  await destination.toolstack.unpause(domid);
  return destination.guest(domid);
}

function memoryDigest(guest: SimulatedGuest): string {
  const pages: [number, Uint8Array][] = [];
  guest.state.forEachPage((pfn) => pages.push([pfn, guest.state.page(pfn)]));
  return digest(pages);
}

/** First pfn of the guest whose page begins with the mark of data pages, from `from` on. */
function dataPage(image: Image, from = 0): number {
  for (const [pfn, bytes] of [...image.pages].sort(([a], [b]) => a - b)) {
    if (pfn >= from && u32(bytes, 0) === DATA_MARK) return pfn;
  }
  throw new Error('no data page');
}

const workloads: Workload[] = [
  { kind: 'idle' },
  { kind: 'uniform', rate: Infinity },
  { kind: 'hot-set', rate: Infinity, hotPages: 8 },
  { kind: 'sweep', rate: 5000 },
  { kind: 'trace', rate: Infinity, trace: Uint32Array.from({ length: 3000 }, (_, i) => (i * i) % 500) },
];

describe('a guest', () => {
  for (const kind of ['pvh', 'hvm'] as const) {
    for (const workload of workloads) {
      it(`survives moving live: ${kind}, ${workload.kind}`, async () => {
        const guest = await move({ kind, workload });
        expect(guest.state.shutdownReason).toBeUndefined();
        expect(guest.stats().running).toBe(true);
        const first = await guest.check();
        expect(first).toMatchObject({ errors: 0, firstError: undefined });
        expect(first.pagesChecked).toBeGreaterThan(2000);
        if (workload.kind !== 'idle') {
          expect(first.steps).toBeGreaterThan(50);
          await until(() => guest.stats().steps > first.steps);
          expect(await guest.check()).toMatchObject({ errors: 0 });
        }
      });
    }
  }

  it('survives moving while it is suspended only', async () => {
    const guest = await move({ kind: 'hvm', workload: { kind: 'uniform' }, passes: 0 });
    expect(await guest.check()).toMatchObject({ errors: 0 });
  });

  it('goes on exactly where it was: same writes with and without a move', async () => {
    const workload: Workload = { kind: 'hot-set', rate: 50_000, maxSteps: 50_000, hotPages: 100 };
    const stay = newHost(3);
    const one = await stay.createGuest({ memory: MEMORY, workload, seed: 77 });
    await until(() => one.stats().steps === 50_000);
    const { source, destination, guest } = await pair({ workload, seed: 77, paused: true });
    await source.toolstack.unpause(guest.domid);
    let taken = guest;
    let image = await takeGuest(source, guest.domid, { passes: 0 });
    // On a machine that is busy enough the guest is done before it is taken: then another one, made alike.
    while (taken.stats().steps === 50_000) {
      taken = await source.createGuest({ memory: MEMORY, workload, seed: 77 });
      image = await takeGuest(source, taken.domid, { passes: 0 });
    }
    const domid = await putGuest(destination, image);
    const moved = destination.guest(domid);
    await destination.toolstack.unpause(domid);
    await until(() => moved.stats().steps === 50_000);
    expect(memoryDigest(moved)).toBe(memoryDigest(one));
    const other = await stay.createGuest({ memory: MEMORY, workload, seed: 78 });
    await until(() => other.stats().steps === 50_000);
    expect(memoryDigest(other)).not.toBe(memoryDigest(one));
  });

  for (const kind of ['pv', 'pv32'] as const) {
    it(`writes the same on any host, whatever its frame numbers: ${kind}`, async () => {
      const workload: Workload = { kind: 'uniform', rate: Infinity, maxSteps: 3000 };
      const digests = new Set<string>();
      for (const seed of [1, 2]) {
        const guest = await newHost(seed).createGuest({ kind, memory: MEMORY, workload, seed: 5 });
        await until(() => guest.stats().steps === 3000);
        const data: [number, Uint8Array][] = [];
        guest.state.forEachPage((pfn, mfn) => {
          const bytes = guest.state.memory.page(mfn);
          if (u32(bytes, 0) === DATA_MARK) data.push([pfn, bytes]);
        });
        expect(data.length).toBeGreaterThan(800);
        digests.add(digest(data));
      }
      expect(digests.size).toBe(1);
    });
  }

  it('fills the part of memory that it is told to and leaves the rest zero', async () => {
    const host = newHost(1);
    for (const [filled, least, most] of [
      [0, 0, 8],
      [0.25, 500, 530],
      [1, 2040, 2048],
    ] as const) {
      const guest = await host.createGuest({ memory: MEMORY, workload: { kind: 'idle', filled } });
      let used = 0;
      guest.state.forEachPage((pfn) => {
        if (guest.state.page(pfn).some((b) => b !== 0)) used++;
      });
      expect(used).toBeGreaterThanOrEqual(least);
      expect(used).toBeLessThanOrEqual(most);
    }
  });

  it('does not step while it is paused or suspended', async () => {
    const host = newHost(1);
    const guest = await host.createGuest({ memory: MEMORY, workload: { kind: 'uniform', rate: Infinity } });
    const { toolstack } = host;
    await until(() => guest.stats().steps > 0);
    for (const [stop, go] of [
      [() => toolstack.pause(guest.domid), () => toolstack.unpause(guest.domid)],
      [() => toolstack.suspend(guest.domid, { live: false }), () => toolstack.resume(guest.domid)],
    ] as const) {
      await stop();
      const { steps } = guest.stats();
      const before = memoryDigest(guest);
      await new Promise((resolve) => setTimeout(resolve, 30));
      expect(guest.stats()).toMatchObject({ steps, running: false });
      expect(memoryDigest(guest)).toBe(before);
      await go();
      await until(() => guest.stats().steps > steps);
      expect(await guest.check()).toMatchObject({ errors: 0 });
    }
  });
});

describe('a guest finds out about a bad move', () => {
  const workload: Workload = { kind: 'sweep', rate: Infinity, maxSteps: 3000 };
  const options = { kind: 'hvm', workload } as const;

  it('a lost page', async () => {
    let lost = 0;
    const guest = await move(options, (image) => {
      lost = dataPage(image);
      image.pages.get(lost)!.fill(0);
    });
    expect((await guest.check()).firstError).toEqual({ pfn: lost, kind: 'magic' });
  });

  it('a page that was never populated', async () => {
    let lost = 0;
    const guest = await move(options, (image) => {
      lost = dataPage(image);
      image.pages.delete(lost);
    });
    expect((await guest.check()).firstError).toEqual({ pfn: lost, kind: 'magic' });
  });

  it('a stale page', async () => {
    const { source, destination, guest } = await pair({ workload: { kind: 'sweep', rate: Infinity } });
    const early = await takeGuest(source, guest.domid, { passes: 0 });
    const { steps } = guest.stats();
    await source.toolstack.resume(guest.domid);
    await until(() => guest.stats().steps > steps + 2000);
    const late = await takeGuest(source, guest.domid, { passes: 0 });
    const pfn = dataPage(late, 600);
    late.pages.set(pfn, early.pages.get(pfn)!);
    const domid = await putGuest(destination, late);
    expect(await destination.guest(domid).check()).toMatchObject({
      errors: 1,
      firstError: { pfn, kind: 'stale' },
    });
    // The workload comes across it, too, and remembers.
    const moved = destination.guest(domid);
    await destination.toolstack.unpause(domid);
    await until(() => moved.stats().errors > 0);
    expect((await moved.check()).firstError).toEqual({ pfn, kind: 'stale' });
  });

  it('two pages in each other’s place', async () => {
    let first = 0;
    const guest = await move(options, (image) => {
      first = dataPage(image);
      const second = dataPage(image, first + 1);
      const bytes = image.pages.get(first)!;
      image.pages.set(first, image.pages.get(second)!);
      image.pages.set(second, bytes);
    });
    const result = await guest.check();
    expect(result.firstError).toEqual({ pfn: first, kind: 'misplaced' });
    expect(result.errors).toBeGreaterThanOrEqual(2);
  });

  it('a flipped bit', async () => {
    let pfn = 0;
    const guest = await move(options, (image) => {
      pfn = dataPage(image, 700);
      const page = image.pages.get(pfn)!;
      page[2222] = page[2222]! ^ 0x10;
    });
    expect((await guest.check()).firstError).toEqual({ pfn, kind: 'contents' });
  });

  it('something in a page that was zero', async () => {
    let pfn = 0;
    const guest = await move(options, (image) => {
      pfn = 2000;
      image.pages.get(pfn)![4095] = 1;
    });
    expect((await guest.check()).firstError).toEqual({ pfn, kind: 'not-zero' });
  });

  it('memory and registers of different moments', async () => {
    const { source, destination, guest } = await pair({ workload: { kind: 'sweep', rate: Infinity } });
    await until(() => guest.stats().steps > 100);
    const early = await takeGuest(source, guest.domid, { passes: 0 });
    await source.toolstack.resume(guest.domid);
    const { steps } = guest.stats();
    await until(() => guest.stats().steps > steps);
    const late = await takeGuest(source, guest.domid, { passes: 0 });
    late.context = early.context;
    const domid = await putGuest(destination, late);
    expect((await destination.guest(domid).check()).firstError?.kind).toBe('ledger');
  });

  it('registers that were damaged: it crashes', async () => {
    const guest = await move(options, (image) => {
      for (let at = 0; at < image.context.length; at += 8 + u32(image.context, at + 4)) {
        if (u16(image.context, at) === 2) image.context[at + 8 + 160 + 9]! ^= 1;
      }
    });
    expect(guest.state.shutdownReason).toBe(ShutdownReason.CRASH);
    expect(String(guest.panic)).toContain('registers');
  });

  it('a boot page that was damaged: it crashes', async () => {
    const guest = await move(options, (image) => {
      image.pages.get(0)![50]! ^= 1;
    });
    expect(guest.state.shutdownReason).toBe(ShutdownReason.CRASH);
    expect(String(guest.panic)).toContain('boot page');
  });

  for (const deviceModelLogDirty of [true, false]) {
    it(`a device model that was ${deviceModelLogDirty ? '' : 'not '}told to log its writes`, async () => {
      const { source, destination, guest } = await pair({ kind: 'hvm', workload: { kind: 'idle' } });
      const model = guest.deviceModel!;
      const image = await takeGuest(source, guest.domid, {
        passes: 1,
        deviceModelLogDirty,
        onPass: async (pfns, final) => {
          // After the pass over all memory, let every DMA page be written once more.
          const now = model.writes;
          if (!final && pfns.length < 0xff000) await until(() => model.writes > now + 8);
        },
      });
      const domid = await putGuest(destination, image);
      const result = await destination.guest(domid).check();
      expect(result.firstError?.kind).toBe(deviceModelLogDirty ? undefined : 'dma');
      expect(result.errors).toBe(deviceModelLogDirty ? 0 : 1);
    });
  }
});

describe('the pace of a guest', () => {
  it('keeps the rate', () => {
    const pace = new Pace(1000, 0);
    let n = 0;
    for (let now = 0; now <= 2000; now += 7) n += pace.take(64, now);
    expect(n).toBeGreaterThan(1990);
    expect(n).toBeLessThanOrEqual(2000);
  });

  it('catches up 50 ms and no more after it was held up', () => {
    const pace = new Pace(1000, 0);
    expect(pace.take(1e6, 10_000)).toBe(50);
    expect(pace.take(1e6, 10_000)).toBe(0);
    expect(pace.take(1e6, 10_010)).toBe(10);
  });

  it('takes all when there is no rate', () => {
    expect(new Pace(0, 0).take(64, 0)).toBe(64);
  });
});
