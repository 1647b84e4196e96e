/** The other of two joined hosts, and the cable between them. The scenario runs at the first; machine/pair.js. */
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { converse } from '../machine/agent.js';
import { Guest } from './guest.js';
import { Host } from './host.js';
import { outcome } from './process.js';

/** The agent in its dom0, on a network of its own: it answers while the cable is cut. */
const agent = { host: '10.18.0.2', port: 17 };

/** @param {string} word for a shell */
const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);

export class Peer extends Host {
  /** Whether this host is the first of a pair. */
  static there() {
    return fs.readFileSync('/proc/cmdline', 'utf8').includes('xen_host.pair=1');
  }

  /** @param {import('./context.js').Context} t */
  constructor(t) {
    super(t.signal);
    this.consoles = '/peer/log/console';
    this.address = '10.17.0.2';
    this.hostname = 'xen-host-2';
    this.link = new Link(t);
  }

  /**
   * @override
   * @param {readonly string[]} command
   * @param {import('./process.js').RunOptions} [options] without `started`
   */
  async run(command, options = {}) {
    const { fails = false, env = {}, input, signal = this.signal, cwd, running, output } = options;
    const begin = performance.now();
    const change = Object.entries(env).flatMap(([name, value]) =>
      value === undefined ? ['-u', name] : [`${name}=${value}`],
    );
    const place = cwd === undefined ? '' : `cd ${quoted(cwd)} && `;
    // `env` takes the place of the shell, so that a signal meets the command alone.
    const script = `${place}exec ${['env', ...change.map(quoted), ...command.map(quoted)].join(' ')}`;
    /** @type {{ stdout: Buffer[], stderr: Buffer[] }} */
    const wrote = { stdout: [], stderr: [] };
    const keep = (/** @type {'stdout' | 'stderr'} */ name) => (/** @type {Buffer} */ data) => {
      wrote[name].push(data);
      output?.(data);
    };
    const code = await converse(agent, script, {
      stdout: keep('stdout'),
      stderr: keep('stderr'),
      signal,
      ...(input === undefined ? {} : { stdin: input }),
      ...(running === undefined ? {} : { started: running }),
    });
    const [stdout, stderr] = [wrote.stdout, wrote.stderr].map((parts) => Buffer.concat(parts).toString());
    const seconds = (performance.now() - begin) / 1000;
    return outcome(command, { code, stdout: stdout ?? '', stderr: stderr ?? '', seconds }, fails);
  }

  /**
   * A guest as it is, or will be, at this host: its domain and its console here.
   *
   * @param {Guest} guest
   */
  guest({ name, type, config, vcpus }) {
    return new Guest(this, name, type, config, vcpus);
  }

  /** @override */
  async end() {
    await this.link.restore();
    await super.end();
  }
}

/** The cable between both hosts. */
export class Link {
  #whole = true;

  /** @param {import('./context.js').Context} t */
  constructor(t) {
    this.t = t;
  }

  /**
   * Cuts it: from now on no packet comes through, in either direction. This host sees that it has no carrier, the other
   * nothing.
   */
  async cut() {
    this.#whole = false;
    await this.t.run(['/xen-host/cable', 'cut']);
  }

  /** Joins it again; what TCP has kept is sent again. */
  async restore() {
    await this.t.run(['/xen-host/cable', 'restore']);
    this.#whole = true;
  }

  /**
   * Waits until somebody else has cut it (bridge.js).
   *
   * @param {Promise<import('./process.js').Outcome>} job that is to do so before it ends
   */
  async lost(job) {
    let over = false;
    const ended = job.then((told) => {
      over = true;
      return told;
    });
    while (fs.readFileSync('/sys/class/net/cable/carrier', 'utf8').trim() !== '0') {
      if (over) throw new Error(`ended, and the cable is whole: ${(await ended).stderr}`);
      await Promise.race([ended, sleep(50)]);
    }
    this.#whole = false;
  }

  get whole() {
    return this.#whole;
  }
}
