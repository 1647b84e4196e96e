/** A migration between two hosts, by this package at both ends, that is stopped at a moment and put right afterwards. */
import assert from 'node:assert/strict';
import { Oracle } from '../libxl/oracle.js';
import { named, names, nothingLeft, program, recover, tls } from './moves.js';
import { Proxy } from './proxy.js';

/**
 * @typedef {import('./context.js').Context} Context
 * @typedef {import('./guest.js').Guest} Guest
 * @typedef {import('./host.js').Host} Host
 */

/** Octets of a stream of some 90 MB: in its first pass over memory. */
export const inside = { stream: 20e6 };

export class Trial {
  /** @type {import('./process.js').Background | undefined} */
  #receiver;
  #oracle = new Oracle();

  /** Whether receivers and senders that are started now speak TLS: no frame can be held then. */
  secure = false;

  /** @param {Context} t @param {Guest} guest @param {Proxy} proxy */
  constructor(t, guest, proxy) {
    this.t = t;
    this.guest = guest;
    this.there = t.peer.guest(guest);
    this.proxy = proxy;
  }

  async close() {
    this.#oracle.close();
    await this.proxy.close();
  }

  /** The service at the other host. */
  async receive() {
    const where = `${this.t.peer.address}:5000`;
    const listen = this.secure
      ? [`tls://${where}`, '--tls-allow', 'a.example', ...tls('server')]
      : [`tcp://${where}`, '--insecure'];
    this.#receiver = this.t.peer.start([...program(this.t.peer), 'receive', '--listen', ...listen]);
    await this.#receiver.waitFor(/^listening at/m);
  }

  async killReceiver() {
    await this.#receiver?.kill('SIGKILL');
    await this.#receiver?.ended;
  }

  /** The sender's command. */
  get #send() {
    const to = this.secure ? [`tls://${this.proxy.address}`, ...named] : [this.proxy.address];
    return [...program(this.t), 'migrate', this.guest.name, ...to];
  }

  /** A sender that comes to this moment and no further. @param {import('./proxy.js').Hold} moment */
  async sendTo(moment) {
    const { reached } = this.proxy.hold(moment);
    const sender = this.t.start(this.#send);
    const early = sender.ended.then(({ code }) => {
      throw new Error(`the sender ended early, exit code ${code}: ${sender.output}`);
    });
    await Promise.race([reached, early]);
    early.catch(() => {});
    return sender;
  }

  /** A whole migration. */
  send() {
    return this.t.run(this.#send);
  }

  /** @param {import('./process.js').Background} job */
  async kill(job) {
    await job.kill('SIGKILL');
    await job.ended;
  }

  /** One thing is found and put right, and it is of this guest. @param {Host} host @param {string} role @param {string} outcome */
  async recovers(host, role, outcome) {
    const { code, findings } = await recover(this.t, host);
    assert.equal(code, 0);
    assert.deepEqual(
      findings.map(({ role, name, outcome }) => ({ role, name, outcome })),
      [{ role, name: this.guest.name, outcome }],
    );
  }

  async logDirty() {
    return this.#oracle.logDirty(await this.guest.domid());
  }

  /** Waits until nothing of the guest is at the other host. */
  async noneThere() {
    await nothingLeft(this.t.peer, this.guest);
  }

  /** The guest goes on here, as if nothing had been. */
  async hereAlone() {
    await this.noneThere();
    await this.goesOnHere();
  }

  /** The same, whatever is at the other host. */
  async goesOnHere() {
    assert.deepEqual(await names(this.t, this.guest), [this.guest.name]);
    assert.equal(await this.logDirty(), false);
    await this.guest.goesOn();
  }
}

/**
 * A guest here, and between both hosts a connection that can be stopped and broken.
 *
 * @param {'pvh' | 'hvm'} type
 * @param {(t: Context, guest: Guest, trial: Trial) => Promise<void>} act
 */
export const onTrial = (type, act) => async (/** @type {Context} */ t) => {
  const guest = await t.guest(type, { memory: 96, fill: 16 });
  const trial = new Trial(t, guest, await Proxy.open({ host: t.peer.address, port: 5000 }));
  try {
    await act(t, guest, trial);
  } finally {
    await trial.close();
  }
};
