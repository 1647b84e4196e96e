/**
 * libxl as the toolstack of a save or restore: what the algorithms ask of a toolstack goes out as callbacks. Everything
 * else around the guest (its life, its devices, its configuration) is libxl's own business, before and after.
 */
import { debug } from '../debug.js';
import { DeviceModelError, GuestError, UsageError } from '../errors.js';
import { SaveErrorCode } from '../save/codes.js';
import type { BackendWiring, MissingStaticData, Toolstack } from '../toolstack/toolstack.js';
import { wants, type HelperArguments } from './arguments.js';
import type { Channel } from './channel.js';
import {
  encodeStaticDataDone,
  encodeSuspend,
  encodeSwitchQemuLogdirty,
  Message,
  MISSING_CPUID,
  MISSING_MSR,
} from './protocol.js';

/** Frames of the rings of a restored guest. */
export interface RestoreResults {
  readonly storeGfn: number;
  readonly consoleGfn: number;
}

export class LibxlToolstack implements Toolstack {
  readonly #channel: Channel;
  readonly #callbacks: number;
  readonly #wiring: BackendWiring | undefined;
  #results: RestoreResults | undefined;

  /** @param args Of them, cbflags (a callback that is not among them must not be called), and the wiring of a restore */
  constructor(channel: Channel, args: HelperArguments) {
    this.#channel = channel;
    this.#callbacks = args.callbacks;
    this.#wiring = args.mode === 'restore' ? args.wiring : undefined;
  }

  /** What `finishRestore` was given; undefined before. */
  get results(): RestoreResults | undefined {
    return this.#results;
  }

  /**
   * libxl suspends the guest, and then stops its device model and keeps the device model's state. It has its own
   * limits of time; once asked it has to be waited for, whatever happens: its answer would be taken for another one.
   */
  async suspend(domid: number): Promise<void> {
    this.#need(Message.SUSPEND, 'suspend');
    if ((await this.#channel.request(encodeSuspend())) !== 0) return;
    throw new GuestError(SaveErrorCode.NOT_SUSPENDED, `libxl could not suspend domain ${domid}`);
  }

  async setDeviceModelLogDirty(domid: number, enable: boolean): Promise<void> {
    this.#need(Message.SWITCH_QEMU_LOGDIRTY, 'switch_qemu_logdirty');
    const reply = await this.#channel.request(encodeSwitchQemuLogdirty(domid, enable));
    if (reply === 0) return;
    const what = `libxl could not turn log-dirty of the device model ${enable ? 'on' : 'off'}: ${reply}`;
    throw new DeviceModelError('xen-set-global-dirty-log', undefined, what, { domid });
  }

  async staticDataDone(domid: number, missing: MissingStaticData): Promise<void> {
    if (!wants(this.#callbacks, Message.STATIC_DATA_DONE)) return;
    const flags = (missing.cpuid ? MISSING_CPUID : 0) | (missing.msr ? MISSING_MSR : 0);
    const reply = await this.#channel.request(encodeStaticDataDone(flags));
    if (reply === 0) return;
    throw new UsageError(`libxl could not make up the missing static data (${flags}): ${reply}`, { domid });
  }

  async backendWiring(): Promise<BackendWiring> {
    if (this.#wiring === undefined) throw new UsageError('a save has no wiring');
    return this.#wiring;
  }

  async finishRestore(_domid: number, rings: RestoreResults): Promise<void> {
    this.#results = rings;
  }

  /** libxl resumes the guest of a failed save, or leaves that to its user. */
  async resume(domid: number): Promise<void> {
    debug('helper: resuming domain %d is left to libxl', domid);
  }

  /** A paused guest was paused by its owner; libxl's suspend copes, or fails. */
  async unpause(): Promise<void> {
    // libxl's.
  }

  async pause(): Promise<void> {
    // libxl's.
  }

  async destroy(): Promise<void> {
    // libxl's.
  }

  /** libxl writes the device model's records itself, behind the libxc stream. */
  async deviceModelState(): Promise<undefined> {
    return undefined;
  }

  async loadDeviceModelState(domid: number): Promise<void> {
    throw new UsageError('a libxc stream has no device model', { domid });
  }

  async domainConfig(domid: number): Promise<string> {
    throw new UsageError('a libxc stream has no configuration', { domid });
  }

  async createDomain(): Promise<number> {
    throw new UsageError('the domain is made by libxl');
  }

  #need(message: number, name: string): void {
    if (!wants(this.#callbacks, message)) {
      throw new UsageError(
        `libxl does not want the callback ${name}, without which this guest cannot be saved`,
      );
    }
  }
}
