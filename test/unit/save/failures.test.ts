import { describe, expect, it, vi } from 'vitest';
import { GuestError, HypercallError, TransportError, type XenMigrationError } from '../../../lib/errors.js';
import type { SaveOptions } from '../../../lib/save/types.js';
import { DOMID, FakeWorld, type FakeOptions } from './fake.js';
import { parse, start } from './run.js';

const HVM: FakeOptions = {
  kind: 'hvm',
  pages: 1100,
  dirty: [Array.from({ length: 70 }, (_, i) => i), [3], [4]],
};
const PV: FakeOptions = { kind: 'pv', vcpus: 2, pv: { pages: 80 }, dirty: [[1], [2]] };
const PV32: FakeOptions = { kind: 'pv', pv: { pages: 80, width: 4, p2m: 'tree' }, dirty: [[1], [2]] };

const CASES: readonly (readonly [string, FakeOptions, Partial<SaveOptions>])[] = [
  ['HVM, live, xl', HVM, { format: 'xl' }],
  ['HVM, non-live, libxc', HVM, { live: false }],
  ['HVM, live, verified', HVM, { verify: true, format: 'libxl' }],
  ['PV, live, xl', PV, { format: 'xl' }],
  ['PV 32-bit with a tree, live', PV32, {}],
  ['PV, non-live', PV, { live: false }],
];

/** The calls of an undisturbed save. */
async function callsOf(options: FakeOptions, save: Partial<SaveOptions>): Promise<string[]> {
  const world = new FakeWorld(options);
  await start(world, save).result;
  return world.calls;
}

async function errorOf(result: Promise<unknown>): Promise<XenMigrationError> {
  try {
    await result;
  } catch (error) {
    return error as XenMigrationError;
  }
  throw new Error('the save did not fail');
}

function withResolvers(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((r) => (resolve = r));
  return { promise, resolve };
}

const QUIET = {
  logDirty: false,
  deviceModelLogDirty: false,
  openMappings: 0,
  openDomains: 0,
  m2pOpen: false,
  state: 'running',
  destroyed: false,
};

/** Calls after which the image is complete. */
const isAfterEnd = (calls: readonly string[], index: number): boolean => {
  const end = calls.indexOf('sink.end');
  return index > end;
};

describe.each(CASES)('%s', (_name, options, save) => {
  it('fails at any call with everything cleaned up and the guest running', async () => {
    const calls = await callsOf(options, save);
    for (let n = 0; n < calls.length; n++) {
      if (isAfterEnd(calls, n)) continue;
      const world = new FakeWorld(options);
      const injected =
        calls[n] === 'sink.write' ? new TransportError('disk full') : new HypercallError('x', 5, `call ${n}`);
      world.before = (_call, index) => {
        if (index === n) throw injected;
      };
      const { result, sink } = start(world, save);
      const where = `${calls[n]!} (call ${n})`;
      if (calls[n] === 'enableLogDirty') {
        // The one call that is tried again.
        await result;
        continue;
      }
      const error = await errorOf(result);
      expect(error, where).toBe(injected);
      expect(error.guest, where).toEqual({ host: 'source', state: 'running' });
      expect(error.domid, where).toBe(DOMID);
      expect(error.phase, where).toBeDefined();
      expect(error.phase, where).not.toBe('cleanup');
      expect(error.cleanupErrors, where).toEqual([]);
      expect(world.quiet, where).toEqual(QUIET);
      expect(sink.aborted?.reason, where).toBe(injected);
      expect(sink.inFlight, where).toBe(0);
    }
  });

  it('can be cancelled at any call, with the same result', async () => {
    const calls = await callsOf(options, save);
    for (let n = 0; n < calls.length; n++) {
      if (isAfterEnd(calls, n)) continue;
      const world = new FakeWorld(options);
      const run = start(world, save, {}, (control) => {
        world.before = (_call, index) => {
          if (index === n) control.cancel(`at call ${n}`);
        };
      });
      const where = `${calls[n]!} (call ${n})`;
      const error = await errorOf(run.result);
      expect(error, where).toMatchObject({ code: 'ERR_XEN_CANCELLED', cause: `at call ${n}` });
      expect(error.guest, where).toEqual({ host: 'source', state: 'running' });
      expect(world.quiet, where).toEqual(QUIET);
      expect(run.sink.aborted?.reason, where).toBe(error);
      expect(run.control.status.state, where).toBe('cancelled');
    }
  });

  it('keeps the first error when everything after it fails too, and says that the guest did not go on', async () => {
    const calls = await callsOf(options, save);
    const state = calls.indexOf('tscInfo');
    const world = new FakeWorld(options);
    world.before = (call, index) => {
      if (index >= state && call !== 'info') throw new HypercallError(call, 5, `call ${index}`);
    };
    const error = await errorOf(start(world, save).result);
    expect(error.message).toContain(`call ${state}`);
    expect(error.guest).toEqual({ host: 'source', state: 'suspended' });
    const failed = error.cleanupErrors.map((e) => (e as HypercallError).syscall);
    expect(failed).toContain('disableLogDirty');
    expect(failed).toContain('toolstack.resume');
    expect(world.openMappings).toBe(0);
  });
});

describe('where the guest is', () => {
  it('is not known if the hypervisor does not say so and the guest could not be resumed', async () => {
    const world = new FakeWorld(HVM);
    let after = false;
    world.before = (call) => {
      if (call === 'tscInfo') after = true;
      if (after) throw new HypercallError(call, 5, 'gone mad');
    };
    const error = await errorOf(start(world).result);
    expect(error.guest).toEqual({ host: 'source', state: 'unknown' });
  });

  it('is running if everything went well but that question', async () => {
    const world = new FakeWorld(HVM);
    let after = false;
    world.before = (call) => {
      if (call === 'tscInfo') {
        after = true;
        throw new HypercallError(call, 5, 'once');
      }
      if (after && call === 'info') throw new HypercallError(call, 5, 'no answer');
    };
    const error = await errorOf(start(world).result);
    expect(error.guest).toEqual({ host: 'source', state: 'running' });
  });

  it('is nowhere if there is no such domain', async () => {
    const world = new FakeWorld();
    const error = await errorOf(start(world, { domid: 99 }).result);
    expect(error).toMatchObject({ errno: 3, guest: { host: 'none', state: 'gone' } });
  });

  it.each([
    ['crashed', 'ERR_XEN_GUEST_NOT_RUNNING', { host: 'source', state: 'unknown' }],
    ['dying', 'ERR_XEN_GUEST_GONE', { host: 'none', state: 'gone' }],
  ] as const)('is told of a %s guest, which is not touched', async (state, code, guest) => {
    const world = new FakeWorld({ state });
    const { result, sink } = start(world);
    expect(await errorOf(result)).toMatchObject({ code, guest, phase: 'setup' });
    expect(sink.bytesWritten).toBe(0);
    expect(world.calls).not.toContain('toolstack.resume');
    expect(world.state).toBe(state);
  });
});

describe('suspending', () => {
  it('tells the toolstack time, signal and whether log-dirty is on', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    await start(world, { suspendTimeoutMs: 1234 }).result;
    expect(world.suspendOptions).toMatchObject({ timeoutMs: 1234, live: true });
    expect(world.suspendOptions?.signal?.aborted).toBe(false);
    const other = new FakeWorld({ kind: 'pvh' });
    await start(other, { live: false }).result;
    expect(other.suspendOptions).toMatchObject({ timeoutMs: 60_000, live: false });
  });

  it('is not believed unless the hypervisor agrees', async () => {
    const world = new FakeWorld();
    world.toolstack.suspend = async () => undefined;
    expect(await errorOf(start(world).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_NOT_SUSPENDED',
      message: 'the domain has not been suspended: it runs',
      guest: { state: 'running' },
    });
    const powerOff = new FakeWorld();
    powerOff.shutdownReason = 0;
    expect(await errorOf(start(powerOff).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_NOT_SUSPENDED',
      message: 'the domain has not been suspended: it is shut down with reason 0',
    });
  });

  it.each(['looks at its signal', 'does not'])(
    'does not wait for ever for a toolstack that %s',
    async (kind) => {
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
      try {
        const world = new FakeWorld();
        const { promise, resolve } = withResolvers();
        world.toolstack.suspend = (_domid, { signal }) => {
          resolve();
          return new Promise((_resolve, reject) => {
            if (kind !== 'does not') signal!.addEventListener('abort', () => reject(signal!.reason as Error));
          });
        };
        const { result } = start(world, { suspendTimeoutMs: 5000 });
        await promise;
        let over = false;
        void result.catch(() => (over = true));
        // Its own limit is the toolstack's to keep; ours is twice the guest's time, and has room for the device model:
        // 140 s (see suspend.ts).
        await vi.advanceTimersByTimeAsync(10_000 + 140_000);
        expect(over).toBe(false);
        await vi.advanceTimersByTimeAsync(20_000);
        expect(await errorOf(result)).toMatchObject({
          name: 'TimeoutError',
          ms: 160_000,
          phase: 'suspend',
          guest: { host: 'source', state: 'running' },
        });
        expect(world.quiet).toEqual(QUIET);
        expect(vi.getTimerCount()).toBe(0);
      } finally {
        vi.useRealTimers();
      }
    },
  );

  it('that ends in a crash leaves the guest crashed', async () => {
    const world = new FakeWorld();
    world.toolstack.suspend = async () => {
      world.state = 'crashed';
      throw new GuestError('ERR_XEN_TEST', 'the guest crashed');
    };
    const error = await errorOf(start(world).result);
    expect(error).toMatchObject({ code: 'ERR_XEN_TEST', guest: { host: 'source', state: 'unknown' } });
    expect(world.calls).not.toContain('toolstack.resume');
    expect(world.logDirty).toBe(false);
  });

  it('ends when the job is cancelled while the toolstack waits for the guest', async () => {
    const world = new FakeWorld();
    const run = start(world);
    world.toolstack.suspend = (_domid, { signal }) =>
      new Promise((_resolve, reject) => {
        signal!.addEventListener('abort', () => reject(new Error('the adapter’s own words')));
        setImmediate(() => run.control.cancel('enough'));
      });
    const error = await errorOf(run.result);
    expect(error).toMatchObject({ code: 'ERR_XEN_CANCELLED', cause: 'enough', phase: 'suspend' });
    expect(world.quiet).toEqual(QUIET);
  });

  it('notices somebody who resumed the guest meanwhile', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    world.before = (call) => {
      if (call === 'mapFrames' && world.state === 'suspended') world.state = 'running';
    };
    const error = await errorOf(start(world, { live: false }).result);
    expect(error).toMatchObject({ code: 'ERR_XEN_GUEST_NOT_SUSPENDED', phase: 'state' });
  });
});

describe('a guest that is suspended already', () => {
  it('is saved without being asked again', async () => {
    const world = new FakeWorld({ kind: 'pvh', state: 'suspended' });
    const { result, sink } = start(world, { afterwards: 'suspended' });
    const { iterations } = await result;
    expect(iterations).toHaveLength(1);
    expect((await parse(sink.bytes)).names).toContain('PAGE_DATA 40');
    expect(world.calls).not.toContain('toolstack.suspend');
    expect(world.calls).not.toContain('enableLogDirty');
    expect(world.state).toBe('suspended');
  });

  it('stays so when the save fails', async () => {
    const world = new FakeWorld({ kind: 'pvh', state: 'suspended' });
    world.before = (call) => {
      if (call === 'hvmContext') throw new HypercallError(call, 5, 'no');
    };
    const error = await errorOf(start(world).result);
    expect(error.guest).toEqual({ host: 'source', state: 'suspended' });
    expect(world.calls).not.toContain('toolstack.resume');
  });
});

describe('a paused guest', () => {
  const paused: FakeOptions = { kind: 'pvh', paused: true };

  it('runs only to suspend itself', async () => {
    const world = new FakeWorld(paused);
    await start(world, { afterwards: 'resume' }).result;
    const order = world.calls.filter((call) => /pause|suspend|resume/.test(call));
    expect(order).toEqual(['toolstack.unpause', 'toolstack.suspend', 'toolstack.pause', 'toolstack.resume']);
    expect(world).toMatchObject({ state: 'running', pauses: 1 });
  });

  it('is paused again after a failure at any call', async () => {
    const calls = await callsOf(paused, {});
    for (let n = 0; n < calls.indexOf('sink.end'); n++) {
      // One is tried again; and what cannot be paused runs.
      if (calls[n] === 'enableLogDirty' || calls[n] === 'toolstack.pause') continue;
      const world = new FakeWorld(paused);
      const injected = new HypercallError('x', 5, `call ${n}`);
      world.before = (_call, index) => {
        if (index === n) throw injected;
      };
      const error = await errorOf(start(world).result);
      const where = `${calls[n]!} (call ${n})`;
      expect(error, where).toBe(injected);
      expect(error.guest, where).toEqual({ host: 'source', state: 'paused' });
      expect(world, where).toMatchObject({ state: 'running', pauses: 1, logDirty: false });
    }
  });

  it('keeps the first error if it cannot be paused again', async () => {
    const world = new FakeWorld(paused);
    world.before = (call) => {
      if (call === 'toolstack.suspend' || call === 'toolstack.pause') throw new HypercallError(call, 5, 'no');
    };
    const error = await errorOf(start(world).result);
    expect(error).toMatchObject({
      syscall: 'toolstack.suspend',
      cleanupErrors: [{ syscall: 'toolstack.pause' }],
      guest: { host: 'source', state: 'running' },
    });
  });
});

describe('afterwards', () => {
  it.each([
    ['destroy', { destroyed: true }],
    ['resume', { destroyed: false, state: 'running' }],
    ['suspended', { destroyed: false, state: 'suspended' }],
  ] as const)('%s', async (afterwards, expected) => {
    const world = new FakeWorld({ kind: 'hvm' });
    const { result, sink } = start(world, { afterwards });
    await result;
    expect(world).toMatchObject(expected);
    expect(world).toMatchObject({
      logDirty: false,
      deviceModelLogDirty: false,
      openMappings: 0,
      openDomains: 0,
    });
    expect(sink.ended).toBe(true);
    expect(sink.aborted).toBeUndefined();
  });

  it.each([
    ['destroy', 'ERR_XEN_GUEST_NOT_DESTROYED'],
    ['resume', 'ERR_XEN_GUEST_NOT_RESUMED'],
  ] as const)('says so if %s fails, and leaves guest and image alone', async (afterwards, code) => {
    const world = new FakeWorld({ kind: 'pvh' });
    const cause = new HypercallError('x', 5, 'no');
    world.before = (call) => {
      if (call === `toolstack.${afterwards}`) throw cause;
    };
    const { result, sink } = start(world, { afterwards });
    const error = await errorOf(result);
    expect(error).toMatchObject({ code, cause, guest: { host: 'source', state: 'suspended' } });
    expect(error.message).toContain('the image of domain 7 is complete');
    expect(sink.aborted).toBeUndefined();
    expect(world.state).toBe('suspended');
    expect(world.openDomains).toBe(0);
  });

  it('reports a clean-up that failed behind a complete image', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    world.before = (call) => {
      if (call === 'disableLogDirty') throw new HypercallError(call, 5, 'no');
    };
    const value = await start(world).result;
    expect(value.cleanupErrors).toMatchObject([{ syscall: 'disableLogDirty' }]);
    expect(world.destroyed).toBe(true);
  });
});

describe('cancelling', () => {
  it('ends a write to a peer that does not read', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 5000 });
    const run = start(world);
    run.sink.gate = new Promise(() => undefined);
    setTimeout(() => run.control.cancel('tired'), 5);
    const error = await errorOf(run.result);
    expect(error).toMatchObject({ code: 'ERR_XEN_CANCELLED', cause: 'tired' });
    expect(world.quiet).toEqual(QUIET);
  });

  it('is noticed after a write that claims to have succeeded, as one of a destroyed socket does', async () => {
    const calls = await callsOf(HVM, {});
    const writes = calls.flatMap((call, n) => (call === 'sink.write' || call === 'sink.end' ? [n] : []));
    expect(writes.length).toBeGreaterThan(8);
    for (const n of writes) {
      const world = new FakeWorld(HVM);
      const run = start(world, {}, {}, (control) => {
        world.before = (_call, index) => {
          if (index === n) control.cancel();
        };
      });
      run.sink.abort = () => undefined;
      expect(await errorOf(run.result), `call ${n}`).toMatchObject({ code: 'ERR_XEN_CANCELLED' });
      expect(world.quiet, `call ${n}`).toEqual(QUIET);
    }
  });

  it('has its turn even if host and sink answer at once', async () => {
    // 2 GiB of nothing: only microtasks, but for the turns that batches give to others.
    const world = new FakeWorld({ kind: 'pvh', pages: 8 });
    world.domain.maxGpfn = async () => 512 * 1024 - 1;
    const run = start(world, { live: false });
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    await run.result;
    clearInterval(timer);
    expect(turns).toBeGreaterThan(0);
  });

  it('is the error, and what fails because of it or beside it stands behind it', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    const run = start(world);
    const beside = new HypercallError('x', 5, 'at the same moment');
    world.before = (call) => {
      if (call !== 'mapFrames') return;
      run.control.cancel();
      throw beside;
    };
    expect(await errorOf(run.result)).toMatchObject({ code: 'ERR_XEN_CANCELLED', cleanupErrors: [beside] });
  });

  it('by an outer signal works as by cancel()', async () => {
    const world = new FakeWorld({ kind: 'pvh' });
    const outer = new AbortController();
    const run = start(world, {}, { signal: outer.signal });
    world.before = (call) => {
      if (call === 'mapFrames') outer.abort(new Error('sigterm'));
    };
    expect(await errorOf(run.result)).toMatchObject({
      code: 'ERR_XEN_CANCELLED',
      cause: { message: 'sigterm' },
    });
    expect(world.quiet).toEqual(QUIET);
  });
});
