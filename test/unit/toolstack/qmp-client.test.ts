/** The client of QEMU's monitor against a fake; test/differential/qemu.test.ts has a real one. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { CancelledError, DeviceModelError, TimeoutError } from '../../../lib/errors.js';
import { openQmp, type QmpClient } from '../../../lib/toolstack/qmp/index.js';
import { LineReader, QMP_LINE_MAX, decodeLine } from '../../../lib/toolstack/qmp/wire.js';
import { startFakeQmp, type Answer, type FakeQmp } from './fake-qmp.js';

let dir: string;
let path: string;
const open: (FakeQmp | QmpClient)[] = [];

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'qmp-'));
  path = join(dir, 'socket');
});

afterEach(async () => {
  for (const one of open.splice(0)) await one.close();
  await rm(dir, { recursive: true, force: true });
});

async function start(
  answer?: (command: string, args: unknown) => Answer,
  greeting?: string,
): Promise<FakeQmp> {
  const fake = await startFakeQmp({ path, ...(greeting === undefined ? {} : { greeting }), answer });
  open.push(fake);
  return fake;
}

async function connect(options?: Parameters<typeof openQmp>[1]): Promise<QmpClient> {
  const client = await openQmp(path, options);
  open.push(client);
  return client;
}

const errorOf = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    (value) => expect.fail(`resolved to ${String(value)}`),
    (error: unknown) => error,
  );

describe('commands', () => {
  it('are sent after the negotiation, with their arguments', async () => {
    const fake = await start();
    const client = await connect();
    expect(client.version).toEqual({ major: 7, minor: 2, micro: 22, package: 'fake' });
    await client.stop();
    await client.setGlobalDirtyLog(true);
    await client.saveDevicesState('/var/lib/xen/qemu-save.3', true);
    await client.cont();
    expect(fake.commands.map(({ execute, arguments: args }) => [execute, args])).toEqual([
      ['qmp_capabilities', undefined],
      ['stop', undefined],
      ['xen-set-global-dirty-log', { enable: true }],
      ['xen-save-devices-state', { filename: '/var/lib/xen/qemu-save.3', live: true }],
      ['cont', undefined],
    ]);
  });

  it('leave out what an old QEMU does not know', async () => {
    const greeting =
      '{"QMP": {"version": {"qemu": {"major": 2, "minor": 10, "micro": 1}}, "capabilities": []}}\r\n';
    const fake = await start(undefined, greeting);
    await (await connect()).saveDevicesState('/f', true);
    expect(fake.commands.at(-1)?.arguments).toEqual({ filename: '/f' });
  });

  it('answer with what QEMU returns', async () => {
    const answers: Record<string, unknown> = {
      'query-status': { status: 'paused', running: false, singlestep: false },
      'query-version': { qemu: { major: 8, minor: 1, micro: 0 }, package: 'x' },
    };
    await start((command) => ({ return: answers[command] ?? [1, command] }));
    const client = await connect();
    expect(await client.queryStatus()).toEqual({ running: false, status: 'paused' });
    expect(await client.queryVersion()).toEqual({ major: 8, minor: 1, micro: 0, package: 'x' });
    expect(await client.execute('any')).toEqual([1, 'any']);
    // Many at once: each gets its own.
    const many = Array.from({ length: 50 }, (_, i) => `command-${i}`);
    expect(await Promise.all(many.map((command) => client.execute(command)))).toEqual(
      many.map((command) => [1, command]),
    );
  });

  it('refused, tell command, class and reason', async () => {
    await start((command) =>
      command === 'stop' ? { error: { class: 'GenericError', desc: 'Not now' } } : { return: {} },
    );
    const client = await connect();
    const error = await errorOf(client.stop());
    expect(error).toBeInstanceOf(DeviceModelError);
    expect(error).toMatchObject({
      code: 'ERR_XEN_DEVICE_MODEL',
      command: 'stop',
      errorClass: 'GenericError',
      message: 'QEMU: stop: Not now (GenericError)',
    });
    await client.cont();
  });

  it('answered with something else than expected, say so', async () => {
    await start(() => ({ return: 7 }));
    const client = await connect();
    await expect(client.queryStatus()).rejects.toThrow(DeviceModelError);
    await expect(client.queryVersion()).rejects.toThrow(DeviceModelError);
  });

  it('given up by time or signal leave the connection in order; the late answer is dropped', async () => {
    let late: unknown;
    const fake = await start((command) => (command === 'slow' ? undefined : { return: command }));
    const client = await connect();
    await expect(client.execute('slow', undefined, { timeoutMs: 5 })).rejects.toThrow(TimeoutError);
    const abort = new AbortController();
    const slow = client.execute('slow', undefined, { signal: abort.signal });
    abort.abort();
    await expect(slow).rejects.toThrow(CancelledError);
    await vi.waitFor(() => expect(fake.commands).toHaveLength(3));
    for (const { execute, id } of fake.commands) if (execute === 'slow') late = id;
    fake.send(`${JSON.stringify({ return: 'late', id: late })}\r\n`);
    expect(await client.execute('next')).toBe('next');
    await expect(client.execute('slow', undefined, { signal: AbortSignal.abort() })).rejects.toThrow(
      CancelledError,
    );
    expect(fake.commands).toHaveLength(4);
  });

  it('end with the connection', async () => {
    const fake = await start((command) => (command === 'slow' ? undefined : { return: {} }));
    const client = await connect();
    const errors = Promise.all([errorOf(client.execute('slow')), errorOf(client.execute('slow'))]);
    await vi.waitFor(() => expect(fake.commands).toHaveLength(3));
    fake.drop();
    for (const error of await errors) {
      expect(error).toBeInstanceOf(DeviceModelError);
      expect(error).toMatchObject({ command: 'slow', errorClass: undefined });
    }
    await expect(client.stop()).rejects.toThrow(/was lost/);
    client.close();
    const other = await connect();
    const pending = other.execute('slow');
    other.close();
    await expect(pending).rejects.toThrow(/closed here/);
  });
});

describe('events', () => {
  it('are told, and a listener that throws does no harm', async () => {
    const seen: unknown[] = [];
    const fake = await start();
    const client = await connect({
      onEvent: (event) => {
        seen.push(event);
        throw new Error('mine');
      },
    });
    fake.send(
      '{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n{"event": "X", "data": {"a": 1}}\n',
    );
    await client.stop();
    expect(seen).toEqual([
      { name: 'STOP', data: {} },
      { name: 'X', data: { a: 1 } },
    ]);
  });
});

describe('connecting', () => {
  it('waits until the client before has hung up', async () => {
    await start();
    const first = await connect();
    const second = connect();
    await first.stop();
    first.close();
    await (await second).stop();
  });

  it('gives up by time or signal while another client is served', async () => {
    await start();
    await connect();
    const error = await errorOf(openQmp(path, { timeoutMs: 20 }));
    expect(error).toBeInstanceOf(TimeoutError);
    expect((error as Error).message).toMatch(/is another client connected\?/);
    const abort = new AbortController();
    const opening = openQmp(path, { signal: abort.signal });
    abort.abort();
    await expect(opening).rejects.toThrow(CancelledError);
  });

  it('to nothing says so, or waits if QEMU is being started', async () => {
    const error = await errorOf(openQmp(path));
    expect(error).toBeInstanceOf(DeviceModelError);
    expect(error).toMatchObject({ command: 'connect', errorClass: undefined });
    expect((error as Error).message).toContain(path);
    await expect(openQmp(path, { starting: true, timeoutMs: 25 })).rejects.toThrow(TimeoutError);
    const opening = connect({ starting: true });
    await start();
    await (await opening).stop();
  });

  it('to a QEMU that refuses to negotiate fails', async () => {
    await start(() => ({ error: { class: 'CommandNotFound', desc: 'no' } }));
    await expect(openQmp(path)).rejects.toMatchObject({ command: 'qmp_capabilities' });
  });

  it.each([
    ['text', 'SSH-2.0-OpenSSH\r\n'],
    ['a number', '7\r\n'],
    ['an array', '[]\r\n'],
    ['deep nesting', `${'['.repeat(100_000)}\r\n`],
    ['an unknown object', '{"hello": 1}\r\n'],
    ['a greeting without version', '{"QMP": {"capabilities": []}}\r\n'],
    ['a greeting with a strange version', '{"QMP": {"version": {"qemu": {"major": "7"}}}}\r\n'],
    [
      'an answer to what nobody could read',
      '{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n',
    ],
    ['a line without end', 'x'.repeat(QMP_LINE_MAX + 1)],
    ['bytes', '\u0000\u00ff\n'],
  ])('to something that says %s fails', async (_name, greeting) => {
    await start(undefined, greeting);
    const error = await errorOf(openQmp(path));
    expect(error).toBeInstanceOf(DeviceModelError);
    expect((error as Error).message).toMatch(/does not speak QMP/);
    expect((error as Error).message.length).toBeLessThan(300);
  });
});

describe('the codec', () => {
  it('puts lines together from pieces of any size', () => {
    const text = '{"return": {}, "id": 1}\r\n\r\n{"event": "grün"}\n{"return": 2}\n{"unfinished';
    const bytes = new TextEncoder().encode(text);
    for (const size of [1, 2, 7, 1000]) {
      const reader = new LineReader();
      const lines: string[] = [];
      for (let at = 0; at < bytes.length; at += size) {
        const chunk = bytes.slice(at, at + size);
        reader.push(chunk, (line) => lines.push(line.trim()));
        // The chunk is the caller's again.
        chunk.fill(0);
      }
      expect(lines).toEqual(['{"return": {}, "id": 1}', '{"event": "grün"}', '{"return": 2}']);
    }
  });

  it('takes lines up to the limit', () => {
    const reader = new LineReader();
    const half = new Uint8Array(QMP_LINE_MAX / 2).fill(0x20);
    reader.push(half, () => expect.fail());
    reader.push(half, () => expect.fail());
    expect(() => reader.push(new Uint8Array(1).fill(0x20), () => undefined)).toThrow('a line of more than');
  });

  it('keeps messages of errors short', () => {
    const message = decodeLine(JSON.stringify({ error: { class: 'X', desc: 'y'.repeat(10_000) }, id: 1 }));
    expect(message).toMatchObject({ kind: 'error', text: 'y'.repeat(500) });
    expect(decodeLine('{"error": 7, "id": "a"}')).toMatchObject({
      kind: 'error',
      errorClass: 'unknown class',
    });
    expect(decodeLine('{"event": 7}')).toMatchObject({ kind: 'event', event: { name: 'unknown', data: {} } });
  });
});
