/** The contract about what only PV guests have: machine frames, vcpu states, pinned page tables. */
import assert from 'node:assert/strict';
import { Errno } from '../../lib/abi/errno.js';
import { PageType } from '../../lib/abi/pages.js';
import { pageView } from '../../lib/host/pages.js';
import { greater, populated, refused, refusedSomehow } from './checks.js';
import type { ContractGuestKind, ContractWorld } from './subject.js';

export function pvFramesContract(world: ContractWorld, kind: ContractGuestKind): void {
  const { describe, it } = world.runner;

  describe(`${kind}: frames`, () => {
    it('are machine frames, known to the M2P', async () => {
      const domain = await world.emptyDomain(kind);
      const gfns = await populated(domain, 7, 100);
      const m2p = await world.host.mapMachineToPhys();
      for (let i = 0; i < 100; i++) {
        assert.ok(gfns[i]! <= m2p.maxMfn);
        assert.equal(m2p.pfnOf(gfns[i]!), 7 + i);
      }
      m2p.release();
    });

    it('have a width that is fixed with the first page', async () => {
      const domain = await world.emptyDomain(kind);
      const width = kind === 'pv' ? 8 : 4;
      assert.equal(await domain.guestWidth(), width);
      await populated(domain, 0, 1);
      await domain.setGuestWidth(width);
      // Back to 64 bits there is no way at all; to 32 there is one before the first page.
      // A hypervisor without 32-bit PV guests says so instead.
      if (width === 8) await refused(domain.setGuestWidth(4), Errno.EACCES, Errno.EOPNOTSUPP);
      else await refused(domain.setGuestWidth(8), Errno.EINVAL);
    });

    it('of vcpus that are up have state', async () => {
      const domain = await world.guest(kind);
      await world.host.toolstack.suspend(domain.domid, { live: false });
      const basic = await domain.vcpuState(0, 'basic');
      assert.equal(basic.length, kind === 'pv' ? 5168 : 2800);
      greater((await domain.vcpuState(0, 'extended')).length, 0);
      await refused(domain.vcpuState(1000, 'basic'), Errno.EINVAL);
    });

    it('of others cannot be had', async () => {
      const domain = await world.emptyDomain(kind);
      const other = await world.emptyDomain(kind);
      const theirs = await populated(other, 0, 1);
      const mapping = await domain.mapFrames(theirs, 'write');
      assert.equal(mapping.errors[0], Errno.EBUSY);
      mapping.release();
      await refused(domain.clearPage(theirs[0]!), Errno.EBUSY);
      const types = new Uint8Array(1);
      await domain.pageTypes(theirs, types);
      assert.equal(types[0], PageType.XTAB);
      await refused(domain.vcpuState(0, 'basic'), Errno.ENODATA);
    });

    it('are pinned 1024 at a time, and only if they are tables', async () => {
      const domain = await world.emptyDomain(kind);
      const gfns = await populated(domain, 0, 1);
      const page = await domain.mapFrames(gfns, 'write');
      pageView(page, 0).fill(0xff);
      page.release();
      await refusedSomehow(domain.pinTables(Uint8Array.of(2), gfns));
      await refused(domain.pinTables(new Uint8Array(1025).fill(1), new Float64Array(1025)), Errno.E2BIG);
      const clear = await domain.mapFrames(gfns, 'write');
      pageView(clear, 0).fill(0);
      clear.release();
      await domain.pinTables(Uint8Array.of(1), gfns);
      const types = new Uint8Array(1);
      await domain.pageTypes(gfns, types);
      assert.equal(types[0], PageType.L1TAB | PageType.PINNED);
    });
  });
}
