/** The convert helper: its arguments, and the program as libxl starts it, with real descriptors and signals. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { convert } from '../../../lib/convert/convert.js';
import type { ConvertOptions } from '../../../lib/convert/types.js';
import { UsageError } from '../../../lib/errors.js';
import { parseConvertArguments } from '../../../lib/helper/convert/arguments.js';
import { runConvertHelper } from '../../../lib/helper/convert/helper.js';
import { MemorySink } from '../../../lib/transport/memory.js';
import { hvmPlain } from '../../legacy/images-hvm.js';
import { pvPlain } from '../../legacy/images-pv.js';
import { imageNamed } from '../../legacy/images.js';
import * as W from '../../legacy/writer.js';

// Compiled by test/setup.
const program = fileURLToPath(
  new URL('../../../node_modules/.cache/xen-migration/lib/helper/convert/main.js', import.meta.url),
);

let folder: string;
const children: ChildProcess[] = [];
const open: number[] = [];
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-helper-'));
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  for (const fd of open.splice(0)) fs.closeSync(fd);
  fs.rmSync(folder, { recursive: true, force: true });
});

const at = (name: string): string => path.join(folder, name);
const hvm = W.legacyImage(hvmPlain);
const pv = W.legacyImage(pvPlain());
/** As 4.0 wrote it: nothing says that this checkpoint is the last. */
const endless = W.legacyImage({
  ...hvmPlain,
  body: (hvmPlain.body ?? []).filter((chunk) => chunk !== W.lastCheckpoint),
});
const compressed = (): Uint8Array => imageNamed('hvm Remus compressed, in deltas').bytes();
const tmem = W.legacyImage({ ...hvmPlain, body: [W.tmem({ pools: [W.ephemeral(1)] }), ...hvmPlain.body!] });

/** What `convert` makes of it, which other tests compare with upstream. */
async function converted(image: Uint8Array, options: Partial<ConvertOptions> = {}): Promise<Buffer> {
  const sink = new MemorySink();
  await convert({ output: 'libxl', ...options, from: image, to: sink });
  return Buffer.from(sink.bytes);
}

const libxl = (from: number | string, to: number | string, guest = 'hvm'): string[] => [
  ...['--in', String(from), '--out', String(to), '--width', '64', '--guest', guest, '--format', 'libxl'],
];

describe('arguments', () => {
  const plain = {
    from: 5,
    to: 8,
    width: 64,
    guest: 'hvm',
    format: 'libxl',
    xl: false,
    skipQemu: false,
    verbose: false,
    syslog: false,
  } as const;

  it.each<[string, object]>([
    ['--in 5 --out 8 --width 64 --guest hvm --format libxl', plain],
    ['--in=5 --out=8 --width=64 --guest-type=hvm --format=libxl', plain],
    ['-i 5 -o 8 -w 64 -g hvm -f libxl', plain],
    ['-i5 -o8 -w64 -ghvm -flibxl', plain],
    ['--i 5 --o 8 --w 64 --g hvm --fo libxl', plain],
    ['-i 7 -i 5 -o 8 -w 64 -g hvm -f libxl', plain],
    ['-i 5 -o 8 -w 32 -g pv', { ...plain, width: 32, guest: 'pv', format: 'libxc' }],
    [
      '-vxi a -o b/c -w 64 -g hvm',
      { ...plain, from: 'a', to: 'b/c', format: 'libxc', xl: true, verbose: true },
    ],
    [
      '-i 5 -o 8 -w 64 -g hvm --skip-qemu --syslog --xl',
      { ...plain, format: 'libxc', xl: true, skipQemu: true, syslog: true },
    ],
    // Numbers are descriptors, all else are names.
    ['-i 5x -o ./8 -w 64 -g hvm -f libxl', { ...plain, from: '5x', to: './8' }],
    ['-i - -o - -w 64 -g hvm -f libxl', { ...plain, from: './-', to: './-' }],
  ])('%s', (text, expected) => {
    expect(parseConvertArguments(text.split(' '))).toEqual(expected);
  });

  it.each([
    ['', '--in is missing: this is libxl'],
    ['-i 5 -o 8 -w 64', '--guest-type is missing'],
    ['-i 5 -w 64 -g pv', '--out is missing'],
    ['-i 5 -o 8 -g pv', '--width is missing'],
    ['-i 5 -o 8 -w 16 -g pv', '--width: "16" is none of 32, 64'],
    ['-i 5 -o 8 -w 64 -g pvh', '--guest-type: "pvh" is none of pv, hvm'],
    ['-i 5 -o 8 -w 64 -g pv -f xl', '--format: "xl" is none of libxc, libxl'],
    ['-i 5 -o 8 -w 64 -g pv more', '"more" is no option'],
    ['-i 5 -o 8 -w 64 -g pv -q', 'there is no option -q'],
    ['-i 5 -o 8 -w 64 -g pv --quick', 'there is no option --quick'],
    ['-i 5 -o 8 -w 64 -g pv --s', '--s is the beginning of several options'],
    ['-i 5 -o 8 -w 64 -g pv --xl=1', '--xl takes no value'],
    ['-i 5 -o 8 -w 64 -g', '-g requires a value'],
    ['-i 5 -o 8 -w 64 --guest', '--guest-type requires a value'],
    ['--in= -o 8 -w 64 -g pv', 'the name of a file is empty'],
  ])('refused: %s', (text, why) => {
    const argv = text.split(' ').filter((word) => word !== '');
    expect(() => parseConvertArguments(argv)).toThrow(UsageError);
    expect(() => parseConvertArguments(argv)).toThrow(why);
  });
});

/** The helper in this process, with files. */
async function inside(
  argv: readonly string[],
  env: Record<string, string> = {},
): Promise<{ code: number; lines: string[]; logged: string[]; out: string }> {
  const [lines, logged]: string[][] = [[], []];
  let out = '';
  const code = await runConvertHelper({
    argv,
    env,
    signal: new AbortController().signal,
    complain: (line) => lines!.push(line),
    log: (line) => logged!.push(line),
    print: (text) => (out += text),
  });
  return { code, lines: lines!, logged: logged!, out };
}

describe('files', () => {
  it.each<[string, string[], Uint8Array, Partial<ConvertOptions>]>([
    ['libxl', ['-f', 'libxl'], hvm, { output: 'libxl' }],
    ['libxc, which has QEMU’s record behind it', [], hvm, { output: 'libxc' }],
    ['libxc without', ['--skip-qemu'], hvm, { output: 'libxc', skipQemu: true }],
    ['--skip-qemu changes nothing for libxl', ['-f', 'libxl', '--skip-qemu'], hvm, { output: 'libxl' }],
    ['with xl’s header', ['-x', '-f', 'libxl'], W.cat(W.xlHeader(W.xlJson('hvm')), hvm), { output: 'xl' }],
    ['xl’s header left out', ['-f', 'libxl'], W.cat(W.xlHeader(W.xlJson('hvm')), hvm), { output: 'libxl' }],
    ['xl’s header that is not there', ['-x', '-f', 'libxl'], hvm, { output: 'libxl' }],
  ])('%s', async (_name, more, image, options) => {
    fs.writeFileSync(at('in'), image);
    const argv = ['-i', at('in'), '-o', at('out'), '-w', '64', '-g', 'hvm', ...more];
    expect(await inside(argv)).toEqual({ code: 0, lines: [], logged: [], out: '' });
    expect(fs.readFileSync(at('out')).equals(await converted(image, options))).toBe(true);
    expect(fs.readdirSync(folder).sort()).toEqual(['in', 'out']);
  });

  it('QEMU’s record is what --skip-qemu leaves out', async () => {
    const [whole, bare] = [
      await converted(hvm, { output: 'libxc' }),
      await converted(hvm, { output: 'libxc', skipQemu: true }),
    ];
    expect(whole.subarray(0, bare.length).equals(bare)).toBe(true);
    expect(whole.toString('latin1', bare.length, bare.length + 21)).toBe('DeviceModelRecord0002');
  });

  it('--skip-qemu does not look for it', async () => {
    const end =
      hvm.length -
      W.qemuPieces({ signature: 'DeviceModelRecord0002' }).reduce((n, p) => n + p.bytes.length, 0);
    const expected = await converted(hvm, { output: 'libxc', skipQemu: true });
    for (const image of [hvm.subarray(0, end), W.cat(hvm.subarray(0, end), W.text('another signature'))]) {
      fs.writeFileSync(at('in'), image);
      const argv = ['-i', at('in'), '-o', at('out'), '-w', '64', '-g', 'hvm'];
      expect(await inside([...argv, '--skip-qemu'])).toEqual({ code: 0, lines: [], logged: [], out: '' });
      expect(fs.readFileSync(at('out')).equals(expected)).toBe(true);
      expect((await inside(argv)).code).toBe(1);
      expect((await inside([...argv, '-f', 'libxl', '--skip-qemu'])).code).toBe(1);
    }
  });

  it('-v tells what it was', async () => {
    fs.writeFileSync(at('in'), hvm);
    const { code, lines } = await inside(['-v', ...libxl(at('in'), at('out'))]);
    expect(code).toBe(0);
    expect(lines).toEqual([
      expect.stringMatching(
        /^hvm guest of a 64-bit toolstack, \d+ frames, 5 pages; \d+ bytes read, \d+ written$/,
      ),
    ]);
  });

  it('--help', async () => {
    const { code, lines, out } = await inside(['--help']);
    expect({ code, lines }).toEqual({ code: 0, lines: [] });
    expect(out).toContain('LIBXL_CONVERT_HELPER');
  });

  it.each<[string, Uint8Array, string[], number, RegExp]>([
    ['another guest', pv, libxl('IN', 'OUT', 'hvm'), 1, /\(at offset \d+\)$/],
    [
      'cut off',
      hvm.subarray(0, 10_000),
      libxl('IN', 'OUT'),
      1,
      /the image ends \d+ bytes short \(at offset 10000\)$/,
    ],
    ['nothing', new Uint8Array(0), libxl('IN', 'OUT'), 1, /\(at offset 0\)$/],
    ['a v2 stream', new Uint8Array(64).fill(255), libxl('IN', 'OUT'), 1, /at offset/],
    ['no file', hvm, libxl('nowhere', 'OUT'), 1, /^opening nowhere: ENOENT/],
    ['nowhere to write', hvm, libxl('IN', 'no/where'), 1, /no\/\..*ENOENT.* \(at offset 0\)$/],
    ['a folder', hvm, libxl('.', 'OUT'), 1, /is a directory/],
    ['tmem', tmem, libxl('IN', 'OUT'), 1, /tmem.*drop-ephemeral.* \(at offset \d+\)$/s],
    ['no arguments', hvm, [], 2, /^--in is missing/],
  ])('%s: one line, and nothing under the final name', async (_name, image, argv, code, line) => {
    fs.writeFileSync(at('in'), image);
    const places = argv.map((word) => (word === 'IN' ? at('in') : word === 'OUT' ? at('out') : word));
    const run = await inside([...places, ...(argv.length > 0 ? ['--syslog'] : [])]);
    expect(run.code).toBe(code);
    expect(run.lines).toEqual([expect.stringMatching(line)]);
    expect(run.lines[0]).not.toContain('\n');
    expect(run.logged).toEqual(argv.length > 0 ? run.lines : []);
    expect(fs.readdirSync(folder)).toEqual(['in']);
  });

  it('a toolstack of 32 bits, though libxl says 64: what the image says holds', async () => {
    const image = W.legacyImage({ ...hvmPlain, word: 4 });
    fs.writeFileSync(at('in'), image);
    expect(await inside(libxl(at('in'), at('out')))).toMatchObject({ code: 0, lines: [] });
    expect(fs.readFileSync(at('out')).equals(await converted(image))).toBe(true);
  });

  it('XEN_MIGRATE_TMEM', async () => {
    fs.writeFileSync(at('in'), tmem);
    const argv = libxl(at('in'), at('out'));
    expect(await inside(argv, { XEN_MIGRATE_TMEM: 'drop-ephemeral' })).toMatchObject({ code: 0, lines: [] });
    expect(fs.readFileSync(at('out')).equals(await converted(tmem, { tmem: 'drop-ephemeral' }))).toBe(true);
    fs.rmSync(at('out'));
    expect(await inside(argv, { XEN_MIGRATE_TMEM: '' })).toMatchObject({ code: 1 });
    const wrong = await inside(argv, { XEN_MIGRATE_TMEM: 'drop' });
    expect(wrong.code).toBe(2);
    expect(wrong.lines).toEqual([
      'XEN_MIGRATE_TMEM: "drop" is none of refuse, drop-ephemeral or export=FOLDER',
    ]);
    expect(fs.readdirSync(folder)).toEqual(['in']);
  });
});

interface Running {
  readonly child: ChildProcess;
  /** What came out at descriptor 4, unless that was given. */
  readonly output: () => Buffer;
  readonly stdout: () => string;
  readonly stderr: () => string;
  readonly ended: Promise<number | string>;
}

/** Starts the program as libxl does, input as descriptor 3 and output, a pipe, as descriptor 4. */
function start(
  from: number | 'pipe',
  to: number | 'pipe' = 'pipe',
  env: Record<string, string> = {},
  guest = 'hvm',
): Running {
  const child = spawn(process.execPath, [program, ...libxl(3, 4, guest)], {
    env: { PATH: process.env['PATH'], TMPDIR: folder, ...env },
    stdio: ['ignore', 'pipe', 'pipe', from, to],
  });
  children.push(child);
  const texts: [string, string] = ['', ''];
  const pieces: Buffer[] = [];
  child.stdout!.on('data', (chunk) => (texts[0] += String(chunk)));
  child.stderr!.on('data', (chunk) => (texts[1] += String(chunk)));
  if (to === 'pipe') (child.stdio[4] as Readable).on('data', (chunk: Buffer) => pieces.push(chunk));
  const ended = once(child, 'close').then(([code, signal]) => (code ?? signal) as number | string);
  return {
    child,
    output: () => Buffer.concat(pieces),
    stdout: () => texts[0],
    stderr: () => texts[1],
    ended,
  };
}

function opened(name: string, flags: string | number): number {
  const fd = fs.openSync(name, flags);
  open.push(fd);
  return fd;
}

/** A pipe: an end for the helper, one to write to, and one for what the helper leaves in it. */
function fifo(): { from: number; to: number; rest: () => string } {
  expect(spawnSync('mkfifo', [at('fifo')]).status).toBe(0);
  const { O_RDONLY, O_NONBLOCK } = fs.constants;
  const rest = opened(at('fifo'), O_RDONLY | O_NONBLOCK);
  const to = opened(at('fifo'), 'w');
  return {
    from: opened(at('fifo'), 'r'),
    to,
    rest: () => {
      const bytes = Buffer.alloc(100);
      return bytes.toString('latin1', 0, fs.readSync(rest, bytes));
    },
  };
}

/** Takes a byte out of a pipe, if there is one. */
function hasByte(fd: number): boolean {
  try {
    return fs.readSync(fd, new Uint8Array(1)) === 1;
  } catch {
    return false;
  }
}

const HANDOVER = 'domain is yours, you are cleared to unpause';

describe('the program', () => {
  it.each([
    ['hvm', hvm],
    ['pv', pv],
  ])('%s: from a file that stands behind xl’s header', async (guest, image) => {
    const header = W.xlHeader(W.xlJson(guest as 'pv' | 'hvm'));
    fs.writeFileSync(at('file'), W.cat(header, image));
    const fd = opened(at('file'), 'r');
    fs.readSync(fd, new Uint8Array(header.length));
    const run = start(fd, 'pipe', {}, guest);
    expect(await run.ended, run.stderr()).toBe(0);
    expect(run.output().equals(await converted(image))).toBe(true);
    expect(run.stdout() + run.stderr()).toBe('');
  });

  it('compressed checkpoints from such a file, which is looked at twice', async () => {
    const image = compressed();
    const header = W.xlHeader(W.xlJson('hvm'));
    fs.writeFileSync(at('file'), W.cat(header, image));
    const fd = opened(at('file'), 'r');
    fs.readSync(fd, new Uint8Array(header.length));
    const run = start(fd);
    expect(await run.ended, run.stderr()).toBe(0);
    expect(run.output().equals(await converted(image))).toBe(true);
    // Temporary files have no names.
    expect(fs.readdirSync(folder)).toEqual(['file']);
  });

  it('from a pipe, of which it leaves every byte behind the image', async () => {
    const { from, to, rest } = fifo();
    const run = start(from);
    fs.createWriteStream('', { fd: to, autoClose: false }).write(W.cat(hvm, W.text(HANDOVER)));
    expect(await run.ended, run.stderr()).toBe(0);
    expect(run.output().equals(await converted(hvm))).toBe(true);
    expect(rest()).toBe(HANDOVER);
  });

  it('from a socket, of which it leaves every byte behind the image', async () => {
    const server = net.createServer().listen(at('socket'));
    await once(server, 'listening');
    const accepted = once(server, 'connection') as Promise<[net.Socket]>;
    // Paused, so that nothing is read here while the helper does.
    const near = net.connect(at('socket')).pause();
    const [far] = await accepted;
    far.write(pv);
    far.write(HANDOVER);
    const run = start((near as unknown as { _handle: { fd: number } })._handle.fd, 'pipe', {}, 'pv');
    expect(await run.ended, run.stderr()).toBe(0);
    expect(run.output().equals(await converted(pv))).toBe(true);
    const [rest] = (await once(near.resume(), 'data')) as [Buffer];
    expect(rest.toString()).toBe(HANDOVER);
    near.destroy();
    far.destroy();
    server.close();
  });

  it('an image that does not say where it ends is over when nothing more comes', async () => {
    const { from, to, rest } = fifo();
    const run = start(from);
    fs.createWriteStream('', { fd: to, autoClose: false }).write(endless);
    expect(await run.ended, run.stderr()).toBe(0);
    expect(run.output().equals(await converted(endless))).toBe(true);
    // The other end is still open, and what comes now is not its any more.
    fs.writeSync(to, HANDOVER);
    expect(rest()).toBe(HANDOVER);
  });

  it('compressed checkpoints from a pipe to a pipe cannot be, and it says why', async () => {
    const run = start('pipe');
    const input = run.child.stdio[3] as unknown as Writable;
    input.on('error', () => undefined);
    input.end(compressed());
    expect(await run.ended).toBe(1);
    expect(run.stderr()).toMatch(/^xen-migrate-convert-helper: .* compressed: .* \(at offset \d+\)\n$/);
  });

  it.each(['waits for the image', 'waits for its reader'])('SIGTERM ends it while it %s', async (where) => {
    const { from, to } = fifo();
    let output: number | 'pipe' = 'pipe';
    let reader = -1;
    if (where !== 'waits for the image') {
      // Full after 64 KiB, and nobody reads it.
      expect(spawnSync('mkfifo', [at('out')]).status).toBe(0);
      reader = opened(at('out'), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
      output = opened(at('out'), 'w');
    }
    const run = start(from, output);
    const big = W.legacyImage({
      guest: 'hvm',
      p2mSize: 256,
      body: [W.pages(W.ram(0, 200)), ...hvmPlain.body!],
    });
    const writer = fs.createWriteStream('', { fd: to, autoClose: false });
    writer.on('error', () => undefined);
    writer.write(big.subarray(0, 600_000));
    const busy = (): boolean => (reader < 0 ? run.output().length > 0 : hasByte(reader));
    while (!busy()) await new Promise((resolve) => setTimeout(resolve, 10));
    run.child.kill('SIGTERM');
    expect(await run.ended).toBe(143);
    expect(run.stderr()).toMatch(/^xen-migrate-convert-helper: .*SIGTERM.*\n$/);
  });

  it('libxl has gone: says so', async () => {
    fs.writeFileSync(at('file'), hvm);
    expect(spawnSync('mkfifo', [at('out')]).status).toBe(0);
    const reader = fs.openSync(at('out'), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    const to = opened(at('out'), 'w');
    fs.closeSync(reader);
    const run = start(opened(at('file'), 'r'), to);
    expect(await run.ended).toBe(1);
    expect(run.stderr()).toMatch(/^xen-migrate-convert-helper: .*EPIPE.* \(at offset \d+\)\n$/);
  });
});
