/** The commands `verify` and `inspect`, in this process. */

import * as fs from 'node:fs';
import * as os from 'node:os';
import path from 'node:path';
import { PassThrough, Readable, Writable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { inspect } from '../../../lib/cli/inspect.js';
import { verify } from '../../../lib/cli/verify.js';
import type { Command } from '../../../lib/cli/command.js';
import { CancelledError, UsageError } from '../../../lib/errors.js';
import type { Inspection } from '../../../lib/stream/inspect/index.js';
import type { VerifyReport } from '../../../lib/stream/verify/index.js';
import { imageNamed } from '../../legacy/images.js';
import * as T from './streams.js';

let dir: string;
beforeAll(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-'));
});
afterAll(() => {
  fs.rmSync(dir, { recursive: true, force: true });
});

function file(pieces: readonly T.Piece[]): string {
  const name = path.join(dir, 'guest.save');
  fs.writeFileSync(name, T.join(pieces));
  return name;
}

class Collector extends Writable {
  text = '';
  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.text += chunk.toString();
    done();
  }
}

async function run(
  command: Command,
  argv: string[],
  stdin: Readable = Readable.from([]),
  signal = new AbortController().signal,
): Promise<{ code: number; out: string; err: string }> {
  const [stdout, stderr] = [new Collector(), new Collector()];
  const code = await command.run(argv, { stdin, stdout, stderr, env: {} }, signal);
  return { code, out: stdout.text, err: stderr.text };
}

const good = T.inXl();
const bad = T.inXl(T.inLibxl(T.without(T.hvm(), 'HVM_CONTEXT')));

describe('verify', () => {
  it('0 and one line for a valid stream', async () => {
    const name = file(good);
    expect(await run(verify, [name])).toEqual({
      code: 0,
      out: `${name}: valid (xl, x86 HVM, Xen 4.17, ${kib(T.join(good).length)})\n`,
      err: '',
    });
  });

  it('1 and a line for each finding of an invalid one', async () => {
    const { code, out } = await run(verify, [file(bad)]);
    expect(code).toBe(1);
    expect(out.split('\n')[0]).toMatch(/: INVALID \(xl, x86 HVM, Xen 4\.17, .*, 1 error\)$/);
    const at = T.offsetOf(bad, 'END');
    expect(out.split('\n')[1]).toBe(
      `  error at ${at} END: no HVM_CONTEXT before it [ERR_XEN_STREAM_MISSING]`,
    );
  });

  it('0 with warnings', async () => {
    const { code, out } = await run(verify, [file([...good, { name: 'x', bytes: Buffer.from('x') }])]);
    expect(code).toBe(0);
    expect(out).toMatch(/, 1 warning\)\n {2}warning at \d+: 1 byte after the end of the stream \[/);
  });

  it('--json is the report', async () => {
    const { code, out } = await run(verify, ['--json', file(bad)]);
    expect(code).toBe(1);
    const report = JSON.parse(out) as VerifyReport;
    expect(report).toMatchObject({ valid: false, format: 'xl', errors: 1, summary: { guest: 'x86 HVM' } });
  });

  it('--format is believed', async () => {
    expect((await run(verify, ['--format', 'xl', file(good)])).code).toBe(0);
    expect((await run(verify, ['--format=libxc', file(good)])).code).toBe(1);
  });

  it('reads the standard input for -', async () => {
    expect(await run(verify, ['-'], Readable.from([T.join(good)]))).toMatchObject({
      code: 0,
      out: expect.stringMatching(/^standard input: valid/) as string,
    });
  });

  it('2 and one line for a file that cannot be read', async () => {
    const absent = path.join(dir, 'absent');
    for (const command of [verify, inspect]) {
      expect(await run(command, [absent])).toEqual({
        code: 2,
        out: '',
        err: expect.stringMatching(
          /^xen-migrate (verify|inspect): opening .*absent: ENOENT[^\n]*\n$/,
        ) as string,
      });
      expect(await run(command, [dir])).toMatchObject({
        code: 2,
        err: expect.stringMatching(/is a directory/) as string,
      });
      const broken = new PassThrough();
      broken.destroy(new Error('no luck'));
      expect(await run(command, ['-'], broken)).toMatchObject({ code: 2, out: '' });
    }
  });

  it('wrong arguments are UsageErrors', async () => {
    for (const argv of [[], ['a', 'b'], ['--nonsense', 'a'], ['--format', 'elf', 'a']]) {
      await expect(run(verify, argv)).rejects.toBeInstanceOf(UsageError);
      await expect(run(inspect, argv)).rejects.toBeInstanceOf(UsageError);
    }
  });

  it('is cancelled by the signal, also while it waits', async () => {
    await expect(run(verify, [file(good)], undefined, AbortSignal.abort())).rejects.toBeInstanceOf(
      CancelledError,
    );
    const controller = new AbortController();
    const silent = new PassThrough();
    const running = run(verify, ['-'], silent, controller.signal);
    setImmediate(() => controller.abort());
    await expect(running).rejects.toBeInstanceOf(CancelledError);
    expect(silent.destroyed).toBe(true);
  });

  it('what a stream says cannot talk to the terminal', async () => {
    const { out } = await run(verify, [file(T.inXl(T.inLibxl(), 'hvm', '\u001b[2J\u0007'))]);
    expect(out).toMatch(/ERR_XEN_STREAM_CONFIG/);
    // eslint-disable-next-line no-control-regex -- control characters are what this is about
    expect(out).not.toMatch(/[\u0000-\u0009\u000b-\u001f]/);
  });
});

describe('inspect', () => {
  it('0 and tables', async () => {
    const { code, out, err } = await run(inspect, [file(good)]);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toMatch(/^format +xl$/m);
    expect(out).toMatch(/PAGE_DATA × 2/);
  });

  it('--json, --pages', async () => {
    const { out } = await run(inspect, ['--json', '--pages', file(good)]);
    const inspection = JSON.parse(out) as Inspection;
    expect(inspection.records.filter((row) => row.name === 'PAGE_DATA')).toHaveLength(2);
  });

  it('1 for what cannot be read to its end, 0 for what is cut after a checkpoint', async () => {
    expect((await run(inspect, [file(good.slice(0, -1))])).code).toBe(1);
    expect((await run(inspect, [file(T.remus())])).code).toBe(0);
    expect((await run(inspect, ['-'], Readable.from([Buffer.from('hello, world')]))).code).toBe(1);
  });
});

/** As the command writes sizes. */
function kib(bytes: number): string {
  return `${(bytes / 1024).toPrecision(3)} KiB`;
}

describe('legacy images', () => {
  const write = (of: string): string => {
    const name = path.join(dir, 'legacy.save');
    fs.writeFileSync(name, imageNamed(of).bytes());
    return name;
  };

  it.each([
    ['legacy', 'hvm 4.5 save, 64-bit toolstack', 'legacy of a 64-bit toolstack, x86 HVM'],
    ['xl', 'xl pv32, 32-bit toolstack', 'legacy of a 32-bit toolstack, x86 PV'],
    ['xend', 'xend hvm', 'legacy of a 64-bit toolstack, x86 HVM'],
  ])('%s', async (format, image, what) => {
    const name = write(image);
    for (const argv of [[name], [name, '--format', format], [name, '--skip-pages']]) {
      const { code, out } = await run(verify, argv);
      expect({ code, out }).toEqual({
        code: 0,
        out: expect.stringContaining(`valid (${format}, ${what}, `) as string,
      });
    }
    const { code, out } = await run(inspect, [name, '--format', format]);
    expect(code).toBe(0);
    expect(out).toMatch(new RegExp(`^format +${format}$`, 'm'));
    const json = JSON.parse((await run(inspect, [name, '--json'])).out) as Inspection;
    expect(json.legacy?.guest).toBe(what.endsWith('PV') ? 'pv' : 'hvm');
  });

  it('one of Remus that is cut off is readable, and valid with a warning', async () => {
    const name = write('pv64 Remus compressed, in deltas');
    expect((await run(inspect, [name])).code).toBe(0);
    const { code, out } = await run(verify, [name]);
    expect(code).toBe(0);
    expect(out).toMatch(/warning at \d+ COMPRESSED_DATA: ends after a complete checkpoint/);
  });

  it('one that is cut off before that is neither', async () => {
    const name = write('hvm, in the first batch');
    expect((await run(inspect, [name])).code).toBe(1);
    expect((await run(verify, [name])).code).toBe(1);
  });
});
