/**
 * Guests move between two hosts by the commands of this package, with stock xl at the other end or without: to us, back
 * to xl, and to us again over TLS. Each time the guest goes on at one host, with its memory whole, and is gone from the
 * other.
 */
import assert from 'node:assert/strict';
import { hop, named, program, tls } from '../lib/moves.js';
import { ssh } from '../lib/ssh.js';

/**
 * @typedef {import('../lib/context.js').Context} Context
 * @typedef {import('../lib/guest.js').Guest} Guest
 * @typedef {import('../lib/host.js').Host} Host
 */

/** What stands for ssh to a host where a command is served; faster here than bridge.js. @param {Host} host @param {number} port */
const way = (host, port) => `nc ${host.address} ${port}`;

/**
 * @param {Context} t
 * @param {Guest} guest
 * @param {string[]} [options] of the migration over TLS
 */
async function roundAndOver(t, guest, options = []) {
  const there = t.peer.guest(guest);

  const serving = await t.peer.serve(5000, [...program(t), 'receive', '--stdio', '--protocol', 'xl']);
  await hop(guest, there, async () => {
    const { seconds } = await t.xl(['migrate', '-s', '', guest.name, way(t.peer, 5000)]);
    t.measure(`${guest.type}: xl to us, s`, seconds);
    await serving.waitFor(/^serve: 1 ended 0$/m);
    assert.match(serving.output, new RegExp(`received ${guest.name} as domain \\d+: .*, running;`));
  });
  await serving.stop();

  const stock = await t.serve(5000, ['xl', 'migrate-receive']);
  await hop(there, guest, async () => {
    const moved = await t.peer.run([...program(t), 'migrate', guest.name, `exec:${way(t, 5000)}`, '--json']);
    t.measure(`${guest.type}: us to xl, s`, moved.seconds);
    assert.equal(JSON.parse(moved.stdout).peerSoftware, 'xl');
    await stock.waitFor(/^serve: 1 ended 0$/m);
  });
  await stock.stop();

  const listen = ['--listen', `tls://${t.peer.address}:5000`, '--tls-allow', 'a.example', '--once', '--json'];
  const receiver = t.peer.start([...program(t), 'receive', ...listen, ...tls('server')]);
  await receiver.waitFor(/"event":"listening"/);
  await hop(guest, there, async () => {
    const address = `tls://${t.peer.address}:5000`;
    const moved = await t.run([
      ...program(t),
      'migrate',
      guest.name,
      address,
      ...named,
      ...options,
      '--json',
    ]);
    t.measure(`${guest.type}: us to us over TLS, s`, moved.seconds);
    const { downtime } = JSON.parse(moved.stdout);
    t.measure(`${guest.type}: us to us over TLS, downtime, ms`, downtime.total);
    const { code } = await receiver.ended;
    assert.equal(code, 0, receiver.output);
    assert.match(receiver.output, /"certificateName":"dom0 a"/);
  });
  // Nothing is left to be put right.
  for (const host of [t, t.peer]) {
    const { stdout } = await host.run([...program(t), 'recover']);
    assert.equal(stdout, 'nothing was left behind\n');
  }
}

/**
 * The same over OpenSSH: what its command line, its login shell and its PATH make of a migration.
 *
 * @param {Context} t
 * @param {Guest} guest
 */
async function overSsh(t, guest) {
  const there = t.peer.guest(guest);
  const [to, back] = [await ssh(t, t.peer), await ssh(t, t)];

  await hop(guest, there, async () => {
    const command = `${to} ${t.peer.hostname} xen-migrate receive --stdio --protocol xl`;
    const { seconds } = await t.xl(['migrate', '-s', '', guest.name, command]);
    t.measure(`${guest.type}: xl to us over ssh, s`, seconds);
  });

  await hop(there, guest, async () => {
    const moved = await t.peer.run(
      [...program(t), 'migrate', guest.name, `ssh://root@${t.hostname}`, '--json'],
      { env: { XEN_MIGRATE_SSH: back } },
    );
    t.measure(`${guest.type}: us to xl over ssh, s`, moved.seconds);
    assert.equal(JSON.parse(moved.stdout).peerSoftware, 'xl');
  });

  await hop(guest, there, async () => {
    const options = ['--ssh', to, '--remote-command', 'xen-migrate receive --stdio', '--json'];
    const address = `ssh://${t.peer.address}:22`;
    const moved = await t.run([...program(t), 'migrate', guest.name, address, ...options]);
    t.measure(`${guest.type}: us to us over ssh, s`, moved.seconds);
    assert.match(JSON.parse(moved.stdout).peerSoftware, /^xen-migration\//);
  });
}

/** @type {import('../lib/scenarios.js').Scenario[]} */
export const scenarios = [
  {
    name: 'pvh: xl migrate to us, us back to xl migrate-receive, and us to us over TLS',
    pair: true,
    async run(t) {
      await roundAndOver(t, await t.guest('pvh', { memory: 96, fill: 16 }));
    },
  },
  {
    name: 'hvm: xl migrate to us, us back to xl migrate-receive, and us to us over TLS, compressed',
    pair: true,
    async run(t) {
      const guest = await t.guest('hvm', { memory: 96, fill: 16 });
      await roundAndOver(t, guest, ['--compress', 'brotli']);
    },
  },
  {
    name: 'pvh: over ssh: xl migrate to us, us back to xl migrate-receive, and us to us',
    pair: true,
    async run(t) {
      await overSsh(t, await t.guest('pvh', { memory: 96, fill: 16 }));
    },
  },
];
