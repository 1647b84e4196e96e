/**
 * Migrations to stock `xl migrate-receive`, which nobody can ask again: the connection is cut or silent at every byte of
 * either direction, xl reports that it cannot run the guest, or the sender is killed; in virtual time. In no case may
 * two guests run, and in none may a sender that does not know where the guest is touch its copy.
 */
import type { Duplex } from 'node:stream';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { XenMigrationError } from '../../../lib/errors.js';
import { JobControl } from '../../../lib/job.js';
import { recover, type RecoverOptions, type RecoveryFinding } from '../../../lib/migrate/recover.js';
import { runMigrate, type SenderOptions } from '../../../lib/migrate/sender.js';
import { SyncPoint } from '../../../lib/migrate/session.js';
import type { MigrateResult } from '../../../lib/migrate/types.js';
import { SaveSteering } from '../../../lib/save/steering.js';
import { Mortal } from '../../simulated/mortal.js';
import { duplexPair, FakeHost, fakeSave, streamLength, World, type FakeDomain, type Fault } from './fakes.js';
import { ID } from './scene.js';

const MEMORY = 350;
const CONFIG = '{"c_info":{"name":"guest"}}';
const STREAM = streamLength(MEMORY);

const BANNER = 'xl migration receiver ready, send binary domain data.\n';
const READY = 'domain received, ready to unpause\0';
const PERMISSION = 'domain is yours, you are cleared to unpause\0';
const REPORT = 'my copy unpause results are as follows\0';
/** Of a migration that goes well, all that xl says; of one that it cannot end, all that it says. */
const SAID = BANNER.length + READY.length + REPORT.length + 1;
const SAID_FAILING = SAID + PERMISSION.length;

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date', 'performance'] }));
afterEach(() => void vi.useRealTimers());

/** `xl migrate-receive`, as far as a sender can see it. */
class StockXl {
  readonly #peer: Duplex;
  readonly #host: FakeHost;
  /** libxl's error that the unpausing ends with, without its sign. */
  readonly #status: number;
  #got = Buffer.alloc(0);
  #over = false;
  #wake: () => void = () => undefined;

  constructor(peer: Duplex, host: FakeHost, status: number) {
    this.#peer = peer;
    this.#host = host;
    this.#status = status;
    peer.on('data', (piece: Buffer) => {
      this.#got = Buffer.concat([this.#got, piece]);
      this.#wake();
    });
    for (const event of ['end', 'close']) {
      peer.on(event, () => {
        this.#over = true;
        this.#wake();
      });
    }
  }

  async run(): Promise<void> {
    this.#say(BANNER);
    const stream = await this.#take(STREAM);
    if (stream === undefined) {
      this.#exit();
      return;
    }
    const memory = stream.subarray(8, 8 + MEMORY);
    const domain = this.#host.add({ suspended: false, paused: true, memory, config: CONFIG });
    this.#say(READY);
    const permission = await this.#take(PERMISSION.length);
    if (permission?.toString('latin1') !== PERMISSION) {
      this.#host.domains.delete(domain.domid);
      this.#exit();
      return;
    }
    if (this.#status === 0) {
      domain.paused = false;
      this.#host.note();
    }
    this.#say(`${REPORT}${String.fromCharCode(this.#status)}`);
    if (this.#status !== 0) {
      this.#host.domains.delete(domain.domid);
      this.#say(PERMISSION);
    }
    this.#exit();
  }

  #say(text: string): void {
    if (!this.#peer.destroyed) this.#peer.write(text, 'latin1');
  }

  /** Undefined if the connection ends before. */
  async #take(length: number): Promise<Buffer | undefined> {
    while (this.#got.length < length) {
      if (this.#over) return undefined;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const taken = this.#got.subarray(0, length);
    this.#got = this.#got.subarray(length);
    return taken;
  }

  #exit(): void {
    this.#peer.end();
  }
}

type Outcome = { readonly value: MigrateResult } | { readonly error: XenMigrationError } | 'killed';

interface Play {
  readonly toXl?: Fault;
  readonly toSender?: Fault;
  /** What xl's unpausing ends with. */
  readonly status?: number;
  readonly send?: Partial<SenderOptions>;
  /** The sender dies when this byte is sent. */
  readonly death?: { readonly direction: 'toXl' | 'toSender'; readonly at: number };
}

/** A host with a guest, one of stock xl, and a migration between them. */
class Scene {
  readonly world = new World();
  readonly source = new FakeHost(this.world, true);
  readonly destination = new FakeHost(this.world);
  readonly memory = Uint8Array.from({ length: MEMORY }, (_, i) => (i * 7) & 0xff);
  readonly guest: FakeDomain;
  /** Would open another connection. */
  readonly reconnect = vi.fn(() => Promise.reject(new Error('xl cannot be asked')));

  constructor() {
    this.guest = this.source.add({ suspended: false, paused: false, memory: this.memory, config: CONFIG });
  }

  async play({ toXl = {}, toSender = {}, status = 0, send, death }: Play = {}): Promise<Outcome> {
    await this.source.toolstack.rename?.(this.guest.domid, 'guest');
    const sender = new Mortal(this.source, 'sender');
    const faults = { toXl, toSender };
    if (death !== undefined) {
      faults[death.direction] = { notice: { at: death.at, act: () => sender.kill() } };
    }
    const [near, end] = duplexPair(faults.toXl, faults.toSender);
    const peer = sender.holds(near);
    const xl = new StockXl(end, this.destination, status).run();
    const options: SenderOptions = {
      domid: this.guest.domid,
      peer,
      protocol: 'xl',
      id: ID,
      reconnect: this.reconnect,
      reconnectTo: 'ssh://elsewhere',
      ...send,
    };
    const control = new JobControl('migrate', this.guest.domid, options);
    const sending = control.run(() =>
      runMigrate(control, sender.host, options, new SaveSteering(), fakeSave),
    );
    const over = Promise.race<Outcome>([
      sending.then(
        (value) => ({ value }),
        (error: unknown) => {
          if (!XenMigrationError.is(error)) throw error;
          return { error };
        },
      ),
      sender.died.then(() => 'killed'),
    ]);
    const outcome = await patiently(over);
    // xl waits for ever for what does not come, until its connection is closed for it.
    if (toXl.silentAt !== undefined) end.destroy();
    await patiently(xl);
    expect(this.reconnect).not.toHaveBeenCalled();
    expect(this.world.mostRunning).toBe(1);
    return outcome;
  }

  /** By a new process of the source. */
  recover(options: RecoverOptions = {}): Promise<RecoveryFinding[]> {
    return patiently(recover(this.source, { watchMs: 0, ...options }));
  }

  get name(): Promise<string | undefined> {
    return Promise.resolve(this.source.toolstack.nameOf?.(this.guest.domid));
  }

  /** The one copy there is runs at that place, whole, and no matter is open. */
  async isAt(place: 'source' | 'destination', what: string): Promise<void> {
    const [host, other] =
      place === 'source' ? [this.source, this.destination] : [this.destination, this.source];
    expect([...other.domains.keys()], what).toEqual([]);
    const [copy, ...more] = [...host.domains.values()];
    expect(more, what).toEqual([]);
    expect(copy, what).toMatchObject({ suspended: false, paused: false });
    expect(Buffer.from(copy?.memory ?? []), what).toEqual(Buffer.from(this.memory));
    expect(await this.name, what).toBe(place === 'source' ? 'guest' : undefined);
    expect(await this.source.toolstack.notes?.list(), what).toEqual([]);
    expect(this.world.mostRunning, what).toBe(1);
  }

  /** The copy here stands still, with its name given away, and its note says that it was handed over to no known peer. */
  async isOpen(what: string): Promise<void> {
    expect(this.source.domains.get(this.guest.domid), what).toBe(this.guest);
    expect(this.guest.suspended, what).toBe(true);
    expect(await this.name, what).toBe('guest--migratedaway');
    const [note, ...more] = (await this.source.toolstack.notes?.list()) ?? [];
    expect(more, what).toEqual([]);
    expect(note, what).toMatchObject({ role: 'sender', id: ID, point: SyncPoint.YOURS });
    expect(note?.peer, what).toBeUndefined();
  }

  /** As `isOpen`, after an error that says so, and `recover` leaves it as it is. */
  async isUnknown(outcome: Outcome, what: string): Promise<void> {
    expect(outcome, what).toMatchObject({
      error: { code: 'ERR_XEN_HANDOVER_UNKNOWN', guest: { host: 'unknown', state: 'unknown' } },
    });
    await this.isOpen(what);
    const found = await this.recover();
    expect(found, what).toMatchObject([
      { role: 'sender', outcome: 'unresolved', guest: { host: 'unknown' } },
    ]);
    await this.isOpen(what);
  }

  /** Somebody looks where the guest is, and says so. */
  async settleByHand(what: string): Promise<void> {
    const place = this.destination.domains.size > 0 ? 'destination' : 'source';
    await this.recover({ decide: () => place });
    await this.isAt(place, what);
  }
}

/** Waits in virtual time: an hour at most. */
async function patiently<T>(promise: Promise<T>): Promise<T> {
  const state = { over: false };
  const done = promise.finally(() => (state.over = true));
  done.catch(() => undefined);
  for (let i = 0; !state.over; i++) {
    if (i > 40_000) expect.unreachable('it hangs');
    // What is under way in this turn first, then time.
    await new Promise((resolve) => setImmediate(resolve));
    if (i % 8 === 7) await vi.advanceTimersByTimeAsync(200);
  }
  return done;
}

function errorOf(outcome: Outcome): XenMigrationError {
  if (outcome === 'killed' || 'value' in outcome) expect.unreachable('it did not fail');
  return (outcome as { error: XenMigrationError }).error;
}

/** Every byte from one place up to another. */
function bytes(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}

const protocols = ['xl', 'auto'] as const;

test.each(protocols)('a migration that goes well (%s)', async (protocol) => {
  const scene = new Scene();
  const outcome = await scene.play({ send: { protocol } });
  expect(outcome).toMatchObject({
    value: { id: ID, peerSoftware: 'xl', peerDomid: undefined, peerState: 'running', bytes: STREAM },
  });
  await scene.isAt('destination', protocol);
  expect(scene.source.calls).toEqual(['domainConfig 1', 'suspend 1', 'destroy 1']);
});

const faults: [string, (at: number) => Fault][] = [
  ['cut', (cutAt) => ({ cutAt })],
  ['silent', (silentAt) => ({ silentAt })],
];

describe.each(faults)('%s at every byte', (name, fault) => {
  test.each(protocols)(
    'of the banner and of what says that the guest is there: it goes on here (%s)',
    async (protocol) => {
      for (const at of bytes(0, BANNER.length + READY.length)) {
        const what = `${name} at ${at}`;
        const scene = new Scene();
        const error = errorOf(await scene.play({ toSender: fault(at), send: { protocol } }));
        expect(error.code, what).toMatch(/^ERR_XEN_(PEER_LOST|TRANSPORT|TIMEOUT)$/);
        expect(error.guest, what).toEqual({ host: 'source', state: 'running' });
        await scene.isAt('source', what);
      }
    },
  );

  test('of the report: nobody knows, nobody is asked, and nothing is done', async () => {
    for (const at of bytes(BANNER.length + READY.length, SAID)) {
      const what = `${name} at ${at}`;
      const scene = new Scene();
      await scene.isUnknown(await scene.play({ toSender: fault(at) }), what);
      expect(scene.destination.domains.size, what).toBe(1);
      await scene.settleByHand(what);
    }
  });

  test('of the stream: the guest goes on here', async () => {
    for (const at of bytes(0, STREAM)) {
      const what = `${name} at ${at}`;
      const scene = new Scene();
      const error = errorOf(await scene.play({ toXl: fault(at) }));
      expect(error.code, what).toMatch(/^ERR_XEN_(PEER_LOST|TRANSPORT|TIMEOUT)$/);
      expect(error.guest, what).toEqual({ host: 'source', state: 'running' });
      await scene.isAt('source', what);
    }
  });

  test('of the permission: nobody knows, nobody is asked, and nothing is done', async () => {
    for (const at of bytes(STREAM, STREAM + PERMISSION.length)) {
      const what = `${name} at ${at}`;
      const scene = new Scene();
      await scene.isUnknown(await scene.play({ toXl: fault(at) }), what);
      expect(scene.destination.domains.size, what).toBe(0);
      await scene.settleByHand(what);
    }
  });

  test('of a report of failure: the guest goes on here only with the whole permission after it', async () => {
    for (const at of bytes(SAID, SAID_FAILING)) {
      const what = `${name} at ${at}`;
      const scene = new Scene();
      const outcome = await scene.play({ toSender: fault(at), status: 3 });
      // What the report said is told in either case, unless the connection says nothing more.
      if (name === 'cut') expect(errorOf(outcome).message, what).toMatch(/status 3, ERROR_FAIL/);
      await scene.isUnknown(outcome, what);
      await scene.settleByHand(what);
    }
  });
});

test('a report of failure with the permission after it: the guest goes on here under its name', async () => {
  const scene = new Scene();
  const error = errorOf(await scene.play({ status: 3 }));
  expect(error).toMatchObject({
    code: 'ERR_XEN_PEER_REFUSED',
    message: expect.stringContaining('it could not start the guest (status 3, ERROR_FAIL)') as unknown,
    guest: { host: 'source', state: 'running' },
    cleanupErrors: [],
  });
  expect(scene.source.calls).toEqual(['domainConfig 1', 'suspend 1', 'resume 1']);
  await scene.isAt('source', 'report');
});

test.each([
  ['banner', 0, BANNER.length],
  ['ready', BANNER.length, BANNER.length + READY.length],
])('a wrong byte in the %s: the guest goes on here', async (_what, from, to) => {
  for (const at of bytes(from, to)) {
    const scene = new Scene();
    const error = errorOf(await scene.play({ toSender: { garbleAt: at } }));
    expect(error, `at ${at}`).toMatchObject({ code: 'ERR_XEN_PEER_PROTOCOL', guest: { host: 'source' } });
    await scene.isAt('source', `at ${at}`);
  }
});

test('a wrong byte in the report: nobody knows', async () => {
  // The last is the status: one that is not 0 is a failure, without the permission after it.
  for (const at of bytes(BANNER.length + READY.length, SAID)) {
    const scene = new Scene();
    await scene.isUnknown(await scene.play({ toSender: { garbleAt: at } }), `at ${at}`);
  }
});

describe('the sender killed at every byte', () => {
  const deaths = [
    ...bytes(0, STREAM + PERMISSION.length).map((at) => ({ direction: 'toXl' as const, at })),
    ...bytes(0, SAID).map((at) => ({ direction: 'toSender' as const, at })),
  ];

  test('it is recovered: before the permission the guest goes on, after it nobody knows', async () => {
    const outcomes = new Map<string, number>();
    for (const death of deaths) {
      const what = `${death.direction} ${death.at}`;
      const scene = new Scene();
      expect(await scene.play({ death }), what).toBe('killed');
      const ask = vi.fn((peer: string | undefined) => Promise.reject(new Error(`no way to ${String(peer)}`)));
      const found = await scene.recover({ reconnect: ask, resolveMs: 1000 });
      const outcome = found[0]?.outcome ?? 'none';
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      if (outcome === 'unresolved') {
        // The address that was to be asked is none of xl's: the note has none.
        for (const [peer] of ask.mock.calls) expect(peer, what).toBeUndefined();
        await scene.isOpen(what);
        await scene.settleByHand(what);
      } else {
        expect(scene.destination.domains.size, what).toBe(0);
        await scene.isAt('source', what);
      }
    }
    // At the banner there is no note yet.
    expect([...outcomes.keys()].sort()).toEqual(['none', 'resumed', 'unresolved']);
    expect(outcomes.get('unresolved')).toBe(PERMISSION.length + REPORT.length + 1);
  });

  test('with nobody to ask it is unresolved, too', async () => {
    const scene = new Scene();
    await scene.play({ death: { direction: 'toXl', at: STREAM } });
    expect(await scene.recover()).toMatchObject([
      { outcome: 'unresolved', message: expect.stringContaining('nobody was given to ask') as unknown },
    ]);
    await scene.isOpen('killed');
    await scene.settleByHand('killed');
  });
});
