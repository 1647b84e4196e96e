/**
 * Migrations between two hosts that are cut, or whose sender or receiver is killed, at each kind of moment; then
 * `xen-migrate recover`. After each the guest runs at one host, whole, and is at no other.
 */
import assert from 'node:assert/strict';
import { names, recover } from '../lib/moves.js';
import { inside, onTrial } from '../lib/trial.js';

/** @type {import('../lib/scenarios.js').Scenario[]} */
export const scenarios = [
  {
    name: 'pvh: cut in the stream, sender killed in the stream, receiver killed in the stream',
    pair: true,
    run: onTrial('pvh', async (t, guest, trial) => {
      await trial.receive();
      t.log('the connection breaks');
      let sender = await trial.sendTo(inside);
      trial.proxy.cut();
      const { code, stderr } = await sender.ended;
      assert.equal(code, 5, stderr);
      await trial.hereAlone();
      assert.deepEqual((await recover(t, t)).findings, []);

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
      assert.deepEqual(await names(t.peer, guest), [`${guest.name}--incoming`]);
      await trial.recovers(t.peer, 'receiver', 'destroyed');
      assert.deepEqual(await names(t.peer, guest), []);
      await trial.hereAlone();
    }),
  },
  {
    name: 'pvh: receiver killed before it is told to run the guest, sender killed before, and after it was',
    pair: true,
    run: onTrial('pvh', async (t, guest, trial) => {
      await trial.receive();
      t.log('the receiver is killed with YOURS on its way; the next one says what became of it');
      let sender = await trial.sendTo('YOURS');
      await trial.killReceiver();
      assert.deepEqual(await names(t, guest), [`${guest.name}--migratedaway`]);
      assert.deepEqual(await names(t.peer, guest), [`${guest.name}--incoming`]);
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
      assert.deepEqual(await names(t.peer, guest), [guest.name]);
      const ask = ['--ask', `tcp://${t.peer.address}:5000`, '--insecure'];
      let recovered = await recover(t, t, [...ask, '--timeout', '2s']);
      assert.equal(recovered.code, 3);
      assert.equal(recovered.findings[0]?.outcome, 'unresolved');
      assert.deepEqual(await names(t, guest), [`${guest.name}--migratedaway`]);

      await t.link.restore();
      recovered = await recover(t, t, ask);
      assert.equal(recovered.code, 0);
      assert.equal(recovered.findings[0]?.outcome, 'destroyed');
      assert.deepEqual(await names(t, guest), []);
      assert.deepEqual(await names(t.peer, guest), [guest.name]);
      await trial.there.goesOn();
      assert.deepEqual((await recover(t, t.peer)).findings, []);
    }),
  },
];
