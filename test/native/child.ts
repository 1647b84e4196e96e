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
export async function play(...args: string[]): Promise<ChildEnd> {
  if (!fs.existsSync(addonFile)) {
    throw new Error(`${addonFile} is not there: run \`npm run ${asan ? 'build:asan' : 'build:native'}\``);
  }
  const child = spawn(process.execPath, ['--expose-gc', scenarios, addonFile, ...args], {
    env: { ...process.env, ...(asan ? asanEnvironment() : {}) },
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
  const { code, signal, stdout, stderr } = await play(...args);
  if (code !== 0) throw new Error(`${args.join(' ')}: ended with ${String(signal ?? code)}\n${stderr}`);
  return stdout;
}

function asanEnvironment(): NodeJS.ProcessEnv {
  const library = execFileSync('gcc', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim();
  return {
    LD_PRELOAD: library,
    // V8 keeps much until the process ends; what we leak is seen by the counters of the scenarios.
    ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=1',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
  };
}
