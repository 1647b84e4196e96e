/** The convert helper from its arguments to its exit code, without the process around it. */
import { convert } from '../../convert/convert.js';
import { tmemChoiceOf } from '../../convert/tmem-choice.js';
import type { ConvertResult } from '../../convert/types.js';
import {
  CancelledError,
  errorMessage,
  StreamFormatError,
  UsageError,
  XenMigrationError,
} from '../../errors.js';
import { printable } from '../../bytes/printable.js';
import { CONVERT_USAGE, parseConvertArguments, type ConvertArguments } from './arguments.js';
import { openConvertInput, type ConvertInput } from './input.js';

/** What surrounds a convert helper. */
export interface ConvertWorld {
  /** Without node and script. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Aborted by SIGTERM. */
  readonly signal: AbortSignal;
  /** One line for whoever started this. */
  complain(line: string): void;
  /** The same for syslog. */
  log(line: string): void;
  /** Text for whoever asked for it. */
  print(text: string): void;
}

/** Exit codes: those of convert-legacy-stream, and the shell's for SIGTERM. */
export const ConvertExit = { DONE: 0, STREAM: 1, USAGE: 2, TERMINATED: 143 } as const;

/** ms without a byte after which an image that does not say where it ends is over. */
const HEARTBEAT = 1000;

const TMEM = 'XEN_MIGRATE_TMEM';

/** Does what libxl asks for. Resolves to the exit code; never rejects. */
export async function runConvertHelper(world: ConvertWorld): Promise<number> {
  let args: ConvertArguments | undefined;
  let input: ConvertInput | undefined;
  try {
    args = parseConvertArguments(world.argv);
    if (args === undefined) {
      world.print(CONVERT_USAGE);
      return ConvertExit.DONE;
    }
    const text = world.env[TMEM] ?? '';
    const tmem = text === '' ? undefined : tmemChoiceOf(text, TMEM);
    input = openConvertInput(args.from);
    const result = await run(world, args, input, tmem);
    if (args.verbose) world.complain(summaryOf(result));
    return ConvertExit.DONE;
  } catch (error) {
    const line = printable(lineOf(error, input));
    world.complain(line);
    if (args?.syslog === true) world.log(line);
    return codeOf(error, input);
  }
}

async function run(
  { signal }: ConvertWorld,
  { to, guest, format, xl, skipQemu }: ConvertArguments,
  { source, again }: ConvertInput,
  tmem: Parameters<typeof convert>[0]['tmem'],
): Promise<ConvertResult> {
  return convert({
    from: source,
    again,
    to,
    guest,
    // Not the width: libxl can only guess it, and the image tells.
    // With xl's header, where there is one; a libxc stream behind it nobody could read.
    output: xl && format === 'libxl' ? undefined : format,
    skipQemu,
    tmem,
    // Of a file the end is known.
    heartbeat: again === undefined ? HEARTBEAT : undefined,
    signal,
  });
}

function lineOf(error: unknown, input: ConvertInput | undefined): string {
  const text = errorMessage(error);
  if (!XenMigrationError.is(error)) return `unexpected error: ${text}`;
  const later = error.cleanupErrors.map((one) => `; while cleaning up: ${errorMessage(one)}`).join('');
  // Of what is wrong with the image the place is known better.
  const place =
    input === undefined || error instanceof StreamFormatError ? '' : ` (at offset ${input.source.position})`;
  return text + place + later;
}

function codeOf(error: unknown, input: ConvertInput | undefined): number {
  if (error instanceof CancelledError) return ConvertExit.TERMINATED;
  // Before anything was opened it is about the arguments; later about an image that does not fit to them.
  if (error instanceof UsageError && input === undefined) return ConvertExit.USAGE;
  return XenMigrationError.is(error) ? ConvertExit.STREAM : ConvertExit.USAGE;
}

function summaryOf(result: ConvertResult): string {
  const { guest, width, p2mSize, dataPages, bytesRead, bytesWritten, checkpoints, cutOffAt, tmem } = result;
  const parts = [
    `${guest} guest of a ${width}-bit toolstack, ${p2mSize} frames, ${dataPages} pages`,
    `${bytesRead} bytes read, ${bytesWritten} written`,
  ];
  if (checkpoints > 1) parts.push(`checkpoint ${checkpoints}`);
  if (cutOffAt !== undefined) parts.push(`the next one cut off at offset ${cutOffAt}`);
  if (tmem !== undefined) parts.push(`${tmem.pools.length} tmem pools, ${tmem.dropped} left out`);
  return parts.join('; ');
}
