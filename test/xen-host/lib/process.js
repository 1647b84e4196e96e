/** Commands in dom0. */
import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * @typedef {object} Outcome
 * @property {number} code as a shell tells it: 128 + number for a signal
 * @property {string} stdout
 * @property {string} stderr
 * @property {number} seconds
 *
 * @typedef {object} RunOptions
 * @property {boolean} [fails] a code other than 0 is an answer, not an error
 * @property {Record<string, string | undefined>} [env] added to the environment; undefined: taken from it
 * @property {string | Uint8Array} [input]
 * @property {AbortSignal} [signal]
 * @property {string} [cwd]
 * @property {(child: import('node:child_process').ChildProcess) => void} [started] not at the other host of a pair
 * @property {(kill: (signal: NodeJS.Signals) => void) => void} [running] is given what sends a signal to its processes
 * @property {(data: Buffer) => void} [output] all that it writes, as it comes
 */

const numbers = /** @type {Record<string, number>} */ ({
  SIGHUP: 1,
  SIGINT: 2,
  SIGABRT: 6,
  SIGKILL: 9,
  SIGSEGV: 11,
  SIGTERM: 15,
});

/**
 * Runs a command to its end.
 *
 * @param {readonly string[]} command
 * @param {RunOptions} [options]
 * @returns {Promise<Outcome>}
 * @throws Error with all that it wrote, if it fails
 */
export async function run(command, options = {}) {
  const { fails = false, env, input, signal, cwd, started, running, output } = options;
  const [program = '', ...args] = command;
  const begin = performance.now();
  const merged = { ...process.env, ...env };
  for (const [name, value] of Object.entries(env ?? {})) if (value === undefined) delete merged[name];
  // A group of its own, so that an abort reaches also what a shell has started.
  const child = spawn(program, args, { env: merged, cwd, detached: true, stdio: ['pipe', 'pipe', 'pipe'] });
  /** @param {NodeJS.Signals} name */
  const kill = (name) => {
    if (child.pid === undefined) return;
    try {
      process.kill(-child.pid, name);
    } catch {
      // Gone by itself.
    }
  };
  const abort = () => void kill('SIGKILL');
  signal?.addEventListener('abort', abort, { once: true });
  started?.(child);
  running?.(kill);
  /** @type {{ stdout: Buffer[], stderr: Buffer[] }} */
  const wrote = { stdout: [], stderr: [] };
  for (const name of /** @type {const} */ (['stdout', 'stderr'])) {
    child[name].on('data', (data) => {
      wrote[name].push(data);
      output?.(data);
    });
  }
  child.stdin.on('error', () => {}); // a command that reads no input
  child.stdin.end(input);
  try {
    const code = await new Promise((resolve, reject) => {
      child.once('error', reject);
      // `exit`, for a daemon left behind keeps the pipes open; a moment for what is still in them.
      child.once('exit', (status, name) =>
        setTimeout(() => resolve(status ?? 128 + (numbers[name ?? ''] ?? 0)), 20),
      );
      child.once('close', (status, name) => resolve(status ?? 128 + (numbers[name ?? ''] ?? 0)));
    });
    const seconds = (performance.now() - begin) / 1000;
    const stdout = Buffer.concat(wrote.stdout).toString();
    const stderr = Buffer.concat(wrote.stderr).toString();
    signal?.throwIfAborted();
    return outcome(command, { code, stdout, stderr, seconds }, fails);
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}

/**
 * @param {readonly string[]} command
 * @param {Outcome} told
 * @param {boolean} fails
 * @returns {Outcome}
 */
export function outcome(command, told, fails) {
  if (told.code === 0 || fails) return told;
  throw new Error(`${command.join(' ')}: exit code ${told.code}\n${told.stdout}${told.stderr}`.trimEnd());
}

/** A command in the background. It ends with the scenario at the latest. */
export class Background {
  /** All that it has written by now, standard output and error as they came. */
  output = '';

  /** @type {Promise<Outcome>} rejects only if the command could not be run, or the scenario has ended */
  ended;

  /** @type {Promise<unknown>} settled when it has started, or never will */
  #started;

  /** @type {Outcome | undefined} once it has ended */
  outcome;

  #over = false;
  #text = new TextDecoder();
  /** @type {(signal: NodeJS.Signals) => void} */
  #kill = () => {};

  /**
   * @param {readonly string[]} command
   * @param {RunOptions} options
   * @param {(command: readonly string[], options: RunOptions) => Promise<Outcome>} run
   */
  constructor(command, options, run) {
    this.command = command;
    /** @type {(value?: undefined) => void} */
    let begun = () => {};
    const started = new Promise((resolve) => (begun = resolve));
    const running = run(command, {
      ...options,
      fails: true,
      output: (data) => {
        this.output += this.#text.decode(data, { stream: true });
        options.output?.(data);
      },
      running: (kill) => {
        this.#kill = kill;
        begun();
      },
    });
    this.ended = running.then((told) => (this.outcome = told));
    const ended = this.ended.catch(() => {}).then(() => (this.#over = true));
    this.#started = Promise.race([started, ended]);
  }

  /**
   * Waits for a line, or a part of one, in what it writes.
   *
   * @param {RegExp} pattern
   * @param {{ seconds?: number }} [options]
   * @returns {Promise<RegExpMatchArray>}
   * @throws Error with all that it wrote, if it ends without or takes longer
   */
  async waitFor(pattern, { seconds = 120 } = {}) {
    for (const end = performance.now() + seconds * 1000; ;) {
      const ended = this.outcome !== undefined;
      const match = this.output.match(pattern);
      if (match !== null) return match;
      const what = `${this.command.join(' ')}: ${pattern.source} did not come`;
      if (ended) throw new Error(`${what}; exit code ${this.outcome?.code}\n${this.output}`);
      if (performance.now() > end) throw new Error(`${what} in ${seconds} s\n${this.output}`);
      // As soon as it cannot be run, or after a moment.
      await Promise.race([this.ended, sleep(50)]);
    }
  }

  /**
   * Sends a signal to its processes: to all that it has started, but daemons.
   *
   * @param {NodeJS.Signals} [signal]
   */
  async kill(signal = 'SIGTERM') {
    await this.#started;
    if (!this.#over) this.#kill(signal);
  }

  /**
   * SIGTERM, and SIGKILL if that has not ended it.
   *
   * @param {number} [seconds] between the two
   * @returns {Promise<Outcome>}
   */
  async stop(seconds = 10) {
    await this.kill();
    const late = new AbortController();
    const timer = sleep(seconds * 1000, undefined, { signal: late.signal }).then(
      () => this.kill('SIGKILL'),
      () => {},
    );
    try {
      return await this.ended;
    } finally {
      late.abort();
      await timer;
    }
  }
}
