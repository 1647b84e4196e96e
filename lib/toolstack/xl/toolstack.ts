/** A toolstack that leaves to xl what libxl's own knowledge of devices is needed for. */
import { UsageError, XenMigrationError } from '../../errors.js';
import type {
  BackendWiring,
  DeviceModelState,
  MissingStaticData,
  SuspendOptions,
  Toolstack,
} from '../toolstack.js';
import { lastWords, XlError } from './error.js';
import { hasXl, runXl, xl, xlDomid, type XlSettings } from './run.js';

export interface XlToolstackOptions extends XlSettings {
  /** Whether a domain is xl's matter; others are left to the inner toolstack. Default: all are. */
  readonly isXls?: ((domid: number) => boolean) | undefined;
}

/**
 * `pause`, `unpause`, `rename` and `destroy` by xl, everything else by `inner`.
 *
 * libxl's unpause also lets the device model go on, and its destroy runs the scripts of disks and network interfaces and
 * gives devices back to their drivers.
 *
 * @param inner Stays its owner's
 */
export function xlToolstack(inner: Toolstack, options: XlToolstackOptions = {}): Toolstack {
  return new XlToolstack(inner, options);
}

class XlToolstack implements Toolstack {
  readonly notes: Toolstack['notes'];
  readonly nameOf?: NonNullable<Toolstack['nameOf']>;
  readonly #inner: Toolstack;
  readonly #options: XlToolstackOptions;

  constructor(inner: Toolstack, options: XlToolstackOptions) {
    this.#inner = inner;
    this.#options = options;
    this.notes = inner.notes;
    if (inner.nameOf !== undefined) this.nameOf = inner.nameOf.bind(inner);
  }

  async unpause(domid: number): Promise<void> {
    if (this.#isXls(domid)) await this.#xl('unpause', String(domid));
    else await this.#inner.unpause(domid);
  }

  async pause(domid: number): Promise<void> {
    if (this.#isXls(domid)) await this.#xl('pause', String(domid));
    else await this.#inner.pause(domid);
  }

  async rename(domid: number, name: string): Promise<void> {
    if (!this.#isXls(domid) && this.#inner.rename !== undefined) return this.#inner.rename(domid, name);
    checkName(name);
    const taken = await this.findByName(name);
    if (taken === domid) return;
    if (taken !== undefined) {
      const message = `domain ${domid} cannot be named ${JSON.stringify(name)}: domain ${taken} is`;
      throw new UsageError(message, { domid });
    }
    await this.#xl('rename', String(domid), name);
  }

  findByName(name: string): Promise<number | undefined> {
    return this.#inner.findByName?.(name) ?? xlDomid(checkName(name), this.#options);
  }

  async destroy(domid: number): Promise<void> {
    if (this.#isXls(domid)) {
      const ran = await runXl(['destroy', String(domid)], this.#options);
      if (ran.exitCode !== 0 && (await this.#exists(domid))) {
        const said = new XlError('ERR_XEN_XL', `xl destroy ${domid}`, lastWords(ran.stderr), ran);
        const message = `domain ${domid} could not be destroyed: ${said.message}`;
        throw new XenMigrationError('ERR_XEN_GUEST_NOT_DESTROYED', message, { cause: said, domid });
      }
    }
    // No-op for a domain that is gone, but that it is forgotten there.
    await this.#inner.destroy(domid);
  }

  async assertDestroyable(domid: number): Promise<void> {
    if (this.#isXls(domid) && (await hasXl(this.#options))) return;
    await this.#inner.assertDestroyable?.(domid);
  }

  suspend(domid: number, options: SuspendOptions): Promise<void> {
    return this.#inner.suspend(domid, options);
  }

  resume(domid: number): Promise<void> {
    return this.#inner.resume(domid);
  }

  setDeviceModelLogDirty(domid: number, enable: boolean): Promise<void> {
    return this.#inner.setDeviceModelLogDirty(domid, enable);
  }

  deviceModelState(domid: number): Promise<DeviceModelState | undefined> {
    return this.#inner.deviceModelState(domid);
  }

  loadDeviceModelState(domid: number, state: DeviceModelState): Promise<void> {
    return this.#inner.loadDeviceModelState(domid, state);
  }

  domainConfig(domid: number): Promise<string> {
    return this.#inner.domainConfig(domid);
  }

  createDomain(config: string, options?: { readonly signal?: AbortSignal | undefined }): Promise<number> {
    return this.#inner.createDomain(config, options);
  }

  backendWiring(domid: number): Promise<BackendWiring> {
    return this.#inner.backendWiring(domid);
  }

  staticDataDone(domid: number, missing: MissingStaticData): Promise<void> {
    return this.#inner.staticDataDone(domid, missing);
  }

  finishRestore(
    domid: number,
    rings: { readonly storeGfn: number; readonly consoleGfn: number },
  ): Promise<void> {
    return this.#inner.finishRestore(domid, rings);
  }

  #isXls(domid: number): boolean {
    return this.#options.isXls?.(domid) ?? true;
  }

  async #xl(...args: string[]): Promise<void> {
    await xl(args, this.#options);
  }

  async #exists(domid: number): Promise<boolean> {
    return (await runXl(['domname', String(domid)], this.#options)).exitCode === 0;
  }
}

const NAME_MAX = 255;

/** Returns the name. Throws UsageError for one that xl would take for something else. */
export function checkName(name: string): string {
  // A dash would begin an option; xenstore takes a slash for another node; digits alone are a domid.
  if (name.length <= NAME_MAX && /^[^-/\p{Cc}][^/\p{Cc}]*$/u.test(name) && !/^\d+$/.test(name)) return name;
  throw new UsageError(`${JSON.stringify(name.slice(0, NAME_MAX))} cannot be a domain's name for xl`);
}
