/**
 * The device model of an HVM guest while it is saved: QEMU, spoken to through its monitor (libxl_qmp.c).
 *
 * Only upstream QEMU in this domain. A guest may also have none at all: whoever made it did without.
 */
import * as fs from 'node:fs/promises';
import { DeviceModelError, UsageError } from '../../errors.js';
import { openQmp, type QmpClient } from '../qmp/index.js';
import type { DeviceModelState } from '../toolstack.js';
import type { ToolstackDomainInfo } from './hypercalls.js';
import { qmpSockets, saveFile, xsPath } from './paths.js';
import { guestKind, type Parts } from './parts.js';

/** Time for writing the state: with a large video memory and a slow disk it is not instant. */
const SAVE_MS = 60_000;
/** Largest state read. QEMU's is some hundred KiB, and some MiB for each emulated graphics adapter. */
const STATE_MAX = 512 * 1024 * 1024;
/** LIBXL_DEVICE_MODEL_VERSION_QEMU_XEN as the stream's emulator headers number it. */
const EMULATOR_QEMU_UPSTREAM = 2;
/** What libxl's EMULATOR_XENSTORE_DATA carries of each entry of physmap. */
const PHYSMAP_KEYS = ['start_addr', 'size', 'name'] as const;
/** Entries of physmap taken; QEMUs that have them at all make one for each piece of device memory. */
const PHYSMAP_MAX = 4096;

export class DeviceModels {
  readonly #parts: Parts;
  /** Domains whose device model was stopped here, and whose save file is of that moment. */
  readonly #saved = new Set<number>();
  readonly #stopped = new Set<number>();

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** True if the device model of the domain was stopped here and has not been let go on. */
  isStopped(domid: number): boolean {
    return this.#stopped.has(domid);
  }

  /**
   * Whether the domain has a device model that a save has to care for. PV guests may have a QEMU too, as a back end: it
   * has no state of the guest.
   *
   * @throws DeviceModelError if it has one that cannot be spoken to
   */
  async has(info: ToolstackDomainInfo): Promise<boolean> {
    const { domid } = info;
    if ((await guestKind(this.#parts, info)) !== 'hvm') return false;
    const store = await this.#parts.store();
    const version = await store.read(`${xsPath.libxl(domid)}/dm-version`);
    const there = (await store.read(xsPath.deviceModel(domid))) !== undefined;
    const stub = Number((await store.read(`${xsPath.domain(domid)}/image/device-model-domid`)) ?? 0);
    if (stub !== 0) throw this.#unusable(domid, `it runs in domain ${stub} (a stub domain)`);
    if (!there && version === undefined) return false;
    if (version !== undefined && version !== 'qemu_xen') throw this.#unusable(domid, `it is ${version}`);
    return there;
  }

  /** Stops the device model and has it save its state. No-op without one. */
  async save(info: ToolstackDomainInfo, live: boolean, signal?: AbortSignal): Promise<void> {
    if (!(await this.has(info))) return;
    const { domid } = info;
    const path = saveFile(this.#parts.folders, domid);
    // Made here, so that nobody but root can read it; QEMU truncates it.
    await fs.rm(path, { force: true });
    await (await fs.open(path, 'wx', 0o600)).close();
    await this.#with(domid, signal, async (monitor) => {
      this.#stopped.add(domid);
      await monitor.stop({ signal });
      await monitor.saveDevicesState(path, live, { signal, timeoutMs: SAVE_MS });
    });
    this.#saved.add(domid);
  }

  /** Lets the device model go on. No-op without one, or if it runs. */
  async resume(info: ToolstackDomainInfo): Promise<void> {
    if (!(await this.has(info))) return;
    const { domid } = info;
    this.#saved.delete(domid);
    await this.#with(domid, undefined, (monitor) => monitor.cont());
    this.#stopped.delete(domid);
    await fs.rm(saveFile(this.#parts.folders, domid), { force: true });
  }

  /** Tells the device model to report the frames that it writes, or no longer. No-op without one. */
  async setLogDirty(info: ToolstackDomainInfo, enable: boolean): Promise<void> {
    if (!(await this.has(info))) return;
    await this.#with(info.domid, undefined, (monitor) => monitor.setGlobalDirtyLog(enable));
  }

  /**
   * The state that the device model saved; undefined without one. Of a guest that somebody else suspended it is saved now.
   *
   * @throws UsageError if the guest runs; DeviceModelError if the state is empty or too large
   */
  async state(info: ToolstackDomainInfo): Promise<DeviceModelState | undefined> {
    const { domid } = info;
    if (!(await this.has(info))) return undefined;
    if (!this.#saved.has(domid)) {
      if (!info.shutdown) {
        throw new UsageError(`the device model of guest ${domid} runs: suspend the guest first`, { domid });
      }
      await this.save(info, false);
    }
    const context = await this.#read(domid);
    return { emulator: EMULATOR_QEMU_UPSTREAM, xenstore: await this.#physmap(domid), context };
  }

  /** Numbers of the vcpus that QEMU knows, as its state has to be loaded with; undefined without a device model. */
  async vcpus(info: ToolstackDomainInfo): Promise<number[] | undefined> {
    if (!(await this.has(info))) return undefined;
    const { domid } = info;
    const answer = await this.#with(domid, undefined, (monitor) => monitor.execute('query-cpus-fast'));
    const indices = Array.isArray(answer)
      ? answer.map((cpu: unknown) => (cpu as Record<string, unknown> | null)?.['cpu-index'])
      : [];
    const vcpus = indices.filter((index) => typeof index === 'number');
    if (vcpus.length === 0 || vcpus.length !== indices.length) {
      throw new DeviceModelError('query-cpus-fast', undefined, 'an answer without vcpu numbers', { domid });
    }
    return vcpus.sort((a, b) => a - b);
  }

  /** The domain is no more. */
  forget(domid: number): void {
    this.#saved.delete(domid);
    this.#stopped.delete(domid);
  }

  async #read(domid: number): Promise<Uint8Array> {
    const path = saveFile(this.#parts.folders, domid);
    const file = await fs.open(path, 'r');
    try {
      const { size } = await file.stat();
      const fail = (what: string): never => {
        throw new DeviceModelError('xen-save-devices-state', undefined, `${path} ${what}`, { domid });
      };
      if (size === 0) fail('is empty');
      if (size > STATE_MAX) fail(`has ${size} bytes, more than ${STATE_MAX}`);
      const context = new Uint8Array(size);
      const { bytesRead } = await file.read(context, 0, size, 0);
      if (bytesRead !== size) fail(`became shorter while it was read`);
      return context;
    } finally {
      await file.close();
    }
  }

  /** `physmap/<address>/start_addr`, its value, … each with a NUL: only QEMUs before 2.10 or so have any. */
  async #physmap(domid: number): Promise<Uint8Array> {
    const store = await this.#parts.store();
    const root = xsPath.deviceModel(domid);
    const entries = await store.list(`${root}/physmap`);
    if (entries.length > PHYSMAP_MAX) {
      throw new DeviceModelError('physmap', undefined, `${entries.length} entries in xenstore`, { domid });
    }
    const strings: string[] = [];
    for (const entry of entries) {
      for (const name of PHYSMAP_KEYS) {
        const key = `physmap/${entry}/${name}`;
        const value = await store.read(`${root}/${key}`);
        if (value === undefined) {
          throw new DeviceModelError('physmap', undefined, `no ${root}/${key} in xenstore`, { domid });
        }
        strings.push(key, value);
      }
    }
    return new TextEncoder().encode(strings.map((text) => `${text}\0`).join(''));
  }

  async #with<T>(
    domid: number,
    signal: AbortSignal | undefined,
    use: (monitor: QmpClient) => Promise<T>,
  ): Promise<T> {
    const [path] = qmpSockets(this.#parts.folders, domid);
    // QEMU serves one client at a time, libxl among them: connect, ask, hang up.
    const monitor = await openQmp(path, { signal });
    try {
      return await use(monitor);
    } catch (error) {
      if (error instanceof DeviceModelError) error.domid = domid;
      throw error;
    } finally {
      monitor.close();
    }
  }

  #unusable(domid: number, why: string): DeviceModelError {
    const what = `the device model of guest ${domid} cannot be used: ${why}; only upstream QEMU in domain 0 can`;
    return new DeviceModelError('connect', undefined, what, { domid });
  }
}
