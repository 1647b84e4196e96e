/**
 * The port `Toolstack`: what a whole migration asks of the layer above the hypervisor: suspend and resume, the device
 * model, the domain's configuration and life. libxl does these for stock xl; the adapters do them here.
 */
import type { NoteStore } from './notes.js';

/** Static data that a stream did not carry, so that the toolstack has to make it up (XGR_SDD_MISSING_*). */
export interface MissingStaticData {
  readonly cpuid: boolean;
  readonly msr: boolean;
}

/** What EMULATOR_XENSTORE_DATA and EMULATOR_CONTEXT carry. Bodies without the emulator header. */
export interface DeviceModelState {
  /** 0 unknown, 1 qemu-traditional, 2 qemu-upstream. */
  readonly emulator: number;
  /** NUL-terminated strings, key, value, key, value…; empty if there are none. */
  readonly xenstore: Uint8Array;
  /** Opaque device state of the emulator. */
  readonly context: Uint8Array;
}

/** Options of `Toolstack.suspend`. */
export interface SuspendOptions {
  readonly signal?: AbortSignal | undefined;
  /** Time the guest may take to acknowledge, where it does, and again to suspend, in ms. libxl: 60 s each. */
  readonly timeoutMs?: number | undefined;
  /** True while a live migration's log-dirty is on; QEMU is told so. */
  readonly live: boolean;
}

/** How a restored domain is wired to its xenstore and console back ends. */
export interface BackendWiring {
  readonly storeEvtchn: number;
  readonly storeDomid: number;
  readonly consoleEvtchn: number;
  readonly consoleDomid: number;
}

/** One host's toolstack. Every method is idempotent where Xen's counterpart is, and rejects with this library's errors. */
export interface Toolstack {
  /**
   * Asks the guest to suspend and resolves when it is shut down with reason "suspend" and its device model, if it has
   * one, is stopped with its state saved. Rejects with TimeoutError or GuestError; the guest then still runs. When the
   * signal is aborted, it settles once the guest cannot be found suspended any more because of this call, as far as
   * that can be waited for.
   */
  suspend(domid: number, options: SuspendOptions): Promise<void>;

  /** Lets a suspended guest go on where it was (fast resume: its suspend hypercall returns 1). No-op if it runs. */
  resume(domid: number): Promise<void>;

  /** Turns the device model's own log-dirty on or off. No-op for guests without a device model. */
  setDeviceModelLogDirty(domid: number, enable: boolean): Promise<void>;

  /** State of the stopped device model, for HVM guests; undefined for PV and PVH. */
  deviceModelState(domid: number): Promise<DeviceModelState | undefined>;

  /** Hands the device model of a domain being restored its state. Rejects with UsageError if there can be none. */
  loadDeviceModelState(domid: number, state: DeviceModelState): Promise<void>;

  /** The domain's configuration: libxl_domain_config as JSON text, as the xl header carries it, without NUL. */
  domainConfig(domid: number): Promise<string>;

  /**
   * Builds an empty, paused domain from such a configuration. Resolves to its domid. Rejects with UsageError if it cannot be
   * read, or asks for what this toolstack cannot build; nothing is left then.
   */
  createDomain(config: string, options?: { readonly signal?: AbortSignal | undefined }): Promise<number>;

  /** Event channels and back-end domids that the toolstack set up for a domain being restored. */
  backendWiring(domid: number): Promise<BackendWiring>;

  /** Called once all static data of the stream is known and applied; makes up what was missing, or rejects. */
  staticDataDone(domid: number, missing: MissingStaticData): Promise<void>;

  /** Called when memory and state are in place, with the frames of the xenstore and console rings. */
  finishRestore(
    domid: number,
    rings: { readonly storeGfn: number; readonly consoleGfn: number },
  ): Promise<void>;

  /** Removes one pause of the toolstack; the domain runs when none is left. */
  unpause(domid: number): Promise<void>;

  /**
   * Lets a guest go on that another process built and left paused, together with what libxl's tools started beside it.
   * Default: `unpause`.
   */
  unpauseLeftBehind?(domid: number): Promise<void>;

  /** Adds one pause. */
  pause(domid: number): Promise<void>;

  /**
   * Rejects with UsageError if `destroy` is sure to fail, for whoever asks before a long operation that ends with it. A
   * toolstack that can destroy whatever there is has no need of it.
   */
  assertDestroyable?(domid: number): Promise<void>;

  /** Destroys the domain and frees its memory. No-op if it is gone. */
  destroy(domid: number): Promise<void>;

  /**
   * Gives the domain another name. Rejects with UsageError if another domain has it. Without it, guests keep their names
   * on their way.
   */
  rename?(domid: number, name: string): Promise<void>;

  /** The domain's name; undefined if it has none, or is gone. */
  nameOf?(domid: number): Promise<string | undefined>;

  /** The domain of this name; undefined if there is none. */
  findByName?(name: string): Promise<number | undefined>;

  /** What this host remembers of operations under way. Without it nothing can be recovered after a process died. */
  readonly notes?: NoteStore | undefined;
}
