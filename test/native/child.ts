/** Runs a piece of addon use in a process of its own, so that a crash is a result and not the end of the tests. */
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../..', import.meta.url));

/** `npm run test:asan` sets it: the addon built with sanitizers. */
const asan = process.env['XEN_MIGRATION_TEST_ASAN'] === '1';

export const addonFile = `${root}${asan ? 'build-asan/Debug' : 'build/Release'}/xen_migration.node`;

const scenarios = fileURLToPath(new URL('scenarios.mjs', import.meta.url));

export interface ChildEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Plays one scenario of scenarios.mjs.
 *
 * @throws Error if the addon is not built, or if a sanitizer complained
 */
export function play(...args: string[]): Promise<ChildEnd> {
  return playFile(scenarios, args);
}

/**
 * Likewise, from another file of scenarios.
 *
 * @param preload libraries whose functions come before those of all others
 */
export async function playFile(
  file: string,
  args: string[],
  preload: string[] = [],
  env: NodeJS.ProcessEnv = {},
): Promise<ChildEnd> {
  if (!fs.existsSync(addonFile)) {
    throw new Error(`${addonFile} is not there: run \`npm run ${asan ? 'build:asan' : 'build:native'}\``);
  }
  const first = asan ? asanEnvironment() : { LD_PRELOAD: '' };
  const LD_PRELOAD = [first.LD_PRELOAD, ...preload].join(' ');
  const child = spawn(process.execPath, ['--expose-gc', file, addonFile, ...args], {
    env: { ...process.env, ...env, ...first, LD_PRELOAD },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const end = await new Promise<ChildEnd>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => {
      resolve({ code, signal, stdout, stderr });
    });
  });
  if (/Sanitizer|runtime error:/.test(stderr)) throw new Error(`a sanitizer complains:\n${stderr}`);
  return end;
}

/** Plays a scenario that checks itself, and demands that it reaches its end. */
export async function expectPlayed(...args: string[]): Promise<string> {
  return succeeded(await play(...args), args.join(' '));
}

/** The standard output of a scenario that reached its end. */
export function succeeded({ code, signal, stdout, stderr }: ChildEnd, what: string): string {
  if (code !== 0) throw new Error(`${what}: ended with ${String(signal ?? code)}\n${stderr}`);
  return stdout;
}

function asanEnvironment() {
  const library = execFileSync('gcc', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim();
  return {
    LD_PRELOAD: library,
    // V8 keeps much until the process ends; what we leak is seen by the counters of the scenarios.
    ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=1',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
  };
}
