/**
 * Migrations between two hosts that are cut, or whose sender or receiver is killed, at each kind of moment; then
 * `xen-migrate recover`. After each the guest runs at one host, whole, and is at no other.
 */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { Oracle } from '../libxl/oracle.js';
import { Proxy } from '../lib/proxy.js';

/**
 * @typedef {import('../lib/context.js').Context} Context
 * @typedef {import('../lib/guest.js').Guest} Guest
 * @typedef {import('../lib/host.js').Host} Host
 */

/** Octets of a stream of some 80 MB: in its first pass over memory. */
const inside = { stream: 20e6 };

class Trial {
  /** @type {import('../lib/process.js').Background | undefined} */
  #receiver;
  #oracle = new Oracle();

  /** @param {Context} t @param {Guest} guest @param {Proxy} proxy */
  constructor(t, guest, proxy) {
    this.t = t;
    this.guest = guest;
    this.there = t.peer.guest(guest);
    this.proxy = proxy;
    this.program = ['node', t.bin('xen-migrate')];
  }

  async close() {
    this.#oracle.close();
    await this.proxy.close();
  }

  /** The service at the other host. */
  async receive() {
    const address = `tcp://${this.t.peer.address}:5000`;
    this.#receiver = this.t.peer.start([...this.program, 'receive', '--listen', address, '--insecure']);
    await this.#receiver.waitFor(/^listening at/m);
  }

  async killReceiver() {
    await this.#receiver?.kill('SIGKILL');
    await this.#receiver?.ended;
  }

  /** A sender that comes to this moment and no further. @param {import('../lib/proxy.js').Hold} moment */
  async sendTo(moment) {
    const { reached } = this.proxy.hold(moment);
    const sender = this.t.start([...this.program, 'migrate', this.guest.name, this.proxy.address]);
    const early = sender.ended.then(({ code }) => {
      throw new Error(`the sender ended early, exit code ${code}: ${sender.output}`);
    });
    await Promise.race([reached, early]);
    early.catch(() => {});
    return sender;
  }

  /** @param {import('../lib/process.js').Background} job */
  async kill(job) {
    await job.kill('SIGKILL');
    await job.ended;
  }

  /** @param {Host} host @param {string[]} [args] @returns {Promise<{ code: number, findings: any[] }>} */
  async recover(host, args = []) {
    const { code, stdout, stderr } = await host.run([...this.program, 'recover', '--json', ...args], {
      fails: true,
    });
    assert.match(stdout, /^\[/, stderr);
    this.t.log(`recover at ${host.hostname}: exit code ${code}, ${stdout.replaceAll(/\s+/g, ' ')}`);
    return { code, findings: JSON.parse(stdout) };
  }

  /** One thing is found and put right, and it is of this guest. @param {Host} host @param {string} role @param {string} outcome */
  async recovers(host, role, outcome) {
    const { code, findings } = await this.recover(host);
    assert.equal(code, 0);
    assert.deepEqual(
      findings.map(({ role, name, outcome }) => ({ role, name, outcome })),
      [{ role, name: this.guest.name, outcome }],
    );
  }

  /** @param {Host} host */
  async names(host) {
    const all = (await host.domains()).map(({ name }) => name);
    return all.filter((name) => name === this.guest.name || name.startsWith(`${this.guest.name}--`));
  }

  async logDirty() {
    return this.#oracle.logDirty(await this.guest.domid());
  }

  /** Waits until nothing of the guest is at the other host: who gives up there takes a moment. */
  async noneThere() {
    const end = performance.now() + 60_000;
    for (let left = await this.names(this.t.peer); left.length > 0; left = await this.names(this.t.peer)) {
      if (performance.now() > end) throw new Error(`still at the other host: ${left.join()}`);
      await sleep(500);
    }
  }

  /** The guest goes on here, as if nothing had been. */
  async hereAlone() {
    await this.noneThere();
    assert.deepEqual(await this.names(this.t), [this.guest.name]);
    assert.equal(await this.logDirty(), false);
    await this.guest.goesOn();
  }
}

/**
 * A guest here, a service there, and between them a connection that can be stopped and broken.
 *
 * @param {(t: Context, guest: Guest, trial: Trial) => Promise<void>} act
 */
const onTrial = (act) => async (/** @type {Context} */ t) => {
  const guest = await t.guest('pvh', { memory: 80, fill: 16 });
  const trial = new Trial(t, guest, await Proxy.open({ host: t.peer.address, port: 5000 }));
  try {
    await trial.receive();
    await act(t, guest, trial);
  } finally {
    await trial.close();
  }
};

/** @type {import('../lib/scenarios.js').Scenario[]} */
export const scenarios = [
  {
    name: 'pvh: cut in the stream, sender killed in the stream, receiver killed in the stream',
    pair: true,
    run: onTrial(async (t, guest, trial) => {
      t.log('the connection breaks');
      let sender = await trial.sendTo(inside);
      trial.proxy.cut();
      const { code, stderr } = await sender.ended;
      assert.equal(code, 5, stderr);
      await trial.hereAlone();
      assert.deepEqual((await trial.recover(t)).findings, []);

      t.log('the sender is killed');
      sender = await trial.sendTo(inside);
      assert.equal(await trial.logDirty(), true);
      await trial.kill(sender);
      trial.proxy.cut();
      assert.equal(await trial.logDirty(), true);
      await trial.recovers(t, 'sender', 'resumed');
      await trial.hereAlone();

      t.log('the receiver is killed');
      sender = await trial.sendTo(inside);
      await trial.killReceiver();
      assert.notEqual((await sender.ended).code, 0);
      assert.deepEqual(await trial.names(t.peer), [`${guest.name}--incoming`]);
      await trial.recovers(t.peer, 'receiver', 'destroyed');
      assert.deepEqual(await trial.names(t.peer), []);
      await trial.hereAlone();
    }),
  },
  {
    name: 'pvh: receiver killed before it is told to run the guest, sender killed before, and after it was',
    pair: true,
    run: onTrial(async (t, guest, trial) => {
      t.log('the receiver is killed with YOURS on its way; the next one says what became of it');
      let sender = await trial.sendTo('YOURS');
      await trial.killReceiver();
      assert.deepEqual(await trial.names(t), [`${guest.name}--migratedaway`]);
      assert.deepEqual(await trial.names(t.peer), [`${guest.name}--incoming`]);
      await trial.receive();
      assert.notEqual((await sender.ended).code, 0);
      await trial.hereAlone();

      t.log('the sender is killed with YOURS on its way, which is lost');
      sender = await trial.sendTo('YOURS');
      await trial.kill(sender);
      trial.proxy.cut();
      await trial.noneThere();
      // The address that the migration had is in the note.
      await trial.recovers(t, 'sender', 'resumed');
      await trial.hereAlone();

      t.log('the cable is cut with RUNNING on its way, and the sender killed');
      const mark = trial.there.mark();
      sender = await trial.sendTo('RUNNING');
      await t.link.cut();
      await trial.kill(sender);
      await trial.there.goesOn(mark);
      assert.deepEqual(await trial.names(t.peer), [guest.name]);
      const ask = ['--ask', `tcp://${t.peer.address}:5000`, '--insecure'];
      let recovered = await trial.recover(t, [...ask, '--timeout', '2s']);
      assert.equal(recovered.code, 3);
      assert.equal(recovered.findings[0]?.outcome, 'unresolved');
      assert.deepEqual(await trial.names(t), [`${guest.name}--migratedaway`]);

      await t.link.restore();
      recovered = await trial.recover(t, ask);
      assert.equal(recovered.code, 0);
      assert.equal(recovered.findings[0]?.outcome, 'destroyed');
      assert.deepEqual(await trial.names(t), []);
      assert.deepEqual(await trial.names(t.peer), [guest.name]);
      await trial.there.goesOn();
      assert.deepEqual((await trial.recover(t.peer)).findings, []);
    }),
  },
];
