/** The host's side of a guest's worker thread: starts it, asks it things, ends it. */
import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads';
import { GuestError } from '../../../errors.js';
import type { PvKernelHandle } from '../pv-kernel.js';
import type { BootPage } from './boot-page.js';
import type { SharedGuest } from './guest-memory.js';
import type { CheckResult } from './program.js';
import { Control, type GuestReply, type GuestRequest } from './worker-protocol.js';

/**
 * The compiled worker stands beside this file. Where this file is loaded as TypeScript, by a test runner, the
 * runner's set-up has compiled the worker to the place named here.
 */
function workerUrl(): URL {
  return import.meta.url.endsWith('.ts')
    ? new URL(
        '../../../../node_modules/.cache/xen-migration/lib/host/simulated/guest/guest-worker.js',
        import.meta.url,
      )
    : new URL('./guest-worker.js', import.meta.url);
}

type Ask<T> = T extends unknown ? Omit<T, 'id'> : never;

interface Waiting {
  readonly resolve: (reply: GuestReply) => void;
  readonly reject: (error: Error) => void;
}

/** One worker for one guest. */
export class GuestRunner {
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #control: Int32Array;
  readonly #waiting = new Map<number, Waiting>();
  readonly #keepAlive: boolean;
  readonly #onDeath: (error: Error) => void;
  #lastId = 0;
  #dead: Error | undefined;

  /**
   * @param onDeath called if the worker ends though nobody ended it
   * @param keepAlive whether the guest keeps the process alive. If not, only a request under way does.
   */
  constructor(keepAlive: boolean, onDeath: (error: Error) => void) {
    const { port1, port2 } = new MessageChannel();
    this.#control = new Int32Array(new SharedArrayBuffer(Control.WORDS * 4));
    this.#port = port1;
    this.#keepAlive = keepAlive;
    this.#onDeath = onDeath;
    this.#worker = new Worker(workerUrl(), {
      name: 'simulated guest',
      workerData: { port: port2, control: this.#control },
      transferList: [port2],
      // Flags of the process, such as a test runner's loaders, are nothing to the guest.
      execArgv: [],
      stdout: false,
      stderr: false,
    });
    this.#port.on('message', (reply: GuestReply) => this.#answer(reply));
    this.#worker.on('error', (error: unknown) =>
      this.#died(error instanceof Error ? error : new Error(String(error))),
    );
    this.#worker.on('exit', () => this.#died(new Error('the worker ended')));
    this.#idle();
  }

  /** Steps that the guest has done, as of a moment ago. */
  get steps(): number {
    return (
      Atomics.load(this.#control, Control.STEPS_HIGH) * 0x4000_0000 +
      Atomics.load(this.#control, Control.STEPS_LOW)
    );
  }

  /** Errors that the workload has come across. */
  get errors(): number {
    return Atomics.load(this.#control, Control.ERRORS);
  }

  /** Lays a new program out in empty memory and fills its pages. */
  async create(
    shared: SharedGuest,
    kernel: PvKernelHandle | undefined,
    boot: BootPage,
    trace: Uint32Array | undefined,
  ): Promise<void> {
    await this.#ask({ op: 'create', shared, kernel, boot, trace });
  }

  /** Loads the program that guest memory and registers hold. False if it is damaged: the guest cannot run. */
  async resume(
    shared: SharedGuest,
    kernel: PvKernelHandle | undefined,
    registers: Uint8Array,
  ): Promise<boolean> {
    return (await this.#ask({ op: 'resume', shared, kernel, registers })) === true;
  }

  async run(): Promise<void> {
    await this.#ask({ op: 'run' });
  }

  /** Stops the guest between two steps; all it wrote is marked dirty then. Resolves to its registers. */
  async halt(): Promise<Uint8Array> {
    return (await this.#ask({ op: 'halt' })) as Uint8Array;
  }

  /** A full sweep. The guest does nothing else meanwhile. */
  async check(): Promise<CheckResult> {
    return (await this.#ask({ op: 'check' })) as CheckResult;
  }

  /** Ends the worker wherever it is. */
  async kill(): Promise<void> {
    this.#dead ??= new Error('the guest was ended');
    this.#failAll(this.#dead);
    this.#port.close();
    await this.#worker.terminate();
  }

  async #ask(request: Ask<GuestRequest>): Promise<GuestReply['value']> {
    if (this.#dead !== undefined) {
      throw new GuestError('ERR_XEN_GUEST_GONE', 'the guest does not run any more', { cause: this.#dead });
    }
    const id = ++this.#lastId;
    const reply = await new Promise<GuestReply>((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#port.ref();
      this.#worker.ref();
      this.#port.postMessage({ ...request, id });
      Atomics.add(this.#control, Control.ATTENTION, 1);
      Atomics.notify(this.#control, Control.ATTENTION);
    });
    if (reply.error !== undefined) throw new GuestError('ERR_XEN_GUEST_FAILED', reply.error);
    return reply.value;
  }

  #answer(reply: GuestReply): void {
    const waiting = this.#waiting.get(reply.id);
    this.#waiting.delete(reply.id);
    if (this.#waiting.size === 0) this.#idle();
    waiting?.resolve(reply);
  }

  #idle(): void {
    this.#port.unref();
    if (!this.#keepAlive) this.#worker.unref();
  }

  #died(cause: Error): void {
    if (this.#dead !== undefined) return;
    this.#dead = cause;
    this.#failAll(cause);
    this.#onDeath(cause);
  }

  #failAll(cause: Error): void {
    const error = new GuestError('ERR_XEN_GUEST_GONE', 'the guest ended', { cause });
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
