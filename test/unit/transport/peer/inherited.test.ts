/** Sockets that a process was started with, in processes that were. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, renameSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { readAll } from './helpers.js';

const script = fileURLToPath(new URL('inherited-child.mjs', import.meta.url));
const dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-inherited-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const ELSEWHERE = '192.0.2.7';

interface Child {
  /** What it tells next. */
  next(): Promise<unknown>;
  /** What else it tells until it ends, which must be in good order. */
  rest(): Promise<unknown[]>;
}

/** Starts a process with the socket as its descriptor 3. */
function start(socket: net.Socket | net.Server, mode: string, options = {}, ...seeming: string[]): Child {
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle;
  const args = [script, mode, JSON.stringify(options), ...seeming];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit', fd] });
  const ended = once(child, 'close');
  const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
  const next = async (): Promise<unknown> => {
    const line = (await lines.next()) as IteratorResult<string, undefined>;
    return line.done === true ? undefined : JSON.parse(line.value);
  };
  return {
    next,
    rest: async () => {
      const told: unknown[] = [];
      for (let line = await next(); line !== undefined; line = await next()) told.push(line);
      expect(await ended).toEqual([0, null]);
      return told;
    },
  };
}

type Family = 'unix' | 'tcp';
const families: Family[] = ['unix', 'tcp'];
let files = 0;

async function listening(family: Family): Promise<{ server: net.Server; file: string }> {
  const file = path.join(dir, `socket${files++}`);
  const server = net.createServer({ allowHalfOpen: true });
  if (family === 'unix') server.listen(file);
  else server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { server, file };
}

/** Two ends of one connection; nobody listens any more. */
async function connection(family: Family): Promise<[ours: net.Socket, passed: net.Socket]> {
  const { server, file } = await listening(family);
  const accepted = once(server, 'connection');
  const address = server.address() as net.AddressInfo;
  const passed = family === 'unix' ? net.connect(file) : net.connect(address.port, '127.0.0.1');
  await once(passed, 'connect');
  const [ours] = (await accepted) as [net.Socket];
  server.close();
  return [ours, passed];
}

describe.each(families)('%s', (family) => {
  test.each(['connect', 'listen'])('a connected socket is the peer to %s to', async (mode) => {
    const [ours, passed] = await connection(family);
    const child = start(passed, mode);
    passed.destroy();
    ours.end('hello');
    expect(await readAll(ours)).toBe('hello, too');
    const told = await child.rest();
    expect(told).toContainEqual({ heard: 'hello' });
    if (mode === 'listen') expect(told).toContainEqual({ addresses: ['fd 3'], given: true });
  });

  test('a socket that listens is listened at', async () => {
    const { server, file } = await listening(family);
    const address = server.address() as net.AddressInfo | string;
    const child = start(server, 'listen');
    // This process's own end of it goes, which would remove the file of a Unix socket.
    const kept = `${file}.kept`;
    if (family === 'unix') renameSync(file, kept);
    server.close();
    // Node does not know the path of a socket that it did not make.
    const at = typeof address === 'string' ? 'fd 3' : `tcp://127.0.0.1:${address.port}`;
    expect(await child.next()).toEqual({ addresses: [at], given: false });
    const ours = net.connect(
      typeof address === 'string'
        ? { path: kept, allowHalfOpen: true }
        : { host: '127.0.0.1', port: address.port, allowHalfOpen: true },
    );
    ours.end('hello');
    expect(await readAll(ours)).toBe('hello, too');
    expect(await child.rest()).toContainEqual({ heard: 'hello' });
  });

  test('a socket that listens cannot be connected to', async () => {
    const { server } = await listening(family);
    const child = start(server, 'connect');
    expect(await child.rest()).toEqual([
      {
        code: 'ERR_XEN_INVALID_ARGUMENT',
        message: 'fd 3 is a socket that listens; a connected one is needed',
      },
    ]);
    server.close();
  });
});

describe('plain TCP with another machine', () => {
  test.each([
    ['connect', `tcp://${ELSEWHERE}:`],
    ['listen', 'fd 3 can be reached from other machines'],
  ])('is refused (%s), and the connection closed', async (mode, words) => {
    const [ours, passed] = await connection('tcp');
    const child = start(passed, mode, {}, ELSEWHERE);
    passed.destroy();
    expect(await readAll(ours)).toBe('');
    expect(await child.rest()).toEqual([
      { code: 'ERR_XEN_INVALID_ARGUMENT', message: expect.stringContaining(words) as unknown },
    ]);
    ours.destroy();
  });

  test.each(['connect', 'listen'])('is taken if the network is trusted (%s)', async (mode) => {
    const [ours, passed] = await connection('tcp');
    const child = start(passed, mode, { insecure: true }, ELSEWHERE);
    passed.destroy();
    ours.end('hello');
    expect(await readAll(ours)).toBe('hello, too');
    expect(await child.rest()).toContainEqual({ heard: 'hello' });
  });
});
