/**
 * Where the downtime of a live migration goes: stock xl with its own helper at both ends, and ours, in the same boot, to
 * the same host. `npm run bench:xen`.
 *
 * What is measured how (all by one clock, that of this process):
 *
 * * stock: the lines of `xl -vvv` at both ends as they come. It says when it asks the guest to suspend and when that has,
 *   when QEMU's state is asked for and has come, when either helper is done, and what the two ends of xl tell each other.
 * * ours: the debug lines of the synchronisation points at both ends as they come, and the sender's own `downtime`, which
 *   is measured inside. When it has asked for the suspend follows from the two.
 * * both: when the hypervisor shows the source as suspended and the new domain as no longer paused, looked at every 10 ms;
 *   and the guest's own view, the longest silence of its console, which it writes to every 100 ms.
 *
 * `ours into xl` is our sender before `xl migrate-receive` with our helper under it.
 */
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * @typedef {import('../lib/context.js').Context} Context
 * @typedef {import('../lib/guest.js').Guest} Guest
 * @typedef {'stock' | 'ours into xl' | 'ours'} Way
 * @typedef {{ at: number, line: string }} Stamped
 * @typedef {Record<string, number>} Split ms
 */

const MEMORY = 128;
const ROUNDS = 3;
const TICK = 100;
const stockHelper = '/usr/lib/xen-4.17/bin/libxl-save-helper';

/** Lines as they come, each with its time. */
class Lines {
  /** @type {Stamped[]} */
  all = [];
  #rest = '';

  /** @param {Buffer} data */
  take = (data) => {
    const at = performance.now();
    const lines = (this.#rest + data.toString('latin1')).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) this.all.push({ at, line });
  };

  /**
   * When the first line came that matches, after another moment. Throws if there is none.
   *
   * @param {RegExp} pattern
   * @param {number} [after]
   */
  at(pattern, after = 0) {
    const found = this.all.find(({ at, line }) => at >= after && pattern.test(line));
    if (found === undefined) {
      const text = this.all.map(({ line }) => line).join('\n');
      throw new Error(`no line matches ${pattern.source} in:\n${text.slice(-8000)}`);
    }
    return found.at;
  }
}

/** What can be seen of a switch-over from outside, whoever makes it. */
class Watch {
  /** ms; 0: not seen. */
  suspended = 0;
  running = 0;
  longestSilence = 0;
  looks = 0;
  #over = false;
  /** @type {Promise<void>} */
  #watching;
  /** @type {unknown} */
  failure;

  /** @param {any} host its to close @param {Guest} guest @param {number} source domid */
  constructor(host, guest, source) {
    this.#watching = this.#watch(host, guest, source);
    this.#watching.catch((error) => (this.failure = error));
  }

  /** Loading the library takes seconds under emulation: this returns when it watches. @param {Context} t @param {Guest} guest */
  static async begin(t, guest) {
    const { XenHost } = await t.load('index.js');
    return new Watch(new XenHost(), guest, await guest.domid());
  }

  /** @param {any} host @param {Guest} guest @param {number} source */
  async #watch(host, guest, source) {
    let heard = performance.now();
    let size = consoleSize(guest);
    try {
      while (!this.#over) {
        this.looks++;
        for (const domain of await host.listDomains()) {
          const { domid, shutdown, paused } = domain;
          if (domid === source && shutdown) this.suspended ||= performance.now();
          if (domid > source && this.suspended > 0 && !paused && !shutdown)
            this.running ||= performance.now();
        }
        const now = consoleSize(guest);
        if (now !== size) {
          const at = performance.now();
          this.longestSilence = Math.max(this.longestSilence, at - heard);
          [heard, size] = [at, now];
        }
        await sleep(10);
      }
    } finally {
      await host.close();
    }
  }

  async end() {
    this.#over = true;
    await this.#watching.catch(() => {});
  }

  get seen() {
    return this.suspended > 0 && this.running > 0;
  }
}

/** @param {Guest} guest */
function consoleSize(guest) {
  let size = 0;
  for (const file of guest.logs()) size += fs.statSync(file).size;
  return size;
}

/**
 * Stock xl at both ends. Its far end is silenced into a pipe of its own, since both say the same things.
 *
 * @param {Context} t @param {Guest} guest @param {boolean} hvm
 * @returns {Promise<Split>}
 */
async function byStock(t, guest, hvm) {
  const [here, there] = [new Lines(), await farEnd(t)];
  const receive = `env LIBXL_SAVE_HELPER=${stockHelper} xl -vvv migrate-receive 2> ${there.pipe}`;
  await t.xl(['-vvv', 'migrate', '-s', '', guest.name, receive], { helper: stockHelper, output: here.take });
  await there.end();
  const asked = here.at(/issuing .*suspend request/);
  const suspended = here.at(/guest has suspended/, asked);
  // libxl asks QEMU for its state within the suspend, before the last pages go.
  const state = hvm ? here.at(/ev_qmp_dispose/, here.at(/'xen-save-devices-state'/, suspended)) : suspended;
  const memory = here.at(/libxl-save-helper: debug: complete r=0/, state);
  const sent = here.at(/ao_complete: .* rc=0/, memory);
  const built = there.lines.at(/Transfer complete, requesting permission/);
  const cleared = there.lines.at(/Got permission, starting domain/);
  const started = there.lines.at(/Domain started success/);
  const told = here.at(/Target reports successful startup/);
  return {
    'asked until suspended': suspended - asked,
    "rest of the suspend, QEMU's state in it": state - suspended,
    'last pages and state of vcpus': memory - state,
    'end of the stream': sent - memory,
    'transfer and building': built - sent,
    'permission to start': cleared - built,
    unpause: started - cleared,
    'until the source knows': told - started,
    'asked until the source knows': told - asked,
  };
}

/**
 * Our sender before our receiver, or before xl's with our helper.
 *
 * @param {Context} t @param {Guest} guest @param {Watch} watch @param {'ours into xl' | 'ours'} way
 * @returns {Promise<Split>}
 */
async function byOurs(t, guest, watch, way) {
  const here = new Lines();
  const env = { NODE_DEBUG: 'xen-migration' };
  const program = t.bin('xen-migrate');
  /** @type {{ lines: Lines, end: () => Promise<unknown> }} */
  let there;
  let address = t.file('socket');
  if (way === 'ours') {
    const lines = new Lines();
    const command = [program, 'receive', '--listen', address, '--once'];
    const receiving = t.start(command, { env, output: lines.take });
    while (!fs.existsSync(address)) await sleep(50, undefined, { signal: t.signal });
    there = { lines, end: () => receiving.ended };
  } else {
    const far = await farEnd(t);
    address = `exec:env LIBXL_SAVE_HELPER=${t.helper} xl -vvv migrate-receive 2> ${far.pipe}`;
    there = far;
  }
  const { stdout } = await t.run([program, 'migrate', guest.name, address, '--json'], {
    env,
    output: here.take,
  });
  await there.end();
  const { downtime } = JSON.parse(stdout);
  const sent = here.at(/point 3 STREAM_END/);
  const told = here.at(/point 6 RUNNING/);
  const asked = told - downtime.total;
  const [built, cleared, started] =
    way === 'ours'
      ? [
          there.lines.at(/point 3 STREAM_END/),
          there.lines.at(/point 5 YOURS/),
          there.lines.at(/point 6 RUNNING/),
        ]
      : [
          there.lines.at(/Transfer complete, requesting permission/),
          there.lines.at(/Got permission, starting domain/),
          there.lines.at(/Domain started success/),
        ];
  return {
    'asked until suspended': watch.suspended - asked,
    // Our toolstack takes it within the suspend, as libxl does; what the suspend took after the hypervisor showed it.
    "rest of the suspend, QEMU's state in it": Math.max(0, asked + downtime.suspend - watch.suspended),
    'last pages and state of vcpus': downtime.finalPass + downtime.state,
    'end of the stream': sent - asked - downtime.suspend - downtime.finalPass - downtime.state,
    'transfer and building': built - sent,
    'permission to start': cleared - built,
    unpause: started - cleared,
    'until the source knows': told - started,
    'asked until the source knows': downtime.total,
  };
}

/** A named pipe for what the far end says. @param {Context} t */
async function farEnd(t) {
  const lines = new Lines();
  const pipe = t.file('far-end');
  fs.rmSync(pipe, { force: true });
  await t.run(['mkfifo', pipe]);
  const reading = t.start(['cat', pipe], { output: lines.take });
  const end = async () => {
    await reading.waitFor(/Domain started success/);
    // A daemon of the far end may have the pipe for as long as the guest lives.
    await reading.stop();
  };
  return { pipe, lines, end };
}

/**
 * @param {Context} t @param {Guest} guest @param {Way} way @param {boolean} hvm
 * @returns {Promise<Split>}
 */
async function once(t, guest, way, hvm) {
  const mark = guest.mark();
  const watch = await Watch.begin(t, guest);
  let split;
  try {
    split = way === 'stock' ? await byStock(t, guest, hvm) : await byOurs(t, guest, watch, way);
  } finally {
    await watch.end();
  }
  if (!watch.seen) {
    const seen = `suspended ${watch.suspended}, running ${watch.running}, ${watch.looks} looks`;
    throw new Error(`${way}: the switch-over was not seen: ${seen}`, { cause: watch.failure });
  }
  await guest.goesOn(mark);
  return {
    ...split,
    'suspended until running, as the hypervisor shows': watch.running - watch.suspended,
    "longest silence of the guest's console": watch.longestSilence,
  };
}

/** @param {readonly number[]} values */
function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? NaN;
}

/**
 * @param {'pvh' | 'hvm'} type
 * @param {readonly Way[]} ways
 * @returns {import('../lib/main.js').Scenario}
 */
const split = (type, ways) => ({
  name: `${type}: where the downtime of a live migration goes, ${MEMORY} MiB`,
  async run(t) {
    const guest = await t.guest(type, { memory: MEMORY, fill: 64, dirty: 1, tick: TICK });
    /** @type {Map<Way, Split[]>} */
    const splits = new Map(ways.map((way) => [way, []]));
    for (let round = 0; round < ROUNDS; round++) {
      for (const way of ways) splits.get(way)?.push(await once(t, guest, way, type === 'hvm'));
    }
    for (const name of Object.keys(splits.get('stock')?.[0] ?? {})) {
      for (const [way, rounds] of splits) {
        const values = rounds.map((split) => split[name] ?? NaN);
        t.log(`${type}, ${name}, ${way}, ms: ${values.map((ms) => ms.toFixed(0)).join(' ')}`);
        t.measure(`${type}, ${name}, ${way}, ms`, median(values));
      }
    }
  },
});

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  split('pvh', ['stock', 'ours into xl', 'ours']),
  split('hvm', ['stock', 'ours into xl', 'ours']),
];
