/** Debian's own Python bindings of Xen as a second opinion, and as hands: see oracle.py. */
import { spawn } from 'node:child_process';
import readline from 'node:readline';
import { fileURLToPath } from 'node:url';

/**
 * @typedef {object} DomainInfo as xc.domain_getinfo gives it
 * @property {number} domid
 * @property {0 | 1} hvm
 * @property {0 | 1} dying
 * @property {0 | 1} crashed
 * @property {0 | 1} shutdown
 * @property {number} shutdown_reason
 * @property {0 | 1} paused
 */

export class OracleError extends Error {
  /** @param {number} errno @param {string} message */
  constructor(errno, message) {
    super(message);
    this.errno = errno;
  }
}

export class Oracle {
  #child;
  /** @type {{ resolve: (value: any) => void, reject: (error: unknown) => void }[]} */
  #waiting = [];

  constructor() {
    const script = fileURLToPath(new URL('oracle.py', import.meta.url));
    this.#child = spawn('python3', ['-B', script], { stdio: ['pipe', 'pipe', 'inherit'] });
    readline.createInterface({ input: this.#child.stdout }).on('line', (line) => {
      const { ok, error } = JSON.parse(line);
      const asked = this.#waiting.shift();
      if (error !== undefined) asked?.reject(new OracleError(error[0], error[1]));
      else asked?.resolve(ok);
    });
    this.#child.on('exit', (code) => {
      for (const { reject } of this.#waiting.splice(0)) reject(new Error(`the oracle ended with ${code}`));
    });
  }

  close() {
    this.#child.stdin.end();
  }

  /** @param {number} domid @returns {Promise<DomainInfo | null>} null: there is no such domain */
  info(domid) {
    return this.#ask('info', domid);
  }

  /** @returns {Promise<DomainInfo[]>} */
  list() {
    return this.#ask('list');
  }

  /**
   * @param {number} domid
   * @param {'shutdown' | 'running' | 'gone'} state
   * @param {number} [seconds]
   * @returns {Promise<DomainInfo | null>}
   */
  wait(domid, state, seconds = 90) {
    return this.#ask('wait', domid, state, seconds);
  }

  /** Suspends a guest with PV drivers. @param {number} domid @returns {Promise<DomainInfo>} */
  suspend(domid) {
    return this.#ask('suspend', domid);
  }

  /** @param {number} domid @param {boolean} [fast] its suspend hypercall returns 1 @returns {Promise<DomainInfo>} */
  resume(domid, fast = true) {
    return this.#ask('resume', domid, Number(fast));
  }

  /** @param {number} domid @returns {Promise<void>} */
  pause(domid) {
    return this.#ask('pause', domid);
  }

  /** @param {number} domid @returns {Promise<void>} */
  unpause(domid) {
    return this.#ask('unpause', domid);
  }

  /** Stops it from outside. @param {number} domid @param {number} reason SHUTDOWN_* @returns {Promise<void>} */
  shutdown(domid, reason) {
    return this.#ask('shutdown', domid, reason);
  }

  /** @param {string} path of a xenstore node @returns {Promise<string>} */
  read(path) {
    return this.#ask('read', path);
  }

  /** @param {string} path @param {string} value @returns {Promise<void>} */
  write(path, value) {
    return this.#ask('write', path, value);
  }

  /** Xen's console. @returns {Promise<string>} */
  ring() {
    return this.#ask('ring');
  }

  /**
   * Whether Xen tracks the domain's writes: its own word for it, in the dump of the debug key q.
   *
   * @param {number} domid
   * @returns {Promise<boolean>}
   */
  async logDirty(domid) {
    const dump = await this.#ask('dump', domid);
    if (dump === null) throw new OracleError(3, `domain ${domid} is not in Xen's dump`);
    // A PV guest on a Xen without shadow paging has no such line, and no log-dirty either.
    const modes = /paging assistance: ((?:\w+ )+)$/m.exec(dump)?.[1] ?? '';
    return modes.split(' ').includes('log_dirty');
  }

  /** @param {string} name @param {...(string | number)} args @returns {Promise<any>} */
  #ask(name, ...args) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#child.stdin.write(`${JSON.stringify([name, ...args])}\n`);
    });
  }
}
