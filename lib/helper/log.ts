/** What the helper has to say, as messages to libxl: log lines and xl's progress display. */
import type { Progress } from '../progress.js';
import type { Channel } from './channel.js';
import { encodeLog, encodeProgress, LogLevel } from './protocol.js';

/** Who speaks: libxl's own helper under its name, and libxenctrl. */
const OWN_CONTEXT = 'libxl-save-helper';
const XC_CONTEXT = 'xc';

/** Log lines, with the contexts that the stock helper has. */
export class HelperLog {
  readonly #channel: Channel;

  constructor(channel: Channel) {
    this.#channel = channel;
  }

  /** A line of the helper itself. */
  own(level: LogLevel, text: string, errno?: number): void {
    this.#channel.send(encodeLog(level, errno, OWN_CONTEXT, text));
  }

  /** A line of the save or restore, or of libxenctrl. */
  xc(level: LogLevel, text: string, errno?: number): void {
    this.#channel.send(encodeLog(level, errno, XC_CONTEXT, text));
  }

  /** A line of libxenctrl, whose level is any number: libxl aborts on one that does not exist. */
  library(level: number, text: string): void {
    const known = Object.values(LogLevel).find((value) => value === level);
    this.xc(known ?? LogLevel.NOTICE, text);
  }

  /** An error with what caused it and what failed afterwards. */
  failure(error: unknown, errno: number): void {
    this.xc(LogLevel.ERROR, textOf(error), errno === 0 ? undefined : errno);
    const { cleanupErrors } = error as { cleanupErrors?: readonly unknown[] };
    for (const later of cleanupErrors ?? []) this.xc(LogLevel.ERROR, `afterwards: ${textOf(later)}`);
    let { cause } = error as { cause?: unknown };
    for (let depth = 0; cause !== undefined && depth < 8; depth++) {
      this.xc(LogLevel.DETAIL, `because of: ${textOf(cause)}`);
      ({ cause } = Object(cause) as { cause?: unknown });
    }
  }
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * A save's progress, in the words that xl's display knows. One message for each per cent: xl prints a line for every
 * fifth, or every one if asked to be verbose, and drops all between them.
 */
export class SaveProgress {
  readonly #channel: Channel;
  readonly #live: boolean;
  #phase: Progress['phase'] = 'setup';
  #pass = '';
  #total = 0;
  #percent = 0;

  constructor(channel: Channel, live: boolean) {
    this.#channel = channel;
    this.#live = live;
  }

  /** Takes each report of the job; wants them all. */
  readonly report = (progress: Progress): void => {
    const { phase, iteration, remaining } = progress;
    if (phase !== this.#phase) this.#enter(phase);
    if (remaining === undefined) return;
    if (phase === 'pre-copy') this.#pages(`Frames iteration ${iteration}`, remaining);
    else if (phase === 'stop-and-copy') {
      this.#pages(this.#live ? `Frames iteration ${iteration}` : 'Frames', remaining);
    } else if (phase === 'verify') this.#pages('Frames verify', remaining);
  };

  #enter(phase: Progress['phase']): void {
    // The stock helper has a line for the final pass of a guest that dirtied nothing, too.
    if (this.#phase === 'stop-and-copy' && this.#total === 0 && this.#pass !== '') {
      this.#channel.send(encodeProgress(XC_CONTEXT, this.#pass, 0, 0));
    }
    this.#phase = phase;
    this.#pass = '';
    this.#total = 0;
    if (phase === 'static-data') this.#single('Start of stream');
    else if (phase === 'stop-and-copy') this.#single('Domain now suspended');
    else if (phase === 'complete') {
      this.#single('End of stream');
      this.#single('Complete');
    }
  }

  #pages(pass: string, remaining: number): void {
    if (pass !== this.#pass || remaining > this.#total) {
      // The first report of a pass says how much there is.
      this.#pass = pass;
      this.#total = remaining;
      this.#percent = 0;
      return;
    }
    // The last report of a pass may come again.
    if (this.#total === 0 || this.#percent === 100) return;
    const done = Math.max(0, this.#total - remaining);
    const percent = Math.floor((done * 100) / this.#total);
    if (percent <= this.#percent) return;
    this.#percent = percent;
    this.#channel.send(encodeProgress(XC_CONTEXT, pass, done, this.#total));
  }

  #single(what: string): void {
    this.#channel.send(encodeProgress(XC_CONTEXT, what, 0, 0));
  }
}
