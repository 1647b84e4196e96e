/** What the commands that read a stream from a file or a pipe share: verify and inspect. */
import { CancelledError, XenMigrationError } from '../errors.js';
import { SCAN_FORMATS } from '../stream/scan.js';
import { openSource } from '../transport/open.js';
import type { ByteSource } from '../transport/types.js';
import { ExitCode, type CommandIo } from './command.js';
import { errorLine } from './exit.js';
import { choiceOf } from './values.js';

/** Options of both. */
export const streamOptions = {
  format: { type: 'string' },
  json: { type: 'boolean' },
} as const;

export const streamHelp = `  --format FORMAT       auto (default), libxc, libxl, xl, legacy or xend
  --json                print one JSON document
  --help                print this text
`;

/** The format that `--format` names. Throws UsageError. */
export function formatOf(text: string | undefined): (typeof SCAN_FORMATS)[number] {
  return choiceOf(text ?? 'auto', '--format', SCAN_FORMATS);
}

/**
 * Opens FILE, or the standard input for `-`, gives it to `read` and closes it. A file that cannot be opened or read is no
 * finding about a stream: then prints one line, and gives the exit code for it instead.
 */
export async function withStream<T>(
  command: string,
  file: string,
  io: CommandIo,
  signal: AbortSignal,
  read: (source: ByteSource) => Promise<T>,
): Promise<{ readonly result: T } | { readonly exitCode: number }> {
  let source: ByteSource | undefined;
  try {
    source =
      file === '-'
        ? await openSource(io.stdin, { name: 'standard input' })
        : await openSource(file, { signal });
    return { result: await read(source) };
  } catch (error) {
    if (!XenMigrationError.is(error) || error instanceof CancelledError) throw error;
    io.stderr.write(`xen-migrate ${command}: ${errorLine(error)}\n`);
    return { exitCode: ExitCode.USAGE };
  } finally {
    // What was read is read; a failure to close tells nothing about it.
    await source?.close().catch(() => undefined);
  }
}
