/** Progress while it happens: redrawn lines on a terminal, a line now and then elsewhere. */
import type { JobPhase, Progress } from '../progress.js';
import type { CommandIo, Output } from './command.js';
import {
  bytesText,
  countText,
  paintFor,
  rateText,
  speaksUnicode,
  plainText,
  timeText,
  widthOf,
  type Paint,
} from './format.js';

const UP = (lines: number): string => (lines > 0 ? `\u001b[${lines}A` : '');
const CLEAR_BELOW = '\r\u001b[J';

/** Columns of the bar. */
const BAR = 24;
/** ms between two lines where lines cannot be redrawn: the longer it takes, the fewer, so that a log stays readable. */
const PLAIN_INTERVAL = { least: 1000, most: 30_000, share: 0.1 } as const;

const phases: Readonly<Record<JobPhase, string>> = {
  queued: 'waiting for its turn',
  setup: 'getting ready',
  'static-data': 'sending what does not change',
  'pre-copy': 'copying while the guest runs',
  'pre-switchover': 'waiting for leave to switch over',
  suspend: 'asking the guest to suspend',
  'stop-and-copy': 'last pages, the guest stands still',
  verify: 'sending all pages again to compare',
  state: 'sending processor and device state',
  memory: 'receiving memory',
  complete: 'sending the end',
  handshake: 'handing over',
  cleanup: 'tidying up',
  done: 'done',
};

/** Of a conversion, in place of those above. */
const converting: Partial<Record<JobPhase, string>> = {
  memory: 'converting memory',
  state: 'converting processor and device state',
  complete: 'writing the end',
};

function phaseText({ operation, phase }: Progress): string {
  return (operation === 'convert' ? converting[phase] : undefined) ?? phases[phase];
}

/** Phases that are over at once; a log need not name them. */
const quiet: ReadonlySet<JobPhase> = new Set([
  'setup',
  'static-data',
  'state',
  'complete',
  'cleanup',
  'done',
]);

/** Shows a job's progress on an output. Give `show` as `onProgress`. */
export class LiveView {
  readonly #output: Output;
  readonly #redraw: boolean;
  readonly #paint: Paint;
  readonly #bar: readonly [full: string, empty: string];
  readonly #guestPages: number | undefined;
  readonly #streamBytes: number | undefined;
  #drawn = 0;
  readonly #startedAt = performance.now();
  #saidAt = -Infinity;
  #saidPhase: JobPhase | undefined;
  #iteration = -1;
  /** Pages of the present pass. */
  #toSend = 0;

  /**
   * @param guestPages Pages that the guest has, if known: most of a p2m may be holes, which take no time
   * @param streamBytes Bytes of the stream that is converted, if known
   */
  constructor(io: CommandIo, guestPages?: number, streamBytes?: number) {
    this.#guestPages = guestPages;
    this.#streamBytes = streamBytes;
    this.#output = io.stderr;
    this.#redraw = io.stderr.isTTY === true && io.env['TERM'] !== 'dumb';
    this.#paint = paintFor(io.stderr, io.env);
    this.#bar = speaksUnicode(io.env) ? ['█', '░'] : ['#', '.'];
  }

  readonly show = (progress: Progress): void => {
    if (progress.state !== 'active') return;
    if (progress.iteration !== this.#iteration) {
      this.#iteration = progress.iteration;
      this.#toSend = progress.remaining ?? progress.total ?? 0;
    }
    this.#toSend = Math.max(this.#toSend, progress.remaining ?? 0);
    if (this.#redraw) this.#draw(this.#lines(progress));
    else this.#say(progress);
  };

  /** Takes the redrawn lines away, so that what follows stands in their place. */
  clear(): void {
    if (this.#drawn > 0) this.#output.write(UP(this.#drawn) + CLEAR_BELOW);
    this.#drawn = 0;
  }

  #draw(lines: readonly string[]): void {
    const columns = (this.#output.columns ?? 80) - 1;
    // A line that wraps could not be taken back. Colours are not worth cutting around.
    const fitting = lines.map((line) =>
      widthOf(line) <= columns ? line : plainText(line).slice(0, columns),
    );
    this.#output.write(`${UP(this.#drawn)}${CLEAR_BELOW}${fitting.join('\n')}\n`);
    this.#drawn = fitting.length;
  }

  #lines(progress: Progress): string[] {
    const { bold, dim, cyan } = this.#paint;
    const [full, empty] = this.#bar;
    const share = this.#share(progress);
    const blocks = Math.round((share ?? 0) * BAR);
    const bar = cyan(full.repeat(blocks)) + dim(empty.repeat(BAR - blocks));
    const percent = `${Math.floor((share ?? 0) * 100)} %`.padStart(5);
    const pass = isReceiving(progress) ? 'memory' : `pass ${progress.iteration + 1}`;
    return [
      '',
      `  ${bold(pass.padEnd(7))} ${bar} ${percent}   ${phaseText(progress)}`,
      `          ${this.#sent(progress)}`,
      `          ${dim(this.#outlook(progress))}`,
    ];
  }

  #sent(progress: Progress): string {
    const { pages, transferred, rate } = progress;
    return `${countText(pages)} pages, ${bytesText(transferred)} ${rate > 0 ? `at ${rateText(rate)}` : ''}`.trimEnd();
  }

  #outlook(progress: Progress): string {
    const { dirtyPagesRate, expectedDowntime } = progress;
    const parts: string[] = [];
    if (dirtyPagesRate !== undefined) parts.push(`guest dirties ${countText(dirtyPagesRate)} pages/s`);
    if (expectedDowntime !== undefined) parts.push(`would now stand still for ${timeText(expectedDowntime)}`);
    return parts.join(', ');
  }

  /** Part of this pass that is done, 0…1. */
  #share(progress: Progress): number | undefined {
    const { operation, remaining, total, pages, iteration, transferred } = progress;
    // Both forms of a guest are about as long.
    if (operation === 'convert') {
      return this.#streamBytes === undefined ? undefined : Math.min(1, transferred / this.#streamBytes);
    }
    if (isReceiving(progress) || (iteration === 0 && this.#guestPages !== undefined)) {
      const all = this.#guestPages ?? total ?? 0;
      return all === 0 ? undefined : Math.min(1, pages / all);
    }
    return remaining === undefined || this.#toSend === 0 ? undefined : 1 - remaining / this.#toSend;
  }

  #interval(at: number): number {
    const { least, most, share } = PLAIN_INTERVAL;
    return Math.min(most, Math.max(least, (at - this.#startedAt) * share));
  }

  /** A phase's beginning is said at once, the course of it now and then. */
  #say(progress: Progress): void {
    const at = performance.now();
    const fresh = progress.phase !== this.#saidPhase;
    const talkative =
      progress.phase === 'pre-copy' || progress.phase === 'memory' || progress.phase === 'stop-and-copy';
    if (!fresh && (!talkative || at - this.#saidAt < this.#interval(at))) return;
    this.#saidAt = at;
    this.#saidPhase = progress.phase;
    if (fresh && quiet.has(progress.phase)) return;
    const share = this.#share(progress);
    const pass = `pass ${progress.iteration + 1}, `;
    const percent = share === undefined ? '' : `${Math.floor(share * 100)} %, `;
    const receiving = isReceiving(progress);
    const details = fresh ? '' : `: ${receiving ? '' : pass}${percent}${this.#sent(progress)}`;
    this.#output.write(`${phaseText(progress)}${details}\n`);
  }
}

function isReceiving({ operation }: Progress): boolean {
  return operation === 'receive' || operation === 'restore' || operation === 'convert';
}

/** Shows nothing: for `--json` and `--quiet`. */
export const noView: Pick<LiveView, 'show' | 'clear'> = {
  show: () => undefined,
  clear: () => undefined,
};
