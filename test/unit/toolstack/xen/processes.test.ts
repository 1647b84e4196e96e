/** What the toolstack does with processes of the host: real ones. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { endProcess } from '../../../../lib/toolstack/xen/destroy.js';
import { runXl } from '../../../../lib/toolstack/xen/run.js';

describe('ending a device model', () => {
  /** A process whose command line ends like QEMU's. */
  const start = (...args: string[]): ReturnType<typeof spawn> =>
    spawn('sh', ['-c', 'echo ready; exec sleep 100', '-name', 'guest', ...args], {
      stdio: ['ignore', 'pipe', 'ignore'],
      argv0: 'qemu',
    });
  /** As long as the shell stands, its arguments can be read; sleep has none of them. */
  const script = 'echo ready; read forever';
  const qemu = (...args: string[]): ReturnType<typeof spawn> =>
    spawn('sh', ['-c', script, 'qemu', ...args], { stdio: ['pipe', 'pipe', 'ignore'] });

  it('is a SIGHUP for the process with the domain’s number', async () => {
    const child = qemu('-xen-domid', '5', '-nographic');
    await once(child.stdout as NodeJS.ReadableStream, 'data');
    const exit = once(child, 'exit');
    await endProcess(child.pid ?? 0, 5);
    expect((await exit)[1]).toBe('SIGHUP');
  });

  it('leaves others alone: the process may be another one by now', async () => {
    const others = [qemu('-xen-domid', '55'), qemu('-xen-domid'), qemu('5'), start()];
    for (const child of others) {
      await once(child.stdout as NodeJS.ReadableStream, 'data');
      await endProcess(child.pid ?? 0, 5);
    }
    for (const child of others) {
      expect(child.exitCode).toBeNull();
      expect(child.signalCode).toBeNull();
      child.kill('SIGKILL');
      expect((await once(child, 'exit'))[1]).toBe('SIGKILL');
    }
    const [gone] = others;
    await endProcess(gone?.pid ?? 0, 55);
  });
});

describe('running xl', () => {
  let dir: string;
  const path = process.env['PATH'];

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'xl-'));
  });

  afterEach(async () => {
    process.env['PATH'] = path;
    await rm(dir, { recursive: true });
  });

  async function install(script: string, folders = path): Promise<void> {
    await writeFile(join(dir, 'xl'), `#!/bin/sh\n${script}\n`);
    await chmod(join(dir, 'xl'), 0o755);
    process.env['PATH'] = [dir, folders].join(delimiter);
  }

  it('says what it said, and how it ended', async () => {
    await install('echo "$@" >&2; exit 3');
    expect(await runXl(['destroy', '5'])).toEqual({ code: 3, stderr: 'destroy 5\n' });
    await install('exit 0');
    expect(await runXl(['destroy', '5'])).toEqual({ code: 0, stderr: '' });
    await install('kill -9 $$');
    expect(await runXl(['destroy', '5'])).toMatchObject({ code: 1 });
    await install('echo why >&2; kill -9 $$');
    expect(await runXl(['destroy', '5'])).toEqual({ code: 1, stderr: 'why\n' });
  });

  it('fails if it takes too long', async () => {
    await install('exec sleep 100');
    expect(await runXl(['destroy', '5'], { commandMs: 1 })).toEqual({
      code: 1,
      stderr: 'xl destroy 5 did not end within 1 ms',
    });
  });

  it('looks for it where administrators’ programs are, whatever PATH cron has', async () => {
    await install('echo "$PATH" >&2', '/usr/bin:/bin');
    // It is looked for in the PATH that it gets.
    const folders = (await runXl(['help']))?.stderr.trim().split(delimiter);
    expect(folders).toEqual([dir, '/usr/bin', '/bin', '/usr/local/sbin', '/usr/sbin', '/sbin']);
  });

  it('is nothing where there is none', async () => {
    expect(await runXl(['destroy', '5'], { program: join(dir, 'xl') })).toBeUndefined();
  });
});
