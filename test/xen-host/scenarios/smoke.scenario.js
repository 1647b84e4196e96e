/** The machine itself: guests of each type run, and stock xl saves and restores them. */

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  {
    name: 'stock xl saves and restores a PV guest',
    async run(t) {
      const guest = await t.guest('pv');
      const file = t.file('stream');
      t.measure('stock save, s', (await t.xl(['save', guest.name, file])).seconds);
      if (await guest.exists()) throw new Error('the guest is still there after xl save');
      const mark = guest.mark();
      t.measure('stock restore, s', (await t.xl(['restore', file])).seconds);
      await guest.goesOn(mark);
    },
  },
];
