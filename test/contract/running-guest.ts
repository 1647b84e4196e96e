/** The contract about guests that run: suspending, pausing, log-dirty, the device model. */
import assert from 'node:assert/strict';
import { Errno } from '../../lib/abi/errno.js';
import { CancelledError } from '../../lib/errors.js';
import { ShutdownReason, type Domain } from '../../lib/host/host.js';
import { atLeast, bits, gone, greater, has, refused } from './checks.js';
import { isHvm, type ContractGuestKind, type ContractWorld } from './subject.js';

const LEAST_PAGES = 2048;

const shortTime = async (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

export function runningGuestContract(world: ContractWorld, kind: ContractGuestKind): void {
  const { describe, it, beforeEach } = world.runner;
  const hvm = isHvm(kind);

  describe(`${kind}: a running guest`, () => {
    let domain: Domain;
    let domid: number;

    beforeEach(async () => {
      domain = await world.guest(kind);
      domid = domain.domid;
    });

    it('is there and runs', async () => {
      const info = await domain.info();
      has(info, { hvm, paused: false, dying: false, shutdown: false });
      atLeast(info.totPages, LEAST_PAGES);
      atLeast(await domain.maxGpfn(), LEAST_PAGES - 1);
      if (hvm) await refused(domain.guestWidth(), Errno.EOPNOTSUPP);
      else assert.equal(await domain.guestWidth(), kind === 'pv32' ? 4 : 8);
      assert.equal(await domain.vcpuOnline(0), true);
      await refused(domain.vcpuOnline(1000), Errno.EINVAL);
      greater((await domain.cpuPolicy()).cpuid.length, 0);
    });

    it('is suspended, which is not paused, and goes on', async () => {
      const { toolstack } = world.host;
      await toolstack.resume(domid);
      await toolstack.suspend(domid, { live: false });
      await toolstack.suspend(domid, { live: false });
      has(await domain.info(), { shutdown: true, shutdownReason: ShutdownReason.SUSPEND, paused: false });
      await toolstack.resume(domid);
      has(await domain.info(), { shutdown: false });
      await toolstack.suspend(domid, { live: false });
      has(await domain.info(), { shutdown: true });
    });

    it('is not suspended when the request is aborted before', async () => {
      const signal = AbortSignal.abort(new Error('no'));
      await assert.rejects(world.host.toolstack.suspend(domid, { live: false, signal }), CancelledError);
      has(await domain.info(), { shutdown: false });
    });

    it('counts pauses', async () => {
      const { toolstack } = world.host;
      await toolstack.pause(domid);
      await toolstack.pause(domid);
      await toolstack.unpause(domid);
      has(await domain.info(), { paused: true });
      await toolstack.unpause(domid);
      has(await domain.info(), { paused: false });
    });

    if (!hvm && world.limits.noShadowPaging === true) {
      it('has no log-dirty here', async () => {
        await refused(domain.enableLogDirty(), Errno.EOPNOTSUPP);
      });
    } else {
      it('marks what it writes: PEEK looks, CLEAN takes', async () => {
        const n = (await domain.maxGpfn()) + 1;
        const words = Math.ceil(n / 32);
        const bitmap = new Uint32Array(words);
        const peeked = new Uint32Array(words);
        await domain.enableLogDirty();
        await refused(domain.enableLogDirty(), Errno.EINVAL);
        for (let dirty = 0; dirty === 0;) {
          await shortTime();
          const result = await domain.logDirty('clean', bitmap, n);
          assert.equal(result.pages, n);
          dirty = result.dirtyCount;
        }
        greater(bits(bitmap, n).length, 0);
        await shortTime();
        await world.host.toolstack.suspend(domid, { live: true });
        const peek = await domain.logDirty('peek', peeked, n);
        const clean = await domain.logDirty('clean', bitmap, n, true);
        atLeast(clean.dirtyCount, peek.dirtyCount);
        const taken = new Set(bits(bitmap, n));
        for (const pfn of bits(peeked, n)) assert.ok(taken.has(pfn));
        // It stands still: there is nothing new.
        assert.equal((await domain.logDirty('peek', peeked, n)).dirtyCount, 0);
        assert.deepEqual(bits(peeked, n), []);
        await domain.disableLogDirty();
        await domain.disableLogDirty();
        await domain.enableLogDirty();
        await domain.disableLogDirty();
      });
    }

    it('has nothing dirty while log-dirty is off', async () => {
      const n = (await domain.maxGpfn()) + 1;
      for (const op of ['peek', 'clean'] as const) {
        const bitmap = new Uint32Array(Math.ceil(n / 32)).fill(0xffff_ffff);
        const result = await domain.logDirty(op, bitmap, n);
        assert.deepEqual([result.pages, result.dirtyCount], [n, 0]);
        assert.deepEqual(bits(bitmap, n), []);
      }
    });

    it(`${kind === 'hvm' ? 'has' : 'has no'} device model`, async () => {
      const { toolstack } = world.host;
      await toolstack.setDeviceModelLogDirty(domid, true);
      await toolstack.suspend(domid, { live: true });
      const state = await toolstack.deviceModelState(domid);
      await toolstack.setDeviceModelLogDirty(domid, false);
      if (kind === 'hvm') {
        assert.equal(state?.emulator, 2);
        greater(state.context.length, 0);
      } else {
        assert.equal(state, undefined);
      }
    });

    it('is destroyed while it runs', async () => {
      const { toolstack } = world.host;
      await toolstack.destroy(domid);
      await gone(domain);
      await refused(toolstack.resume(domid), Errno.ESRCH);
    });
  });
}
