/** libxl's end of the helper's pipes, as strict as libxl is, and a descriptor in memory. */
import { HypercallError } from '../../../lib/errors.js';
import type { Host } from '../../../lib/host/host.js';
import { runHelper, type HelperWorld } from '../../../lib/helper/helper.js';
import { decodeFrame, type HelperMessage } from '../../../lib/helper/protocol.js';
import type { ChannelPort } from '../../../lib/helper/channel.js';
import type { BlockingFd } from '../../../lib/transport/blocking.js';

/** What libxl answers: a number, or nothing any more. */
export type Answer = number | 'gone';
export type Answerer = (message: HelperMessage, libxl: FakeLibxl) => Promise<Answer> | Answer;

const WITH_REPLY: readonly HelperMessage['kind'][] = [
  'suspend',
  'postcopy',
  'checkpoint',
  'wait_checkpoint',
  'switch_qemu_logdirty',
  'static_data_done',
  'complete',
];

function errno(code: string, number: number, syscall: string): Error {
  return Object.assign(new Error(`${code}: ${syscall}`), { code, errno: number, syscall });
}

/** Takes frames and gives replies. Anything that libxl would stumble over is a `violation`. */
export class FakeLibxl implements ChannelPort {
  readonly messages: HelperMessage[] = [];
  readonly violations: string[] = [];
  /** Once true, writes fail with EPIPE and reads end. */
  gone = false;
  #outstanding: Promise<Answer> | undefined;
  readonly #answer: Answerer;
  /** Called with each message before it is answered. */
  onMessage: (message: HelperMessage) => void = () => undefined;

  constructor(answer: Answerer) {
    this.#answer = answer;
  }

  write(frame: Uint8Array): void {
    if (this.gone) throw errno('EPIPE', -32, 'write');
    const message = decodeFrame(frame);
    if (message === undefined) {
      this.violations.push(`dropped: ${Buffer.from(frame).toString('hex')}`);
      return;
    }
    if (this.messages.some((m) => m.kind === 'complete'))
      this.violations.push(`${message.kind} after complete`);
    if (message.kind === 'log' && (message.level < 1 || message.level > 9)) this.violations.push('log level');
    this.messages.push(message);
    this.onMessage(message);
    if (!WITH_REPLY.includes(message.kind)) return;
    if (this.#outstanding !== undefined) this.violations.push(`${message.kind} before the reply to another`);
    this.#outstanding = Promise.resolve(this.#answer(message, this));
  }

  async read(into: Uint8Array): Promise<number> {
    if (this.#outstanding === undefined) {
      this.violations.push('waits for a reply to nothing');
      return 0;
    }
    const answer = await this.#outstanding;
    this.#outstanding = undefined;
    if (answer === 'gone' || this.gone) {
      this.gone = true;
      return 0;
    }
    new DataView(into.buffer, into.byteOffset).setInt32(0, answer, true);
    return into.length;
  }

  /** Kinds of messages but log and progress, with what tells them apart. */
  get callbacks(): string[] {
    return this.messages.flatMap((m) => {
      switch (m.kind) {
        case 'log':
        case 'progress':
          return [];
        case 'switch_qemu_logdirty':
          return [`logdirty ${m.enable}`];
        case 'static_data_done':
          return [`static_data_done ${m.missing}`];
        case 'complete':
          return [`complete ${m.retval} ${m.errno}`];
        case 'restore_results':
          return [m.storeGfn === 0 && m.consoleGfn === 0 ? 'results none' : 'results'];
        default:
          return [m.kind];
      }
    });
  }

  /** Progress texts, each once in a row. */
  get progress(): string[] {
    const texts: string[] = [];
    for (const m of this.messages) {
      if (m.kind === 'progress' && texts.at(-1) !== m.what) texts.push(m.what);
    }
    return texts;
  }

  get complete(): { retval: number; errno: number } | undefined {
    return this.messages.find((m) => m.kind === 'complete');
  }

  /** Lines of level ERROR and above. */
  get errors(): string[] {
    return this.messages.flatMap((m) => (m.kind === 'log' && m.level >= 8 ? [m.text] : []));
  }
}

/** A descriptor in memory: what is written is kept; what is read is given, never more than asked for. */
export class MemoryFd implements BlockingFd {
  readonly written: Buffer[] = [];
  /** Bytes to read, and how far that has come. */
  input: Uint8Array = new Uint8Array(0);
  position = 0;
  /** Runs before each operation; what it throws is the operation's error. */
  before: (index: number) => void | Promise<void> = () => undefined;
  spoiled = false;
  interrupted = false;
  closed = false;
  #operations = 0;
  #turn: Promise<unknown> = Promise.resolve();
  #wake: () => void = () => undefined;

  write(views: readonly Uint8Array[]): Promise<void> {
    return this.#queue(async () => {
      this.written.push(...views.map((view) => Buffer.from(view)));
    });
  }

  read(into: Uint8Array): Promise<number> {
    return this.#queue(async () => {
      const n = Math.min(into.length, this.input.length - this.position);
      into.set(this.input.subarray(this.position, this.position + n));
      this.position += n;
      return n;
    });
  }

  /** As `read`, where nothing has to be waited for: now and then −1, as if somebody had made it non-blocking. */
  readNow(into: Uint8Array): number {
    const index = this.#operations++;
    if (this.interrupted) throw errno('ECANCELED', 125, 'read');
    if (index % 7 === 3) return -1;
    const waiting = this.before(index);
    if (waiting !== undefined) throw new Error('this descriptor has nothing just now');
    // A pipe gives what it has.
    const n = Math.min(into.length, 1 + (index % 5) * 3000, this.input.length - this.position);
    into.set(this.input.subarray(this.position, this.position + n));
    this.position += n;
    return n;
  }

  interrupt(spoil: boolean): void {
    this.interrupted = true;
    this.spoiled ||= spoil;
    this.#wake();
  }

  close(): void {
    this.closed = true;
    this.interrupt(false);
  }

  /** Waits as a full pipe does: until it is interrupted. */
  stall(): Promise<void> {
    return new Promise((resolve) => {
      if (this.interrupted) resolve();
      else this.#wake = resolve;
    });
  }

  get bytes(): Buffer {
    return Buffer.concat(this.written);
  }

  #queue<T>(operation: () => Promise<T>): Promise<T> {
    const index = this.#operations++;
    const done = this.#turn.then(async () => {
      if (!this.interrupted) await this.before(index);
      if (this.interrupted) throw errno('ECANCELED', 125, 'writev');
      return operation();
    });
    this.#turn = done.catch(() => undefined);
    return done;
  }
}

/** A helper in this process, with all that is around it. */
export class HelperRun {
  readonly libxl: FakeLibxl;
  readonly fd = new MemoryFd();
  readonly complaints: string[] = [];
  /** SIGTERM's handler, once the helper has one. */
  terminate: (() => void) | undefined;
  /** True once the helper has let SIGTERM through. */
  unblocked = false;
  opened = 0;
  exit: Promise<number> = Promise.resolve(-1);

  constructor(answer: Answerer) {
    this.libxl = new FakeLibxl(answer);
  }

  start(host: Host, argv: readonly string[], env: Record<string, string> = {}): this {
    const world: HelperWorld = {
      argv,
      env,
      port: this.libxl,
      openHost: async () => {
        this.opened++;
        // The host goes on living: libxl needs it, too.
        return new Proxy(host, {
          get: (target, name): unknown => {
            if (name === 'close') return async () => undefined;
            const value: unknown = Reflect.get(target, name);
            return typeof value === 'function' ? (value.bind(target) as unknown) : value;
          },
        });
      },
      openFd: () => this.fd,
      onTerminate: (handler) => {
        this.unblocked = true;
        this.terminate = handler;
      },
      complain: (text) => this.complaints.push(text),
    };
    this.exit = runHelper(world);
    return this;
  }
}

/** libxl as it is when all goes well, on a simulated host: it does what the callbacks ask for. */
export function obliging(host: Host, domid: number): Answerer {
  const { toolstack } = host;
  return async (message) => {
    switch (message.kind) {
      case 'suspend':
        await toolstack.suspend(domid, { live: true });
        return 1;
      case 'switch_qemu_logdirty':
        await toolstack.setDeviceModelLogDirty(message.domid, message.enable === 1);
        return 0;
      case 'static_data_done':
        await toolstack.staticDataDone(domid, {
          cpuid: (message.missing & 1) !== 0,
          msr: (message.missing & 2) !== 0,
        });
        return 0;
      default:
        return 0;
    }
  };
}

/** A refusal as the simulator throws it, for faults. */
export function refused(number: number): Error {
  return new HypercallError('injected', number, 'injected fault');
}
