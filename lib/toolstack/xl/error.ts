import { printable } from '../../bytes/printable.js';
import { XenMigrationError, type ErrorFacts } from '../../errors.js';

/** Facts of an XlError. */
export interface XlFacts extends ErrorFacts {
  /** Undefined if xl was not started, or was ended by a signal. */
  readonly exitCode?: number | undefined;
  readonly stderr?: string | undefined;
}

/** xl failed, or this host has none. */
export class XlError extends XenMigrationError {
  override readonly name = 'XlError';
  /** What was run: `xl destroy 5`. */
  readonly command: string;
  readonly exitCode: number | undefined;
  /** The end of what it wrote to its standard error, as it came. */
  readonly stderr: string;

  constructor(
    code: 'ERR_XEN_XL' | 'ERR_XEN_XL_MISSING',
    command: string,
    message: string,
    facts: XlFacts = {},
  ) {
    super(code, message, facts);
    this.command = command;
    this.exitCode = facts.exitCode;
    this.stderr = facts.stderr ?? '';
  }
}

/** What a failed xl says of itself on every run. */
const CHATTER = /^(xc: (progress|info|detail|debug)|Parsing config|Loading new save file| Savefile contains)/;
const LINES = 3;
const LINE_MAX = 300;

/** The end of what xl said, for a message: the last lines that are none of its usual ones. */
export function lastWords(stderr: string): string {
  const lines = stderr
    .split(/[\r\n]+/)
    .filter((line) => line.trim() !== '' && !CHATTER.test(line))
    .slice(-LINES)
    .map((line) => printable(line.trim().slice(0, LINE_MAX)));
  return lines.length === 0 ? 'it did not say why' : lines.join('; ');
}
