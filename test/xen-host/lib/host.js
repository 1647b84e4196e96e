/** What a scenario can do at a host: at its own, and in the same way at the other of a pair (peer.js). */
import fs from 'node:fs';
import path from 'node:path';
import { Background } from './process.js';

/**
 * @typedef {import('./process.js').RunOptions} RunOptions
 * @typedef {import('./process.js').Outcome} Outcome
 *
 * @typedef {RunOptions & { helper?: string }} XlOptions `helper`: program to be used as LIBXL_SAVE_HELPER; without it,
 *   Xen's own
 */

export const project = '/project';

/** What the kernel says of processes that died of a fault, and of itself. */
const faulty = /segfault|general protection|traps:|Oops|BUG:/;

export class Host {
  /** Where consoles of guests are logged; both are paths at the host where the scenario runs. */
  consoles = '/var/log/xen/console';

  /** Its address on the network that joins two hosts, and its name. */
  address = '10.17.0.1';
  hostname = 'xen-host-1';

  /** @type {Set<Background>} */
  #background = new Set();

  /** @param {AbortSignal} signal aborts when the scenario has failed or takes too long */
  constructor(signal) {
    this.signal = signal;
  }

  /**
   * Runs a command; it fails as the scenario does if its exit code is not 0, and ends with the scenario.
   *
   * @param {readonly string[]} command
   * @param {RunOptions} [options]
   * @returns {Promise<Outcome>}
   */
  run(command, options) {
    void options;
    throw new Error(`${command.join(' ')}: it is for each host to say how`);
  }

  /**
   * Starts a command in the background. Its exit code fails nothing.
   *
   * @param {readonly string[]} command
   * @param {RunOptions} [options]
   */
  start(command, options = {}) {
    const background = new Background(command, options, (what, how) => this.run(what, how));
    this.#background.add(background);
    return background;
  }

  /**
   * @param {string} script for bash
   * @param {RunOptions} [options]
   */
  sh(script, options = {}) {
    return this.run(['bash', '-c', script], options);
  }

  /**
   * Stock xl.
   *
   * @param {readonly string[]} args
   * @param {XlOptions} [options]
   */
  xl(args, { helper, env, ...options } = {}) {
    return this.run(['xl', ...args], { ...options, env: { LIBXL_SAVE_HELPER: helper, ...env } });
  }

  /**
   * A TCP server, in the background, that starts a command for each connection: its standard input and output. It listens
   * when this returns.
   *
   * @param {number} port at `address`
   * @param {readonly string[]} command such as `['xl', 'migrate-receive']`
   * @param {RunOptions} [options]
   */
  async serve(port, command, options) {
    const server = path.join(project, 'test/xen-host/lib/serve.js');
    const serving = this.start(['node', server, `${this.address}:${port}`, ...command], options);
    await serving.waitFor(/^serve: listening$/m);
    return serving;
  }

  /**
   * A program of this project, named as in package.json.
   *
   * @param {string} name
   * @returns {string} path
   */
  bin(name) {
    const { bin } = JSON.parse(fs.readFileSync(path.join(project, 'package.json'), 'utf8'));
    if (bin[name] === undefined) throw new Error(`package.json names no program ${name}`);
    return path.join(project, bin[name]);
  }

  /** Our save helper, for `xl(…, { helper: t.helper })`. */
  get helper() {
    return this.bin('xen-migrate-save-helper');
  }

  /**
   * All but dom0. A domain that is dying is none any more: it only waits until xenstored, xenconsoled and back ends have given
   * back its last pages.
   *
   * @returns {Promise<{ name: string, id: number, memory: number, vcpus: number, state: string }[]>}
   */
  async domains() {
    const { stdout } = await this.run(['xl', 'list']);
    return [...stdout.matchAll(/^(\S+) +(\d+) +(\d+) +(\d+) +(\S+)/gm)]
      .map(([, name = '', id, memory, vcpus, state = '']) => {
        return { name, id: Number(id), memory: Number(memory), vcpus: Number(vcpus), state };
      })
      .filter(({ id, state }) => id !== 0 && !state.endsWith('d'));
  }

  /**
   * What the kernel has said of processes that died of a fault.
   *
   * @returns {Promise<string[]>}
   */
  async faults() {
    const { stdout } = await this.run(['dmesg']);
    return stdout.split('\n').filter((line) => faulty.test(line));
  }

  /** Ends all that runs in the background, and all domains. */
  async end() {
    // That of the scenario may have been aborted.
    this.signal = AbortSignal.timeout(300_000);
    await Promise.allSettled([...this.#background].map((background) => background.stop()));
    for (const { id } of await this.domains()) await this.run(['xl', 'destroy', String(id)], { fails: true });
  }
}
