/**
 * What the handshake's tests stand on: a connection that can be cut, garbled or silenced at any byte, two hosts whose
 * guests are one flag each, and a save and restore that move a few hundred bytes.
 */
import { Duplex } from 'node:stream';
import { HypercallError, StreamFormatError } from '../../../lib/errors.js';
import { ShutdownReason, type Domain, type DomainInfo, type Host } from '../../../lib/host/host.js';
import { Faults } from '../../../lib/host/simulated/faults.js';
import { NoteShelf, SimulatedNotes } from '../../../lib/host/simulated/notes.js';
import type { JobControl } from '../../../lib/job.js';
import { now } from '../../../lib/job.js';
import { nameIn } from '../../../lib/migrate/naming.js';
import type { RestoreOptions, RestoreResult } from '../../../lib/restore/types.js';
import type { SaveOptions, SaveResult } from '../../../lib/save/types.js';
import type { Toolstack } from '../../../lib/toolstack/toolstack.js';
import type { ByteSink, ByteSource } from '../../../lib/transport/types.js';

/** What happens to one direction of a connection. Offsets count its bytes. */
export interface Fault {
  /** The connection breaks, both ways, before this byte arrives. */
  readonly cutAt?: number;
  /** This byte is inverted. */
  readonly garbleAt?: number;
  /** From this byte on nothing arrives, without the connection breaking. */
  readonly silentAt?: number;
  /** This byte and what follows arrives late. */
  readonly late?: { readonly at: number; readonly ms: number };
  /** Called when this byte is sent. */
  readonly notice?: { readonly at: number; readonly act: () => void };
}

class End extends Duplex {
  other!: End;
  /** Bytes that this end has sent. */
  sent = 0;
  readonly #fault: Fault;
  #waited = false;
  #late: NodeJS.Timeout | undefined;
  #writable: (() => void) | undefined;

  constructor(fault: Fault, highWaterMark: number) {
    super({
      allowHalfOpen: true,
      readableHighWaterMark: highWaterMark,
      writableHighWaterMark: highWaterMark,
    });
    this.#fault = fault;
  }

  override _read(): void {
    const go = this.other.#writable;
    this.other.#writable = undefined;
    go?.();
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error | null) => void): void {
    const { late, notice } = this.#fault;
    const from = this.sent;
    const to = from + chunk.length;
    if (late !== undefined && late.at >= from && late.at < to && !this.#waited) {
      this.#waited = true;
      this.#late = setTimeout(() => {
        this.#late = undefined;
        if (!this.destroyed) this._write(chunk, _encoding, done);
        else if (!this.other.destroyed) {
          // What was on its way arrives, whether or not somebody is left who sent it.
          this.other.push(chunk);
          this.other.push(null);
        }
      }, late.ms);
      return;
    }
    this.sent = to;
    if (notice !== undefined && notice.at >= from && notice.at < to) notice.act();
    this.#pass(chunk, from, to, done);
  }

  #pass(chunk: Buffer, from: number, to: number, done: (error?: Error | null) => void): void {
    const { cutAt = Infinity, garbleAt = Infinity, silentAt = Infinity } = this.#fault;
    let bytes = Buffer.from(chunk);
    if (garbleAt >= from && garbleAt < to) bytes[garbleAt - from] = (bytes[garbleAt - from] as number) ^ 0xff;
    const stop = Math.min(cutAt, silentAt);
    if (stop < to) bytes = bytes.subarray(0, Math.max(0, stop - from));
    // A pushed piece is seen by the reader in a later turn, as with a real connection.
    const more = bytes.length === 0 || this.other.destroyed || this.other.push(bytes);
    if (cutAt < to) {
      this.#cut();
      done(reset());
    } else if (this.other.destroyed) done(broken());
    else if (more || silentAt < to) process.nextTick(done);
    else this.#writable = done;
  }

  /** What is still on its way is lost. */
  forgetLate(): void {
    clearTimeout(this.#late);
    this.#late = undefined;
  }

  override _final(done: () => void): void {
    if (!this.other.destroyed && this.#fault.silentAt === undefined) this.other.push(null);
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    const go = this.#writable;
    this.#writable = undefined;
    go?.();
    process.nextTick(() => {
      if (this.#late !== undefined) return;
      if (!this.other.destroyed && !this.other.readableEnded && this.#fault.silentAt === undefined) {
        this.other.push(null);
      }
    });
    done(error);
  }

  #cut(): void {
    // What was on its way is lost with the connection.
    setImmediateReal(() => {
      this.destroy(reset());
      this.other.destroy(reset());
    });
  }
}

const setImmediateReal = setImmediate;

function reset(): Error {
  return Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' });
}

function broken(): Error {
  return Object.assign(new Error('write EPIPE'), { code: 'EPIPE' });
}

/** Two ends of a connection; the faults are those of what each end sends. */
export function duplexPair(ofFirst: Fault = {}, ofSecond: Fault = {}, highWaterMark = 4096): [End, End] {
  const first = new End(ofFirst, highWaterMark);
  const second = new End(ofSecond, highWaterMark);
  first.other = second;
  second.other = first;
  for (const end of [first, second]) end.on('error', () => undefined);
  return [first, second];
}

/** One guest of a fake host. */
export interface FakeDomain {
  domid: number;
  /** Suspended, shut down for it. */
  suspended: boolean;
  paused: boolean;
  memory: Uint8Array;
  config: string;
}

/** Sees all hosts of a test: at no time may two copies be able to run. */
export class World {
  readonly hosts: FakeHost[] = [];
  mostRunning = 0;

  get running(): FakeDomain[] {
    return this.hosts.flatMap((host) => [...host.domains.values()]).filter((d) => !d.suspended && !d.paused);
  }

  note(): void {
    this.mostRunning = Math.max(this.mostRunning, this.running.length);
  }
}

/** Steps of the toolstack that can be made to fail. */
export type FakeStep = 'suspend' | 'resume' | 'unpause' | 'destroy' | 'createDomain' | 'domainConfig';

export class FakeHost implements Host {
  readonly kind = 'simulated';
  readonly domains = new Map<number, FakeDomain>();
  readonly failing = new Set<FakeStep>();
  readonly calls: string[] = [];
  readonly toolstack: Toolstack;
  readonly #world: World;
  #next = 1;

  /** @param noted Keeps notes, and gives guests names on their way */
  constructor(world: World, noted = false) {
    this.#world = world;
    world.hosts.push(this);
    this.toolstack = noted ? new NotedToolstack(this, world.hosts.length) : new FakeToolstack(this);
  }

  add(domain: Omit<FakeDomain, 'domid'>): FakeDomain {
    const added = { ...domain, domid: this.#next++ };
    this.domains.set(added.domid, added);
    this.#world.note();
    return added;
  }

  get(domid: number): FakeDomain {
    const domain = this.domains.get(domid);
    if (domain === undefined) throw new HypercallError('XEN_DOMCTL_getdomaininfo', 3, `no domain ${domid}`);
    return domain;
  }

  step(step: FakeStep, domid?: number): void {
    this.calls.push(domid === undefined ? step : `${step} ${domid}`);
    if (this.failing.has(step)) throw new HypercallError(step, 5, 'made to fail');
  }

  note(): void {
    this.#world.note();
  }

  async xenVersion(): Promise<{ major: number; minor: number }> {
    return { major: 4, minor: 17 };
  }

  async listDomains(): Promise<DomainInfo[]> {
    return [...this.domains.values()].map(infoOf);
  }

  async openDomain(domid: number): Promise<Domain> {
    this.get(domid);
    return {
      domid,
      info: async () => infoOf(this.get(domid)),
      disableLogDirty: async () => undefined,
      close: async () => undefined,
    } as unknown as Domain;
  }

  mapMachineToPhys(): Promise<never> {
    return Promise.reject(new HypercallError('XENMEM_machphys_mfn_list', 95, 'no PV here'));
  }

  async close(): Promise<void> {
    this.domains.clear();
  }
}

function infoOf(domain: FakeDomain): DomainInfo {
  return {
    domid: domain.domid,
    hvm: true,
    paused: domain.paused,
    dying: false,
    shutdown: domain.suspended,
    shutdownReason: ShutdownReason.SUSPEND,
    maxVcpuId: 0,
    totPages: 1,
    maxPages: 1,
    sharedInfoFrame: 0,
  };
}

class FakeToolstack implements Toolstack {
  readonly #host: FakeHost;

  constructor(host: FakeHost) {
    this.#host = host;
  }

  async suspend(domid: number): Promise<void> {
    this.#host.step('suspend', domid);
    this.#host.get(domid).suspended = true;
  }

  async resume(domid: number): Promise<void> {
    this.#host.step('resume', domid);
    this.#host.get(domid).suspended = false;
    this.#host.note();
  }

  async setDeviceModelLogDirty(): Promise<void> {
    // There is no device model.
  }

  async deviceModelState(): Promise<undefined> {
    // There is no device model.
  }

  async loadDeviceModelState(): Promise<void> {
    // There is no device model.
  }

  async domainConfig(domid: number): Promise<string> {
    this.#host.step('domainConfig', domid);
    return this.#host.get(domid).config;
  }

  async createDomain(config: string): Promise<number> {
    this.#host.step('createDomain');
    return this.#host.add({ config, paused: true, suspended: false, memory: new Uint8Array(0) }).domid;
  }

  backendWiring(): Promise<never> {
    return Promise.reject(new Error('not used'));
  }

  async staticDataDone(): Promise<void> {
    // Nothing to make up.
  }

  async finishRestore(): Promise<void> {
    // No rings.
  }

  async unpause(domid: number): Promise<void> {
    this.#host.step('unpause', domid);
    this.#host.get(domid).paused = false;
    this.#host.note();
  }

  async pause(domid: number): Promise<void> {
    this.#host.get(domid).paused = true;
  }

  async destroy(domid: number): Promise<void> {
    this.#host.step('destroy', domid);
    this.#host.domains.delete(domid);
  }
}

/** A toolstack with all that is optional. */
class NotedToolstack extends FakeToolstack {
  readonly notes: SimulatedNotes;
  readonly #names = new Map<number, string>();

  constructor(host: FakeHost, number: number) {
    super(host);
    this.notes = new SimulatedNotes(new NoteShelf(`boot of host ${number}`, new Faults(false)), 'daemon');
  }

  async rename(domid: number, name: string): Promise<void> {
    if ((await this.findByName(name)) !== undefined) throw new Error(`${name} is taken`);
    this.#names.set(domid, name);
  }

  async nameOf(domid: number): Promise<string | undefined> {
    return this.#names.get(domid);
  }

  async findByName(name: string): Promise<number | undefined> {
    return [...this.#names].find(([, other]) => other === name)?.[0];
  }

  override async createDomain(config: string): Promise<number> {
    const domid = await super.createDomain(config);
    const name = nameIn(config);
    if (name !== undefined) this.#names.set(domid, name);
    return domid;
  }

  override async destroy(domid: number): Promise<void> {
    await super.destroy(domid);
    this.#names.delete(domid);
  }
}

const STREAM_MAGIC = 0x53545245;

/** Bytes that `fakeSave` writes for a memory of this size. */
export function streamLength(memory: number): number {
  return 8 + memory + 1;
}

function fakeHost(host: Host): FakeHost {
  if (!(host instanceof FakeHost)) throw new TypeError('not a fake host');
  return host;
}

/** Saves as the real one does: guest left suspended after success, running again after failure. */
export async function fakeSave(
  control: JobControl,
  host: Host,
  sink: ByteSink,
  options: SaveOptions,
): Promise<SaveResult> {
  const { memory } = fakeHost(host).get(options.domid);
  const header = Buffer.alloc(8);
  header.writeUInt32LE(STREAM_MAGIC, 0);
  header.writeUInt32LE(memory.length, 4);
  let suspended = false;
  let suspendRequestedAt = 0;
  try {
    control.enter('static-data');
    control.throwIfCancelled();
    await sink.write([header]);
    control.enter('pre-copy');
    for (let i = 0; i < memory.length; i += 100) {
      control.throwIfCancelled();
      if (!suspended && i + 100 >= memory.length) {
        control.enter('suspend');
        suspendRequestedAt = now();
        await host.toolstack.suspend(options.domid, { live: true });
        suspended = true;
        control.enter('stop-and-copy');
      }
      await sink.write([memory.subarray(i, i + 100)]);
    }
    control.throwIfCancelled();
    await sink.write([Uint8Array.of(0x45)]);
    await sink.end();
  } catch (error) {
    if (suspended) await host.toolstack.resume(options.domid);
    throw error;
  }
  return {
    domid: options.domid,
    bytes: streamLength(memory.length),
    pages: 1,
    entriesByType: { NOTAB: 1 },
    p2mSize: 1,
    iterations: [],
    downtime: { suspend: 1, finalPass: 2, state: 3, deviceModel: 4, handover: 0, total: 10 },
    elapsed: 1,
    suspendRequestedAt,
    cleanupErrors: [],
  };
}

/** Restores what `fakeSave` wrote, reading not a byte more. */
export async function fakeRestore(
  control: JobControl,
  host: Host,
  source: ByteSource,
  options: RestoreOptions,
): Promise<RestoreResult> {
  const read = async (n: number): Promise<Buffer> => {
    const bytes = Buffer.alloc(n);
    for (let at = 0; at < n;) {
      const piece = source.take(n - at);
      if (piece === undefined) {
        if (await source.wait(n - at, control.signal)) continue;
        throw new StreamFormatError('ERR_XEN_STREAM_TRUNCATED', 'the stream ends too early', { offset: at });
      }
      bytes.set(piece, at);
      at += piece.length;
    }
    return bytes;
  };
  const broken = (reason: string): Error =>
    new StreamFormatError('ERR_XEN_STREAM_FAKE', reason, { offset: source.position });
  control.enter('static-data');
  const header = await read(8);
  if (header.readUInt32LE(0) !== STREAM_MAGIC) throw broken('wrong magic');
  const length = header.readUInt32LE(4);
  if (length > 1_000_000) throw broken('too much memory');
  const domid = await (options.toolstack ?? host.toolstack).createDomain('{"c_info":{"name":"guest"}}');
  control.domid = domid;
  control.enter('memory');
  const memory = await read(length);
  const end = await read(1);
  if (end[0] !== 0x45) throw broken('no end');
  fakeHost(host).get(domid).memory = memory;
  return {
    domid,
    guestType: 'hvm',
    bytes: source.position,
    pages: 1,
    missing: { cpuid: false, msr: false },
    storeGfn: 0,
    consoleGfn: 0,
    verifyMismatches: { count: 0, pfns: [] },
    config: '{}',
    populated: { pages: 1, superpages: 0 },
    checkpoints: 0,
    failedOver: false,
    elapsed: 1,
  };
}
