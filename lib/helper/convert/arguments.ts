/**
 * The argument vector that libxl gives its convert helper (libxl_convert_callout.c):
 *
 *     --in FD --out FD --width 64|32 --guest hvm|pv --format libxl
 *
 * and what convert-legacy-stream of xen-utils takes beside that, in the manner of Python's optparse: short and long
 * options, `--option=value`, and the beginning of an option's name where it is that of no other.
 */
import { UsageError } from '../../errors.js';

export interface ConvertArguments {
  /** A descriptor, or a path. */
  readonly from: number | string;
  readonly to: number | string;
  /** Bits of the word of the toolstack that wrote the image. libxl can only tell its own; the image knows better. */
  readonly width: 32 | 64;
  readonly guest: 'pv' | 'hvm';
  readonly format: 'libxc' | 'libxl';
  /** xl's header stands before the image, and shall stand before the stream. */
  readonly xl: boolean;
  /** libxc: without QEMU's record behind the stream. */
  readonly skipQemu: boolean;
  readonly verbose: boolean;
  readonly syslog: boolean;
}

type Name =
  'in' | 'out' | 'width' | 'guest-type' | 'format' | 'verbose' | 'xl' | 'skip-qemu' | 'syslog' | 'help';

/** Long name, short one, and whether a value follows. */
const options: readonly (readonly [name: Name, short: string | undefined, value: boolean])[] = [
  ['in', 'i', true],
  ['out', 'o', true],
  ['width', 'w', true],
  ['guest-type', 'g', true],
  ['format', 'f', true],
  ['verbose', 'v', false],
  ['xl', 'x', false],
  ['skip-qemu', undefined, false],
  ['syslog', undefined, false],
  ['help', 'h', false],
];

export const CONVERT_USAGE = `usage: xen-migrate-convert-helper -i INPUT -o OUTPUT -w 32|64 -g pv|hvm [options]

libxl's helper for legacy (v1) images: give its path to xl as LIBXL_CONVERT_HELPER. At a shell, xen-migrate convert does
the same with fewer words.

  -i, --in FD|FILE      legacy image; of a file that is open, from where it stands
  -o, --out FD|FILE     v2 stream
  -w, --width BITS      word size of the toolstack that wrote the image: 32 or 64; where it is the other one, so be it
  -g, --guest-type KIND pv or hvm
  -f, --format FORM     libxc (default) or libxl
  -x, --xl              xl's header stands before the image, and goes before a libxl stream
      --skip-qemu       libxc: leave QEMU's record out
  -v, --verbose         tell what it was, on standard error
      --syslog          errors to syslog too
  -h, --help            print this text

XEN_MIGRATE_TMEM=refuse|drop-ephemeral|export=FOLDER says what becomes of tmem.
Exit code: 0 done, 1 the image or its input or output, 2 wrong arguments.
`;

/** Reads `process.argv.slice(2)`. Undefined if help is asked for. Throws UsageError. */
export function parseConvertArguments(argv: readonly string[]): ConvertArguments | undefined {
  const given = new Map<Name, string>();
  const rest = [...argv];
  const valueOf = (option: string): string => {
    const value = rest.shift();
    if (value === undefined) throw new UsageError(`${option} requires a value`);
    return value;
  };
  for (let word = rest.shift(); word !== undefined; word = rest.shift()) {
    const long = /^--([^=]+)(?:=(.*))?$/s.exec(word);
    if (long !== null) {
      const [name, , takes] = longOption(long[1] as string);
      const attached = long[2];
      if (!takes && attached !== undefined) throw new UsageError(`--${name} takes no value`);
      given.set(name, takes ? (attached ?? valueOf(`--${name}`)) : '');
    } else if (/^-[^-]/.test(word)) {
      // -vx, -i5, -i 5
      for (let at = 1; at < word.length; at++) {
        const letter = word[at] as string;
        const option = options.find(([, short]) => short === letter);
        if (option === undefined) throw new UsageError(`there is no option -${letter}`);
        const [name, , takes] = option;
        given.set(name, takes ? word.slice(at + 1) || valueOf(`-${letter}`) : '');
        if (takes) break;
      }
    } else {
      throw new UsageError(`"${word}" is no option`);
    }
  }
  return given.has('help') ? undefined : checked(given);
}

function longOption(text: string): (typeof options)[number] {
  const whole = options.find(([name]) => name === text);
  if (whole !== undefined) return whole;
  const [first, second] = options.filter(([name]) => name.startsWith(text));
  if (first === undefined) throw new UsageError(`there is no option --${text}`);
  if (second !== undefined) throw new UsageError(`--${text} is the beginning of several options`);
  return first;
}

function checked(given: ReadonlyMap<Name, string>): ConvertArguments {
  const required = (name: Name): string => {
    const value = given.get(name);
    if (value === undefined) {
      const hint =
        "this is libxl's helper for legacy images: give its path to xl as LIBXL_CONVERT_HELPER, or see --help";
      throw new UsageError(`--${name} is missing: ${hint}`);
    }
    return value;
  };
  const from = fileOf(required('in'));
  const to = fileOf(required('out'));
  const width = choice(required('width'), '--width', ['32', '64']);
  const guest = choice(required('guest-type'), '--guest-type', ['pv', 'hvm']);
  const format = choice(given.get('format') ?? 'libxc', '--format', ['libxc', 'libxl']);
  return {
    from,
    to,
    width: width === '32' ? 32 : 64,
    guest,
    format,
    xl: given.has('xl'),
    skipQemu: given.has('skip-qemu'),
    verbose: given.has('verbose'),
    syslog: given.has('syslog'),
  };
}

/** What looks like a decimal number is a descriptor. */
function fileOf(text: string): number | string {
  if (text === '') throw new UsageError('the name of a file is empty');
  if (/^\d{1,9}$/.test(text)) return Number(text);
  // Elsewhere in this package it stands for the standard input or output.
  return text === '-' ? './-' : text;
}

function choice<const T extends string>(text: string, option: string, choices: readonly T[]): T {
  const found = choices.find((one) => one === text);
  if (found === undefined) throw new UsageError(`${option}: "${text}" is none of ${choices.join(', ')}`);
  return found;
}
