/** The contract about domains without a guest: memory, static data, the end. */
import assert from 'node:assert/strict';
import { Errno } from '../../lib/abi/errno.js';
import { MAX_BATCH, PAGE_SIZE, PageType } from '../../lib/abi/pages.js';
import { INVALID_FRAME, MAX_TYPES } from '../../lib/host/host.js';
import { copyIn, pageView } from '../../lib/host/pages.js';
import { atLeast, frames, gone, greater, has, isZero, populated, refused } from './checks.js';
import { isHvm, type ContractGuestKind, type ContractWorld } from './subject.js';

const EMPTY_PAGES = 4096;

export function emptyDomainContract(world: ContractWorld, kind: ContractGuestKind): void {
  const { describe, it } = world.runner;
  const hvm = isHvm(kind);

  describe(`${kind}: an empty domain`, () => {
    it('is made paused, without memory, as its configuration says', async () => {
      const { host } = world;
      const domain = await world.emptyDomain(kind);
      const info = await domain.info();
      const { domid } = domain;
      has(info, { domid, hvm, paused: true, dying: false, shutdown: false, maxVcpuId: 1 });
      // Xen itself may have taken a page or two for what the domain does not see.
      assert.ok(info.totPages <= 2, `${info.totPages} pages`);
      atLeast(info.maxPages, EMPTY_PAGES);
      assert.ok((await host.listDomains()).some((d) => d.domid === domid));
      assert.match(await host.toolstack.domainConfig(domid), /max_memkb/);
      const wiring = await host.toolstack.backendWiring(domid);
      greater(wiring.storeEvtchn, 0);
      greater(wiring.consoleEvtchn, 0);
      await domain.close();
    });

    it('gives memory that has the right type, whatever was in it, and keeps what is written', async () => {
      const domain = await world.emptyDomain(kind);
      const before = (await domain.info()).totPages;
      const gfns = await populated(domain, 16, 1000);
      assert.equal((await domain.info()).totPages - before, 1000);
      const types = new Uint8Array(1000).fill(7);
      await domain.pageTypes(gfns, types);
      assert.ok(types.every((type) => type === PageType.NOTAB));
      const writing = await domain.mapFrames(gfns, 'write');
      assert.equal(writing.count, 1000);
      assert.ok(writing.errors.every((e) => e === 0));
      copyIn(
        writing,
        0,
        new Uint8Array(1000 * PAGE_SIZE).map((_, i) => (i >>> 12) ^ i),
      );
      writing.release();
      writing.release();
      const reading = await domain.mapFrames(gfns, 'read');
      for (const i of [0, 1, 511, 512, 999]) {
        assert.equal(pageView(reading, i)[5], (i ^ (i * PAGE_SIZE + 5)) & 0xff);
        const first = new DataView(pageView(reading, i).slice().buffer).getUint32(0, true);
        assert.equal(reading.words[reading.regionOf[i]!]![reading.offsetOf[i]! / 4], first);
      }
      reading.release();
      await domain.clearPage(gfns[511]!);
      const again = await domain.mapFrames(gfns.slice(510, 513), 'read');
      assert.deepEqual(
        [0, 1, 2].map((i) => isZero(pageView(again, i))),
        [false, true, false],
      );
      again.release();
    });

    it('takes so many frames in one call, and no more', async () => {
      const domain = await world.emptyDomain(kind);
      const gfns = await populated(domain, 0, MAX_BATCH + 1);
      const types = new Uint8Array(MAX_TYPES + 1);
      await refused(domain.pageTypes(new Float64Array(MAX_TYPES + 1), types), Errno.E2BIG);
      await refused(domain.mapFrames(gfns, 'read'), Errno.E2BIG);
      const many = new Float64Array(MAX_TYPES).fill(INVALID_FRAME);
      many.set(gfns, MAX_BATCH - 1);
      await domain.pageTypes(many, types);
      const ram = [...types.subarray(0, MAX_TYPES)].flatMap((type, i) =>
        type === PageType.NOTAB ? [i] : [],
      );
      assert.deepEqual([ram.length, ram[0], ram.at(-1)], [1025, 1023, 2047]);
      const mapping = await domain.mapFrames(gfns.slice(0, MAX_BATCH), 'read');
      assert.equal(mapping.count, MAX_BATCH);
      mapping.release();
      const none = await domain.mapFrames(new Float64Array(0), 'read');
      assert.equal(none.count, 0);
      none.release();
      await domain.pageTypes(new Float64Array(0), new Uint8Array(0));
    });

    it('says which frames it does not have, and maps the others', async () => {
      const domain = await world.emptyDomain(kind);
      const gfns = await populated(domain, 0, 2);
      const mixed = Float64Array.of(gfns[0]!, INVALID_FRAME, hvm ? 3000 : 0, gfns[1]!);
      const types = new Uint8Array(4);
      await domain.pageTypes(mixed, types);
      assert.deepEqual([...types], [PageType.NOTAB, PageType.XTAB, PageType.XTAB, PageType.NOTAB]);
      const mapping = await domain.mapFrames(mixed, 'write');
      assert.deepEqual(
        [...mapping.errors].map((e) => e > 0),
        [false, true, true, false],
      );
      pageView(mapping, 3)[0] = 1;
      mapping.release();
      // Nothing at all can be mapped: that, too, is told frame by frame.
      const nothing = await domain.mapFrames(Float64Array.of(INVALID_FRAME), 'read');
      assert.equal(nothing.errors[0], Errno.EINVAL);
      nothing.release();
    });

    it('gives no more than its maximum, and says how much', async () => {
      const domain = await world.emptyDomain(kind);
      const { maxPages, totPages } = await domain.info();
      let got = 0;
      let first = 0;
      for (;;) {
        const batch = await domain.populate(frames(first, 1000));
        got += batch;
        first += 1000;
        if (batch < 1000) break;
      }
      assert.equal(got, maxPages - totPages);
      assert.equal((await domain.info()).totPages, maxPages);
      assert.equal(await domain.populate(frames(first, 1)), 0);
    });

    it('takes superpages', async () => {
      const domain = await world.emptyDomain(kind);
      const before = (await domain.info()).totPages;
      const list = Float64Array.of(512, 1024);
      assert.equal(await domain.populate(list, 9), 2);
      assert.equal((await domain.info()).totPages - before, 1024);
      const types = new Uint8Array(1024);
      const gfns = Float64Array.from({ length: 1024 }, (_, i) => list[i >>> 9]! + (i & 511));
      await domain.pageTypes(gfns, types);
      assert.ok(types.every((type) => type === PageType.NOTAB));
    });

    it('keeps TSC info and CPU policy', async () => {
      const { host } = world;
      const domain = await world.emptyDomain(kind);
      await domain.setTscInfo({ mode: 2, khz: 0, nsec: 0n, incarnation: 4 });
      const tsc = await domain.tscInfo();
      assert.deepEqual(tsc, { mode: 2, khz: 0, nsec: 0n, incarnation: 5 });
      await refused(domain.setTscInfo({ ...tsc, mode: 77 }), Errno.EINVAL);
      await host.toolstack.staticDataDone(domain.domid, { cpuid: true, msr: true });
      const policy = await domain.cpuPolicy();
      greater(policy.cpuid.length, 0);
      assert.equal(policy.cpuid.length % 24, 0);
      assert.equal(policy.msrs.length % 16, 0);
      await domain.setCpuPolicy(policy);
      await domain.setCpuPolicy({ cpuid: new Uint8Array(0), msrs: policy.msrs });
      assert.deepEqual(await domain.cpuPolicy(), policy);
      const broken = { cpuid: policy.cpuid.slice(), msrs: policy.msrs };
      broken.cpuid.fill(0xff, 0, 4);
      await refused(domain.setCpuPolicy(broken), Errno.ERANGE);
    });

    it('is gone once it is destroyed', async () => {
      const { host } = world;
      const domain = await world.emptyDomain(kind);
      await populated(domain, 0, 10);
      const { domid } = domain;
      await host.toolstack.destroy(domid);
      await host.toolstack.destroy(domid);
      await gone(domain);
      await refused(domain.maxGpfn(), Errno.ESRCH);
      await refused(domain.populate(frames(0, 1)), Errno.ESRCH);
      await refused(host.openDomain(domid), Errno.ESRCH);
      assert.ok(!(await host.listDomains()).some((d) => d.domid === domid));
    });
  });
}
