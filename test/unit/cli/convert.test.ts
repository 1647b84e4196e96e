/** `xen-migrate convert`, in this process and as a program. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Interrupted } from '../../../lib/cli/exit.js';
import { convert } from '../../../lib/convert/convert.js';
import type { ConvertOptions } from '../../../lib/convert/types.js';
import { MemorySink } from '../../../lib/transport/memory.js';
import { hvmPlain } from '../../legacy/images-hvm.js';
import { pvPlain } from '../../legacy/images-pv.js';
import { imageNamed } from '../../legacy/images.js';
import * as W from '../../legacy/writer.js';
import { run, testIo } from './io.js';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-cli-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const at = (name: string): string => path.join(dir, name);
const hvm = W.legacyImage(hvmPlain);
const pv32 = W.legacyImage({ ...pvPlain('pv32'), word: 4 });
const pools = [W.ephemeral(1), W.persistent(2, [W.tmemPage(1, 0), W.tmemPage(1, 1), W.tmemPage(2, 0)])];
const tmemImage = (...of: W.TmemPool[]): Uint8Array =>
  W.legacyImage({ ...hvmPlain, body: [W.tmem({ pools: of }), ...hvmPlain.body!] });

/** Writes an image to convert. */
function input(bytes: Uint8Array, name = 'in'): string {
  writeFileSync(at(name), bytes);
  return at(name);
}

async function converted(from: Uint8Array, options: Partial<ConvertOptions> = {}): Promise<Buffer> {
  const sink = new MemorySink();
  await convert({ ...options, from, to: sink });
  return Buffer.from(sink.bytes);
}

describe('files', () => {
  test('a bare image', async () => {
    const { code, out, err } = await run(['convert', input(hvm), at('out')]);
    expect({ code, err }).toEqual({ code: 0, err: 'converting memory\n' });
    expect(out).toMatch(
      /^converted \S+in to \S+out \(libxl\): 5 pages, [\d.]+ KiB in .*\n {2}it was a bare image, written by a toolstack of 64 bits: HVM guest\n$/,
    );
    expect(readFileSync(at('out')).equals(await converted(hvm))).toBe(true);
    expect(readdirSync(dir).sort()).toEqual(['in', 'out']);
    expect(statSync(at('out')).mode & 0o777).toBe(0o600);
  });

  test('a file of xl, to a file that was there', async () => {
    const image = W.cat(W.xlHeader(W.xlJson('pv')), pv32);
    writeFileSync(at('out'), 'something older and longer'.repeat(100_000));
    const { code, out } = await run(['convert', input(image), at('out')]);
    expect(code).toBe(0);
    expect(out).toContain('(xl): ');
    expect(out).toContain('it was a file of xl, written by a toolstack of 32 bits: PV guest of 32 bits');
    expect(readFileSync(at('out')).equals(await converted(image))).toBe(true);
    expect((await run(['verify', at('out')])).code).toBe(0);
  });

  test('--output, --guest and --width', async () => {
    const image = W.cat(W.xlHeader(W.xlJson('pv')), pv32);
    const said = ['--guest', 'pv', '--width', '32'];
    for (const output of ['xl', 'libxl', 'libxc'] as const) {
      const argv = ['convert', input(image), at('out'), '--output', output, ...said];
      expect((await run(argv)).code).toBe(0);
      expect(readFileSync(at('out')).equals(await converted(image, { output }))).toBe(true);
      expect((await run(['verify', at('out'), '--format', output])).code).toBe(0);
    }
    const bare = await run(['convert', input(pv32), at('out'), '--output', 'xl']);
    expect(bare.out).toContain('it has no configuration: give one to xl restore');
  });

  test('--json', async () => {
    const { code, out, err } = await run(['convert', input(hvm), at('out'), '--json']);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(JSON.parse(out)).toMatchObject({
      ok: true,
      from: at('in'),
      to: at('out'),
      input: 'legacy',
      output: 'libxl',
      guest: 'hvm',
      width: 64,
      dataPages: 5,
      checkpoints: 1,
      compressed: false,
      bytesWritten: statSync(at('out')).size,
    });
  });
});

describe('what is more than a guest', () => {
  test('Remus, compressed and cut off', async () => {
    const image = imageNamed('hvm Remus compressed, in deltas').bytes();
    const { code, out } = await run(['convert', input(image), at('out'), '--temporary', dir]);
    expect(code).toBe(0);
    expect(out).toMatch(/of Remus.*: its state is that of checkpoint 1, the last complete one; .*offset \d+/);
    const json = await run(['convert', at('in'), at('out'), '--json', '--temporary', dir]);
    expect(JSON.parse(json.out)).toMatchObject({ checkpoints: 1, cutOffAt: image.length });
    expect(readdirSync(dir).sort()).toEqual(['in', 'out']);

    const whole = imageNamed('pv64 Remus compressed, 64-bit toolstack').bytes();
    const later = await run(['convert', input(whole), at('out')]);
    expect(later.out).toContain(
      'of Remus with compressed pages: its state is that of checkpoint 3, the last complete one\n',
    );
    expect(readFileSync(at('out')).equals(await converted(whole))).toBe(true);
    const nowhere = await run(['convert', at('in'), at('out'), '--temporary', at('nowhere')]);
    expect(nowhere.code).toBe(1);
    expect(nowhere.err).toMatch(/nowhere.*ENOENT/);
  });

  test('tmem is refused, dropped or exported', async () => {
    const refused = await run(['convert', input(tmemImage(...pools)), at('out')]);
    expect(refused.code).toBe(1);
    expect(refused.err.split('\n')).toHaveLength(3);
    expect(refused.err).toMatch(/xen-migrate convert: .*tmem.*\(at offset \d+\)\n$/s);
    const dropped = await run(['convert', at('in'), at('out'), '--tmem', 'drop-ephemeral']);
    expect(dropped.code).toBe(1);
    expect(readdirSync(dir)).toEqual(['in']);

    const exported = await run(['convert', at('in'), at('out'), '--tmem', `export=${at('tmem')}`]);
    expect(exported.code, exported.err).toBe(0);
    expect(exported.out).toContain(`tmem: 2 pools, 1 left out, 1 exported to ${at('tmem')}\n`);
    expect(readdirSync(at('tmem')).length).toBeGreaterThan(0);

    const cache = await run([
      'convert',
      input(tmemImage(W.ephemeral(1))),
      at('out'),
      '--tmem',
      'drop-ephemeral',
    ]);
    expect(cache.out).toContain('tmem: 1 pool, 1 left out\n');
    const none = await run(['convert', input(tmemImage()), at('out')]);
    expect(none.out).toContain('tmem: no pools, nothing is lost\n');
  });

  test('xend’s configuration is translated, and kept beside', async () => {
    const config = W.xendConfig('pv');
    const image = W.cat(W.xendHeader(config), pv32);
    const { code, out } = await run(['convert', input(image), at('out')]);
    expect(code).toBe(0);
    expect(out).toContain(`xend's configuration was translated, and saved as ${at('out')}.sxp\n`);
    expect(out).toContain('  not carried over:\n    ');
    expect(readFileSync(at('out.sxp'), 'utf8')).toBe(config);
    expect(readFileSync(at('out')).equals(await converted(image))).toBe(true);
    expect(readdirSync(dir).sort()).toEqual(['in', 'out', 'out.sxp']);
    const inspected = JSON.parse((await run(['inspect', at('out'), '--json'])).out) as object;
    expect(JSON.stringify(inspected)).toContain('guest');

    const json = JSON.parse((await run(['convert', at('in'), at('out'), '--json'])).out) as object;
    expect(json).toMatchObject({ input: 'xend', xend: { guest: 'pv', file: at('out.sxp'), config } });

    rmSync(at('out.sxp'));
    const io = testIo();
    const piped = await run(['convert', at('in'), '-'], io);
    expect(piped.code).toBe(0);
    expect(piped.err).toContain("xend's configuration was translated\n");
    expect(readdirSync(dir).sort()).toEqual(['in', 'out']);
  });

  test('where xend’s configuration cannot be kept, the image is there and the line says so', async () => {
    const image = W.cat(W.xendHeader(W.xendConfig('pv')), pv32);
    mkdirSync(at('out.sxp'));
    const { code, err } = await run(['convert', input(image), at('out')]);
    expect(code).toBe(1);
    expect(err).toMatch(/out is complete, but xend's configuration could not be saved as \S+out\.sxp: /);
    expect((await run(['verify', at('out')])).code).toBe(0);
  });
});

describe('standard input and output', () => {
  test('both', async () => {
    const io = testIo({ stdin: Readable.from([hvm.subarray(0, 1000), hvm.subarray(1000)]) });
    const { code, err } = await run(['convert', '-', '-'], io);
    expect(code).toBe(0);
    expect(io.stdout.bytes.equals(await converted(hvm))).toBe(true);
    expect(err).toContain('converted the standard input to the standard output (libxl): ');
  });

  test('no guest is written to a terminal', async () => {
    const { code, out, err } = await run(['convert', input(hvm), '-'], testIo({ tty: true }));
    expect({ code, out }).toEqual({ code: 2, out: '' });
    expect(err).toContain('a guest is not written to a terminal; name a file');
  });

  test('the course of it on a terminal', async () => {
    const io = testIo({ tty: true, env: { LANG: 'C.UTF-8', TERM: 'xterm' } });
    const { code, err } = await run(['convert', input(hvm), at('out')], io);
    expect(code).toBe(0);
    expect(err).toMatch(/memory +.*%.*converting memory/);
    expect(err).not.toMatch(/receiving|sending/);
    expect(err.endsWith('\u001b[4A\r\u001b[J')).toBe(true);
  });
});

describe('failures leave nothing, and an older file as it was', () => {
  test.each<[string, Uint8Array, string[], number, RegExp]>([
    ['cut off', hvm.subarray(0, -1), [], 1, /the image ends 1 byte short \(at offset \d+\)/],
    ['another guest', hvm, ['--guest', 'pv'], 1, /\(at offset \d+\)/],
    ['another word size', hvm, ['--width', '32'], 1, /\(at offset \d+\)/],
    ['converted already', new Uint8Array(64).fill(255), [], 1, /at offset/],
    ['no such option', hvm, ['--format', 'xl'], 2, /unknown option '--format'/],
    ['no such guest', hvm, ['--guest', 'pvh'], 2, /--guest: "pvh" is none of pv, hvm/],
    ['no such width', hvm, ['--width', '16'], 2, /--width: "16" is none of 32, 64/],
    ['no such output', hvm, ['--output', 'v1'], 2, /--output: "v1" is none of xl, libxl, libxc/],
    [
      'no such choice',
      hvm,
      ['--tmem', 'export='],
      2,
      /--tmem: "export=" is none of refuse, drop-ephemeral or/,
    ],
    ['one argument too many', hvm, ['more'], 2, /"more" is one argument too many/],
  ])('%s', async (_name, image, more, expected, line) => {
    writeFileSync(at('out'), 'older');
    const { code, out, err } = await run(['convert', input(image), at('out'), ...more]);
    expect({ code, out }).toEqual({ code: expected, out: '' });
    expect(err).toMatch(line);
    expect(err.trimEnd().split('\n').at(-1)).toMatch(/^xen-migrate convert: /);
    expect(readFileSync(at('out'), 'utf8')).toBe('older');
    expect(readdirSync(dir).sort()).toEqual(['in', 'out']);
  });

  test.each([
    [[], 'IN is missing'],
    [['a'], 'OUT is missing'],
  ])('%j', async (argv, line) => {
    expect(await run(['convert', ...argv])).toMatchObject({
      code: 2,
      err: expect.stringContaining(line) as string,
    });
  });

  test('no such file, no such folder', async () => {
    const absent = await run(['convert', at('nowhere'), at('out')]);
    expect(absent).toMatchObject({ code: 1, out: '' });
    expect(absent.err).toMatch(/xen-migrate convert: opening \S+nowhere: ENOENT/);
    const there = await run(['convert', input(hvm), at('no/where')]);
    expect(there).toMatchObject({ code: 1, out: '' });
    expect(there.err).toMatch(/ENOENT/);
    expect(await run(['convert', at('in'), dir])).toMatchObject({ code: 2 });
  });

  test('interrupted', async () => {
    const stdin = new PassThrough();
    stdin.write(hvm.subarray(0, 9000));
    const stop = new AbortController();
    const io = testIo({ stdin });
    io.stderr.onText = () => setImmediate(() => stop.abort(new Interrupted('SIGTERM')));
    const { code, err } = await run(['convert', '-', at('out')], io, stop.signal);
    expect(code).toBe(143);
    expect(err).toContain('xen-migrate convert: stopped by SIGTERM\n');
    expect(readdirSync(dir)).toEqual([]);
  });
});

describe('the program', () => {
  // Compiled by test/setup.
  const program = fileURLToPath(
    new URL('../../../node_modules/.cache/xen-migration/lib/cli/main.js', import.meta.url),
  );
  const start = (...argv: string[]): ReturnType<typeof spawn> =>
    spawn(process.execPath, [program, 'convert', ...argv], {
      env: { PATH: process.env['PATH'], TMPDIR: dir },
      stdio: ['pipe', 'pipe', 'ignore'],
    });

  test('from a pipe to a pipe', async () => {
    const child = start('-', '-', '--json');
    const pieces: Buffer[] = [];
    child.stdout!.on('data', (chunk: Buffer) => pieces.push(chunk));
    child.stdin!.end(hvm);
    expect(await once(child, 'close')).toEqual([0, null]);
    expect(Buffer.concat(pieces).equals(await converted(hvm))).toBe(true);
  });

  test('ended by SIGTERM, leaves nothing', async () => {
    const child = start('-', at('out'), '--json');
    child.stdin!.write(hvm.subarray(0, 9000));
    // At work: the file that it writes is there.
    while (readdirSync(dir).length === 0) await new Promise((resolve) => setTimeout(resolve, 10));
    child.kill('SIGTERM');
    expect(await once(child, 'close')).toEqual([143, null]);
    expect(readdirSync(dir)).toEqual([]);
  });
});
