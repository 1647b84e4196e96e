/** A guest of a simulated host, from the outside: what it runs, whether it runs, and whether it is whole. */
import { setTimeout as sleep } from 'node:timers/promises';
import { GuestError } from '../../errors.js';
import { ShutdownReason } from '../host.js';
import type { SimulatedDeviceModel } from './device-model.js';
import type { DomainState } from './domain-state.js';
import { planProgram, type CheckResult } from './guest/program.js';
import { decodeRegisters } from './guest/registers.js';
import { GuestRunner } from './guest/runner.js';
import type { SharedGuest } from './guest/guest-memory.js';
import type { Workload } from './guest/workload.js';
import type { PvKernelHandle } from './pv-kernel.js';
import type { FrameRange } from './pv-types.js';

/** Guests that a simulated host can make. */
export type GuestKind = 'hvm' | 'pvh' | 'pv' | 'pv32';

/** What a guest does when it is asked to suspend. */
export type SuspendBehaviour =
  | 'prompt'
  /** Never answers. */
  | 'ignore'
  /** Shuts down with reason "crash" instead. */
  | 'crash'
  /** Goes on running for so many ms first. */
  | { readonly delayMs: number };

/** A glance at a guest. */
export interface GuestStats {
  /** Page writes of the workload since the guest was made, on whatever host. */
  readonly steps: number;
  /** Wrong pages that the workload has come across. */
  readonly errors: number;
  readonly running: boolean;
}

/** Time between two looks whether a guest that could not be suspended now can. */
const POLL_MS = 5;

export class SimulatedGuest {
  readonly state: DomainState;
  readonly deviceModel: SimulatedDeviceModel | undefined;
  onSuspend: SuspendBehaviour = 'prompt';
  /** Why the guest crashed, if its kernel found the reason. */
  panic: unknown;
  readonly #keepAlive: boolean;
  #runner: GuestRunner | undefined;
  #running = false;
  /** What the worker was given to see the guest's memory by. */
  #physmap: Uint32Array;
  #kernel: PvKernelHandle | undefined;
  /** What the worker has: nothing yet, a program, or it is known that there is none to have. */
  #program: 'unread' | 'loaded' | 'foreign' = 'unread';
  /** How the kernel comes back from its suspend hypercall when it next runs. */
  #entry: 'cancelled' | 'restored' = 'restored';
  /** Starts and stops come one after the other. */
  #turn: Promise<unknown> = Promise.resolve();

  /** @internal Made by its host. */
  constructor(state: DomainState, deviceModel: SimulatedDeviceModel | undefined, keepAlive: boolean) {
    this.state = state;
    this.#physmap = state.physmap;
    this.deviceModel = deviceModel;
    this.#keepAlive = keepAlive;
  }

  get domid(): number {
    return this.state.domid;
  }

  get kind(): GuestKind {
    if (this.state.type !== 'pv') return this.state.type;
    return this.state.pv?.width === 4 ? 'pv32' : 'pv';
  }

  stats(): GuestStats {
    return { steps: this.#runner?.steps ?? 0, errors: this.#runner?.errors ?? 0, running: this.#running };
  }

  /**
   * Compares all memory of the guest with what its program left there, while the program stands still. Rejects with
   * GuestError if the guest has no program of the simulator (a restored capture), or has lost it.
   */
  async check(): Promise<CheckResult> {
    return await this.#inTurn(async () => {
      if (this.#program === 'unread' && !this.state.suspended) await this.#load('check');
      if (this.#program !== 'loaded' || this.#runner === undefined) {
        throw new GuestError(
          'ERR_XEN_GUEST_NO_PROGRAM',
          `guest ${this.domid} has no program that could check it`,
          {
            domid: this.domid,
            cause: this.panic,
          },
        );
      }
      const result = await this.#runner.check();
      const dma = this.deviceModel?.check();
      if (dma === undefined) return result;
      return { ...result, errors: result.errors + 1, firstError: result.firstError ?? dma };
    });
  }

  /** The guest crashes where it is. */
  async crash(): Promise<void> {
    this.#fall();
    this.deviceModel?.stop();
    await this.#runner?.kill();
  }

  /** @internal Writes a program into the memory of a new guest. */
  async install(
    ranges: readonly FrameRange[],
    physmap: Uint32Array,
    kernel: PvKernelHandle | undefined,
    workload: Workload,
  ): Promise<void> {
    const boot = planProgram(ranges, workload, this.state.seed);
    this.#physmap = physmap;
    this.#kernel = kernel;
    this.#runner = this.#newRunner();
    await this.#runner.create(this.#shared(), kernel, boot, workload.trace);
    this.#program = 'loaded';
  }

  /** Starts the guest's thread before there is anything for it to do: a thread takes its time to start. */
  warm(): void {
    this.#runner ??= this.#newRunner();
  }

  /** @internal Lets the guest run, if it can. */
  async start(): Promise<void> {
    await this.#inTurn(async () => {
      if (this.#running || this.#fallen || this.state.dying) return;
      if (!(await this.#load('start'))) return;
      this.deviceModel?.start();
      if (this.#program !== 'loaded') return;
      await this.#runner?.run();
      this.#running = true;
    });
  }

  /** @internal Stops the guest between two steps. Resolves to its registers, undefined if it has no program. */
  async halt(): Promise<Uint8Array | undefined> {
    return await this.#inTurn(() => this.#halt());
  }

  /**
   * @internal The guest is asked to suspend, and does so by its `onSuspend`. When `signal` is aborted the request is withdrawn:
   * the promise rejects, and the guest runs on.
   */
  async suspend(signal: AbortSignal): Promise<void> {
    const behaviour = this.onSuspend;
    if (typeof behaviour === 'object') await sleep(behaviour.delayMs, undefined, { signal });
    while (this.onSuspend === 'ignore' || this.state.pauseCount > 0)
      await sleep(POLL_MS, undefined, { signal });
    if (this.onSuspend === 'crash') await this.crash();
    await this.#inTurn(async () => {
      const registers = await this.#halt();
      if (this.state.shutdownReason !== undefined || this.state.dying) {
        throw new GuestError('ERR_XEN_GUEST_CRASHED', `guest ${this.domid} shut down instead of suspending`, {
          domid: this.domid,
        });
      }
      if (signal.aborted) {
        await this.#runner?.run();
        this.#running = this.#program === 'loaded';
        this.deviceModel?.start();
        throw signal.reason;
      }
      this.state.suspend(registers);
      this.#entry = 'cancelled';
    });
  }

  /** @internal The suspend was cancelled: the guest comes back from its hypercall when it next runs. */
  cancelSuspend(): void {
    this.state.cancelSuspend();
    this.#program = 'unread';
  }

  /**
   * A running PV guest's kernel gives pages of its balloon area back to the host, or takes them again (negative).
   * Resolves to the pfns, which may be fewer than asked for. Rejects with GuestError if it has no such kernel.
   */
  async balloon(pages: number): Promise<number[]> {
    return await this.#inTurn(async () => {
      const { pv } = this.state;
      if (pv === undefined || !this.#running || this.#runner === undefined) {
        throw new GuestError(
          'ERR_XEN_GUEST_NO_PROGRAM',
          `guest ${this.domid} has no kernel that could balloon`,
          {
            domid: this.domid,
          },
        );
      }
      const registers = await this.#runner.halt();
      const pfns = pv.balloon(pages);
      // It may have got frames in a region that its worker has not seen yet.
      if (this.#kernel !== undefined) this.#kernel = { ...this.#kernel, memory: this.state.memory.share() };
      await this.#runner.resume(this.#shared(), this.#kernel, registers);
      await this.#runner.run();
      return pfns;
    });
  }

  /** @internal Ends the guest and its worker. */
  async end(): Promise<void> {
    this.#running = false;
    this.deviceModel?.stop();
    await this.#runner?.kill();
  }

  get #fallen(): boolean {
    return this.state.shutdownReason !== undefined;
  }

  async #halt(): Promise<Uint8Array | undefined> {
    this.deviceModel?.stop();
    if (this.#program !== 'loaded' || this.#runner === undefined || this.state.shutdownReason !== undefined) {
      return undefined;
    }
    const registers = await this.#runner.halt();
    this.#running = false;
    return registers;
  }

  /** Finds the program in the guest's memory and registers, and nowhere else. False if the guest crashed of it. */
  async #load(why: 'start' | 'check'): Promise<boolean> {
    if (this.#program !== 'unread') return true;
    const { state } = this;
    const bytes = state.registers();
    const registers = bytes === undefined ? 'foreign' : decodeRegisters(bytes);
    const foreign = bytes === undefined || registers === 'foreign';
    if (foreign && why === 'check') return true;
    try {
      const map = state.pv?.resume(this.#entry);
      if (foreign || (state.pv !== undefined && map === undefined)) {
        this.#program = 'foreign';
        return true;
      }
      if (registers === 'damaged') throw new GuestError('ERR_XEN_GUEST_CRASHED', 'registers are damaged');
      this.#runner ??= this.#newRunner();
      this.#physmap = map?.physmap ?? state.physmap;
      this.#kernel = map?.kernel;
      if (!(await this.#runner.resume(this.#shared(), this.#kernel, bytes))) {
        throw new GuestError('ERR_XEN_GUEST_CRASHED', 'the boot page is damaged');
      }
      this.#program = 'loaded';
      return true;
    } catch (error) {
      // What a kernel does that finds its world broken. The toolstack sees a crashed domain.
      this.panic = error;
      this.#fall();
      return false;
    }
  }

  #fall(): void {
    this.#running = false;
    this.state.shutdownReason ??= ShutdownReason.CRASH;
  }

  #newRunner(): GuestRunner {
    return new GuestRunner(this.#keepAlive, () => this.#fall());
  }

  #shared(): SharedGuest {
    const { memory, logDirty } = this.state;
    return {
      regions: memory.regions.map((region) =>
        region.length > 0 ? (region.buffer as SharedArrayBuffer) : undefined,
      ),
      baseMfn: memory.baseMfn,
      physmap: this.#physmap,
      dirty: logDirty.bitmap,
    };
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work, work);
    this.#turn = turn.catch(() => undefined);
    return await turn;
  }
}
