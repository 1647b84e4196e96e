/** The configurations made of xend's, given to the libxl that is installed: it parses them, loses nothing of them. */

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, test } from 'vitest';
import { configOfXend, parseSxp } from '../../../lib/convert/xend/index.js';
import { HVM_FULL, HVM_GUEST, OLD_GUEST, PV_FULL, PV_GUEST, bytesOf } from './xend-samples.js';

const present =
  existsSync('/usr/include/libxl.h') &&
  (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, 'gcc')));

if (!present)
  process.stderr.write('SKIPPED: nothing is given to libxl: libxen-dev or gcc is not installed\n');

/** Members that libxl does not write because they say what it takes anyway. */
const DEFAULTS: Readonly<Record<string, unknown>> = {
  on_poweroff: 'destroy',
  readwrite: 0,
  bus: 0,
  func: 0,
  domain: 0,
  power_mgmt: false,
};

/** Paths of what `ours` says and `libxls` does not. */
function lost(ours: unknown, libxls: unknown, path: readonly string[] = []): string[] {
  const name = path.at(-1) ?? '';
  if (typeof ours !== 'object' || ours === null) {
    if (libxls === undefined && DEFAULTS[name] === ours) return [];
    const same = name === 'mac' ? String(ours).toLowerCase() === libxls : ours === libxls;
    return same ? [] : [`${path.join(' ')}: ${String(ours)} is ${String(libxls)}`];
  }
  // libxl takes the list alone, and writes it beside one of MSRs.
  const theirs = (name === 'cpuid' ? (libxls as { cpuid?: unknown } | undefined)?.cpuid : libxls) ?? {};
  return Object.entries(ours).flatMap(([key, value]) =>
    lost(value, (theirs as Record<string, unknown>)[key], [...path, key]),
  );
}

describe.skipIf(!present)('libxl', () => {
  let folder = '';
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'xend-libxl-'));
    const source = join(import.meta.dirname, 'xend-libxl.c');
    const libraries = ['-lxenlight', '-lxenctrl', '-lxenstore', '-lxentoollog'];
    execFileSync('gcc', ['-O1', '-rdynamic', '-o', join(folder, 'ask'), source, ...libraries], {
      stdio: 'pipe',
    });
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  function ask(config: unknown): { status: number | null; config: unknown; messages: string } {
    const input = JSON.stringify(config);
    const { status, stdout, stderr } = spawnSync(join(folder, 'ask'), { input, encoding: 'utf8' });
    return { status, config: stdout === '' ? undefined : JSON.parse(stdout), messages: stderr };
  }

  test.each(Object.entries({ PV_GUEST, PV_FULL, HVM_GUEST, HVM_FULL, OLD_GUEST }))('takes %s', (_, text) => {
    const { config } = configOfXend(parseSxp(bytesOf(text)));
    const answer = ask(config);
    expect(answer.messages.split('\n').filter((line) => line.includes('error'))).toEqual([]);
    expect(answer.status).toBe(0);
    expect(lost(config, answer.config)).toEqual([]);
  });

  it('would say so if it did not', () => {
    const { config } = configOfXend(parseSxp(bytesOf(HVM_FULL)));
    expect(ask({ ...config, on_crash: 'explode' }).status).toBe(1);
    const build = config['b_info'] as object;
    expect(ask({ ...config, b_info: { ...build, video_memkb: 4096 } })).toMatchObject({ status: 2 });
    const misspelt = { ...config, b_info: { ...build, timermode: 'one_missed_tick_pending' } };
    expect(lost(misspelt, ask(misspelt).config)).toEqual([
      'b_info timermode: one_missed_tick_pending is undefined',
    ]);
  });
});
