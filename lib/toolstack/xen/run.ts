/** Running xl, for what is left to it. */
import { XenMigrationError } from '../../errors.js';
import { XlError } from '../xl/error.js';
import { runXl as run, type XlSettings } from '../xl/run.js';

/** What a program that ended said. */
export interface Ran {
  readonly code: number;
  readonly stderr: string;
}

/** Runs xl. Resolves to undefined if this host has none, and to code 1 if it did not end by itself. */
export async function runXl(args: readonly string[], settings: XlSettings = {}): Promise<Ran | undefined> {
  try {
    const { exitCode, stderr } = await run(args, settings);
    return { code: exitCode, stderr };
  } catch (error) {
    if (!XenMigrationError.is(error)) throw error;
    if (error.code === 'ERR_XEN_XL_MISSING') return undefined;
    const said = error instanceof XlError ? error.stderr : undefined;
    return { code: 1, stderr: said || error.message };
  }
}
