/**
 * A guest with a libxl that is played: its answers do to the guest what libxl's do, through Debian's Python bindings and
 * QEMU's monitor.
 */
import fs from 'node:fs';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { Oracle } from './oracle.js';
import { pipe } from './pipes.js';
import { playLibxl } from './play.js';
import { qmp } from './qmp.js';

/** SHUTDOWN_* */
export const shutdown = { SUSPEND: 2, CRASH: 3 };

/** @typedef {Omit<Partial<import('./play.js').Play>, 'io' | 'domid' | 'mode'> & { helper: string }} SavePlay */

export class Stage {
  /**
   * @param {import('../lib/context.js').Context} t
   * @param {import('../lib/guest.js').Guest} guest
   * @param {number} domid
   * @param {Oracle} oracle
   */
  constructor(t, guest, domid, oracle) {
    this.t = t;
    this.guest = guest;
    this.domid = domid;
    this.oracle = oracle;
  }

  /** With a device model that keeps track of the pages it writes. */
  get hasQemu() {
    return this.guest.type === 'hvm' || this.guest.type === 'tiny';
  }

  /** As libxl's suspend callback: the guest, then its device model. */
  async suspend() {
    if (this.guest.type === 'tiny') {
      await this.oracle.shutdown(this.domid, shutdown.SUSPEND);
      await this.oracle.wait(this.domid, 'shutdown');
    } else if (!(await this.#shutDown())) await this.oracle.suspend(this.domid);
    const info = await this.oracle.info(this.domid);
    if (info?.shutdown_reason !== shutdown.SUSPEND) throw new Error(`not suspended: ${JSON.stringify(info)}`);
    if (this.hasQemu) await qmp(this.domid, 'stop');
    return 1;
  }

  async #shutDown() {
    return (await this.oracle.info(this.domid))?.shutdown === 1;
  }

  /** As libxl_domain_resume, fast. */
  async resume() {
    if (this.hasQemu) await qmp(this.domid, 'cont');
    if (await this.#shutDown()) await this.oracle.resume(this.domid);
  }

  /** As libxl's switch_qemu_logdirty callback. @param {boolean} enable */
  async qemuLogDirty(enable) {
    if (this.hasQemu) await qmp(this.domid, 'xen-set-global-dirty-log', { enable });
    return 0;
  }

  /**
   * A save by a helper.
   *
   * @param {number} io
   * @param {SavePlay} play
   */
  save(io, play) {
    const answers = {
      suspend: () => this.suspend(),
      switch_qemu_logdirty: (/** @type {Record<string, string | number>} */ { enable }) =>
        this.qemuLogDirty(enable === 1),
      ...play.answers,
    };
    return playLibxl({ mode: 'save', domid: this.domid, io, ...play, answers });
  }

  /**
   * @param {string} file
   * @param {SavePlay} play
   */
  async saveToFile(file, play) {
    const fd = fs.openSync(file, 'w+');
    try {
      return await this.save(fd, play);
    } finally {
      fs.closeSync(fd);
    }
  }

  /**
   * Nothing of the save is left in Xen; the guest goes on, and its device model.
   *
   * @param {{ resumed?: boolean }} [options] resumed: whoever saved has let it go on. Else it is resumed here, as by libxl
   */
  async unharmed({ resumed = false } = {}) {
    if (await this.oracle.logDirty(this.domid)) throw new Error('log-dirty is still on');
    const mark = this.guest.mark();
    if (!resumed) await this.resume();
    const info = await this.oracle.info(this.domid);
    if (info === null || info.dying || info.shutdown || info.paused)
      throw new Error(`the guest does not run: ${JSON.stringify(info)}`);
    if (this.hasQemu) {
      const status = /** @type {{ running: boolean }} */ (await qmp(this.domid, 'query-status'));
      if (!status.running) throw new Error(`QEMU does not run: ${JSON.stringify(status)}`);
    }
    await this.ticks(mark);
  }

  /** It lives. That its memory holds is looked at once, at the end. @param {import('../lib/guest.js').Mark} since */
  async ticks(since) {
    if (this.guest.type !== 'tiny')
      return void (await this.guest.waitFor(/^TICK (\d+)/, { since, count: 2 }));
    // It prints every five seconds; its timer makes it use the processor ten times a second.
    const before = await this.#cpuTime();
    for (let n = 0; (await this.#cpuTime()) === before; n++) {
      if (n === 600) throw new Error('the guest has no ticks');
      await sleep(50);
    }
  }

  async #cpuTime() {
    return /** @type {any} */ (await this.oracle.info(this.domid))?.cpu_time;
  }
}

/**
 * @param {import('../lib/context.js').Context} t
 * @param {import('../lib/context.js').GuestType} type
 * @param {(stage: Stage) => Promise<void>} act
 * @param {import('../lib/context.js').GuestOptions} [options]
 */
export async function onStage(t, type, act, options) {
  const guest = await t.guest(type, options);
  const oracle = new Oracle();
  try {
    await act(new Stage(t, guest, await guest.domid(), oracle));
  } finally {
    oracle.close();
  }
}

/** The library, as it was built. @returns {Promise<typeof import('../../../lib/index.js')>} */
export function library() {
  return import(new URL('../../../dist/index.js', import.meta.url).href);
}

/** A pipe whose reader counts, drops, stops, goes on and hangs up when it is told. */
export class Reader {
  bytes = 0;
  #fd;
  #stream;
  /** The end for a helper. */
  writable;

  /** @param {{ reading?: boolean }} [options] */
  constructor({ reading = true } = {}) {
    const { readable, writable } = pipe();
    this.writable = writable;
    this.#fd = readable;
    this.#stream = reading ? this.#read() : undefined;
  }

  /** Reads from now on. */
  go() {
    this.#stream ??= this.#read();
  }

  #read() {
    // Not a stream of fs: its read would hold a thread, and with it the end of this process, until somebody hangs up.
    const socket = new net.Socket({ fd: this.#fd, readable: true, writable: false });
    return socket.on('data', (data) => (this.bytes += data.length)).on('error', () => {});
  }

  /** Nobody reads any more. */
  hangUp() {
    if (this.#stream !== undefined) this.#stream.destroy();
    else fs.closeSync(this.#fd);
  }

  /** Whoever wrote has ended; `taken`: and has closed its end, as the library does with what it was given. */
  close({ taken = false } = {}) {
    if (!taken) fs.closeSync(this.writable);
    if (this.#stream === undefined) fs.closeSync(this.#fd);
  }
}

/** @param {boolean} condition @param {string} text @returns {asserts condition} */
export function check(condition, text) {
  if (!condition) throw new Error(text);
}

/** @param {unknown} got @param {unknown} want @param {string} what */
export function same(got, want, what) {
  const [a, b] = [JSON.stringify(got, null, 1), JSON.stringify(want, null, 1)];
  if (a !== b) throw new Error(`${what}: ${a}\ninstead of ${b}`);
}
