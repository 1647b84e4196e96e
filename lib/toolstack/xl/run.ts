/** Running xl for one command, to its end. */
import { execFile } from 'node:child_process';
import { CancelledError, TimeoutError, XenMigrationError } from '../../errors.js';
import { lastWords, XlError } from './error.js';

/** Which xl, and how. */
export interface XlSettings {
  /** Program. Default: `xl`, looked for in PATH and in the folders where administrators' programs are. */
  readonly program?: string | undefined;
  /** ms that one command may take. Default 300 000: a large domain's memory is given back step by step. */
  readonly commandMs?: number | undefined;
}

/** How a command that ended ended. */
export interface XlRan {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface XlRunOptions extends XlSettings {
  readonly signal?: AbortSignal | undefined;
}

const COMMAND_MS = 300_000;
const OUTPUT_MAX = 4 * 1024 * 1024;
/** A service, or a user who is not root's login shell, may not have them in its PATH. */
const ADMIN_FOLDERS = ['/usr/local/sbin', '/usr/sbin', '/sbin'];

export function programOf(settings: XlSettings): string {
  return settings.program ?? 'xl';
}

/** The environment that xl runs in. */
export function xlEnvironment(more: Readonly<Record<string, string | undefined>> = {}): NodeJS.ProcessEnv {
  const folders = (process.env['PATH'] ?? '').split(':').filter((folder) => folder !== '');
  const missing = ADMIN_FOLDERS.filter((folder) => !folders.includes(folder));
  return { ...process.env, PATH: [...folders, ...missing].join(':'), ...more };
}

/** The error for a host without xl. */
export function xlMissing(command: string, cause: unknown): XlError {
  return new XlError(
    'ERR_XEN_XL_MISSING',
    command,
    `${command}: this host has no xl (Debian: apt install xen-utils-common xen-utils)`,
    { cause },
  );
}

/**
 * Runs `xl …` and resolves however it ended. Rejects with XlError if it could not be started or was killed by somebody
 * else, TimeoutError if it took too long, and with the signal's reason; xl is ended then.
 */
export function runXl(args: readonly string[], options: XlRunOptions = {}): Promise<XlRan> {
  const { signal, commandMs = COMMAND_MS } = options;
  const command = ['xl', ...args].join(' ');
  return new Promise((resolve, reject) => {
    const settings = {
      env: xlEnvironment(),
      timeout: commandMs,
      maxBuffer: OUTPUT_MAX,
      ...(signal === undefined ? {} : { signal }),
    };
    execFile(programOf(options), args, settings, (error, stdout, stderr) => {
      if (error === null) resolve({ exitCode: 0, stdout, stderr });
      else if (signal?.aborted === true) reject(cancelled(signal, command));
      else if (error.code === 'ENOENT') reject(xlMissing(command, error));
      else if (typeof error.code === 'number') resolve({ exitCode: error.code, stdout, stderr });
      else if (error.killed === true)
        reject(new TimeoutError('xl', commandMs, `${command} did not end within ${commandMs} ms`));
      else {
        const message = `${command}: ${error.message}`;
        reject(new XlError('ERR_XEN_XL', command, message, { cause: error, stderr }));
      }
    });
  });
}

/** Runs `xl …` and resolves to what it wrote to its standard output. Rejects with XlError, too, if it failed. */
export async function xl(args: readonly string[], options: XlRunOptions = {}): Promise<string> {
  const { exitCode, stdout, stderr } = await runXl(args, options);
  if (exitCode === 0) return stdout;
  const command = ['xl', ...args].join(' ');
  const message = `${command} failed (exit code ${exitCode}): ${lastWords(stderr)}`;
  throw new XlError('ERR_XEN_XL', command, message, { exitCode, stderr });
}

/** The domain of this name; undefined if there is none. */
export async function xlDomid(name: string, options: XlRunOptions = {}): Promise<number | undefined> {
  const { exitCode, stdout } = await runXl(['domid', name], options);
  const text = stdout.trim();
  return exitCode === 0 && /^\d+$/.test(text) ? Number(text) : undefined;
}

/** Whether this host has an xl that can be run. */
export async function hasXl(options: XlRunOptions = {}): Promise<boolean> {
  try {
    await runXl(['help'], options);
    return true;
  } catch (error) {
    if (error instanceof XlError) return false;
    throw error;
  }
}

function cancelled(signal: AbortSignal, command: string): XenMigrationError {
  const reason: unknown = signal.reason;
  if (XenMigrationError.is(reason)) return reason;
  return new CancelledError(`${command}: cancelled`, { cause: reason });
}
