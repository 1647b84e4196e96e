/** Two hosts: a real guest moves over a real network by stock xl alone, and stays where it is when the cable is cut. */
import { breakBridge, bridgeTo } from '../lib/moves.js';

/** @type {import('../lib/scenarios.js').Scenario[]} */
export const scenarios = [
  {
    name: 'stock xl migrates a PVH guest to the other host',
    pair: true,
    async run(t) {
      const guest = await t.guest('pvh', { dirty: 2 });
      const there = t.peer.guest(guest);
      await t.peer.serve(5000, ['xl', 'migrate-receive']);
      const before = guest.lastTick() ?? Infinity;
      const mark = there.mark();
      const moved = await t.xl(['migrate', '-s', '', guest.name, bridgeTo(t.peer, 5000)]);
      t.measure('xl migrate, s', moved.seconds);
      if (await guest.exists()) throw new Error('the guest is still here');
      await there.goesOn(mark);
      const now = there.lastTick() ?? 0;
      if (now <= before) throw new Error(`tick ${now} there after tick ${before} here: another life`);
    },
  },
  {
    name: 'the cable is cut in a migration by stock xl: the guest goes on here, and no end of it comes through',
    pair: true,
    async run(t) {
      const guest = await t.guest('pvh', { dirty: 2 });
      const serving = await t.peer.serve(5000, ['xl', 'migrate-receive']);
      const half = String(40 * 2 ** 20);
      const moving = t.start([
        'xl',
        'migrate',
        '-s',
        '',
        guest.name,
        bridgeTo(t.peer, 5000, ['--cut-after', half]),
      ]);
      await moving.waitFor(/^bridge: cut after/m, { seconds: 300 });

      // What carries the stream here gives up, as ssh does after a while; the other host is not told.
      await breakBridge(t);
      const { code, stderr } = await moving.ended;
      if (code === 0) throw new Error(`xl migrate succeeded: ${stderr}`);
      await guest.goesOn();
      if (await reached(t)) throw new Error('the cable is whole');
      if (/ended|lost/.test(serving.output)) throw new Error(`the other host was told: ${serving.output}`);
      const names = (await t.peer.domains()).map(({ name }) => name);
      if (!names.includes(`${guest.name}--incoming`) || names.includes(guest.name))
        throw new Error(`at the other host: ${names.join()}`);

      await t.link.restore();
      if (!(await reached(t))) throw new Error('the cable is still cut');
    },
  },
];

/** @param {import('../lib/context.js').Context} t */
async function reached(t) {
  const { code } = await t.run(['ping', '-c', '3', '-W', '2', t.peer.address], { fails: true });
  return code === 0;
}
