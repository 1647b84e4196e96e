/**
 * Migrations between this library and stock xl, both ways, on one host: the sender is `xl migrate`, or the receiver is
 * `xl migrate-receive`. Guests that libxl alone can build are built by `xl restore` with our save helper under it. After
 * each migration the guest shows that it goes on.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import { Duplex } from 'node:stream';

/**
 * @typedef {import('../lib/context.js').Context} Context
 * @typedef {import('../lib/context.js').GuestType} GuestType
 * @typedef {import('../lib/guest.js').Guest} Guest
 */

/** What xl starts in place of `xl migrate-receive`: a receiver of this library that speaks xl's protocol. */
const receiver = (/** @type {string} */ report, cancelAt = Infinity) => `
import fs from 'node:fs';
import { Duplex } from 'node:stream';
import { openXenHost } from '/project/dist/host/xen/host.js';
import { startReceive } from '/project/dist/migrate/migrate.js';
const host = openXenHost();
const job = startReceive(host, {
  from: Duplex.from({ readable: process.stdin, writable: process.stdout }),
  protocol: 'xl',
  builder: '${cancelAt < Infinity ? 'xl' : 'auto'}',
  onProgress: ({ transferred }) => {
    if (transferred > ${cancelAt}) job.cancel('enough');
  },
});
let told = {};
try {
  const result = await job.result;
  const { domid, state, sourceReleased, storeGfn } = result;
  told = { domid, state, sourceReleased, storeGfn };
} catch (error) {
  const { code, message, guest, cleanupErrors = [] } = error;
  told = { code, message, guest, cleanupErrors: cleanupErrors.map(String) };
  process.exitCode = 1;
} finally {
  await host.close();
  // xl may have ended long ago, and nobody reads our standard error any more.
  fs.writeFileSync('${report}.new', JSON.stringify(told));
  fs.renameSync('${report}.new', '${report}');
}
process.exit();
`;

/**
 * `xl migrate` to a receiver of this library on this same host.
 *
 * @param {Context} t
 * @param {Guest} guest
 * @param {number} [cancelAt] bytes of the stream after which the receiver, which has xl build the guest, gives up
 */
async function xlToUs(t, guest, cancelAt) {
  const script = t.file('receive.mjs');
  const report = t.file('report.json');
  fs.rmSync(report, { force: true });
  fs.writeFileSync(script, receiver(report, cancelAt));
  const command = `${process.execPath} ${script}`;
  const moved = await t.xl(['migrate', '-s', '', guest.name, command], {
    fails: cancelAt !== undefined,
  });
  await t.sh(`for i in $(seq 300); do [ -e '${report}' ] && exit; sleep 0.2; done; exit 1`);
  const told = JSON.parse(fs.readFileSync(report, 'utf8'));
  t.log(`${JSON.stringify(told)}: ${moved.seconds.toFixed(1)} s`);
  return { ...moved, told };
}

/**
 * A migration by this library to a command on this same host.
 *
 * @param {Context} t
 * @param {Guest} guest
 * @param {string} command
 * @param {object} [options]
 */
async function usToCommand(t, guest, command, options = {}) {
  const { openXenHost, migrate } = await t.load('index.js');
  const child = spawn('sh', ['-c', command], { stdio: ['pipe', 'pipe', 'pipe'] });
  let said = '';
  child.stderr.on('data', (text) => (said += text));
  const peer = Duplex.from({ readable: child.stdout, writable: child.stdin });
  const host = openXenHost();
  try {
    return await migrate(host, { domid: await guest.domid(), peer, signal: t.signal, ...options });
  } finally {
    await host.close();
    for (const line of said.split('\n').filter((line) => /^(migration|libxl: error|libxl: warn)/.test(line)))
      t.log(line);
  }
}

/**
 * @param {Guest} guest
 * @param {number | undefined} before its last tick at the source
 */
function sameLife(guest, before) {
  if (guest.type === 'tiny') return;
  const now = guest.lastTick();
  if (before === undefined || now === undefined || now <= before)
    throw new Error(`${guest.name}: tick ${now} after tick ${before}`);
}

/** Nothing of a migration is left but the guest itself. @param {Context} t @param {Guest} guest */
async function onlyIt(t, guest) {
  const names = (await t.domains()).map(({ name }) => name).filter((name) => name.startsWith(guest.name));
  assert.deepEqual(names, [guest.name]);
}

/** A small disk, served by QEMU, as this dom0's kernel has no back end. @param {Context} t */
async function disk(t) {
  const image = t.file('disk.img');
  await t.run(['truncate', '-s', '4M', image]);
  return { disk: [`${image},raw,xvda,w,backendtype=qdisk`] };
}

/** What the daemons of xl wait for. @param {Context} t */
async function daemons(t) {
  const { stdout } = await t.sh(
    String.raw`for p in $(pgrep -x xl); do tr '\0' ' ' < /proc/$p/cmdline; echo; done; true`,
  );
  return stdout.split('\n').filter((line) => line !== '');
}

/**
 * From xl to us, and from us to xl.
 *
 * @param {Context} t
 * @param {Guest} guest
 */
async function bothWays(t, guest) {
  let before = guest.lastTick();
  const { told } = await xlToUs(t, guest);
  assert.equal(told.state, 'running');
  assert.equal(told.sourceReleased, true);
  assert.equal(told.domid, await guest.domid());
  await guest.goesOn();
  sameLife(guest, before);
  await onlyIt(t, guest);
  // As after xl migrate-receive, somebody sees to its shutdowns.
  assert.equal((await daemons(t)).length, 1);

  before = guest.lastTick();
  const moved = await usToCommand(t, guest, 'exec xl migrate-receive');
  assert.equal(moved.peerSoftware, 'xl');
  t.measure(`${guest.type}: us to xl migrate-receive: downtime, ms`, moved.downtime.total);
  await guest.goesOn();
  sameLife(guest, before);
  await onlyIt(t, guest);
}

/** All that moves is guest memory, and the machine is slow. */
const small = { fill: 16 };

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  {
    name: 'pvh with a disk: xl migrate to us, and us to xl migrate-receive',
    async run(t) {
      const guest = await t.guest('pvh', { ...small, config: /** @type {any} */ (await disk(t)) });
      await bothWays(t, guest);
      assert.match((await t.xl(['block-list', guest.name])).stdout, /^51712 /m);
    },
  },
  {
    name: 'hvm: xl migrate to us, and us to xl migrate-receive',
    async run(t) {
      await bothWays(t, await t.guest('hvm', { memory: 96, fill: 16 }));
    },
  },
  {
    name: 'pvh: a receiver of xl migrate that gives up in the stream, and one that builds the guest without xl',
    async run(t) {
      const guest = await t.guest('pvh', small);
      const before = guest.lastTick();
      const domid = await guest.domid();
      const failed = await xlToUs(t, guest, 20e6);
      assert.equal(failed.told.code, 'ERR_XEN_CANCELLED');
      assert.deepEqual(failed.told.cleanupErrors, []);
      assert.equal(await guest.domid(), domid);
      await onlyIt(t, guest);
      await guest.goesOn();

      const { told } = await xlToUs(t, guest);
      assert.equal(told.domid, await guest.domid());
      await guest.goesOn();
      sameLife(guest, before);
      await onlyIt(t, guest);
      // Nobody was asked to build it, and so nobody watches it.
      assert.deepEqual(await daemons(t), []);
    },
  },
];
