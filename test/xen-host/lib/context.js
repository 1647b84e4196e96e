/** What a scenario gets: the domain's tools, guests, a place for files, and what it has to tell. */
import fs from 'node:fs';
import path from 'node:path';
import { Guest } from './guest.js';
import { Host, project } from './host.js';
import { Peer } from './peer.js';
import { run } from './process.js';

/**
 * @typedef {'pv' | 'pvh' | 'hvm' | 'tiny'} GuestType
 *
 * @typedef {object} GuestOptions
 * @property {string} [name] default: a new one
 * @property {number} [memory] MiB; default 96, HVM 128 (96 at least), tiny 32
 * @property {number} [vcpus] default 1; the Linux guests tell of each
 * @property {number} [fill] MiB that the guest fills and checks; default 32
 * @property {number} [dirty] MiB of them that it rewrites in every tick; default 1
 * @property {number} [tick] milliseconds; default 500
 * @property {number} [seed]
 * @property {Record<string, string | number>} [config] further lines of the xl configuration
 */

const scratch = '/var/tmp/xen-host';

let guests = 0;

/**
 * A name that no guest had since the machine was started: consoles are logged under names.
 *
 * @param {GuestType} type
 * @returns {string}
 */
function newName(type) {
  for (;;) {
    const name = `${type}${++guests}`;
    if (!fs.existsSync(`/var/log/xen/console/guest-${name}.log`)) return name;
  }
}

export class Context extends Host {
  /** @type {Peer | undefined} */
  #peer;

  /**
   * @param {string} name of the scenario
   * @param {AbortSignal} signal
   * @param {string} out folder for what the build machine shall get
   */
  constructor(name, signal, out) {
    super(signal);
    this.name = name;
    this.out = out;
    const folder = name.replaceAll(/[^A-Za-z0-9.-]+/g, '-').slice(0, 80);
    /** Scratch folder on dom0's disk, removed after the scenario. */
    this.folder = path.join(scratch, folder);
    /** Another, which both hosts of a pair have under this path; no sockets. */
    this.sharedFolder = path.join(out, 'scratch', folder);
    this.tidy();
    fs.mkdirSync(this.folder, { recursive: true });
    /** @type {Record<string, number>} */
    this.measured = {};
  }

  /** The other host, in a scenario with `pair: true`. */
  get peer() {
    if (!Peer.there())
      throw new Error('this host is alone: `pair: true` in the scenario, `--pair` for lab.js');
    return (this.#peer ??= new Peer(this));
  }

  /** What joins both hosts. */
  get link() {
    return this.peer.link;
  }

  /** @param {string} text goes into the log of the run */
  log(text) {
    for (const line of text.split('\n')) console.log(`#   ${line}`);
  }

  /**
   * A number for the results.
   *
   * @param {string} what with its unit
   * @param {number} value
   */
  measure(what, value) {
    this.measured[what] = value;
    this.log(`${what}: ${Number.isInteger(value) ? value : value.toPrecision(4)}`);
  }

  /**
   * @param {string} name
   * @returns {string} path in the scratch folder
   */
  file(name) {
    return path.join(this.folder, name);
  }

  /**
   * @param {string} name
   * @returns {string} path in a folder that both hosts have
   */
  shared(name) {
    fs.mkdirSync(this.sharedFolder, { recursive: true });
    return path.join(this.sharedFolder, name);
  }

  /**
   * Copies a file out of the machine.
   *
   * @param {string} file
   * @param {string} [name]
   */
  keep(file, name = path.basename(file)) {
    fs.mkdirSync(path.join(this.out, 'files'), { recursive: true });
    fs.copyFileSync(file, path.join(this.out, 'files', name));
  }

  /**
   * @override
   * @param {readonly string[]} command
   * @param {import('./process.js').RunOptions} [options]
   */
  run(command, options = {}) {
    return run(command, { ...options, signal: options.signal ?? this.signal });
  }

  /**
   * A module of the library as built.
   *
   * @param {string} name as in dist/, such as 'index.js'
   * @returns {Promise<any>}
   */
  load(name) {
    return import(path.join(project, 'dist', name));
  }

  /** @override */
  async end() {
    // That of the scenario may have been aborted.
    this.signal = AbortSignal.timeout(300_000);
    try {
      // First: a cable that is cut would keep waiting what ends here.
      await this.#peer?.end();
    } finally {
      await super.end();
    }
  }

  /** What is in its folders goes: of an earlier run, and once everything has ended, if nothing has failed. */
  tidy() {
    for (const folder of [this.folder, this.sharedFolder])
      fs.rmSync(folder, { recursive: true, force: true });
  }

  /**
   * A guest that runs; the Linux ones have filled their memory and tick.
   *
   * @param {GuestType} type
   * @param {GuestOptions} [options]
   * @returns {Promise<Guest>}
   */
  async guest(type, options = {}) {
    const name = options.name ?? newName(type);
    const config = this.file(`${name}.cfg`);
    fs.writeFileSync(config, configuration(type, name, options));
    const guest = new Guest(this, name, type, config, options.vcpus);
    const since = guest.mark();
    await this.xl(['create', config]);
    if (type === 'tiny') await guest.tinyGoesOn(60);
    else await guest.waitFor(/^TICK/, { since, seconds: 240 });
    return guest;
  }
}

/**
 * @param {GuestType} type
 * @param {string} name
 * @param {GuestOptions} options
 * @returns {string} configuration for xl; of a line that comes twice, the later counts
 */
function configuration(type, name, { memory, vcpus, fill, dirty, tick, seed, config = {} }) {
  const text = fs.readFileSync(`/xen-host/guest/${type}.cfg`, 'utf8');
  const extra = text.match(/^extra = "(.*)"$/m)?.[1];
  const more = Object.entries({ fill, dirty, tick, seed }).filter(([, value]) => value !== undefined);
  /** @type {Record<string, string | number>} */
  const lines = {
    name,
    ...(memory === undefined ? {} : { memory, maxmem: memory }),
    ...(vcpus === undefined ? {} : { vcpus }),
    ...config,
  };
  if (extra !== undefined)
    lines['extra'] ??= `${extra} ${more.map(([key, value]) => `${key}=${value}`).join(' ')}`;
  const kept = text.split('\n').filter((line) => lines[line.split(' = ')[0] ?? ''] === undefined);
  return `${kept.join('\n')}\n${Object.entries(lines)
    .map(([key, value]) => `${key} = ${JSON.stringify(value)}\n`)
    .join('')}`;
}
