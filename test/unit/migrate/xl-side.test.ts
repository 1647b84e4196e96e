import { afterEach, describe, expect, test } from 'vitest';
import { StreamFormatError, TimeoutError, UsageError, XenMigrationError } from '../../../lib/errors.js';
import { JobControl } from '../../../lib/job.js';
import { incomingToolstack } from '../../../lib/migrate/naming.js';
import { restoreByXl, xlSide, type XlSideSettings } from '../../../lib/migrate/xl/side.js';
import type { RestoreOptions, RestoreResult } from '../../../lib/restore/types.js';
import { decodeXlHeader } from '../../../lib/stream/xl/header.js';
import { XlError } from '../../../lib/toolstack/xl/error.js';
import { MemorySource } from '../../../lib/transport/memory.js';
import type { ByteSource } from '../../../lib/transport/types.js';
import { FakeHost } from '../restore/fake-host.js';
import {
  CHECKPOINT,
  CONFIG,
  CONSOLE_PFN,
  hvmStream,
  libxl,
  pageData,
  plainPages,
  STORE_PFN,
  xl,
} from '../restore/streams.js';
import { FAKE_XL, FakeXl } from '../toolstack/xl/fake.js';

const DISK =
  '{"c_info":{"type":"pvh","name":"test","big":18446744073709551615},"b_info":{"max_memkb":1024},"disks":[{}]}';
/** Far larger than a pipe. */
const memory = Array.from({ length: 60 }, (_, i) => pageData(plainPages(100 + i, 102 + i)));
const stream = xl(hvmStream(memory), [], DISK);

let fake: FakeXl | undefined;
afterEach(() => {
  fake?.remove();
  fake = undefined;
});

/** Gives out bytes as a connection does, in pieces, and then what the rest says. */
class Pieces implements ByteSource {
  readonly #bytes: Uint8Array;
  readonly #size: number;
  readonly #then: 'end' | 'silence';
  #here = 0;
  position = 0;

  constructor(bytes: Uint8Array, size: number, then: 'end' | 'silence' = 'silence') {
    this.#bytes = bytes;
    this.#size = size;
    this.#then = then;
  }

  take(max: number): Uint8Array | undefined {
    const n = Math.min(max, this.#here, this.#bytes.length - this.position);
    if (n <= 0) return undefined;
    this.#here -= n;
    this.position += n;
    return this.#bytes.slice(this.position - n, this.position);
  }

  async wait(_want: number, signal?: AbortSignal): Promise<boolean> {
    await new Promise((resolve) => setImmediate(resolve));
    if (this.position < this.#bytes.length) {
      this.#here = this.#size;
      return true;
    }
    if (this.#then === 'end') return false;
    return new Promise((_resolve, reject) => {
      const stop = (): void => reject(signal?.reason as Error);
      if (signal?.aborted === true) stop();
      else signal?.addEventListener('abort', stop);
    });
  }

  async close(): Promise<void> {
    // Nothing is open.
  }
}

interface Play {
  readonly mode?: string;
  readonly source?: ByteSource;
  readonly settings?: XlSideSettings;
  readonly options?: RestoreOptions;
  readonly before?: (fake: FakeXl) => void;
  readonly control?: JobControl;
}

function play({
  mode = '',
  source = new Pieces(stream, 5000),
  settings,
  options,
  before,
  control,
}: Play = {}) {
  fake = new FakeXl(mode);
  before?.(fake);
  const host = new FakeHost({ hvm: true });
  const side = xlSide(host.toolstack, { program: FAKE_XL, helper: FAKE_XL, ...settings });
  const job = control ?? new JobControl('receive', undefined, {});
  const result = side.restore(job, host, source, {
    format: 'xl',
    run: false,
    toolstack: side.toolstack,
    ...options,
  });
  result.catch(() => undefined);
  return { fake, host, side, job, source, result };
}

async function failure(result: Promise<RestoreResult>): Promise<XenMigrationError> {
  const error: unknown = await result.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(XenMigrationError);
  return error as XenMigrationError;
}

describe('a guest with a disk', () => {
  test('is built by xl restore out of the very bytes that came, and stays paused', async () => {
    const { fake, host, side, job, result } = play();
    expect(await result).toMatchObject({
      domid: 1,
      guestType: 'hvm',
      bytes: stream.length,
      pages: 120,
      missing: { cpuid: false, msr: false },
      storeGfn: STORE_PFN,
      consoleGfn: CONSOLE_PFN,
      config: DISK,
    });
    expect(job.status).toMatchObject({ domid: 1, phase: 'complete', transferred: stream.length, pages: 120 });
    expect(fake.log[0]).toBe('domid test');
    // xl's first line comes when it comes; until the domain is there it is looked for.
    expect([...new Set(fake.log)].sort()).toEqual(['domid test', 'restore -p /proc/self/fd/0']);
    expect(fake.read('helper')).toBe(FAKE_XL);
    expect(fake.domains()).toEqual({ 1: 'test' });
    const got = fake.bytes('stream');
    const header = decodeXlHeader(got);
    expect(header.config).toContain('18446744073709551615');
    const body = stream.subarray(48 + 4 + DISK.length + 1);
    expect(got.subarray(48 + header.optionalData.length).equals(body)).toBe(true);
    expect(host.created).toBe(false);

    // What belongs to xl is done by xl.
    await side.toolstack.unpause(1);
    await side.toolstack.destroy(1);
    expect(fake.domains()).toEqual({});
    expect(fake.log.slice(-2)).toEqual(['unpause 1', 'destroy 1']);
  });

  test('is called what the toolstack around it says', async () => {
    const names: string[] = [];
    fake = new FakeXl();
    const host = new FakeHost({ hvm: true });
    const side = xlSide(host.toolstack, { program: FAKE_XL, helper: FAKE_XL });
    const toolstack = incomingToolstack(side.toolstack, (name) => names.push(name));
    const control = new JobControl('receive', undefined, {});
    await side.restore(control, host, new Pieces(stream, 70_000), { format: 'xl', run: false, toolstack });
    expect(fake.domains()).toEqual({ 1: 'test--incoming' });
    expect(names).toEqual(['test']);
  });

  test('is unpaused if it shall run', async () => {
    const { fake, result } = play({ options: { run: true } });
    await result;
    expect(fake.log.at(-1)).toBe('unpause 1');
  });

  test('may be built with libxl’s own helper, another configuration, and without a daemon', async () => {
    const config = DISK.replace('"test"', '"other"');
    const { fake, result } = play({
      options: { config },
      settings: { helper: 'stock', monitor: false },
    });
    expect((await result).config).toBe(DISK);
    expect(fake.domains()).toEqual({ 1: 'other' });
    expect(fake.read('helper')).toBe('');
    expect(fake.log).toContain('restore -p -e /proc/self/fd/0');
  });

  test('not a byte beyond the stream is taken', async () => {
    const source = new MemorySource([stream, Buffer.from('the next message')]);
    await play({ source }).result;
    expect(source.position).toBe(stream.length);
    expect(Buffer.from(source.take(100) as Uint8Array).toString()).toBe('the next message');
  });

  test.each([
    ['early', /^xl restore -p failed \(exit code 1\): libxl: error: no memory$/],
    ['middle', /failed \(exit code 1\): libxl: error: libxl_stream_read.c: it is broken$/],
    ['late', /failed \(exit code 1\): libxl: error: no device model$/],
    ['killed', /^xl restore -p was ended by a signal: it did not say why$/],
  ])('if xl fails (%s), its own words are told and nothing is left', async (mode, message) => {
    // A source that would go on for ever: xl's end must end the wait for it.
    const { fake, result } = play({
      mode,
      source: new Pieces(stream.subarray(0, mode === 'late' ? stream.length : 200_000), 5000),
    });
    const error = await failure(result);
    expect(error).toBeInstanceOf(XlError);
    expect(error.message).toMatch(message);
    expect(fake.domains()).toEqual({});
    expect(error.cleanupErrors).toEqual([]);
  });

  test('a stream that ends too early is the stream’s fault, and xl takes down what it built', async () => {
    const { fake, result } = play({ source: new Pieces(stream.subarray(0, 100_000), 5000, 'end') });
    const error = await failure(result);
    expect(error).toBeInstanceOf(StreamFormatError);
    expect(error.code).toBe('ERR_XEN_STREAM_TRUNCATED');
    expect(fake.domains()).toEqual({});
    expect(fake.log).not.toContain('destroy 1');
  });

  test('what the formats do not allow never gets to libxl', async () => {
    const broken = Uint8Array.from(stream);
    // A record of libxl of 4 GiB, for which it would allocate memory at once.
    const at = 48 + 4 + DISK.length + 1 + 16;
    broken.set([4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], at);
    const { fake, result } = play({ source: new Pieces(broken, 5000) });
    expect((await failure(result)).code).toMatch(/^ERR_XEN_STREAM_/);
    expect(fake.bytes('stream').length).toBeLessThanOrEqual(at + 16);
    expect(fake.domains()).toEqual({});
  });

  test('cancelled while it waits for the stream: xl is ended and the domain goes', async () => {
    const control = new JobControl('receive', undefined, {});
    const source = new Pieces(stream.subarray(0, 150_000), 5000);
    const { fake, result } = play({ control, source });
    while (source.position < 150_000) await new Promise((resolve) => setTimeout(resolve, 5));
    control.cancel('enough');
    const error = await failure(result);
    expect(error.code).toBe('ERR_XEN_CANCELLED');
    expect(fake.domains()).toEqual({});
  });

  test('cancelled while xl does not take it', async () => {
    const control = new JobControl('receive', undefined, {});
    const { fake, result } = play({ control, mode: 'stuck', settings: { patienceMs: 50 } });
    while (control.status.transferred < 60_000) await new Promise((resolve) => setTimeout(resolve, 5));
    control.cancel('enough');
    expect((await failure(result)).code).toBe('ERR_XEN_CANCELLED');
    // It did not end by itself; what it left was destroyed for it.
    expect(fake.log.at(-1)).toBe('destroy 1');
    expect(fake.domains()).toEqual({});
  });

  test('an xl that does not end after the stream is ended', async () => {
    const { fake, result } = play({ mode: 'endless', settings: { finishMs: 50, patienceMs: 50 } });
    const error = await failure(result);
    expect(error).toBeInstanceOf(TimeoutError);
    expect(error.message).toBe('xl restore -p had the whole stream and did not end within 50 ms');
    expect(fake.domains()).toEqual({});
  });

  test('a domain of the name is not touched', async () => {
    const { fake, result } = play({ before: (host) => host.add(8, 'test') });
    const error = await failure(result);
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toMatch(/^there is a domain "test" already, domain 8: destroy it/);
    expect(fake.domains()).toEqual({ 8: 'test' });
    expect(fake.log).toEqual(['domid test']);
  });

  test('two at once of one name: the second is refused', async () => {
    const first = play();
    const side = xlSide(first.host.toolstack, { program: FAKE_XL, helper: FAKE_XL });
    const control = new JobControl('receive', undefined, {});
    const second = side.restore(control, first.host, new Pieces(stream, 5000), { run: false });
    expect((await failure(second)).message).toMatch(/being built already|already, domain 1/);
    expect((await first.result).domid).toBe(1);
    expect(first.fake.domains()).toEqual({ 1: 'test' });
  });

  test.each([
    ['a name that xl takes for an option', DISK.replace('"test"', '"-f"'), /cannot be a domain's name/],
    ['no name', DISK.replace('"name":"test",', ''), /cannot be a domain's name/],
  ])('%s is refused before xl runs', async (_what, config, message) => {
    const { fake, result } = play({ source: new Pieces(xl(hvmStream(), [], config), 500) });
    expect((await failure(result)).message).toMatch(message);
    expect(fake.log).toEqual([]);
  });

  test('without xl, and without its helper, nothing is begun', async () => {
    const missing = play({ settings: { program: '/nowhere/xl' } });
    expect(await failure(missing.result)).toMatchObject({ code: 'ERR_XEN_XL_MISSING' });
    missing.fake.remove();
    const helpless = play({ settings: { helper: '/nowhere/helper' } });
    expect((await failure(helpless.result)).message).toBe(
      'the save helper for xl cannot be run: /nowhere/helper',
    );
    expect(helpless.fake.log).toEqual([]);
  });

  test('a checkpointed stream is refused, and the domain goes', async () => {
    const checkpointed = xl(hvmStream([...memory, CHECKPOINT]), [], DISK);
    const { fake, result } = play({ source: new Pieces(checkpointed, 5000) });
    expect((await failure(result)).message).toMatch(/no checkpointed streams/);
    expect(fake.domains()).toEqual({});
  });

  test('bytes after the stream are refused if they are to be', async () => {
    const longer = Buffer.concat([stream, Buffer.of(1)]);
    const { fake, result } = play({ source: new Pieces(longer, 5000), options: { refuseTrailing: true } });
    expect((await failure(result)).code).toBe('ERR_XEN_STREAM_TRAILING');
    expect(fake.domains()).toEqual({});
  });
});

describe('a guest without devices', () => {
  const plain = xl(hvmStream(), [], CONFIG);

  test('is built without xl, out of every byte', async () => {
    const source = new Pieces(plain, 333);
    const { fake, host, side, result } = play({ source });
    expect(await result).toMatchObject({ bytes: plain.length, config: CONFIG });
    expect(host.toolstack.config).toBe(CONFIG);
    expect(host.leaks()).toEqual([]);
    expect(source.position).toBe(plain.length);
    await side.toolstack.unpause(7);
    expect(host.running).toBe(true);
    expect(fake.log).toEqual([]);
  });

  test('as are streams without a header of xl', async () => {
    const bare = libxl(hvmStream());
    const { fake, result } = play({
      source: new Pieces(bare, 3),
      options: { format: 'libxl', config: CONFIG },
    });
    expect((await result).bytes).toBe(bare.length);
    expect(fake.log).toEqual([]);
  });

  test('fails as it would without this', async () => {
    const { result } = play({ source: new Pieces(plain.subarray(0, 5), 333, 'end') });
    expect((await failure(result)).code).toBe('ERR_XEN_STREAM_TRUNCATED');
    fake?.remove();
    const foreign = play({ source: new Pieces(Buffer.from('something quite different'), 333, 'end') });
    expect((await failure(foreign.result)).code).toMatch(/^ERR_XEN_STREAM_/);
  });

  test('restoreByXl gives xl any guest', async () => {
    fake = new FakeXl();
    const control = new JobControl('restore', undefined, {});
    // Its xl is the host's, of which there is none here.
    const host = new FakeHost({ hvm: true });
    const error = await failure(restoreByXl(control, host, new Pieces(plain, 333), { run: false }));
    expect(error.message).toMatch(/save helper for xl cannot be run|has no xl/);
    expect(host.created).toBe(false);
  });
});
