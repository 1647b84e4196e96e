/** What a finished migration or save tells people: rounds, downtime, proof. Lines, without printing them. */
import type { DowntimeSplit, IterationStats } from '../progress.js';
import type { SaveResult } from '../save/types.js';
import { bytesText, countText, rateText, tableLines, timeText, type Paint } from './format.js';
import { indent } from './print.js';

/** The table of passes. `dirty` is what a pass found to send; holes in memory are in none of the columns. */
export function roundsLines(iterations: readonly IterationStats[], paint: Paint): string[] {
  const head = ['pass', 'dirty', 'sent', 'data', 'time', 'rate', 'guest'].map((cell) => paint.dim(cell));
  const rows = iterations.map((pass) => [
    String(pass.iteration + 1),
    pass.iteration === 0 ? 'all' : countText(pass.dirtyPages),
    `${countText(pass.dataPages)} pages`,
    bytesText(pass.bytes),
    timeText(pass.ms),
    rateText(pass.rate),
    pass.suspended ? paint.bold('stands still') : 'runs',
  ]);
  return tableLines([head, ...rows], ['right', 'right', 'right', 'right', 'right', 'right', 'left']);
}

/** What happened, in a line, and below it the passes and the downtime. */
export function transferLines(
  what: string,
  result: Pick<SaveResult, 'pages' | 'bytes' | 'elapsed' | 'iterations' | 'downtime'>,
  paint: Paint,
): string[] {
  const { pages, bytes, elapsed, iterations, downtime } = result;
  return [
    `${what}: ${countText(pages)} pages, ${bytesText(bytes)} in ${timeText(elapsed)}`,
    '',
    ...indent(roundsLines(iterations, paint)),
    '',
    ...indent(downtimeLines(downtime, paint)),
  ];
}

/** The downtime and what it was spent on. */
export function downtimeLines(downtime: DowntimeSplit, paint: Paint): string[] {
  const parts: [name: string, ms: number, what: string][] = [
    ['suspend', downtime.suspend, 'asking the guest until it stood still'],
    ['last pages', downtime.finalPass, 'what it had written since the last pass'],
    ['state', downtime.state, 'processors, timers, parameters'],
    ['device model', downtime.deviceModel, 'the state of its devices'],
    ['handover', downtime.handover, 'from the last byte until it ran there'],
  ];
  const rest = downtime.total - parts.reduce((sum, [, ms]) => sum + ms, 0);
  if (rest >= 1) parts.push(['the rest', rest, 'writing out, tidying up']);
  const total = [paint.bold('downtime'), paint.bold(timeText(downtime.total)), ''];
  const rows = parts
    .filter(([, ms]) => ms > 0)
    .map(([name, ms, what]) => [`  ${name}`, timeText(ms), paint.dim(what)]);
  return tableLines([total, ...rows], ['left', 'right', 'left']);
}

/** One fact that was proved, or not. */
export interface Fact {
  readonly ok: boolean;
  readonly text: string;
}

/** The list of facts with their marks. */
export function factLines(facts: readonly Fact[], paint: Paint, unicode: boolean): string[] {
  const [yes, no] = unicode ? ['✓', '✗'] : ['ok', 'FAILED'];
  return facts.map(({ ok, text }) => `${ok ? paint.green(yes) : paint.red(no)} ${text}`);
}
