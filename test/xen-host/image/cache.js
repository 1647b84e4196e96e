/**
 * Where the test machine's images are kept: one file for each piece, named by a checksum of all that it is made from,
 * so that a piece is made again exactly when something it depends on has changed. Outside git, and free to be deleted.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { root, say } from '../../../scripts/steps.js';

/** `XEN_MIGRATION_CACHE` lets several check-outs share one; it may be kept between runs of a CI machine. */
export const cache =
  process.env['XEN_MIGRATION_CACHE'] ?? path.join(root, 'node_modules/.cache/xen-migration/xen-host');

/** The folder with what goes into the machine. */
export const here = path.dirname(import.meta.dirname);

/**
 * @param {unknown[]} facts strings, objects, or `file(…)` for what a file holds
 * @returns {string} 12 hexadecimal digits
 */
export function key(...facts) {
  return createHash('sha256').update(JSON.stringify(facts)).digest('hex').slice(0, 12);
}

/** @param {string} name file of test/xen-host, for `key` */
export function file(name) {
  return [name, fs.readFileSync(path.join(here, name), 'utf8')];
}

/**
 * One piece of the image.
 *
 * @param {string} name
 * @param {string} sum what its content depends on, by `key`
 * @param {(target: string, work: string) => Promise<void>} make writes the file `target`; `work` is a fresh folder,
 *   removed afterwards
 * @returns {Promise<string>} the file
 */
export async function piece(name, sum, make) {
  const target = path.join(cache, `${name}-${sum}`);
  if (fs.existsSync(target)) return target;
  return locked(`${name}.lock`, async () => {
    if (fs.existsSync(target)) return target;
    const started = Date.now();
    const work = fs.mkdtempSync(path.join(os.tmpdir(), `xen-host-${name}-`));
    try {
      await make(`${target}.new`, work);
      fs.renameSync(`${target}.new`, target);
    } finally {
      fs.rmSync(work, { recursive: true, force: true });
      fs.rmSync(`${target}.new`, { recursive: true, force: true });
    }
    // Only the newest of each is kept. A machine that runs on an older one has it open.
    for (const other of fs.readdirSync(cache)) {
      if (other !== path.basename(target) && new RegExp(`^${name}-[0-9a-f]{12}$`).test(other)) {
        fs.rmSync(path.join(cache, other), { recursive: true, force: true });
      }
    }
    say(`   made ${name} in ${((Date.now() - started) / 1000).toFixed(0)} s`);
    return target;
  });
}

/**
 * Two processes must not build the same thing at once. A lock whose owner is dead counts as none.
 *
 * @template T
 * @param {string} name
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function locked(name, work) {
  fs.mkdirSync(cache, { recursive: true });
  const lock = path.join(cache, name);
  for (let told = false; ;) {
    try {
      fs.symlinkSync(String(process.pid), lock);
      break;
    } catch (error) {
      if (!(error instanceof Error) || !('code' in error) || error.code !== 'EEXIST') throw error;
    }
    const owner = readLock(lock);
    if (owner !== undefined && !fs.existsSync(`/proc/${owner}`)) {
      fs.rmSync(lock, { force: true });
      continue;
    }
    if (!told) say(`   waiting for process ${owner ?? '?'}, which makes the same`);
    told = true;
    await sleep(500);
  }
  try {
    return await work();
  } finally {
    fs.rmSync(lock, { force: true });
  }
}

/** @param {string} lock */
function readLock(lock) {
  try {
    return fs.readlinkSync(lock);
  } catch {
    return undefined;
  }
}

/**
 * Runs a command and tells what it wrote if it fails.
 *
 * @param {string[]} command
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv, input?: string, output?: string }} [options] `output`: a file for its
 *   standard output
 * @returns {Promise<string>} its standard output, unless that goes to a file
 * @throws Error
 */
export async function run(command, { cwd, env, input, output } = {}) {
  const [program = '', ...args] = command;
  const fd = output === undefined ? undefined : fs.openSync(output, 'w');
  const child = spawn(program, args, {
    cwd,
    env: { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, ...env },
    stdio: ['pipe', fd ?? 'pipe', 'pipe'],
  });
  if (fd !== undefined) fs.closeSync(fd);
  /** @type {Buffer[]} */
  const out = [];
  /** @type {Buffer[]} */
  const log = [];
  child.stdout?.on('data', (data) => {
    out.push(data);
    log.push(data);
  });
  child.stderr?.on('data', (data) => void log.push(data));
  child.stdin?.on('error', () => {}); // a program that reads no input
  child.stdin?.end(input);
  const code = await new Promise((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('close', (status, signal) => resolve(status ?? signal));
  });
  if (code === 0) return Buffer.concat(out).toString();
  throw new Error(
    `${command.join(' ').slice(0, 300)}: ${code}\n${Buffer.concat(log).toString().slice(-4000)}`,
  );
}
