/** Suspending guests in three ways, and everything that they do instead. */
import { statSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  CancelledError,
  DeviceModelError,
  GuestError,
  HypercallError,
  TimeoutError,
} from '../../../../lib/errors.js';
import { Errno } from '../../../../lib/abi/errno.js';
import { EINVAL, errorOf, makeWorld, nativeError, passTime, until, type World } from './world.js';

const SHUTDOWN = '/local/domain/5/control/shutdown';
const PORT = '/local/domain/5/device/suspend/event-channel';
const CALLBACK_IRQ = 0;
const ACPI_S_STATE = 14;

let world: World;

beforeEach(async () => {
  world = await makeWorld();
});

afterEach(async () => {
  await world[Symbol.asyncDispose]();
});

/** Domain 5 stops. */
function stop(reason: number): void {
  const domain = world.xen.domains.get(5);
  if (domain === undefined) throw new Error('no domain 5');
  domain.shutdown = true;
  domain.shutdownReason = reason;
  world.store.fire('@releaseDomain');
}

/** Domain 5 does as a kernel does when control/shutdown says "suspend". */
function obey(reason = 2): void {
  world.store.onWrite = (path, value) => {
    if (path !== SHUTDOWN || value !== 'suspend') return;
    setImmediate(() => {
      world.store.write(SHUTDOWN, '');
      setImmediate(() => stop(reason));
    });
  };
}

const suspend = (timeoutMs?: number, signal?: AbortSignal): Promise<void> =>
  world.toolstack.suspend(5, { live: false, timeoutMs, signal });

describe('through xenstore', () => {
  beforeEach(() => {
    world.xen.add(5);
    world.store.write(SHUTDOWN, '');
    // As libxl leaves it for a guest that never fills it in.
    world.store.write(PORT, '');
  });

  it('asks, waits for the guest, and leaves no watch behind', async () => {
    obey();
    await suspend();
    expect(world.xen.domains.get(5)).toMatchObject({ shutdown: true, shutdownReason: 2 });
    expect(world.xen.log).toEqual([]);
    await until(() => world.store.watched.length === 0);
    expect(world.clock.waiting).toBe(0);
  });

  it('takes the removal of the node for an answer', async () => {
    world.store.onWrite = (path, value) => {
      if (path === SHUTDOWN && value === 'suspend')
        setImmediate(() => world.store.write(SHUTDOWN, undefined));
    };
    const suspending = suspend(1000);
    await until(() => !world.store.store.has(SHUTDOWN));
    const error = await errorOf(passTime(world, suspending));
    expect(String(error)).toContain('acknowledged the request, but did not suspend within 1000 ms');
  });

  it('begins the time anew, once, when the guest takes the request', async () => {
    const suspending = suspend(60_000);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.clock.advance(50_000);
    const reads = (): number => world.store.requests.filter((r) => r === `XS_READ ${SHUTDOWN}`).length;
    const before = reads();
    world.store.write(SHUTDOWN, '');
    await until(() => reads() > before);
    // The look at the domain that follows.
    await new Promise((resolve) => setTimeout(resolve, 20));
    // What the guest does with the node later on gives it no more time.
    world.store.write(SHUTDOWN, 'x');
    world.clock.advance(59_000);
    let over = false;
    void suspending.catch(() => (over = true));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(over).toBe(false);
    world.clock.advance(1000);
    const error = await errorOf(suspending);
    expect(String(error)).toContain('acknowledged the request, but did not suspend within 60000 ms');
    expect(world.clock.now).toBe(110_000);
  });

  it('sees a guest that xenstored does not tell of, a second later', async () => {
    world.store.onWrite = (path, value) => {
      if (path !== SHUTDOWN || value !== 'suspend') return;
      world.store.write(SHUTDOWN, '');
      Object.assign(world.xen.domains.get(5) as object, { shutdown: true, shutdownReason: 2 });
    };
    await passTime(world, suspend(1e9), 1e5);
    expect(world.clock.now).toBeLessThan(1e9);
  });

  it('takes the request back from a guest that takes no notice', async () => {
    const error = await errorOf(passTime(world, suspend(5000)));
    expect(error).toBeInstanceOf(TimeoutError);
    expect(error).toMatchObject({ ms: 5000, phase: 'suspend', domid: 5 });
    expect(String(error)).toContain('took no notice within 5000 ms; the request was taken back');
    expect(world.store.store.get(SHUTDOWN)).toBe('');
    expect(world.xen.log).toEqual([]);
    // Nothing is left to look after.
    expect(world.clock.waiting).toBe(0);
    await until(() => world.store.watched.length === 0);
  });

  it('gives a guest that answers at the last moment its time to suspend', async () => {
    // The guest answers between the timeout and the transaction that would take the request back.
    const release = world.store.hold('XS_TRANSACTION_START');
    const suspending = suspend(3000);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend' && world.clock.waiting === 2);
    world.clock.advance(3000);
    await until(() => world.store.requests.some((r) => r.startsWith('XS_TRANSACTION_START')));
    world.store.write(SHUTDOWN, '');
    release();
    await until(() => world.clock.waiting === 2);
    world.clock.advance(2999);
    await new Promise((resolve) => setTimeout(resolve, 10));
    stop(2);
    await suspending;
  });

  it.each([
    [3, 'ERR_XEN_GUEST_CRASHED', 'crashed'],
    [4, 'ERR_XEN_GUEST_CRASHED', 'watchdog'],
    [0, 'ERR_XEN_GUEST_NOT_RUNNING', 'powered off'],
    [1, 'ERR_XEN_GUEST_NOT_RUNNING', 'rebooted'],
    [5, 'ERR_XEN_GUEST_NOT_RUNNING', 'soft reset'],
    [9, 'ERR_XEN_GUEST_NOT_RUNNING', 'reason 9'],
  ])('says that the guest stopped for reason %i instead', async (reason, code, text) => {
    obey(reason);
    const error = await errorOf(suspend());
    expect(error).toBeInstanceOf(GuestError);
    expect(error).toMatchObject({ code, domid: 5 });
    expect(String(error)).toContain(text);
    expect(world.xen.log).toEqual([]);
  });

  it('says that the domain was destroyed meanwhile', async () => {
    const suspending = suspend();
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.xen.domains.delete(5);
    world.store.fire('@releaseDomain');
    const error = await errorOf(suspending);
    expect(error).toMatchObject({ code: 'ERR_XEN_GUEST_GONE', guest: { host: 'none', state: 'gone' } });
  });

  it('says that the domain is being destroyed', async () => {
    const suspending = suspend();
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    Object.assign(world.xen.domains.get(5) as object, { dying: true });
    world.store.fire('@releaseDomain');
    expect(await errorOf(suspending)).toMatchObject({ code: 'ERR_XEN_GUEST_GONE' });
  });

  it('refuses a domain that is not there, or down already', async () => {
    await expect(world.toolstack.suspend(6, { live: false })).rejects.toMatchObject({
      code: 'ERR_XEN_GUEST_GONE',
    });
    stop(3);
    await expect(suspend()).rejects.toMatchObject({ code: 'ERR_XEN_GUEST_CRASHED' });
    expect(world.store.store.get(SHUTDOWN)).toBe('');
  });

  it('leaves a guest that is suspended as it is', async () => {
    stop(2);
    await suspend();
    expect(world.store.store.get(SHUTDOWN)).toBe('');
  });

  it('is cancelled before it begins', async () => {
    await expect(suspend(undefined, AbortSignal.abort('no'))).rejects.toBeInstanceOf(CancelledError);
    expect(world.store.store.get(SHUTDOWN)).toBe('');
  });

  it('is cancelled before the guest took notice: the request is taken back', async () => {
    const stopper = new AbortController();
    const suspending = suspend(undefined, stopper.signal);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    stopper.abort(new Error('enough'));
    const error = await errorOf(suspending);
    expect(error).toMatchObject({ code: 'ERR_XEN_CANCELLED', cause: { message: 'enough' } });
    expect(world.store.store.get(SHUTDOWN)).toBe('');
    expect(world.clock.waiting).toBe(0);
  });

  it('is cancelled after the guest took notice: waits for it and resumes it', async () => {
    const stopper = new AbortController();
    const suspending = suspend(undefined, stopper.signal);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.store.write(SHUTDOWN, '');
    stopper.abort();
    await new Promise((resolve) => setTimeout(resolve, 20));
    stop(2);
    await expect(suspending).rejects.toBeInstanceOf(CancelledError);
    expect(world.xen.log).toEqual(['resume 5 true']);
    expect(world.store.resumed).toEqual([5]);
    expect(world.xen.domains.get(5)?.shutdown).toBe(false);
  });

  it('keeps the first error when the guest crashes after it was cancelled', async () => {
    const stopper = new AbortController();
    const suspending = suspend(undefined, stopper.signal);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.store.write(SHUTDOWN, '');
    stopper.abort();
    await new Promise((resolve) => setTimeout(resolve, 20));
    stop(3);
    const error = await errorOf(suspending);
    expect(error).toMatchObject({ code: 'ERR_XEN_CANCELLED' });
    expect((error as CancelledError).cleanupErrors).toMatchObject([{ code: 'ERR_XEN_GUEST_CRASHED' }]);
    expect(world.xen.log).toEqual([]);
    expect(world.clock.waiting).toBe(0);
  });

  it('looks after a guest that was given up, and resumes it when it suspends after all', async () => {
    const suspending = suspend(2000);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.store.write(SHUTDOWN, '');
    expect(await errorOf(passTime(world, suspending))).toBeInstanceOf(TimeoutError);
    await until(() => world.store.watched.includes('@releaseDomain'));
    stop(2);
    await until(() => world.xen.log.length > 0);
    expect(world.xen.log).toEqual(['resume 5 true']);
    await until(() => world.store.resumed.length === 1);
  });

  it('gives up that watch when it is asked again', async () => {
    const first = suspend(2000);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.store.write(SHUTDOWN, '');
    await errorOf(passTime(world, first));
    obey();
    await suspend();
    world.clock.advance(5000);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(world.xen.domains.get(5)?.shutdown).toBe(true);
    expect(world.xen.log).toEqual([]);
  });

  it('leaves the guest to another toolstack that asks it', async () => {
    const first = suspend(2000);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.store.write(SHUTDOWN, '');
    await errorOf(passTime(world, first));
    await until(() => world.store.watched.includes(SHUTDOWN));
    world.store.write(SHUTDOWN, 'suspend');
    await until(() => world.store.watched.length === 0);
    stop(2);
    world.clock.advance(5000);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(world.xen.log).toEqual([]);
    expect(world.clock.waiting).toBe(0);
  });

  it('does not look after it for ever', async () => {
    const first = suspend(2000);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.store.write(SHUTDOWN, '');
    await errorOf(passTime(world, first));
    await until(() => world.store.watched.includes(SHUTDOWN));
    world.clock.advance(60_000);
    await until(() => world.store.watched.length === 0);
    expect(world.clock.waiting).toBe(0);
    stop(2);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(world.xen.log).toEqual([]);
  });

  it('lets go of a guest that ends otherwise', async () => {
    const first = suspend(2000);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.store.write(SHUTDOWN, '');
    await errorOf(passTime(world, first));
    await until(() => world.store.watched.includes(SHUTDOWN));
    stop(3);
    await until(() => world.store.watched.length === 0);
    expect(world.xen.log).toEqual([]);
    expect(world.clock.waiting).toBe(0);
  });

  it('has a last look when it is closed', async () => {
    const first = suspend(2000);
    await until(() => world.store.store.get(SHUTDOWN) === 'suspend');
    world.store.write(SHUTDOWN, '');
    await errorOf(passTime(world, first));
    Object.assign(world.xen.domains.get(5) as object, { shutdown: true, shutdownReason: 2 });
    await world.toolstack.close();
    expect(world.xen.log).toEqual(['resume 5 true']);
    expect(world.store.resumed).toEqual([5]);
    expect(world.clock.waiting).toBe(0);
  });

  it('fails as xenstore fails, and connects anew the next time', async () => {
    const release = world.store.hold('XS_WRITE');
    const suspending = suspend();
    await until(() => world.store.requests.some((r) => r.startsWith('XS_WRITE')));
    world.store.drop();
    release();
    expect(await errorOf(suspending)).toMatchObject({ code: 'ERR_XEN_XENSTORE' });
    world.store.write(SHUTDOWN, '');
    obey();
    await suspend();
  });

  it('fails as the hypervisor fails', async () => {
    world.xen.fails.set('domainInfo', EINVAL);
    const error = await errorOf(suspend());
    expect(error).toBeInstanceOf(HypercallError);
    expect(error).toMatchObject({ errno: EINVAL, syscall: 'domainInfo', domid: 5 });
  });
});

describe('through the hypervisor', () => {
  it('suspends an HVM guest without PV drivers, which cannot answer', async () => {
    world.xen.add(5, { hvm: true });
    world.store.write('/libxl/5/type', 'hvm');
    await suspend();
    expect(world.xen.log).toEqual(['shutdown 5 2']);
    expect(world.store.store.has(SHUTDOWN)).toBe(false);
  });

  it('suspends a PVH guest without a callback likewise', async () => {
    world.xen.add(5, { hvm: true });
    world.store.write('/libxl/5/type', 'pvh');
    await suspend();
    expect(world.xen.log).toEqual(['shutdown 5 2']);
  });

  it('suspends a guest that sleeps, whatever it could answer', async () => {
    world.xen.add(5, {
      hvm: true,
      params: new Map([
        [CALLBACK_IRQ, 1n],
        [ACPI_S_STATE, 3n],
      ]),
    });
    world.store.write('/libxl/5/type', 'hvm');
    world.store.write(PORT, '12');
    await suspend();
    expect(world.xen.log).toEqual(['shutdown 5 2']);
  });

  it('asks a guest with PV drivers through xenstore', async () => {
    world.xen.add(5, { hvm: true, params: new Map([[CALLBACK_IRQ, 1n]]) });
    world.store.write('/libxl/5/type', 'pvh');
    obey();
    await suspend();
    expect(world.xen.log).toEqual([]);
  });

  it('resumes the guest when it was cancelled in between', async () => {
    world.xen.add(5, { hvm: true });
    const stopper = new AbortController();
    const { calls } = world.xen;
    const toolstack = await makeWorld({
      calls: {
        ...calls,
        shutdown: async (domid, reason) => {
          await calls.shutdown(domid, reason);
          Object.assign(world.xen.domains.get(5) as object, { shutdown: false });
          stopper.abort();
          setTimeout(() => {
            stop(2);
            toolstack.store.fire('@releaseDomain');
          }, 20);
        },
      },
    });
    try {
      const suspending = toolstack.toolstack.suspend(5, { live: false, signal: stopper.signal });
      await expect(suspending).rejects.toBeInstanceOf(CancelledError);
      expect(world.xen.log).toEqual(['shutdown 5 2', 'resume 5 true']);
    } finally {
      await toolstack[Symbol.asyncDispose]();
    }
  });

  it('passes on what the hypervisor says', async () => {
    world.xen.add(5, { hvm: true });
    world.xen.fails.set('shutdown', EINVAL);
    await expect(suspend()).rejects.toMatchObject({ code: 'ERR_XEN_HYPERCALL', syscall: 'shutdown' });
  });
});

describe('by event channel', () => {
  beforeEach(() => {
    world.xen.add(5);
    world.store.write(PORT, '12');
  });

  it('binds, subscribes, notifies, waits, and lets go', async () => {
    world.evtchn.onNotify = () =>
      setImmediate(() => {
        Object.assign(world.xen.domains.get(5) as object, { shutdown: true, shutdownReason: 2 });
        world.evtchn.fire();
      });
    await suspend();
    expect(world.evtchn.bound.get(7)).toBe(12);
    expect(world.xen.domains.get(5)?.subscribed).toEqual([12]);
    expect(world.evtchn.notified).toEqual([7]);
    expect(world.evtchn.closed).toBe(true);
    expect(world.evtchn.keepAlive).toBe(true);
    expect(world.store.store.has(SHUTDOWN)).toBe(false);
    expect(world.clock.waiting).toBe(0);
  });

  it('does not take the event of the binding for an answer', async () => {
    const suspending = suspend(3000);
    await until(() => world.evtchn.notified.length === 1);
    const error = await errorOf(passTime(world, suspending));
    expect(error).toBeInstanceOf(TimeoutError);
    expect(String(error)).toContain('by its suspend event channel');
    expect(world.evtchn.closed).toBe(true);
  });

  it('looks after a guest that did not follow in time', async () => {
    expect(await errorOf(passTime(world, suspend(3000)))).toBeInstanceOf(TimeoutError);
    stop(2);
    await until(() => world.store.resumed.length === 1);
    expect(world.xen.log.at(-1)).toBe('resume 5 true');
  });

  it('cannot be taken back: a cancelled guest is waited for, and looked after', async () => {
    const stopper = new AbortController();
    const suspending = suspend(undefined, stopper.signal);
    await until(() => world.evtchn.notified.length === 1);
    stopper.abort();
    const began = world.clock.now;
    await expect(passTime(world, suspending)).rejects.toBeInstanceOf(CancelledError);
    expect(world.clock.now - began).toBeGreaterThanOrEqual(10_000);
    expect(world.xen.log).toEqual(['subscribe 5 12']);
    stop(2);
    await until(() => world.xen.log.includes('resume 5 true'));
  });

  it('says that another toolstack has the channel', async () => {
    world.evtchn.bindError = nativeError('bindInterdomain', EINVAL);
    const error = await errorOf(suspend());
    expect(error).toMatchObject({ code: 'ERR_XEN_GUEST_BUSY', domid: 5, cause: { errno: EINVAL } });
    expect(world.evtchn.closed).toBe(true);
  });

  it('lets go when the subscription or the notification fails', async () => {
    world.xen.fails.set('subscribe', EINVAL);
    await expect(suspend()).rejects.toMatchObject({ syscall: 'subscribe' });
    expect(world.evtchn.closed).toBe(true);
    world.xen.fails.clear();
    world.evtchn.closed = false;
    world.evtchn.notifyError = nativeError('notify', 5);
    await expect(suspend()).rejects.toMatchObject({ errno: 5 });
    expect(world.evtchn.closed).toBe(true);
  });

  it.each([
    ['openEvtchn', 'openEvtchn'],
    ['bindInterdomain', 'xenevtchn_bind_interdomain'],
    ['watchReadable', 'eventfd'],
    ['notify', 'xenevtchn_notify'],
    ['pending', 'xenevtchn_pending'],
  ])('fails with an error of this library when %s does', async (where, syscall) => {
    const { evtchn } = world;
    const raw = nativeError(syscall, Errno.EIO);
    const fail = (): never => {
      throw raw;
    };
    const other = await makeWorld({
      ...(where === 'openEvtchn' ? { openEvtchn: fail } : { openEvtchn: () => evtchn }),
      ...(where === 'watchReadable'
        ? { watchReadable: fail }
        : { watchReadable: (_fd, ring, keepAlive) => evtchn.watch(ring, keepAlive) }),
    });
    try {
      other.xen.add(5);
      other.store.write(PORT, '12');
      if (where === 'bindInterdomain') evtchn.bindError = raw;
      if (where === 'notify') evtchn.notifyError = raw;
      if (where === 'pending') evtchn.pending = fail;
      const error = await errorOf(passTime(other, other.toolstack.suspend(5, { live: false })));
      expect(error).toBeInstanceOf(HypercallError);
      expect(error).toMatchObject({ errno: Errno.EIO, syscall, domid: 5, cause: raw });
      expect(evtchn.closed).toBe(where !== 'openEvtchn');
    } finally {
      await other[Symbol.asyncDispose]();
    }
  });

  it('takes libxc’s lock, and removes its file', async () => {
    const locked: number[] = [];
    const other = await makeWorld({ lockFile: (fd) => void locked.push(fd) });
    try {
      other.xen.add(5);
      other.store.write(PORT, '12');
      const suspending = other.toolstack.suspend(5, { live: false });
      await until(() => other.evtchn.notified.length === 1);
      expect(locked).toHaveLength(1);
      expect(await other.files()).toContain('suspend-evtchn-5.lock');
      Object.assign(other.xen.domains.get(5) as object, { shutdown: true, shutdownReason: 2 });
      other.evtchn.fire();
      await suspending;
      expect(await other.files()).toEqual([]);
    } finally {
      await other[Symbol.asyncDispose]();
    }
  });

  it('is kept out by that lock', async () => {
    const other = await makeWorld({
      lockFile: () => {
        throw nativeError('fcntl', 11, 'Resource temporarily unavailable');
      },
    });
    try {
      other.xen.add(5);
      other.store.write(PORT, '12');
      const path = join(other.dir, 'suspend-evtchn-5.lock');
      await writeFile(path, '');
      await expect(other.toolstack.suspend(5, { live: false })).rejects.toMatchObject({
        code: 'ERR_XEN_GUEST_BUSY',
      });
      expect(await other.files()).toContain('suspend-evtchn-5.lock');
      expect(other.evtchn.notified).toEqual([]);
    } finally {
      await other[Symbol.asyncDispose]();
    }
  });
});

describe('the device model', () => {
  const state = new Uint8Array([0x51, 0x45, 0x56, 0x4d, 1, 2, 3]);

  /** QEMU, as far as it matters. `running` says what it does. */
  async function startQemu(refuse?: string): Promise<{ commands: () => string[] }> {
    world.xen.add(5, { hvm: true });
    const qemu = await world.qemu(5, (command, args) => {
      if (command === refuse) return { error: { class: 'GenericError', desc: 'no space left' } };
      if (command === 'query-cpus-fast') return { return: [{ 'cpu-index': 1 }, { 'cpu-index': 0 }] };
      if (command === 'xen-save-devices-state') {
        void writeFile((args as { filename: string }).filename, state);
      }
      return { return: {} };
    });
    return {
      commands: () => qemu.commands.map((c) => c.execute).filter((c) => c !== 'qmp_capabilities'),
    };
  }

  it('is stopped with its guest, its state read, and goes on first', async () => {
    const qemu = await startQemu();
    await world.toolstack.suspend(5, { live: true });
    expect(qemu.commands()).toEqual(['stop', 'xen-save-devices-state']);
    await until(() => world.xen.log.length === 1);
    await until(() => statSync(join(world.dir, 'qemu-save.5')).size === state.length);
    const saved = await world.toolstack.deviceModelState(5);
    expect(saved).toEqual({ emulator: 2, xenstore: new Uint8Array(), context: state });
    await world.toolstack.resume(5);
    expect(qemu.commands()).toEqual(['stop', 'xen-save-devices-state', 'cont']);
    expect(world.xen.log).toEqual(['shutdown 5 2', 'resume 5 true']);
    expect(await world.files()).toEqual(['qmp-libxl-5']);
  });

  it('goes on, and its file with its state is removed, when another process resumes its guest', async () => {
    const qemu = await startQemu();
    await world.toolstack.suspend(5, { live: true });
    await until(() => statSync(join(world.dir, 'qemu-save.5')).size === state.length);
    // That process is killed; this one recovers.
    await world.successor().resume(5);
    expect(qemu.commands()).toEqual(['stop', 'xen-save-devices-state', 'cont']);
    expect(world.xen.log).toEqual(['shutdown 5 2', 'resume 5 true']);
    expect(await world.files()).toEqual(['qmp-libxl-5']);
  });

  it('has its file with its state removed when another process destroys its guest', async () => {
    await startQemu();
    await world.toolstack.suspend(5, { live: true });
    await until(() => statSync(join(world.dir, 'qemu-save.5')).size === state.length);
    await world.successor().destroy(5);
    expect(world.xen.domains.has(5)).toBe(false);
    expect(await world.files()).not.toContain('qemu-save.5');
  });

  it('tells whether it is a live migration', async () => {
    world.xen.add(5, { hvm: true });
    const qemu = await world.qemu(5);
    await world.toolstack.suspend(5, { live: true });
    expect(qemu.commands.at(-1)?.arguments).toEqual({ filename: join(world.dir, 'qemu-save.5'), live: true });
  });

  it('saves the state of a guest that somebody else suspended', async () => {
    const qemu = await startQemu();
    stop(2);
    expect((await world.toolstack.deviceModelState(5))?.context).toEqual(state);
    expect(qemu.commands()).toEqual(['stop', 'xen-save-devices-state']);
  });

  it('has no state while the guest runs', async () => {
    await startQemu();
    await expect(world.toolstack.deviceModelState(5)).rejects.toMatchObject({
      code: 'ERR_XEN_INVALID_ARGUMENT',
    });
  });

  it('that cannot save leaves the guest running', async () => {
    const qemu = await startQemu('xen-save-devices-state');
    const error = await errorOf(world.toolstack.suspend(5, { live: false }));
    expect(error).toBeInstanceOf(DeviceModelError);
    expect(error).toMatchObject({ command: 'xen-save-devices-state', domid: 5 });
    expect(qemu.commands()).toEqual(['stop', 'xen-save-devices-state', 'cont']);
    expect(world.xen.log).toEqual(['shutdown 5 2', 'resume 5 true']);
    expect(await world.files()).toEqual(['qmp-libxl-5']);
  });

  it('that can neither save nor go on is told of beside the first error, and the guest stays', async () => {
    world.xen.add(5, { hvm: true });
    await world.qemu(5, (command) =>
      command === 'qmp_capabilities' ? { return: {} } : { error: { class: 'GenericError', desc: command } },
    );
    const error = await errorOf(world.toolstack.suspend(5, { live: false }));
    expect(error).toMatchObject({ command: 'stop', cleanupErrors: [{ command: 'cont' }] });
    expect(world.xen.log).toEqual(['shutdown 5 2']);
  });

  it('whose socket is not there is an error, and the guest stays suspended for it cannot go on either', async () => {
    world.xen.add(5, { hvm: true });
    world.store.write('/libxl/5/type', 'hvm');
    world.store.write('/libxl/5/dm-version', 'qemu_xen');
    world.store.write('/local/domain/0/device-model/5/state', 'running');
    const error = await errorOf(world.toolstack.suspend(5, { live: false }));
    expect(error).toMatchObject({ code: 'ERR_XEN_DEVICE_MODEL', command: 'connect' });
  });

  it('that is not there is none', async () => {
    world.xen.add(5, { hvm: true });
    world.store.write('/libxl/5/type', 'hvm');
    await world.toolstack.suspend(5, { live: false });
    expect(await world.toolstack.deviceModelState(5)).toBeUndefined();
    await world.toolstack.setDeviceModelLogDirty(5, true);
    await world.toolstack.resume(5);
    expect(world.xen.log).toEqual(['shutdown 5 2', 'resume 5 true']);
  });

  it.each([
    ['qemu_xen_traditional', undefined, 'qemu_xen_traditional'],
    ['qemu_xen', '9', 'stub domain'],
  ])('of another kind is refused: %s, in domain %s', async (version, stub, text) => {
    world.xen.add(5, { hvm: true });
    world.store.write('/libxl/5/type', 'hvm');
    world.store.write('/libxl/5/dm-version', version);
    world.store.write('/local/domain/0/device-model/5/state', 'running');
    world.store.write('/local/domain/5/image/device-model-domid', stub);
    const error = await errorOf(world.toolstack.setDeviceModelLogDirty(5, true));
    expect(error).toBeInstanceOf(DeviceModelError);
    expect(String(error)).toContain(text);
  });

  it('reports what it writes when told', async () => {
    world.xen.add(5, { hvm: true });
    const qemu = await world.qemu(5);
    await world.toolstack.setDeviceModelLogDirty(5, true);
    await world.toolstack.setDeviceModelLogDirty(5, false);
    const told = qemu.commands.filter((c) => c.execute === 'xen-set-global-dirty-log');
    expect(told.map((c) => c.arguments)).toEqual([{ enable: true }, { enable: false }]);
  });

  it('has physmap entries, as old QEMUs made them', async () => {
    await startQemu();
    const root = '/local/domain/0/device-model/5/physmap/c0000';
    world.store.write(`${root}/start_addr`, 'a0000');
    world.store.write(`${root}/size`, '10000');
    world.store.write(`${root}/name`, 'vga.vram');
    stop(2);
    const saved = await world.toolstack.deviceModelState(5);
    expect(new TextDecoder().decode(saved?.xenstore)).toBe(
      'physmap/c0000/start_addr\0a0000\0physmap/c0000/size\x0010000\0physmap/c0000/name\0vga.vram\0',
    );
    world.store.write(`${root}/name`, undefined);
    await expect(world.toolstack.deviceModelState(5)).rejects.toBeInstanceOf(DeviceModelError);
  });

  it('that saved nothing is an error', async () => {
    world.xen.add(5, { hvm: true });
    await world.qemu(5);
    await world.toolstack.suspend(5, { live: false });
    const error = await errorOf(world.toolstack.deviceModelState(5));
    expect(String(error)).toContain('is empty');
  });

  it('of a PV or PVH guest is no business of a save', async () => {
    world.xen.add(5, { hvm: true });
    const qemu = await world.qemu(5);
    world.store.write('/libxl/5/type', 'pvh');
    await world.toolstack.suspend(5, { live: false });
    expect(await world.toolstack.deviceModelState(5)).toBeUndefined();
    expect(qemu.commands).toEqual([]);
  });
});

describe('resume', () => {
  it('does nothing to a guest that runs', async () => {
    world.xen.add(5);
    await world.toolstack.resume(5);
    expect(world.xen.log).toEqual([]);
    expect(world.store.resumed).toEqual([]);
  });

  it('tells xenstored, and clears a request that nobody looked at', async () => {
    world.xen.add(5, { shutdown: true, shutdownReason: 2 });
    world.store.write(SHUTDOWN, 'suspend');
    await world.toolstack.resume(5);
    expect(world.xen.log).toEqual(['resume 5 true']);
    expect(world.store.resumed).toEqual([5]);
    expect(world.store.store.get(SHUTDOWN)).toBe('');
  });

  it('refuses a guest that is down for another reason, and one that is gone', async () => {
    world.xen.add(5, { shutdown: true, shutdownReason: 3 });
    await expect(world.toolstack.resume(5)).rejects.toMatchObject({ code: 'ERR_XEN_GUEST_CRASHED' });
    await expect(world.toolstack.resume(6)).rejects.toMatchObject({ code: 'ERR_XEN_HYPERCALL', errno: 3 });
    expect(world.xen.log).toEqual([]);
  });
});
