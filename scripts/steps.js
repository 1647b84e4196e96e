/**
 * Steps of the set-up and of the check: a heading, a quiet command whose log is printed only if it fails, and a
 * stamp that makes the step unnecessary as long as nothing that it depends on has changed.
 *
 * Everything is printed to standard error, so that the output of the program that follows stays clean.
 */
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('..', import.meta.url));

/** Stamps and logs. Not committed; to start afresh, delete it. */
const state = path.join(root, '.setup');

/** A step failed and has said so; the message is for the last line. */
export class StepFailed extends Error {}

/** @param {string} text */
export function say(text) {
  process.stderr.write(`${text}\n`);
}

/** @param {string} text */
export function heading(text) {
  say(process.stderr.isTTY ? `\x1b[1m== ${text}\x1b[0m` : `== ${text}`);
}

/**
 * The environment without what a surrounding `npm run` put into it: its flags (`--json`, `--silent`, `--dry-run`)
 * are not meant for the npm that we call. What says how to reach a registry is kept.
 *
 * @param {NodeJS.ProcessEnv} [from]
 * @returns {NodeJS.ProcessEnv}
 */
export function cleanEnvironment(from = process.env) {
  const kept =
    /^npm_config_(registry|cache|userconfig|globalconfig|nodedir|ca|cafile|strict_ssl|proxy|https_proxy|noproxy|offline|prefer_offline|fetch_.*)$/i;
  /** @type {NodeJS.ProcessEnv} */
  const env = {};
  for (const [name, value] of Object.entries(from)) {
    if (/^npm_/i.test(name) ? kept.test(name) : name !== 'INIT_CWD') env[name] = value;
  }
  // Headers of this Node, so that node-gyp need not download them.
  const prefix = path.dirname(path.dirname(fs.realpathSync(process.execPath)));
  if (
    env['npm_config_nodedir'] === undefined &&
    fs.existsSync(path.join(prefix, 'include/node/node_api.h'))
  ) {
    env['npm_config_nodedir'] = prefix;
  }
  return env;
}

/**
 * Runs a command quietly. Its output goes to .setup/NAME.log and is shown if it fails.
 *
 * @param {string} name name of the log
 * @param {string[]} command
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Promise<void>}
 * @throws StepFailed
 */
export async function quietly(name, command, env = cleanEnvironment()) {
  fs.mkdirSync(state, { recursive: true });
  const log = path.join(state, `${name}.log`);
  const fd = fs.openSync(log, 'w');
  const [program = '', ...args] = command;
  const code = await exitOf(spawn(program, args, { cwd: root, env, stdio: ['ignore', fd, fd] }));
  fs.closeSync(fd);
  if (code === 0) return;
  say(fs.readFileSync(log, 'utf8').trimEnd());
  throw new StepFailed(`${command.join(' ')}: ${typeof code === 'number' ? `exit code ${code}` : code}`);
}

/**
 * Runs a command on this terminal, passing signals on.
 *
 * @param {string[]} command
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Promise<number>} exit code as a shell would tell it
 */
export async function openly(command, env = process.env) {
  const [program = '', ...args] = command;
  const child = spawn(program, args, { cwd: root, env, stdio: 'inherit' });
  // Ctrl-C reaches the child by itself; we only have to outlive it.
  const outlive = () => {};
  /** @param {NodeJS.Signals} signal */
  const pass = (signal) => void child.kill(signal);
  process.on('SIGINT', outlive).on('SIGTERM', pass).on('SIGHUP', pass);
  const code = await exitOf(child);
  process.off('SIGINT', outlive).off('SIGTERM', pass).off('SIGHUP', pass);
  if (typeof code === 'number') return code;
  const numbers = /** @type {Record<string, number>} */ ({ SIGHUP: 1, SIGINT: 2, SIGKILL: 9, SIGTERM: 15 });
  return 128 + (numbers[code] ?? 1);
}

/**
 * @param {import('node:child_process').ChildProcess} child
 * @returns {Promise<number | string>} exit code, or name of the signal, or why it did not start
 */
function exitOf(child) {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('close', (code, signal) => resolve(code ?? signal ?? 'unknown end'));
  });
}

/**
 * @param {string[]} command
 * @returns {string | undefined} standard output, or undefined if it failed
 */
export function ask(command) {
  const [program = '', ...args] = command;
  const { status, stdout } = spawnSync(program, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  return status === 0 ? stdout : undefined;
}

/** @param {string} program */
export function hasProgram(program) {
  return (process.env['PATH'] ?? '').split(':').some((dir) => {
    try {
      fs.accessSync(path.join(dir, program), fs.constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/**
 * A step that is left out if it passed before with the same inputs.
 *
 * @param {string} name
 * @param {{ inputs: string[], facts?: unknown, outputs?: string[] }} needs files and folders of the project that the step
 *   reads, other facts that it depends on, and files that it leaves
 * @param {() => Promise<void>} work
 * @param {boolean} [fresh] do it in any case
 */
export async function stamped(name, needs, work, fresh = false) {
  const stamp = path.join(state, `${name}.stamp`);
  const sum = checksum(needs.inputs, needs.facts);
  const there = (needs.outputs ?? []).every((file) => fs.existsSync(path.join(root, file)));
  if (!fresh && there && fs.existsSync(stamp) && fs.readFileSync(stamp, 'utf8') === sum) {
    say('   unchanged since it passed');
    return;
  }
  fs.rmSync(stamp, { force: true });
  await work();
  fs.mkdirSync(state, { recursive: true });
  fs.writeFileSync(stamp, sum);
}

/**
 * @param {string[]} inputs
 * @param {unknown} facts
 */
function checksum(inputs, facts) {
  const hash = createHash('sha256');
  hash.update(JSON.stringify([process.version, process.arch, facts ?? null]));
  for (const input of inputs) {
    for (const file of filesIn(input).sort()) {
      hash.update(`\0${file}\0`).update(fs.readFileSync(path.join(root, file)));
    }
  }
  return hash.digest('hex');
}

/**
 * @param {string} name
 * @returns {string[]}
 */
function filesIn(name) {
  const full = path.join(root, name);
  const stat = fs.statSync(full, { throwIfNoEntry: false });
  if (stat === undefined) return [];
  if (!stat.isDirectory()) return [name];
  return fs
    .readdirSync(full, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)));
}
