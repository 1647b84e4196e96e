/**
 * What every adapter of the port `Host` has to do, and its `Toolstack` with it. The same tests run against the
 * simulated host and against a machine that runs Xen; so they only assume what Xen does on every machine.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Errno } from '../../lib/abi/errno.js';
import { HvmParam } from '../../lib/abi/hvm.js';
import { MAX_BATCH, PAGE_SIZE, PageType } from '../../lib/abi/pages.js';
import { HypercallError, UsageError } from '../../lib/errors.js';
import { INVALID_FRAME, ShutdownReason, type Domain, type Host } from '../../lib/host/host.js';
import { copyIn, pageView } from '../../lib/host/pages.js';

export type ContractGuestKind = 'hvm' | 'pvh' | 'pv' | 'pv32';

/** One host under test, with the means to put domains on it. */
export interface ContractSubject {
  readonly host: Host;
  /** Starts a guest of at least 16 MiB and one vcpu that writes to its memory all the time, and can be suspended. */
  createGuest(kind: ContractGuestKind): Promise<number>;
  /** Configuration, as `createDomain` takes it, of a domain of 16 MiB with two vcpus. */
  emptyConfig(kind: ContractGuestKind): string;
  /** Destroys whatever is left. */
  close(): Promise<void>;
}

/** What the subject cannot be asked for. */
export interface ContractLimits {
  /** Views taken from a mapping still show the guest after `release()`. */
  readonly viewsOutliveRelease?: boolean;
}

const EMPTY_PAGES = 4096;

function frames(first: number, count: number): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => first + i);
}

async function errnoOf(promise: Promise<unknown>): Promise<number> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(HypercallError);
  return (error as HypercallError).errno;
}

function bits(bitmap: Uint32Array, n: number): number[] {
  const set: number[] = [];
  for (let i = 0; i < n; i++) if (((bitmap[i >>> 5]! >>> (i & 31)) & 1) === 1) set.push(i);
  return set;
}

const shortTime = async (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

/** Defines the tests. `open` is called before each of them. */
export function hostContract(
  name: string,
  kinds: readonly ContractGuestKind[],
  open: () => Promise<ContractSubject>,
  limits: ContractLimits = {},
): void {
  describe(`contract of ${name}`, () => {
    let subject: ContractSubject;
    let host: Host;

    beforeEach(async () => {
      subject = await open();
      host = subject.host;
    });

    afterEach(async () => {
      await subject.close();
    });

    async function emptyDomain(kind: ContractGuestKind): Promise<Domain> {
      const domain = await host.openDomain(await host.toolstack.createDomain(subject.emptyConfig(kind)));
      if (kind === 'pv32') await domain.setGuestWidth(4);
      return domain;
    }

    /** Populates pfns; returns what hypercalls take for them. */
    async function populated(domain: Domain, first: number, count: number): Promise<Float64Array> {
      const list = frames(first, count);
      expect(await domain.populate(list)).toBe(count);
      return list;
    }

    it('knows its version', async () => {
      const { major, minor } = await host.xenVersion();
      expect(major).toBe(4);
      expect(minor).toBeGreaterThanOrEqual(14);
    });

    it('has no domain that was never made', async () => {
      expect(await errnoOf(host.openDomain(0x7000))).toBe(Errno.ESRCH);
    });

    it('refuses a configuration that cannot be read', async () => {
      await expect(host.toolstack.createDomain('{')).rejects.toBeInstanceOf(UsageError);
      await expect(host.toolstack.createDomain('{}')).rejects.toBeInstanceOf(UsageError);
    });

    for (const kind of kinds) {
      const hvm = kind === 'hvm' || kind === 'pvh';

      describe(`${kind}: an empty domain`, () => {
        it('is made paused, without memory, as its configuration says', async () => {
          const domain = await emptyDomain(kind);
          const info = await domain.info();
          expect(info).toMatchObject({
            domid: domain.domid,
            hvm,
            paused: true,
            dying: false,
            shutdown: false,
            maxVcpuId: 1,
            totPages: 0,
          });
          expect(info.maxPages).toBeGreaterThanOrEqual(EMPTY_PAGES);
          expect((await host.listDomains()).map((d) => d.domid)).toContain(domain.domid);
          expect(await host.toolstack.domainConfig(domain.domid)).toContain('max_memkb');
          const wiring = await host.toolstack.backendWiring(domain.domid);
          expect(wiring.storeEvtchn).toBeGreaterThan(0);
          expect(wiring.consoleEvtchn).toBeGreaterThan(0);
          await domain.close();
        });

        it('gives memory that is zero, has the right type and keeps what is written', async () => {
          const domain = await emptyDomain(kind);
          const gfns = await populated(domain, 16, 1000);
          expect((await domain.info()).totPages).toBe(1000);
          const types = new Uint8Array(1000).fill(7);
          await domain.pageTypes(gfns, types);
          expect(types.every((type) => type === PageType.NOTAB)).toBe(true);
          const writing = await domain.mapFrames(gfns, 'write');
          expect(writing.count).toBe(1000);
          expect(writing.errors.every((e) => e === 0)).toBe(true);
          for (let i = 0; i < 1000; i++) expect(pageView(writing, i).every((b) => b === 0)).toBe(true);
          copyIn(
            writing,
            0,
            new Uint8Array(1000 * PAGE_SIZE).map((_, i) => (i >>> 12) ^ i),
          );
          writing.release();
          writing.release();
          const reading = await domain.mapFrames(gfns, 'read');
          for (const i of [0, 1, 511, 512, 999]) {
            expect(pageView(reading, i)[5]).toBe((i ^ (i * PAGE_SIZE + 5)) & 0xff);
            expect(reading.words[reading.regionOf[i]!]![reading.offsetOf[i]! / 4]).toBeDefined();
          }
          reading.release();
          await domain.clearPage(gfns[511]!);
          const again = await domain.mapFrames(gfns.slice(510, 513), 'read');
          expect(pageView(again, 1).every((b) => b === 0)).toBe(true);
          expect(pageView(again, 0)[5]).not.toBe(undefined);
          expect(pageView(again, 2).some((b) => b !== 0)).toBe(true);
          again.release();
        });

        it('takes at most 1024 frames in one call', async () => {
          const domain = await emptyDomain(kind);
          const gfns = await populated(domain, 0, MAX_BATCH + 1);
          const types = new Uint8Array(MAX_BATCH + 1);
          expect(await errnoOf(domain.pageTypes(gfns, types))).toBe(Errno.E2BIG);
          expect(await errnoOf(domain.mapFrames(gfns, 'read'))).toBe(Errno.E2BIG);
          const most = gfns.slice(0, MAX_BATCH);
          await domain.pageTypes(most, types);
          const mapping = await domain.mapFrames(most, 'read');
          expect(mapping.count).toBe(MAX_BATCH);
          mapping.release();
          const none = await domain.mapFrames(new Float64Array(0), 'read');
          expect(none.count).toBe(0);
          none.release();
          await domain.pageTypes(new Float64Array(0), new Uint8Array(0));
        });

        it('says which frames it does not have, and maps the others', async () => {
          const domain = await emptyDomain(kind);
          const gfns = await populated(domain, 0, 2);
          const mixed = Float64Array.of(gfns[0]!, INVALID_FRAME, hvm ? 3000 : 0, gfns[1]!);
          const types = new Uint8Array(4);
          await domain.pageTypes(mixed, types);
          expect([...types]).toEqual([PageType.NOTAB, PageType.XTAB, PageType.XTAB, PageType.NOTAB]);
          const mapping = await domain.mapFrames(mixed, 'write');
          expect(mapping.errors[0]).toBe(0);
          expect(mapping.errors[1]).toBeGreaterThan(0);
          expect(mapping.errors[2]).toBeGreaterThan(0);
          expect(mapping.errors[3]).toBe(0);
          pageView(mapping, 3)[0] = 1;
          mapping.release();
        });

        it('gives no more than its maximum, and says how much', async () => {
          const domain = await emptyDomain(kind);
          const { maxPages } = await domain.info();
          let got = 0;
          let first = 0;
          for (;;) {
            const batch = await domain.populate(frames(first, 1000));
            got += batch;
            first += 1000;
            if (batch < 1000) break;
          }
          expect(got).toBe(maxPages);
          expect((await domain.info()).totPages).toBe(maxPages);
          expect(await domain.populate(frames(first, 1))).toBe(0);
        });

        it('takes superpages', async () => {
          const domain = await emptyDomain(kind);
          const list = Float64Array.of(512, 1024);
          expect(await domain.populate(list, 9)).toBe(2);
          expect((await domain.info()).totPages).toBe(1024);
          const types = new Uint8Array(1024);
          const gfns = Float64Array.from({ length: 1024 }, (_, i) => list[i >>> 9]! + (i & 511));
          await domain.pageTypes(gfns, types);
          expect(types.every((type) => type === PageType.NOTAB)).toBe(true);
        });

        it('keeps TSC info and CPU policy', async () => {
          const domain = await emptyDomain(kind);
          await domain.setTscInfo({ mode: 2, khz: 0, nsec: 0n, incarnation: 4 });
          const tsc = await domain.tscInfo();
          expect(tsc.mode).toBe(2);
          expect(tsc.incarnation).toBeGreaterThanOrEqual(4);
          expect(await errnoOf(domain.setTscInfo({ ...tsc, mode: 77 }))).toBe(Errno.EINVAL);
          await host.toolstack.staticDataDone(domain.domid, { cpuid: true, msr: true });
          const policy = await domain.cpuPolicy();
          expect(policy.cpuid.length).toBeGreaterThan(0);
          expect(policy.cpuid.length % 24).toBe(0);
          expect(policy.msrs.length % 16).toBe(0);
          await domain.setCpuPolicy(policy);
          await domain.setCpuPolicy({ cpuid: new Uint8Array(0), msrs: policy.msrs });
          expect(await domain.cpuPolicy()).toEqual(policy);
          const broken = { cpuid: policy.cpuid.slice(), msrs: policy.msrs };
          broken.cpuid.fill(0xff, 0, 4);
          expect(await errnoOf(domain.setCpuPolicy(broken))).toBeGreaterThan(0);
        });

        it('is gone once it is destroyed', async () => {
          const domain = await emptyDomain(kind);
          await populated(domain, 0, 10);
          const { domid } = domain;
          await host.toolstack.destroy(domid);
          await host.toolstack.destroy(domid);
          expect(await errnoOf(domain.maxGpfn())).toBe(Errno.ESRCH);
          expect(await errnoOf(domain.populate(frames(0, 1)))).toBe(Errno.ESRCH);
          expect(await errnoOf(host.openDomain(domid))).toBe(Errno.ESRCH);
          expect((await host.listDomains()).map((d) => d.domid)).not.toContain(domid);
        });
      });

      describe(`${kind}: a running guest`, () => {
        let domid: number;
        let domain: Domain;

        beforeEach(async () => {
          domid = await subject.createGuest(kind);
          domain = await host.openDomain(domid);
        });

        it('is there and runs', async () => {
          const info = await domain.info();
          expect(info).toMatchObject({ hvm, paused: false, dying: false, shutdown: false });
          expect(info.totPages).toBeGreaterThanOrEqual(EMPTY_PAGES / 2);
          expect(await domain.maxGpfn()).toBeGreaterThanOrEqual(EMPTY_PAGES - 1);
          expect(await domain.guestWidth()).toBe(kind === 'pv32' ? 4 : 8);
          expect(await domain.vcpuOnline(0)).toBe(true);
          expect(await errnoOf(domain.vcpuOnline(1000))).toBe(Errno.EINVAL);
          expect((await domain.cpuPolicy()).cpuid.length).toBeGreaterThan(0);
        });

        it('is suspended, which is not paused, and goes on', async () => {
          const { toolstack } = host;
          await toolstack.resume(domid);
          await toolstack.suspend(domid, { live: false });
          await toolstack.suspend(domid, { live: false });
          expect(await domain.info()).toMatchObject({
            shutdown: true,
            shutdownReason: ShutdownReason.SUSPEND,
            paused: false,
          });
          await toolstack.resume(domid);
          expect(await domain.info()).toMatchObject({ shutdown: false });
          await toolstack.suspend(domid, { live: false });
          expect((await domain.info()).shutdown).toBe(true);
        });

        it('is not suspended when the request is aborted before', async () => {
          const signal = AbortSignal.abort(new Error('no'));
          await expect(host.toolstack.suspend(domid, { live: false, signal })).rejects.toMatchObject({
            code: 'ERR_XEN_CANCELLED',
          });
          expect((await domain.info()).shutdown).toBe(false);
        });

        it('counts pauses', async () => {
          const { toolstack } = host;
          await toolstack.pause(domid);
          await toolstack.pause(domid);
          await toolstack.unpause(domid);
          expect((await domain.info()).paused).toBe(true);
          await toolstack.unpause(domid);
          expect((await domain.info()).paused).toBe(false);
        });

        it('marks what it writes: PEEK looks, CLEAN takes', async () => {
          const n = (await domain.maxGpfn()) + 1;
          const words = Math.ceil(n / 32);
          const bitmap = new Uint32Array(words);
          const peeked = new Uint32Array(words);
          await domain.enableLogDirty();
          expect(await errnoOf(domain.enableLogDirty())).toBeGreaterThan(0);
          for (let dirty = 0; dirty === 0;) {
            await shortTime();
            const result = await domain.logDirty('clean', bitmap, n);
            expect(result.pages).toBe(n);
            dirty = result.dirtyCount;
          }
          expect(bits(bitmap, n).length).toBeGreaterThan(0);
          await shortTime();
          await host.toolstack.suspend(domid, { live: true });
          const peek = await domain.logDirty('peek', peeked, n);
          const clean = await domain.logDirty('clean', bitmap, n, true);
          expect(clean.dirtyCount).toBeGreaterThanOrEqual(peek.dirtyCount);
          const taken = new Set(bits(bitmap, n));
          for (const pfn of bits(peeked, n)) expect(taken.has(pfn)).toBe(true);
          // It stands still: there is nothing new.
          expect((await domain.logDirty('peek', peeked, n)).dirtyCount).toBe(0);
          expect(bits(peeked, n)).toEqual([]);
          await domain.disableLogDirty();
          await domain.disableLogDirty();
          await domain.enableLogDirty();
          await domain.disableLogDirty();
        });

        it('is destroyed while it runs', async () => {
          await host.toolstack.destroy(domid);
          expect(await errnoOf(domain.info())).toBe(Errno.ESRCH);
          expect(await errnoOf(host.toolstack.resume(domid))).toBe(Errno.ESRCH);
        });

        it(`${kind === 'hvm' ? 'has' : 'has no'} device model`, async () => {
          await host.toolstack.setDeviceModelLogDirty(domid, true);
          await host.toolstack.suspend(domid, { live: true });
          const state = await host.toolstack.deviceModelState(domid);
          await host.toolstack.setDeviceModelLogDirty(domid, false);
          if (kind === 'hvm') {
            expect(state?.emulator).toBe(2);
            expect(state?.context.length).toBeGreaterThan(0);
          } else {
            expect(state).toBeUndefined();
          }
        });
      });
    }

    for (const kind of kinds.filter((k) => k === 'hvm' || k === 'pvh')) {
      describe(`${kind}: state`, () => {
        it('of a guest goes into an empty domain', async () => {
          const source = await host.openDomain(await subject.createGuest(kind));
          await host.toolstack.suspend(source.domid, { live: false });
          const context = await source.hvmContext();
          expect(context.length).toBeGreaterThan(1000);
          const target = await emptyDomain(kind);
          await target.setHvmContext(context);
          expect((await target.hvmContext()).length).toBe(context.length);
          expect(await errnoOf(target.setHvmContext(context.subarray(0, context.length - 9)))).toBe(
            Errno.EINVAL,
          );
          expect(await errnoOf(target.setHvmContext(new Uint8Array(0)))).toBe(Errno.EINVAL);
          expect(await source.hvmParam(HvmParam.STORE_PFN)).toBeGreaterThan(0n);
        });

        it('keeps parameters and refuses those that do not exist', async () => {
          const domain = await emptyDomain(kind);
          await domain.setHvmParam(HvmParam.STORE_PFN, 0xfeffcn);
          expect(await domain.hvmParam(HvmParam.STORE_PFN)).toBe(0xfeffcn);
          await domain.setHvmParam(HvmParam.STORE_PFN, 0xfeffbn);
          expect(await domain.hvmParam(HvmParam.STORE_PFN)).toBe(0xfeffbn);
          expect(await errnoOf(domain.hvmParam(1000))).toBe(Errno.EINVAL);
          expect(await errnoOf(domain.setHvmParam(1000, 1n))).toBe(Errno.EINVAL);
        });

        it('has the gfns of its memory as its highest', async () => {
          const domain = await emptyDomain(kind);
          await populated(domain, 0x10_0000, 4);
          expect(await domain.maxGpfn()).toBe(0x10_0003);
        });

        it('knows a page that the toolstack may have written', async () => {
          const domain = await host.openDomain(await subject.createGuest(kind));
          await host.toolstack.suspend(domain.domid, { live: false });
          await domain.enableLogDirty();
          const bitmap = new Uint32Array(Math.ceil(0x2000 / 32));
          await domain.logDirty('clean', bitmap, 0x800);
          const mapping = await domain.mapFrames(Float64Array.of(0x300), 'write');
          pageView(mapping, 0)[0] = pageView(mapping, 0)[0]!;
          mapping.release();
          await domain.logDirty('clean', bitmap, 0x800, true);
          expect(bits(bitmap, 0x800)).toContain(0x300);
          await domain.disableLogDirty();
        });
      });
    }

    for (const kind of kinds.filter((k) => k === 'pv' || k === 'pv32')) {
      describe(`${kind}: frames`, () => {
        it('are machine frames, known to the M2P', async () => {
          const domain = await emptyDomain(kind);
          const gfns = await populated(domain, 7, 100);
          const m2p = await host.mapMachineToPhys();
          for (let i = 0; i < 100; i++) {
            expect(gfns[i]).toBeLessThanOrEqual(m2p.maxMfn);
            expect(m2p.pfnOf(gfns[i]!)).toBe(7 + i);
          }
          m2p.release();
        });

        it('have a width that is fixed with the first page', async () => {
          const domain = await emptyDomain(kind);
          const width = kind === 'pv' ? 8 : 4;
          expect(await domain.guestWidth()).toBe(width);
          await populated(domain, 0, 1);
          await domain.setGuestWidth(width);
          expect(await errnoOf(domain.setGuestWidth(width === 8 ? 4 : 8))).toBe(Errno.EACCES);
        });

        it('of vcpus that are up have state', async () => {
          const domain = await host.openDomain(await subject.createGuest(kind));
          await host.toolstack.suspend(domain.domid, { live: false });
          const basic = await domain.vcpuState(0, 'basic');
          expect(basic.length).toBe(kind === 'pv' ? 5168 : 2800);
          expect((await domain.vcpuState(0, 'extended')).length).toBeGreaterThan(0);
          expect(await errnoOf(domain.vcpuState(1000, 'basic'))).toBe(Errno.EINVAL);
        });

        it('are pinned 1024 at a time, and only if they are tables', async () => {
          const domain = await emptyDomain(kind);
          const gfns = await populated(domain, 0, 1);
          const page = await domain.mapFrames(gfns, 'write');
          pageView(page, 0).fill(0xff);
          page.release();
          expect(await errnoOf(domain.pinTables(Uint8Array.of(2), gfns))).toBeGreaterThan(0);
          expect(
            await errnoOf(domain.pinTables(new Uint8Array(1025).fill(1), new Float64Array(1025))),
          ).toBeGreaterThan(0);
          const clear = await domain.mapFrames(gfns, 'write');
          pageView(clear, 0).fill(0);
          clear.release();
          await domain.pinTables(Uint8Array.of(1), gfns);
          const types = new Uint8Array(1);
          await domain.pageTypes(gfns, types);
          expect(types[0]).toBe(PageType.L1TAB | PageType.PINNED);
        });
      });
    }

    if (limits.viewsOutliveRelease !== true) {
      it('takes mapped pages away when they are released', async () => {
        const kind = kinds[0]!;
        const domain = await emptyDomain(kind);
        const gfns = await populated(domain, 0, 4);
        const mapping = await domain.mapFrames(gfns, 'write');
        const view = pageView(mapping, 2);
        view.fill(9);
        mapping.release();
        expect(view.length === 0 || view.every((b) => b === 0)).toBe(true);
      });
    }
  });
}
