/** `xen-migrate inspect`: what is in a stream? */
import { StreamErrorCode } from '../stream/codes.js';
import { formatInspection } from '../stream/inspect/format.js';
import { inspect as inspectStream } from '../stream/inspect/inspect.js';
import type { Inspection } from '../stream/inspect/report.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { operands } from './operands.js';
import { printJson } from './print.js';
import { formatOf, streamHelp, streamOptions, withStream } from './streams.js';

const help = `usage: xen-migrate inspect FILE|- [options]

Shows what is in a saved guest or a captured migration: headers, records with their offsets, guest, vcpus, pages by type,
zero pages, pages sent more than once, the passes over memory. Legacy images of Xen 4.0 to 4.5 too, bare or in files of
xl and xend, with their tmem pools. Whether it is right, verify tells.

  --pages               a row for each PAGE_DATA record, or each page batch
${streamHelp}
Exit code: 0 read to its end (or cut after a complete checkpoint), 1 not readable that far, 2 wrong arguments or an
unreadable file.
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const options = { ...streamOptions, pages: { type: 'boolean' } } as const;
  const { values, positionals } = parseArguments(argv, { allowPositionals: true, options });
  const [file] = operands(positionals, ['FILE']);
  const format = formatOf(values.format);
  const pages = values.pages === true;
  const outcome = await withStream('inspect', file, io, signal, (source) =>
    inspectStream(source, { format, pages, signal }),
  );
  if ('exitCode' in outcome) return outcome.exitCode;
  const inspection = outcome.result;
  if (values.json === true) printJson(io.stdout, inspection);
  else io.stdout.write(formatInspection(inspection));
  return readable(inspection) ? ExitCode.OK : ExitCode.FAILED;
}

/** A checkpointed stream has no end of its own: it is cut off when its sender dies. */
function readable({ error, checkpointCount }: Inspection): boolean {
  return error === undefined || (error.code === StreamErrorCode.TRUNCATED && checkpointCount > 0);
}

export const inspect: Command = {
  name: 'inspect',
  summary: 'shows what is in a saved guest or a captured migration',
  help,
  run,
};
