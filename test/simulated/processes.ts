/** The program `xen-migrate` in processes of its own, for the tests of a file: each has a folder, and leaves no process. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach } from 'vitest';

/** Compiled by test/setup. */
export const program = fileURLToPath(
  new URL('../../node_modules/.cache/xen-migration/lib/cli/main.js', import.meta.url),
);

/** Folder of the test that runs. */
export let dir: string;
const children: ChildProcess[] = [];
beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'xen-migration-cli-'));
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true });
});

export interface Running {
  readonly child: ChildProcess;
  readonly out: () => string;
  readonly err: () => string;
  /** Exit code, or the signal that killed it. */
  readonly ended: Promise<number | string>;
  /** Resolves to the first match in what it prints on either stream. */
  readonly prints: (pattern: RegExp) => Promise<string>;
}

/** Keeps what a process prints, and kills it when the test is over. */
export function watch(child: ChildProcess): Running {
  killAfterTest(child);
  let [out, err] = ['', ''];
  const waiting = new Set<() => void>();
  child.stdout?.on('data', (chunk: Buffer) => {
    out += chunk.toString('latin1');
    for (const look of waiting) look();
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    err += chunk.toString('latin1');
    for (const look of waiting) look();
  });
  const ended = once(child, 'close').then(([code, signal]) => (code ?? signal) as number | string);
  return {
    child,
    out: () => out,
    err: () => err,
    ended,
    prints: (pattern) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          const found = pattern.exec(out) ?? pattern.exec(err);
          if (found === null) return;
          waiting.delete(look);
          resolve(found[0]);
        };
        waiting.add(look);
        look();
        void ended.then(() => reject(new Error(`ended without printing ${String(pattern)}: ${out}${err}`)));
      }),
  };
}

/** For a process whose output somebody else reads. */
export function killAfterTest(child: ChildProcess): void {
  children.push(child);
}

/** Environment of a process: nothing of ours but where programs are. */
export const env = (more: object = {}): NodeJS.ProcessEnv => ({
  PATH: process.env['PATH'],
  LANG: 'C',
  TMPDIR: dir,
  ...more,
});

/** `xen-migrate` with these arguments. */
export function start(...argv: string[]): Running {
  return watch(spawn(process.execPath, [program, ...argv], { env: env(), stdio: ['pipe', 'pipe', 'pipe'] }));
}

/** For `migrate`, `receive` and the like: on a simulated host. */
export const sim = ['--host', 'sim'];
