/** Printing. */
import type { Output } from './command.js';

/** Writes lines. */
export function printLines(output: Output, lines: readonly string[]): void {
  if (lines.length > 0) output.write(`${lines.join('\n')}\n`);
}

/** Lines, each indented. Empty ones stay empty. */
export function indent(lines: readonly string[], by = 2): string[] {
  return lines.map((line) => (line === '' ? '' : ' '.repeat(by) + line));
}

/** Writes a value as JSON: `pretty` for a document, else on one line. bigint becomes a string. */
export function printJson(output: Output, value: unknown, pretty = true): void {
  const text = JSON.stringify(
    value,
    (_key, member: unknown) => (typeof member === 'bigint' ? member.toString() : member),
    pretty ? 2 : undefined,
  );
  output.write(`${text}\n`);
}
