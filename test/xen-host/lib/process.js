/** Commands in dom0. */
import { spawn } from 'node:child_process';

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
 * @property {(child: import('node:child_process').ChildProcess) => void} [started]
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
export async function run(command, { fails = false, env, input, signal, cwd, started } = {}) {
  const [program = '', ...args] = command;
  const begin = performance.now();
  const merged = { ...process.env, ...env };
  for (const [name, value] of Object.entries(env ?? {})) if (value === undefined) delete merged[name];
  // A group of its own, so that an abort reaches also what a shell has started.
  const child = spawn(program, args, { env: merged, cwd, detached: true, stdio: ['pipe', 'pipe', 'pipe'] });
  const abort = () => {
    if (child.pid === undefined) return;
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // Gone by itself.
    }
  };
  signal?.addEventListener('abort', abort, { once: true });
  started?.(child);
  /** @type {{ stdout: Buffer[], stderr: Buffer[] }} */
  const wrote = { stdout: [], stderr: [] };
  child.stdout.on('data', (data) => void wrote.stdout.push(data));
  child.stderr.on('data', (data) => void wrote.stderr.push(data));
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
    if (code === 0 || fails) return { code, stdout, stderr, seconds };
    throw new Error(`${command.join(' ')}: exit code ${code}\n${stdout}${stderr}`.trimEnd());
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}
