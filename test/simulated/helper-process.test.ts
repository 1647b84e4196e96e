/** The save helper in a process of its own, with real pipes, descriptors and signals; libxl's end is here. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { makeConfig } from '../../lib/host/simulated/config.js';
import { decodeFrame, type HelperMessage } from '../../lib/helper/protocol.js';
import { verify } from '../../lib/stream/verify/verify.js';
import { MemorySource } from '../../lib/transport/memory.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
// Compiled by test/setup.
const library = path.join(root, 'node_modules/.cache/xen-migration/lib');
const program = path.join(root, 'test/simulated/helper-child.mjs');

let folder: string;
const children: ChildProcess[] = [];
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-helper-'));
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  fs.rmSync(folder, { recursive: true, force: true });
});

type Answer = (message: HelperMessage) => number | undefined;

interface Running {
  readonly child: ChildProcess;
  readonly messages: HelperMessage[];
  /** Bytes on standard output that are no frame of the protocol. */
  readonly garbage: () => number;
  readonly stderr: () => string;
  readonly ended: Promise<number | string>;
}

/** Starts a helper with `io` as descriptor 3. What `answer` leaves undefined is answered with success. */
function start(
  argv: readonly string[],
  io: number,
  env: Record<string, string>,
  answer: Answer = () => undefined,
): Running {
  const blocked = env['BLOCK_SIGTERM'] === '1';
  const command = [process.execPath, program, ...argv];
  const python =
    'import os,signal,sys;signal.pthread_sigmask(signal.SIG_BLOCK,{signal.SIGTERM});os.execv(sys.argv[1],sys.argv[1:])';
  const [file, ...args] = blocked ? ['python3', '-c', python, ...command] : command;
  const child = spawn(file!, args, {
    env: { PATH: process.env['PATH'], HELPER_LIB: library, HELPER_ROOT: root, ...env },
    stdio: ['pipe', 'pipe', 'pipe', io],
  });
  children.push(child);
  const messages: HelperMessage[] = [];
  let [pending, garbage, stderr] = [Buffer.alloc(0), 0, ''];
  const reply = child.stdin as Writable;
  reply.on('error', () => undefined);
  (child.stdout as Readable).on('data', (chunk: Buffer) => {
    pending = Buffer.concat([pending, chunk]);
    while (pending.length >= 2 && pending.length >= 2 + pending.readUInt16LE(0)) {
      const length = 2 + pending.readUInt16LE(0);
      const message = decodeFrame(pending.subarray(0, length));
      pending = pending.subarray(length);
      if (message === undefined) {
        garbage += length;
        continue;
      }
      messages.push(message);
      if (['log', 'progress', 'restore_results'].includes(message.kind)) {
        answer(message);
        continue;
      }
      const value = answer(message) ?? (message.kind === 'suspend' ? 1 : 0);
      const bytes = Buffer.alloc(4);
      bytes.writeInt32LE(value);
      reply.write(bytes);
    }
  });
  (child.stderr as Readable).on('data', (chunk: Buffer) => (stderr += String(chunk)));
  const ended = once(child, 'close').then(([code, signal]) => (code ?? signal) as number | string);
  return { child, messages, garbage: () => garbage + pending.length, stderr: () => stderr, ended };
}

const saveArgs = ['--save-domain', '3', '-1', '1', '1', '136', '0'];
const restoreArgs = ['--restore-domain', '3', '-1', '1', '1', '0', '2', '0', '768', '0'];

function fifo(): string {
  const name = path.join(folder, 'fifo');
  expect(spawnSync('mkfifo', [name]).status).toBe(0);
  return name;
}

const kindsOf = (messages: readonly HelperMessage[]): string[] =>
  messages.map(({ kind }) => kind).filter((kind) => kind !== 'log' && kind !== 'progress');
const completeOf = (messages: readonly HelperMessage[]): unknown =>
  messages.find((m) => m.kind === 'complete');
const flagsOf = (pid: number, fd: number): number =>
  parseInt(/^flags:\s+(\d+)$/m.exec(fs.readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8'))![1]!, 8);

async function saved(kind: string): Promise<Buffer> {
  const file = path.join(folder, 'stream');
  const fd = fs.openSync(file, 'w');
  expect(await start(saveArgs, fd, { HELPER_KIND: kind }).ended).toBe(0);
  fs.closeSync(fd);
  return fs.readFileSync(file);
}

describe('the helper as a process', () => {
  it.each(['hvm', 'pv'])('saves a %s guest to a file, and prints nothing but the protocol', async (kind) => {
    const file = path.join(folder, 'stream');
    const fd = fs.openSync(file, 'w');
    let flags = -1;
    const run: Running = start(saveArgs, fd, { HELPER_KIND: kind }, (message) => {
      if (message.kind === 'suspend') flags = flagsOf(run.child.pid!, 3);
      return undefined;
    });
    expect(await run.ended).toBe(0);
    expect(run.garbage()).toBe(0);
    expect(run.stderr()).toBe('printed to the console\nprinted to standard output\n');
    const qemu = kind === 'hvm' ? ['switch_qemu_logdirty'] : [];
    expect(kindsOf(run.messages)).toEqual([...qemu, 'suspend', ...qemu, 'complete']);
    expect(completeOf(run.messages)).toMatchObject({ retval: 0, errno: 0 });
    expect(flags & fs.constants.O_NONBLOCK).toBe(0);
    // libxl writes on where the helper stopped: the offset is theirs together.
    fs.writeSync(fd, 'libxl');
    const stream = fs.readFileSync(file);
    expect(stream.subarray(-5).toString()).toBe('libxl');
    const report = await verify(new MemorySource(stream.subarray(0, -5)), { format: 'libxc' });
    expect(report.valid).toBe(true);
  });

  it('restores from a pipe, and leaves every byte behind the end where it is', async () => {
    const stream = await saved('pvh');
    const name = fifo();
    const both = fs.openSync(name, 'r+');
    const ends = [fs.openSync(name, 'r'), fs.openSync(name, 'w')] as const;
    const config = makeConfig({ type: 'pvh', name: 'x', vcpus: 1, memkb: 16 * 1024, cmdline: '', seed: 1 });
    const run = start(restoreArgs, ends[0], { HELPER_CONFIG: config });
    const writer = fs.createWriteStream('', { fd: ends[1], autoClose: false });
    writer.write(stream);
    writer.write('what libxl reads');
    expect(await run.ended).toBe(0);
    expect(run.garbage()).toBe(0);
    expect(kindsOf(run.messages)).toEqual(['static_data_done', 'restore_results', 'complete']);
    expect(completeOf(run.messages)).toMatchObject({ retval: 0, errno: 0 });
    const rest = Buffer.alloc(100);
    expect(rest.toString('utf8', 0, fs.readSync(ends[0], rest))).toBe('what libxl reads');
    fs.closeSync(both);
  });

  it.each([
    ['full', 'ENOSPC', os.constants.errno.ENOSPC],
    ['gone', 'EPIPE', os.constants.errno.EPIPE],
  ])('says when what it writes to is %s', async (how, _code, errno) => {
    let fd: number;
    if (how === 'full') fd = fs.openSync('/dev/full', 'w');
    else {
      const name = fifo();
      const reader = fs.openSync(name, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
      fd = fs.openSync(name, 'w');
      fs.closeSync(reader);
    }
    const run = start(saveArgs, fd, { HELPER_KIND: 'hvm' });
    expect(await run.ended).toBe(0);
    expect(kindsOf(run.messages)).toEqual(['switch_qemu_logdirty', 'switch_qemu_logdirty', 'complete']);
    expect(completeOf(run.messages)).toMatchObject({ retval: -1, errno });
  });

  it.each([
    ['let through', '0'],
    ['blocked by its parent', '1'],
  ])('ends by SIGTERM in order while nobody reads the stream, the signal being %s', async (_name, block) => {
    const name = fifo();
    const both = fs.openSync(name, 'r+');
    const fd = fs.openSync(name, 'w');
    const run: Running = start(saveArgs, fd, { HELPER_KIND: 'hvm', BLOCK_SIGTERM: block }, (message) => {
      // The pipe is full soon after the first page.
      if (message.kind === 'progress') setTimeout(() => run.child.kill('SIGTERM'), 300);
      return undefined;
    });
    expect(await run.ended).toBe(0);
    expect(kindsOf(run.messages)).toEqual(['switch_qemu_logdirty', 'switch_qemu_logdirty', 'complete']);
    expect(completeOf(run.messages)).toMatchObject({ retval: -1, errno: os.constants.errno.ECANCELED });
    fs.closeSync(both);
  });

  it('dies by SIGTERM while it restores, though its parent had it blocked', async () => {
    const name = fifo();
    const both = fs.openSync(name, 'r+');
    const fd = fs.openSync(name, 'r');
    const config = makeConfig({ type: 'pvh', name: 'x', vcpus: 1, memkb: 16 * 1024, cmdline: '', seed: 1 });
    const run: Running = start(restoreArgs, fd, { HELPER_CONFIG: config, BLOCK_SIGTERM: '1' }, (message) => {
      if (message.kind === 'log') run.child.kill('SIGTERM');
      return undefined;
    });
    expect(await run.ended).toBe('SIGTERM');
    fs.closeSync(both);
  });

  it.each([
    ['save', saveArgs, ['complete']],
    ['restore', restoreArgs, ['restore_results', 'complete']],
  ])('tells libxl that it cannot %s without the addon, and ends', async (_mode, args, kinds) => {
    // A package that was never built.
    const env = { HELPER_KIND: 'hvm', HELPER_ROOT: folder };
    const fd = fs.openSync('/dev/null', 'r+');
    const run = start(args, fd, env);
    expect(await run.ended).toBe(0);
    fs.closeSync(fd);
    expect(run.garbage()).toBe(0);
    expect(kindsOf(run.messages)).toEqual(kinds);
    expect(completeOf(run.messages)).toMatchObject({ retval: -1, errno: os.constants.errno.ENOSYS });
    const said = run.messages.flatMap((message) => (message.kind === 'log' ? [message.text] : []));
    expect(said.join('\n')).toMatch(/addon.*npm rebuild/);
  });

  it('ends when libxl is gone', async () => {
    const name = fifo();
    const both = fs.openSync(name, 'r+');
    const fd = fs.openSync(name, 'w');
    const run: Running = start(saveArgs, fd, { HELPER_KIND: 'pv' }, (message) => {
      if (message.kind === 'log') {
        run.child.stdin!.destroy();
        run.child.stdout!.destroy();
        // It notices when it has something to say: let it write.
        fs.createReadStream('', { fd: both, autoClose: false })
          .on('error', () => undefined)
          .resume();
      }
      return undefined;
    });
    expect(await run.ended).toBe(1);
    expect(run.stderr()).toMatch(/libxl is gone/);
  });

  it('tells a person what it is', async () => {
    const run = start([], fs.openSync('/dev/null', 'r'), { HELPER_KIND: 'pv' });
    expect(await run.ended).toBe(2);
    expect(run.stderr()).toMatch(/LIBXL_SAVE_HELPER/);
    expect(run.messages).toEqual([]);
  });
});
