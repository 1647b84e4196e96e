/** The project seen from outside: its manifest, its entry points, and npm. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import { cleanEnvironment } from '../../scripts/steps.js';

export const root = fileURLToPath(new URL('../..', import.meta.url));

interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly bin: Readonly<Record<string, string>>;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly exports: Readonly<Record<string, string | { readonly types: string; readonly default: string }>>;
}

export const manifest = JSON.parse(fs.readFileSync(`${root}package.json`, 'utf8')) as Manifest;

/** Subpaths that hold code, with the source that each is built from. */
export const entryPoints = Object.entries(manifest.exports).flatMap(([subpath, target]) =>
  typeof target === 'string'
    ? []
    : [{ subpath, target, source: target.default.replace('./dist/', 'lib/').replace(/\.js$/, '.ts') }],
);

/** How a user writes a subpath. */
export const specifier = (subpath: string): string => manifest.name + subpath.slice(1);

/**
 * Runs a command and returns its standard output.
 *
 * @throws Error with all that it printed, if it fails
 */
export function run(cwd: string, command: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd,
    env: cleanEnvironment(),
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  if (status !== 0) {
    throw new Error(
      `${command} ${args.join(' ')}: ${error?.message ?? `exit code ${String(status)}`}\n${stdout}${stderr}`,
    );
  }
  return stdout;
}
