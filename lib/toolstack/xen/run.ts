/** Running xl. */
import { execFile } from 'node:child_process';

/** What a program that ended said. */
export interface Ran {
  readonly code: number;
  readonly stderr: string;
}

/** Time for `xl destroy`: a large domain's memory is given back step by step. */
const XL_MS = 300_000;
const OUTPUT_MAX = 1024 * 1024;

/** Runs xl. Resolves to undefined if this host has none. */
export function runXl(args: readonly string[]): Promise<Ran | undefined> {
  return new Promise((resolve) => {
    execFile('xl', args, { timeout: XL_MS, maxBuffer: OUTPUT_MAX }, (error, _stdout, stderr) => {
      if (error === null) resolve({ code: 0, stderr });
      else if (error.code === 'ENOENT') resolve(undefined);
      else
        resolve({ code: typeof error.code === 'number' ? error.code : 1, stderr: stderr || error.message });
    });
  });
}
