/**
 * What every adapter of the port `Host` has to do, and its `Toolstack` with it. The same tests run against the
 * simulated host and against a machine that runs Xen; so they only assume what Xen does on every machine.
 */
import assert from 'node:assert/strict';
import { Errno } from '../../lib/abi/errno.js';
import { UsageError } from '../../lib/errors.js';
import type { Host } from '../../lib/host/host.js';
import { pageView } from '../../lib/host/pages.js';
import { atLeast, isZero, populated, refused } from './checks.js';
import { emptyDomainContract } from './empty-domain.js';
import { hvmStateContract } from './hvm-state.js';
import { pvFramesContract } from './pv-frames.js';
import { runningGuestContract } from './running-guest.js';
import {
  isHvm,
  type ContractGuestKind,
  type ContractLimits,
  type ContractRunner,
  type ContractSubject,
  type ContractWorld,
} from './subject.js';

/** Defines the tests with `runner`. `open` is called before each of them. */
export function hostContract(
  runner: ContractRunner,
  name: string,
  kinds: readonly ContractGuestKind[],
  open: () => Promise<ContractSubject>,
  limits: ContractLimits = {},
): void {
  const { describe, it, beforeEach, afterEach } = runner;

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

    const world: ContractWorld = {
      runner,
      limits,
      get subject() {
        return subject;
      },
      get host() {
        return host;
      },
      async emptyDomain(kind) {
        const domain = await host.openDomain(await host.toolstack.createDomain(subject.emptyConfig(kind)));
        if (kind === 'pv32') await domain.setGuestWidth(4);
        return domain;
      },
      async guest(kind) {
        return await host.openDomain(await subject.createGuest(kind));
      },
    };

    it('knows its version', async () => {
      const { major, minor } = await host.xenVersion();
      assert.equal(major, 4);
      atLeast(minor, 14);
    });

    it('has no domain that was never made', async () => {
      await refused(host.openDomain(0x7000), Errno.ESRCH);
    });

    it('refuses a configuration that cannot be read', async () => {
      await assert.rejects(host.toolstack.createDomain('{'), UsageError);
      await assert.rejects(host.toolstack.createDomain('{}'), UsageError);
    });

    for (const kind of kinds) {
      emptyDomainContract(world, kind);
      runningGuestContract(world, kind);
      if (isHvm(kind)) hvmStateContract(world, kind);
      else pvFramesContract(world, kind);
    }

    if (limits.viewsOutliveRelease !== true) {
      it('takes mapped pages away when they are released', async () => {
        const domain = await world.emptyDomain(kinds[0]!);
        const gfns = await populated(domain, 0, 4);
        const mapping = await domain.mapFrames(gfns, 'write');
        const view = pageView(mapping, 2);
        view.fill(9);
        mapping.release();
        assert.ok(view.length === 0 || isZero(view));
      });
    }
  });
}
