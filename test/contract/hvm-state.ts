/** The contract about what HVM and PVH guests have beside memory. */
import assert from 'node:assert/strict';
import { Errno } from '../../lib/abi/errno.js';
import { HvmParam } from '../../lib/abi/hvm.js';
import { pageView } from '../../lib/host/pages.js';
import { bits, greater, populated, refused } from './checks.js';
import type { ContractGuestKind, ContractWorld } from './subject.js';

export function hvmStateContract(world: ContractWorld, kind: ContractGuestKind): void {
  const { describe, it } = world.runner;

  describe(`${kind}: state`, () => {
    it('of a guest goes into an empty domain', async () => {
      const source = await world.guest(kind);
      await world.host.toolstack.suspend(source.domid, { live: false });
      const context = await source.hvmContext();
      greater(context.length, 1000);
      const target = await world.emptyDomain(kind);
      await target.setHvmContext(context);
      greater((await target.hvmContext()).length, 1000);
      await refused(target.setHvmContext(context.subarray(0, context.length - 9)), Errno.EINVAL);
      await refused(target.setHvmContext(new Uint8Array(0)), Errno.ENODATA);
      greater(await source.hvmParam(HvmParam.STORE_PFN), 0n);
    });

    it('keeps parameters and refuses those that do not exist', async () => {
      const domain = await world.emptyDomain(kind);
      await domain.setHvmParam(HvmParam.STORE_PFN, 0xfeffcn);
      assert.equal(await domain.hvmParam(HvmParam.STORE_PFN), 0xfeffcn);
      await domain.setHvmParam(HvmParam.STORE_PFN, 0xfeffbn);
      assert.equal(await domain.hvmParam(HvmParam.STORE_PFN), 0xfeffbn);
      await refused(domain.hvmParam(1000), Errno.EINVAL);
      await refused(domain.setHvmParam(1000, 1n), Errno.EINVAL);
      await refused(domain.hvmParam(HvmParam.PAE_ENABLED), Errno.EINVAL);
      await refused(domain.setHvmParam(HvmParam.X87_FIP_WIDTH, 3n), Errno.EINVAL);
      await domain.setHvmParam(HvmParam.IOREQ_SERVER_PFN, 0xfeff0n);
      await refused(domain.setHvmParam(HvmParam.IOREQ_SERVER_PFN, 0xfeff1n), Errno.EEXIST);
    });

    it('has the gfns of its memory as its highest', async () => {
      const domain = await world.emptyDomain(kind);
      await populated(domain, 0x10_0000, 4);
      assert.equal(await domain.maxGpfn(), 0x10_0003);
    });

    it('does not know of writes of the toolstack', async () => {
      const domain = await world.guest(kind);
      await world.host.toolstack.suspend(domain.domid, { live: false });
      await domain.enableLogDirty();
      const bitmap = new Uint32Array(0x800 / 32);
      await domain.logDirty('clean', bitmap, 0x800);
      const [written, cleared] = [0x300, 0x301];
      const mapping = await domain.mapFrames(Float64Array.of(written), 'write');
      pageView(mapping, 0)[0] = pageView(mapping, 0)[0]!;
      mapping.release();
      // A page that the guest may need: it is not to go on.
      await domain.clearPage(cleared);
      await domain.logDirty('clean', bitmap, 0x800, true);
      assert.deepEqual(bits(bitmap, 0x800), []);
      await world.host.toolstack.destroy(domain.domid);
    });
  });
}
