/** `xen-migrate verify`: is this a stream that a receiver takes? */
import { printable } from '../bytes/printable.js';
import type { VerifyFinding, VerifyReport } from '../stream/verify/report.js';
import { verify as verifyStream } from '../stream/verify/verify.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { bytesText, countText } from './format.js';
import { operands } from './operands.js';
import { printJson, printLines } from './print.js';
import { formatOf, streamHelp, streamOptions, withStream } from './streams.js';

const help = `usage: xen-migrate verify FILE|- [options]

Verifies a saved guest or a captured migration: all that Xen's verify-stream-v2 checks, and order, presence, range and
sizes of records beside it; legacy images of Xen 4.0 to 4.5 too, bare or in files of xl and xend. Errors make a stream
invalid, warnings do not. Page contents are read, so that a file with unreadable blocks is found out, but they have no
checksum that could be verified.

  --skip-pages          do not read page contents: much faster for a file on a disk
${streamHelp}
Exit code: 0 valid, 1 invalid, 2 wrong arguments or an unreadable file.
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const options = { ...streamOptions, 'skip-pages': { type: 'boolean' } } as const;
  const { values, positionals } = parseArguments(argv, { allowPositionals: true, options });
  const [file] = operands(positionals, ['FILE']);
  const format = formatOf(values.format);
  const outcome = await withStream('verify', file, io, signal, (source) =>
    verifyStream(source, { format, skipPages: values['skip-pages'] === true, signal }),
  );
  if ('exitCode' in outcome) return outcome.exitCode;
  const report = outcome.result;
  if (values.json === true) printJson(io.stdout, report);
  else printLines(io.stdout, reportLines(file, report));
  return report.valid ? ExitCode.OK : ExitCode.FAILED;
}

/** The verdict on one line, and one line for each finding. */
function reportLines(file: string, report: VerifyReport): string[] {
  const { valid, errors, warnings, suppressed, findings, summary, format, bytes } = report;
  const counts = [counted(errors, 'error'), counted(warnings, 'warning')].filter((text) => text !== '');
  const facts = [
    format === 'unknown' ? 'unknown format' : format,
    summary.wordSize === undefined ? undefined : `legacy of a ${summary.wordSize * 8}-bit toolstack`,
    summary.guest,
    summary.xenVersion === undefined ? undefined : `Xen ${summary.xenVersion}`,
    bytesText(bytes),
    ...counts,
  ].filter((fact) => fact !== undefined);
  const name = file === '-' ? 'standard input' : file;
  return [
    printable(`${name}: ${valid ? 'valid' : 'INVALID'} (${facts.join(', ')})`),
    ...findings.map((finding) => `  ${findingLine(finding)}`),
    ...(suppressed > 0 ? [`  … ${countText(suppressed)} more`] : []),
  ];
}

function findingLine({ severity, code, offset, record, path, message }: VerifyFinding): string {
  const place = [record, path].filter((part) => part !== undefined).join('.');
  return printable(`${severity} at ${offset}${place === '' ? '' : ` ${place}`}: ${message} [${code}]`);
}

function counted(n: number, what: string): string {
  return n === 0 ? '' : `${countText(n)} ${what}${n === 1 ? '' : 's'}`;
}

export const verify: Command = {
  name: 'verify',
  summary: 'checks a saved guest or a captured migration',
  help,
  run,
};
