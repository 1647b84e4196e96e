/** `xen-migrate convert`: a legacy (v1) image into a v2 stream. */
import type { Stats } from 'node:fs';
import { stat, writeFile } from 'node:fs/promises';
import { printable } from '../bytes/printable.js';
import { startConvert } from '../convert/convert.js';
import { tmemChoiceOf } from '../convert/tmem-choice.js';
import type { TmemSummary } from '../convert/tmem.js';
import type { ConvertOptions, ConvertResult } from '../convert/types.js';
import { TransportError, UsageError } from '../errors.js';
import { wholeFile } from '../transport/whole.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { bytesText, countText, timeText } from './format.js';
import { LiveView, noView } from './live.js';
import { operands } from './operands.js';
import { printJson, printLines } from './print.js';
import { choiceOf } from './values.js';

const help = `usage: xen-migrate convert IN|- OUT|- [options]

Converts a legacy (v1) image, as Xen 4.0 to 4.5 and xend wrote them, to a Migration v2 stream that today's xl restores.
What kind of guest it is and which toolstack wrote it, the image tells. Of a Remus image the last complete checkpoint
comes out. OUT is written beside its place and renamed when it is complete: a conversion that fails leaves no partial
file, and an older file as it was.

  --guest KIND          refuse an image of another kind of guest: pv or hvm
  --width BITS          refuse an image of a toolstack of another word size: 32 or 64
  --output FORM         xl (a file for xl restore; default for files of xl and xend), libxl (default for bare images) or
                        libxc (memory and state alone)
  --tmem CHOICE         what becomes of memory that the guest had given to Xen (tmem), for which v2 has no place: refuse
                        (default), drop-ephemeral (leave caches out), or export=FOLDER (beside that, write swapped-out
                        pages to files); see docs/guide/convert.md
  --temporary FOLDER    for the temporary files of Remus images (default: $TMPDIR or /tmp)
  --json                print one JSON document instead of the report
  --help                print this text

The configuration in a file of xend is translated for xl, and saved as it was as OUT.sxp.
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: {
      guest: { type: 'string' },
      width: { type: 'string' },
      output: { type: 'string' },
      tmem: { type: 'string' },
      temporary: { type: 'string' },
      json: { type: 'boolean' },
    },
  });
  const [from, to] = operands(positionals, ['IN', 'OUT']);
  const { guest, width, output, tmem, temporary } = values;
  const options = {
    guest: guest === undefined ? undefined : choiceOf(guest, '--guest', ['pv', 'hvm'] as const),
    width: width === undefined ? undefined : choiceOf(width, '--width', ['32', '64']) === '32' ? 32 : 64,
    output:
      output === undefined ? undefined : choiceOf(output, '--output', ['xl', 'libxl', 'libxc'] as const),
    tmem: tmem === undefined ? undefined : tmemChoiceOf(tmem, '--tmem'),
    temporary,
    signal,
  } satisfies Partial<ConvertOptions>;
  if (to === '-' && io.stdout.isTTY === true) {
    throw new UsageError('a guest is not written to a terminal; name a file');
  }
  if (to !== '-' && (await statOf(to))?.isDirectory() === true) throw new UsageError(`${to} is a directory`);
  const json = values.json === true;
  const view = json ? noView : new LiveView(io, undefined, await sizeOfFile(from));
  let result: ConvertResult;
  try {
    result = await startConvert({
      ...options,
      from: from === '-' ? io.stdin : from,
      to: to === '-' ? io.stdout : to,
      onProgress: view.show,
    }).result;
  } finally {
    view.clear();
  }
  const sxp = await keepConfig(to, result);
  const report = to === '-' ? io.stderr : io.stdout;
  if (json) printJson(report, documentOf(from, to, sxp, result));
  else printLines(report, reportLines(from, to, sxp, result).map(printable));
  return ExitCode.OK;
}

/** Bytes of a regular file; undefined for anything else. */
async function sizeOfFile(file: string): Promise<number | undefined> {
  if (file === '-') return undefined;
  const stats = await statOf(file);
  return stats?.isFile() === true ? stats.size : undefined;
}

function statOf(file: string): Promise<Stats | undefined> {
  return stat(file).catch(() => undefined);
}

/** Writes xend's configuration beside a file. Resolves to the name of what was written. */
async function keepConfig(to: string, { xend }: ConvertResult): Promise<string | undefined> {
  if (xend === undefined || (await sizeOfFile(to)) === undefined) return undefined;
  const file = `${to}.sxp`;
  try {
    await wholeFile(file, (partial) => writeFile(partial, xend.config, { mode: 0o600 }));
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const text = `${to} is complete, but xend's configuration could not be saved as ${file}: ${why}`;
    throw new TransportError(text, { cause });
  }
  return file;
}

/** The JSON document. */
function documentOf(from: string, to: string, sxp: string | undefined, result: ConvertResult): object {
  const { input, output, xend, ...rest } = result;
  return {
    ok: true,
    from,
    to,
    input,
    output,
    ...rest,
    xend: xend && {
      guest: xend.guest,
      notCarried: xend.notCarried,
      file: sxp,
      config: Buffer.from(xend.config).toString('utf8'),
    },
  };
}

const INPUTS = {
  legacy: 'a bare image',
  xl: 'a file of xl',
  xend: 'a file of xend',
} as const;

function reportLines(from: string, to: string, sxp: string | undefined, result: ConvertResult): string[] {
  const { guest, guestWidth, width, input, output, dataPages, bytesWritten, elapsed } = result;
  const kind = guest === 'hvm' ? 'HVM guest' : `PV guest of ${guestWidth === 4 ? 32 : 64} bits`;
  const source = from === '-' ? 'the standard input' : from;
  const target = to === '-' ? 'the standard output' : to;
  const lines = [
    `converted ${source} to ${target} (${output}): ${countText(dataPages)} pages, ${bytesText(bytesWritten)} ` +
      `in ${timeText(elapsed)}`,
    `  it was ${INPUTS[input]}, written by a toolstack of ${width} bits: ${kind}`,
    ...remusLines(result),
  ];
  if (result.tmem !== undefined) lines.push(tmemLine(result.tmem));
  if (result.xend !== undefined) {
    lines.push(`  xend's configuration was translated${sxp === undefined ? '' : `, and saved as ${sxp}`}`);
    const { notCarried } = result.xend;
    if (notCarried.length > 0) lines.push('  not carried over:', ...notCarried.map((what) => `    ${what}`));
  }
  if (input === 'legacy' && output === 'xl') {
    lines.push('  it has no configuration: give one to xl restore');
  }
  return lines;
}

function remusLines({ checkpoints, cutOffAt, compressed }: ConvertResult): string[] {
  if (checkpoints === 1 && cutOffAt === undefined) return [];
  const pages = compressed ? ' with compressed pages' : '';
  const cut =
    cutOffAt === undefined ? '' : `; the next one is cut off at offset ${cutOffAt} and was left out`;
  return [
    `  of Remus${pages}: its state is that of checkpoint ${countText(checkpoints)}, the last complete one${cut}`,
  ];
}

function tmemLine({ pools, dropped, exported }: TmemSummary): string {
  if (pools.length === 0) return '  tmem: no pools, nothing is lost';
  const kept = exported === undefined ? '' : `, ${pools.length - dropped} exported to ${exported}`;
  return `  tmem: ${countText(pools.length)} ${pools.length === 1 ? 'pool' : 'pools'}, ${dropped} left out${kept}`;
}

export const convert: Command = {
  name: 'convert',
  summary: 'converts a legacy image of Xen 4.0 to 4.5, or of xend, for the Xen of today',
  help,
  run,
};
