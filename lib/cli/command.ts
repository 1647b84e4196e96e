/** What a subcommand is, what it may touch, and how it reads its arguments. */
import type { Readable, Writable } from 'node:stream';
import { parseArgs, type ParseArgsConfig } from 'node:util';
import { UsageError } from '../errors.js';
import type { Survey, SurveyWorld } from './survey.js';
import type { XenSide } from './xen-side.js';

/** A stream that the command prints to: `process.stdout`, or a collector in tests. */
export type Output = Writable & {
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
};

/** The outer world of a command. Commands use this instead of `process`, so that tests can run them in-process. */
export interface CommandIo {
  readonly stdin: Readable;
  /** Results: what a pipe wants to read. */
  readonly stdout: Output;
  /** Progress, remarks and errors. */
  readonly stderr: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Opens the machine's Xen. Default: through the addon. */
  readonly openXen?: (() => Promise<XenSide>) | undefined;
  /** Looks at the machine. Default: as it is. */
  readonly survey?: ((world: SurveyWorld) => Promise<Survey>) | undefined;
}

/** One subcommand of `xen-migrate`. */
export interface Command {
  readonly name: string;
  /** One line for the list of commands. */
  readonly summary: string;
  /** Text of `--help`, ending in a newline. `main` prints it. */
  readonly help: string;
  /**
   * Does the work. Resolves to the exit code, see `ExitCode`; throws the library's errors, which `main` turns into one line and a code.
   *
   * @param argv Arguments after the command's name
   * @param signal Aborted by SIGINT and SIGTERM
   */
  run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number>;
}

/** Exit codes of `xen-migrate`, documented in docs/reference/exit-codes.md. */
export const ExitCode = {
  OK: 0,
  /** The operation failed, or the stream is invalid. The guest, if there is one, is where the message says. */
  FAILED: 1,
  /** Unknown command or option, missing or impossible argument. */
  USAGE: 2,
  /** The connection was lost at the one moment at which nobody can tell which side runs the guest. */
  GUEST_UNKNOWN: 3,
  /** No hypervisor, no native addon or no xenstored on this machine, or no permission to use them. */
  NO_HYPERVISOR: 4,
  /** The peer could not be reached, refused, vanished, or speaks something else. */
  PEER: 5,
  /** A phase took longer than it may. */
  TIMEOUT: 6,
  /** The guest runs at the destination, but the source's dead copy of it could not be removed. */
  NOT_RELEASED: 7,
  SIGINT: 130,
  SIGTERM: 143,
} as const;

/**
 * `util.parseArgs`, strict, with the library's UsageError instead of Node's TypeError.
 *
 * `--help` need not be among the options: `main` has dealt with it.
 */
export function parseArguments<T extends Omit<ParseArgsConfig, 'args' | 'strict'>>(
  argv: readonly string[],
  config: T,
): ReturnType<typeof parseArgs<T & { args: string[]; strict: true }>> {
  try {
    return parseArgs({ ...config, args: [...argv], strict: true });
  } catch (error) {
    // Node's texts go on with advice on `--`, which helps nobody here.
    const text = error instanceof Error ? (error.message.split(/\. |\n/)[0] ?? error.message) : String(error);
    throw new UsageError(text.charAt(0).toLowerCase() + text.slice(1), { cause: error });
  }
}
