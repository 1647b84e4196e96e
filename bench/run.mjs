#!/usr/bin/env node
/**
 * `npm run bench [-- name…]`: ratios of this library to the least that the machine could do for the same bytes, taken
 * turn by turn in one run, because absolute figures of a shared machine say little.
 *
 * Each bench/*.bench.mjs exports `name`, `about` and `run()`, which resolves to rows
 * `{ what, value, baseline, ratio, bar }`: value and baseline as text with units, ratio a number where more is better,
 * bar the least ratio that the project promises (undefined: shown for information). `atMost: true` turns the bar round.
 */
import { readdirSync } from 'node:fs';
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'boolean', default: false }, strict: { type: 'boolean', default: false } },
});

const folder = new URL('.', import.meta.url);
const files = readdirSync(folder)
  .filter((file) => file.endsWith('.bench.mjs'))
  .sort();

const rows = [];
for (const file of files) {
  const bench = await import(new URL(file, folder).href);
  if (positionals.length > 0 && !positionals.includes(bench.name)) continue;
  process.stderr.write(`${bench.name}: ${bench.about}\n`);
  for (const row of await bench.run()) rows.push({ bench: bench.name, ...row });
}
if (rows.length === 0) {
  process.stderr.write(`no such benchmark: ${positionals.join(' ')}\n`);
  process.exit(2);
}

const met = (row) =>
  row.bar === undefined ? undefined : row.atMost === true ? row.ratio <= row.bar : row.ratio >= row.bar;

if (values.json) {
  console.log(JSON.stringify(rows, undefined, 2));
} else {
  const table = [['benchmark', 'what', 'ours', 'baseline', 'ratio', 'bar', '']].concat(
    rows.map((row) => [
      row.bench,
      row.what,
      row.value,
      row.baseline,
      row.ratio === undefined ? '' : row.ratio.toFixed(2),
      row.bar === undefined ? '' : `${row.atMost === true ? '≤' : '≥'} ${row.bar}`,
      met(row) === undefined ? '' : met(row) ? 'met' : 'MISSED',
    ]),
  );
  const width = table[0].map((_, c) => Math.max(...table.map((cells) => cells[c].length)));
  for (const [i, cells] of table.entries()) {
    console.log(
      cells
        .map((cell, c) => cell.padEnd(width[c]))
        .join('  ')
        .trimEnd(),
    );
    if (i === 0) console.log(width.map((w) => '─'.repeat(w)).join('  '));
  }
}
if (values.strict && rows.some((row) => met(row) === false)) process.exitCode = 1;
