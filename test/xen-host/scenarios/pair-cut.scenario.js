/**
 * Migrations between two hosts whose cable is cut, with stock xl at one end or the other, and of a guest with a device model
 * over TLS: in the stream, and when the other host was told to run the guest and its answer does not come. One copy goes
 * on, and of the other nothing is left.
 */
import assert from 'node:assert/strict';
import { breakBridge, bridgeTo, hop, names, nothingLeft, program, recover, traces } from '../lib/moves.js';
import { inside, onTrial } from '../lib/trial.js';
import { Oracle } from '../libxl/oracle.js';

/**
 * @typedef {import('../lib/context.js').Context} Context
 * @typedef {import('../lib/guest.js').Guest} Guest
 */

const afterStream = ['--cut-after', String(inside.stream)];

/** All that `xl migrate-receive` says before its report. */
const greetings =
  'xl migration receiver ready, send binary domain data.\ndomain received, ready to unpause\0';
const afterReady = ['--cut-after-answer', String(greetings.length)];

/**
 * The cable is cut, and what carries the stream here gives up.
 *
 * @param {Context} t
 * @param {string[]} sender
 */
async function cutShort(t, sender) {
  const job = t.start(sender, { env: { NODE_DEBUG: 'xen-migration' } });
  // What a command of `exec:` says comes with the error, if at all; so the cable itself is looked at.
  await t.link.lost(job.ended);
  await breakBridge(t);
  return job.ended;
}

/**
 * The guest goes on here.
 *
 * @param {Context} t
 * @param {Guest} guest
 * @param {{ logDirty?: boolean }} [expected]
 */
async function goesOnHere(t, guest, { logDirty = false } = {}) {
  assert.deepEqual(await names(t, guest), [guest.name]);
  const oracle = new Oracle();
  try {
    assert.equal(await oracle.logDirty(await guest.domid()), logDirty);
  } finally {
    oracle.close();
  }
  await guest.goesOn();
}

/** The copy here stands still, and says so by its name. @param {Context} t @param {Guest} guest */
async function standsStill(t, guest) {
  const all = (await t.domains()).filter(({ name }) => name.startsWith(guest.name));
  assert.deepEqual(
    all.map(({ name }) => name),
    [`${guest.name}--migratedaway`],
  );
  // Shut down, for the reason of a suspend.
  assert.match(all[0]?.state ?? '', /^---ss-$/);
}

/** @type {import('../lib/scenarios.js').Scenario[]} */
export const scenarios = [
  {
    name: 'hvm: us to us: cut in the stream over TLS, cut before it is told to run the guest, and then not cut',
    pair: true,
    run: onTrial('hvm', async (t, guest, trial) => {
      const before = await traces(t.peer);

      t.log('in the stream');
      trial.secure = true;
      await trial.receive();
      let sender = await trial.sendTo(inside);
      await t.link.cut();
      trial.proxy.cut();
      const { code, stderr } = await sender.ended;
      assert.equal(code, 5, stderr);
      await trial.goesOnHere();
      // The other host has heard nothing of it, and waits.
      assert.deepEqual(await names(t.peer, guest), [`${guest.name}--incoming`]);
      await trial.killReceiver();
      await trial.recovers(t.peer, 'receiver', 'destroyed');
      await nothingLeft(t.peer, guest, before);
      await t.link.restore();

      t.log('before YOURS: it has its device model there');
      trial.secure = false;
      await trial.receive();
      sender = await trial.sendTo('YOURS');
      await t.link.cut();
      const more = (await traces(t.peer)).filter((line) => !before.includes(line));
      assert.match(more.join('\n'), /^\d+ .*qemu/m);
      await trial.killReceiver();
      await trial.recovers(t.peer, 'receiver', 'destroyed');
      await nothingLeft(t.peer, guest, before);
      await trial.receive();
      await t.link.restore();
      trial.proxy.cut();
      assert.notEqual((await sender.ended).code, 0);
      await trial.hereAlone();
      await trial.killReceiver();

      t.log('not at all');
      trial.secure = true;
      await trial.receive();
      await hop(guest, trial.there, () => trial.send());
      for (const host of [t, t.peer]) assert.deepEqual((await recover(t, host)).findings, []);
    }),
  },
  {
    name: 'pvh: xl migrate to us: cut in the stream, and before our report has come',
    pair: true,
    async run(t) {
      const before = await traces(t.peer);
      const guest = await t.guest('pvh', { memory: 96, fill: 16 });
      const there = t.peer.guest(guest);
      const serving = await t.peer.serve(5000, [
        ...program(t.peer),
        'receive',
        '--stdio',
        '--protocol',
        'xl',
      ]);
      const migrate = (/** @type {string[]} */ cut) =>
        cutShort(t, ['xl', 'migrate', '-s', '', guest.name, bridgeTo(t.peer, 5000, cut)]);

      t.log('in the stream');
      const { code, stderr } = await migrate(afterStream);
      assert.notEqual(code, 0);
      assert.match(stderr, /Migration failed, resuming at sender/);
      await goesOnHere(t, guest, {
        // Stock libxl lets a broken pipe kill its save helper, and nobody else turns it off.
        logDirty: /helper \[\d+\] died due to fatal signal Broken pipe/.test(stderr),
      });
      assert.deepEqual(await names(t.peer, guest), [`${guest.name}--incoming`]);
      // Now our receiver hears that nothing more will come.
      await t.link.restore();
      await serving.waitFor(/^serve: 1 ended [1-9]/m);
      await nothingLeft(t.peer, guest, before);
      assert.deepEqual((await recover(t, t.peer)).findings, []);

      t.log('before the report');
      const mark = there.mark();
      const told = await migrate(afterReady);
      assert.notEqual(told.code, 0);
      assert.match(told.stderr, /Migration failed during final handshake[^]*Domain state is now undefined/);
      await standsStill(t, guest);
      assert.deepEqual(await names(t.peer, guest), [guest.name]);
      await there.goesOn(mark);
      await t.link.restore();
      await serving.waitFor(/^serve: 2 ended 0$/m);
      // xl leaves no note: nobody but its user can know what this is.
      const { findings } = await recover(t, t);
      assert.deepEqual(
        findings.map(({ name, outcome }) => ({ name, outcome })),
        [{ name: `${guest.name}--migratedaway`, outcome: 'stranger' }],
      );
      assert.deepEqual((await recover(t, t.peer)).findings, []);
      await t.xl(['destroy', `${guest.name}--migratedaway`]);
      await there.goesOn();
    },
  },
  {
    name: 'pvh: us to xl migrate-receive: cut in the stream, and before its report has come',
    pair: true,
    async run(t) {
      const before = await traces(t.peer);
      const guest = await t.guest('pvh', { memory: 96, fill: 16 });
      const there = t.peer.guest(guest);
      const serving = await t.peer.serve(5000, ['xl', 'migrate-receive']);
      const migrate = (/** @type {string[]} */ cut) =>
        cutShort(t, [...program(t), 'migrate', guest.name, `exec:${bridgeTo(t.peer, 5000, cut)}`]);

      t.log('in the stream');
      const { code, stderr } = await migrate(afterStream);
      assert.equal(code, 5, stderr);
      await goesOnHere(t, guest);
      assert.deepEqual((await recover(t, t)).findings, []);
      assert.deepEqual(await names(t.peer, guest), [`${guest.name}--incoming`]);
      await t.link.restore();
      await serving.waitFor(/^serve: 1 ended [1-9]/m);
      await nothingLeft(t.peer, guest, before);

      t.log('before the report');
      const mark = there.mark();
      const told = await migrate(afterReady);
      assert.equal(told.code, 3, told.stderr);
      assert.match(told.stderr, /ERR_XEN_HANDOVER_UNKNOWN/);
      await standsStill(t, guest);
      assert.deepEqual(await names(t.peer, guest), [guest.name]);
      await there.goesOn(mark);
      await t.link.restore();
      await serving.waitFor(/^serve: 2 ended 0$/m);

      // xl cannot be asked: it is for people to say where the guest is.
      let recovered = await recover(t, t, ['--timeout', '1s']);
      assert.equal(recovered.code, 3);
      assert.equal(recovered.findings.length, 1);
      const { id, name, outcome } = recovered.findings[0];
      assert.deepEqual({ name, outcome }, { name: guest.name, outcome: 'unresolved' });
      assert.ok(told.stderr.includes(id), told.stderr);
      await standsStill(t, guest);
      recovered = await recover(t, t, ['--timeout', '1s', '--destroy', id]);
      assert.equal(recovered.code, 0);
      assert.equal(recovered.findings[0]?.outcome, 'destroyed');
      assert.deepEqual(await names(t, guest), []);
      assert.deepEqual((await recover(t, t)).findings, []);
      await there.goesOn();
    },
  },
];
