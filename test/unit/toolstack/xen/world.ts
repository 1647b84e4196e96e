/** A Xen host for tests of its toolstack: hypercalls of this file, a fake xenstored, fake QEMUs, and a clock set by hand. */
import { mkdtemp, rm, writeFile, readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, vi } from 'vitest';
import type { Clock } from '../../../../lib/toolstack/xen/clock.js';
import type {
  CreateDomainArguments,
  EventChannels,
  Hypercalls,
  ToolstackDomainInfo,
} from '../../../../lib/toolstack/xen/hypercalls.js';
import { XenToolstack, type XenToolstackOptions } from '../../../../lib/toolstack/xen/toolstack.js';
import { openXenstore } from '../../../../lib/toolstack/xenstore/index.js';
import { startFakeQmp, type FakeQmp } from '../fake-qmp.js';
import { startFakeXenstored, type FakeXenstored } from '../fake-xenstored.js';

export const UUID = '4458989b-3afe-4440-9394-b06ebb2c7bcd';
export const ESRCH = 3;
export const EINVAL = 22;

/** Node's form of what the addon throws. */
export function nativeError(syscall: string, errno: number, text = 'refused'): Error {
  return Object.assign(new Error(`${syscall}: ${text}`), { errno, syscall, code: `E${errno}` });
}

export interface FakeDomain {
  domid: number;
  hvm: boolean;
  dying: boolean;
  shutdown: boolean;
  paused: boolean;
  shutdownReason: number;
  maxVcpuId: number;
  handle: Uint8Array;
  params: Map<number, bigint>;
  /** Ports of the guest that something was subscribed to. */
  subscribed: number[];
}

/** Hypercalls over a table of domains. `log` has every call that changes something. */
export class FakeHypervisor {
  readonly domains = new Map<number, FakeDomain>();
  readonly log: string[] = [];
  readonly created: CreateDomainArguments[] = [];
  /** Calls that fail: name → errno. */
  readonly fails = new Map<string, number>();
  /** Called for each domain that is there from the start, as one that xenstored knows. */
  onAdd: ((domid: number) => void) | undefined;
  #ports = 0;

  add(domid: number, of: Partial<FakeDomain> = {}): FakeDomain {
    const domain: FakeDomain = {
      domid,
      hvm: false,
      dying: false,
      shutdown: false,
      paused: false,
      shutdownReason: 0,
      maxVcpuId: 0,
      handle: Buffer.from(UUID.replaceAll('-', ''), 'hex'),
      params: new Map(),
      subscribed: [],
      ...of,
    };
    this.domains.set(domid, domain);
    this.onAdd?.(domid);
    return domain;
  }

  get calls(): Hypercalls {
    const find = (name: string, domid: number): FakeDomain => {
      const errno = this.fails.get(name);
      if (errno !== undefined) throw nativeError(name, errno);
      const domain = this.domains.get(domid);
      if (domain === undefined) throw nativeError(name, ESRCH, 'no such domain');
      return domain;
    };
    const change = (name: string, domid: number, ...args: unknown[]): FakeDomain => {
      this.log.push([name, domid, ...args].map(String).join(' '));
      return find(name, domid);
    };
    return {
      listDomains: async () => [...this.domains.values()],
      domainInfo: async (domid): Promise<ToolstackDomainInfo> => {
        return { ...find('domainInfo', domid) };
      },
      hvmParam: async (domid, index) => find('hvmParam', domid).params.get(index) ?? 0n,
      setHvmParam: async (domid, index, value) => {
        change('setHvmParam', domid, index, value).params.set(index, value);
      },
      setTscInfo: async (domid, mode) => void change('setTscInfo', domid, mode),
      pause: async (domid) => {
        change('pause', domid).paused = true;
      },
      unpause: async (domid) => {
        change('unpause', domid).paused = false;
      },
      shutdown: async (domid, reason) => {
        const domain = change('shutdown', domid, reason);
        domain.shutdown = true;
        domain.shutdownReason = reason;
      },
      resume: async (domid, fast) => {
        change('resume', domid, fast).shutdown = false;
      },
      destroy: async (domid) => {
        change('destroy', domid);
        this.domains.delete(domid);
      },
      subscribe: async (domid, port) => void change('subscribe', domid, port).subscribed.push(port),
      createDomain: async (config) => {
        this.log.push('createDomain');
        const errno = this.fails.get('createDomain');
        if (errno !== undefined) throw nativeError('createDomain', errno);
        this.created.push(config);
        const domid = Math.max(0, ...this.domains.keys()) + 1;
        this.domains.set(domid, {
          domid,
          dying: false,
          shutdown: false,
          shutdownReason: 0,
          params: new Map(),
          subscribed: [],
          hvm: config.hvm,
          paused: true,
          handle: config.handle,
          maxVcpuId: config.maxVcpus - 1,
        });
        return domid;
      },
      setMaxVcpus: async (domid, vcpus) => void change('setMaxVcpus', domid, vcpus),
      setMaxMemory: async (domid, kib) => void change('setMaxMemory', domid, kib),
      setPagingAllocation: async (domid, mib) => void change('setPagingAllocation', domid, mib),
      allocUnbound: async (domid, remote) => {
        change('allocUnbound', domid, remote);
        return ++this.#ports;
      },
    };
  }
}

/** One opened event-channel device. */
export class FakeEvtchn implements EventChannels {
  readonly fd = 1000;
  closed = false;
  keepAlive = false;
  readonly notified: number[] = [];
  /** Guest's port by local port. */
  readonly bound = new Map<number, number>();
  bindError: Error | undefined;
  notifyError: Error | undefined;
  onNotify: (() => void) | undefined;
  readonly #pending: number[] = [];
  #callback: (() => void) | undefined;
  #armed = false;

  bindInterdomain(_domid: number, remotePort: number): number {
    if (this.bindError !== undefined) throw this.bindError;
    this.bound.set(7, remotePort);
    // As Xen does: pending right away.
    this.#pending.push(7);
    return 7;
  }
  notify(port: number): void {
    if (this.notifyError !== undefined) throw this.notifyError;
    this.notified.push(port);
    this.onNotify?.();
  }
  pending(): number {
    return this.#pending.shift() ?? -1;
  }
  close(): void {
    this.closed = true;
  }
  /** An event comes. */
  fire(): void {
    this.#pending.push(7);
    this.#tell();
  }
  watch(callback: () => void, keepAlive: boolean): { rearm(): void; close(): void } {
    this.#callback = callback;
    this.keepAlive = keepAlive;
    this.#armed = true;
    this.#tell();
    return {
      rearm: () => {
        this.#armed = true;
        if (this.#pending.length > 0) this.#tell();
      },
      close: () => {
        this.#callback = undefined;
      },
    };
  }
  #tell(): void {
    if (!this.#armed || this.#callback === undefined || this.#pending.length === 0) return;
    this.#armed = false;
    const callback = this.#callback;
    queueMicrotask(callback);
  }
}

/** Time goes on when told. */
export class FakeClock implements Clock {
  now = 0;
  readonly #timers = new Map<object, { at: number; callback: () => void }>();

  after(ms: number, callback: () => void): () => void {
    const key = {};
    this.#timers.set(key, { at: this.now + ms, callback });
    return () => this.#timers.delete(key);
  }

  get waiting(): number {
    return this.#timers.size;
  }

  /** Calls back what is due within `ms`, in order of time. */
  advance(ms: number): void {
    const end = this.now + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, { at }]) => at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (due === undefined) break;
      this.#timers.delete(due[0]);
      this.now = due[1].at;
      due[1].callback();
    }
    this.now = end;
  }
}

export interface World extends AsyncDisposable {
  readonly dir: string;
  readonly xen: FakeHypervisor;
  readonly store: FakeXenstored;
  readonly clock: FakeClock;
  readonly evtchn: FakeEvtchn;
  readonly toolstack: XenToolstack;
  /** A toolstack of another process on the same host, which knows nothing of what this one did. */
  successor(): XenToolstack;
  /** What xl was run with. */
  readonly xl: string[][];
  /** Processes that were ended, as `pid domid`. */
  readonly ended: string[];
  files(): Promise<string[]>;
  /** Starts a QEMU for a domain, with libxl's nodes. */
  qemu(domid: number, answer?: Parameters<typeof startFakeQmp>[0]['answer']): Promise<FakeQmp>;
}

/** Makes one. `options` override the toolstack's. */
export async function makeWorld(options: Partial<XenToolstackOptions> = {}): Promise<World> {
  const dir = await mkdtemp(join(tmpdir(), 'toolstack-'));
  const xen = new FakeHypervisor();
  const store = await startFakeXenstored({ dir });
  const introduced = store.introduced as Map<number, { gfn: number; port: number }>;
  xen.onAdd = (domid) => introduced.set(domid, { gfn: 1, port: 1 });
  const clock = new FakeClock();
  const evtchn = new FakeEvtchn();
  const xl: string[][] = [];
  const ended: string[] = [];
  const qemus: FakeQmp[] = [];
  const parts: XenToolstackOptions = {
    calls: xen.calls,
    openEvtchn: () => evtchn,
    watchReadable: (_fd, callback, keepAlive) => evtchn.watch(callback, keepAlive),
    openStore: () => openXenstore({ path: store.path }),
    folders: { run: dir, lib: dir },
    clock,
    runXl: async (args) => {
      xl.push([...args]);
      xen.domains.delete(Number(args[1]));
      return { code: 0, stderr: '' };
    },
    endDeviceModel: async (pid, domid) => void ended.push(`${pid} ${domid}`),
    ...options,
  };
  const toolstacks = [new XenToolstack(parts)];
  const [toolstack] = toolstacks as [XenToolstack];
  return {
    dir,
    xen,
    store,
    clock,
    evtchn,
    toolstack,
    successor: () => {
      const other = new XenToolstack(parts);
      toolstacks.push(other);
      return other;
    },
    xl,
    ended,
    files: async () => (await readdir(dir)).filter((name) => name !== 'socket').sort(),
    qemu: async (domid, answer) => {
      store.write(`/libxl/${domid}/type`, 'hvm');
      store.write(`/libxl/${domid}/dm-version`, 'qemu_xen');
      store.write(`/local/domain/0/device-model/${domid}/state`, 'running');
      const qemu = await startFakeQmp({ path: join(dir, `qmp-libxl-${domid}`), answer });
      qemus.push(qemu);
      return qemu;
    },
    async [Symbol.asyncDispose]() {
      for (const each of toolstacks) await each.close();
      for (const qemu of qemus) await qemu.close();
      await store.close();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** Keeps a configuration as libxl does. */
export async function keepConfig(world: World, domid: number, config: unknown): Promise<void> {
  const text = typeof config === 'string' ? config : JSON.stringify(config);
  await writeFile(join(world.dir, `userdata-d.${domid}.${UUID}.libxl-json`), `${text}\n\0`);
}

/** Waits for what the fakes have seen. */
export const until = (condition: () => boolean): Promise<void> =>
  vi.waitFor(() => expect(condition()).toBe(true), { interval: 2, timeout: 20_000 });

export const errorOf = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    (value) => expect.fail(`resolved to ${String(value)}`),
    (error: unknown) => error,
  );

/** Time goes on in steps of a second until something has settled. */
export async function passTime<T>(world: World, promise: Promise<T>, seconds = 200): Promise<T> {
  const state = { settled: false };
  const over = promise.finally(() => (state.settled = true));
  over.catch(() => undefined);
  for (let i = 0; i < seconds && !state.settled; i++) {
    world.clock.advance(1000);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  if (!state.settled) expect.fail(`nothing after ${seconds} s`);
  return over;
}
