/** The Xen test machine is tried by `npm run test:xen` only; here it is seen that its parts are whole. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { root } from './project.js';

const folder = path.join(root, 'test/xen-host');

const all = fs
  .readdirSync(folder, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .map((entry) => path.relative(folder, path.join(entry.parentPath, entry.name)));

/** Exit code and what was said. */
function run(program: string, ...args: string[]): [number | null, string] {
  return runWith({ XEN_MIGRATION_SKIP_XEN: '1' }, program, ...args);
}

/** With other variables in the environment; undefined: without that one. */
function runWith(
  more: Record<string, string | undefined>,
  program: string,
  ...args: string[]
): [number | null, string] {
  const env = { ...process.env, ...more };
  const { status, stdout, stderr } = spawnSync(program, args, { cwd: folder, env, encoding: 'utf8' });
  return [status, stdout + stderr];
}

describe('Xen test machine', () => {
  it.each(all.filter((name) => name.endsWith('.js')))('%s is JavaScript', (name) => {
    expect(run(process.execPath, '--check', name)).toEqual([0, '']);
  });

  it.each(['dom0/init', 'dom0/initramfs-init'])('%s is a shell script', (name) => {
    expect(run('bash', '-n', name)).toEqual([0, '']);
  });

  it.each(['dom0/agent.c', 'guest/init.c'])('%s compiles without warnings', (name) => {
    expect(run('g++', '-x', 'c', '-fsyntax-only', '-Wall', '-Wextra', '-Werror', name)).toEqual([0, '']);
  });

  it('tells what its command can do', () => {
    const [code, text] = run(process.execPath, 'lab.js', '--help');
    expect(code).toBe(0);
    expect(text).toContain('start NAME');
  });

  it('is skipped aloud if told so', () => {
    const [code, text] = run(process.execPath, 'run.js');
    expect(code).toBe(0);
    expect(text).toContain('SKIPPED');
  });

  it('is not skipped by itself: without its packages it fails, and says how to do without it', () => {
    // No compiler, and no apt-get to get one.
    const nothing = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-path-'));
    const env = { PATH: nothing, XEN_MIGRATION_SKIP_XEN: undefined };
    const [code, text] = runWith(env, process.execPath, 'run.js');
    fs.rmdirSync(nothing);
    expect(code).toBe(1);
    expect(text).toContain('To do without the Xen test machine, say so: XEN_MIGRATION_SKIP_XEN=1');
    expect(text).toContain('failed: packages are missing');
    expect(text).not.toContain('SKIPPED');
  });
});
