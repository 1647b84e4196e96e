/** Numbers, times and tables for people. */

const SIZES = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;

/** `512 MiB`, `15.2 MiB`, `96 bytes`. Three significant figures. */
export function bytesText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < SIZES.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${threeFigures(value, unit === 0)} ${SIZES[unit] as string}`;
}

/** `196 MiB/s`. */
export function rateText(bytesPerSecond: number): string {
  return `${bytesText(bytesPerSecond)}/s`;
}

/** `131,072`. */
export function countText(count: number): string {
  return Math.round(count).toLocaleString('en-US');
}

/** `38.4 ms`, `2.61 s`, `3 min 20 s`. */
export function timeText(ms: number): string {
  if (ms < 999.5) return `${threeFigures(ms, false)} ms`;
  const s = ms / 1000;
  if (s < 120) return `${threeFigures(s, false)} s`;
  return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

function threeFigures(value: number, whole: boolean): string {
  if (whole || value >= 99.95 || Number.isInteger(value)) return value.toFixed(0);
  return value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}

const ESCAPES = /\u001b\[[0-9;]*m/g; // eslint-disable-line no-control-regex -- escape sequences take no room

/** Columns that a text takes on a terminal: colours take none. */
export function widthOf(text: string): number {
  return plainText(text).length;
}

/** The text without its colours. */
export function plainText(text: string): string {
  return text.replace(ESCAPES, '');
}

/** The text in lines of at most so many columns, broken at blanks. A word that is longer stands alone. */
export function wrapped(text: string, columns: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const last = lines.at(-1);
    if (last === undefined || widthOf(last) + 1 + widthOf(word) > columns) lines.push(word);
    else lines[lines.length - 1] = `${last} ${word}`;
  }
  return lines;
}

/** How a column stands. */
export type Align = 'left' | 'right';

/** Lines of a table with aligned columns, without trailing blanks. */
export function tableLines(rows: readonly (readonly string[])[], align: readonly Align[], gap = 3): string[] {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, i) => (widths[i] = Math.max(widths[i] ?? 0, widthOf(cell))));
  }
  return rows.map((row) =>
    row
      .map((cell, i) => {
        const pad = ' '.repeat((widths[i] as number) - widthOf(cell));
        return align[i] === 'right' ? pad + cell : cell + pad;
      })
      .join(' '.repeat(gap))
      .trimEnd(),
  );
}

/** Text attributes of a terminal, or none of them. */
export interface Paint {
  readonly bold: (text: string) => string;
  readonly dim: (text: string) => string;
  readonly green: (text: string) => string;
  readonly red: (text: string) => string;
  readonly cyan: (text: string) => string;
}

const plain = (text: string): string => text;
const sgr =
  (on: number, off: number) =>
  (text: string): string =>
    `\u001b[${on}m${text}\u001b[${off}m`;

const coloured: Paint = {
  bold: sgr(1, 22),
  dim: sgr(2, 22),
  green: sgr(32, 39),
  red: sgr(31, 39),
  cyan: sgr(36, 39),
};
const uncoloured: Paint = { bold: plain, dim: plain, green: plain, red: plain, cyan: plain };

/** Colours if the output is a terminal and nobody objects (`NO_COLOR`, `TERM=dumb`). */
export function paintFor(
  output: { readonly isTTY?: boolean | undefined },
  env: Readonly<Record<string, string | undefined>>,
): Paint {
  const wanted = output.isTTY === true && (env['NO_COLOR'] ?? '') === '' && env['TERM'] !== 'dumb';
  return wanted ? coloured : uncoloured;
}

/** True if the locale says that characters beyond ASCII arrive. */
export function speaksUnicode(env: Readonly<Record<string, string | undefined>>): boolean {
  const locale = [env['LC_ALL'], env['LC_CTYPE'], env['LANG']].find((value) => (value ?? '') !== '');
  return /utf-?8/i.test(locale ?? '');
}
