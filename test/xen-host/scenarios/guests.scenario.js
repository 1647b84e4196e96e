/**
 * Real guests through our code and Xen's, in every combination: what one saves the other restores, live migrations on
 * the same host in both directions, and the command without libxl. After each step the guest shows that it goes on:
 * ticks in a row, and a pass over its memory that finds every word as it was written.
 */
import fs from 'node:fs';
import path from 'node:path';

/**
 * @typedef {import('../lib/context.js').Context} Context
 * @typedef {import('../lib/context.js').GuestType} GuestType
 * @typedef {import('../lib/guest.js').Guest} Guest
 * @typedef {'stock' | 'ours'} Whose
 */

/** @param {Context} t @param {Whose} whose */
const helperOf = (t, whose) => (whose === 'ours' ? { helper: t.helper } : {});

/** Some with two vcpus: each must come along. PV and PVH alone, as nothing of it is the device model's. */
const vcpusOf = (/** @type {GuestType} */ type) => (type === 'pv' || type === 'pvh' ? 2 : 1);

/**
 * xl save with the one helper, xl restore with the other.
 *
 * @param {Context} t
 * @param {Guest} guest
 * @param {Whose} saver
 * @param {Whose} restorer
 */
async function saveAndRestore(t, guest, saver, restorer) {
  const file = t.file(`${saver}-${restorer}`);
  const before = guest.lastTick();
  const saved = await t.xl(['save', guest.name, file], helperOf(t, saver));
  if (await guest.exists()) throw new Error(`the guest is still there after xl save with ${saver} helper`);
  await valid(t, file);
  const mark = guest.mark();
  const restored = await t.xl(['restore', file], helperOf(t, restorer));
  await guest.goesOn(mark);
  sameLife(guest, before);
  t.measure(`${guest.type}: xl save, ${saver}, s`, saved.seconds);
  t.measure(`${guest.type}: xl restore, ${restorer}, s`, restored.seconds);
  await t.run(['rm', '-f', file]);
}

/**
 * Our verifier finds nothing to say against the stream.
 *
 * @param {Context} t
 * @param {string} file
 */
async function valid(t, file) {
  const { openSource, verify } = await t.load('index.js');
  const source = await openSource(file, { signal: t.signal });
  const report = await verify(source, { signal: t.signal }).finally(() => source.close());
  if (!report.valid || report.warnings > 0) throw new Error(`${file}: ${JSON.stringify(report.findings)}`);
}

/**
 * It went on from where it was: it was not booted anew.
 *
 * @param {Guest} guest
 * @param {number | undefined} before
 */
function sameLife(guest, before) {
  if (guest.type === 'tiny') return;
  const now = guest.lastTick();
  if (before === undefined || now === undefined || now <= before)
    throw new Error(`${guest.name}: tick ${now} after tick ${before}`);
}

/**
 * xl migrate to this same host.
 *
 * @param {Context} t
 * @param {Guest} guest
 * @param {Whose} sender
 * @param {Whose} receiver
 * @param {Record<string, string>} [limits] for our sender
 */
async function migrateHere(t, guest, sender, receiver, limits) {
  const domid = await guest.domid();
  const before = guest.lastTick();
  const env = receiver === 'ours' ? `LIBXL_SAVE_HELPER=${t.helper}` : '-u LIBXL_SAVE_HELPER';
  const moved = await t.xl(['migrate', '-s', '', guest.name, `env ${env} xl migrate-receive`], {
    ...helperOf(t, sender),
    ...(limits === undefined ? {} : { env: limits }),
  });
  if ((await guest.domid()) === domid) throw new Error(`${guest.name} is still domain ${domid}`);
  // From now: while it was copied it ticked at the source.
  await guest.goesOn();
  sameLife(guest, before);
  t.measure(`${guest.type}: xl migrate, ${sender} to ${receiver}, s`, moved.seconds);
  return moved.stderr;
}

/**
 * Limits in xl's environment reach the helper: one pass while the guest runs, then the last one, where a guest that
 * rewrites more than 50 pages in a tick has more by default. One that does not exist fails the save, and nothing happens
 * to the guest.
 *
 * @param {Context} t
 * @param {Guest} guest
 */
async function limits(t, guest) {
  const domid = await guest.domid();
  const mark = guest.mark();
  const misspelt = { helper: t.helper, env: { XEN_MIGRATE_MAX_ITERATION: '1' }, fails: true };
  const refused = await t.xl(['save', guest.name, t.file('refused')], misspelt);
  const reason = /XEN_MIGRATE_MAX_ITERATION is not known; there are XEN_MIGRATE_MAX_ITERATIONS,/;
  if (refused.code === 0 || !reason.test(refused.stderr))
    throw new Error(`a limit that does not exist: ${refused.code} ${refused.stderr}`);
  if ((await guest.domid()) !== domid) throw new Error(`${guest.name} is no longer domain ${domid}`);
  await guest.goesOn(mark);

  // xl migrate hides the display of its progress.
  const told = await migrateHere(t, guest, 'ours', 'stock', { XEN_MIGRATE_MAX_ITERATIONS: '1' });
  if (!/ pages in 2 passes,/.test(told)) throw new Error(`not two passes: ${told}`);
}

/** @param {GuestType} type @returns {import('../lib/main.js').Scenario} */
const saves = (type) => ({
  name: `${type}: ours and stock save and restore each other's images${vcpusOf(type) > 1 ? ', two vcpus' : ''}`,
  async run(t) {
    const guest = await t.guest(type, { vcpus: vcpusOf(type) });
    await saveAndRestore(t, guest, 'ours', 'stock');
    await saveAndRestore(t, guest, 'stock', 'ours');
    await saveAndRestore(t, guest, 'ours', 'ours');
  },
});

/** @param {GuestType} type @param {'stock' | 'shadow'} [hypervisor] @returns {import('../lib/main.js').Scenario} */
const lives = (type, hypervisor = 'stock') => ({
  name: `${type}: live migration, ours to stock and back`,
  hypervisor,
  async run(t) {
    const guest = await t.guest(type, { dirty: 2 });
    if (type === 'pvh') await limits(t, guest);
    else await migrateHere(t, guest, 'ours', 'stock');
    await migrateHere(t, guest, 'stock', 'ours');
  },
});

/**
 * An environment whose xl only notes that it was called, and fails. A host without xl would take another way where there
 * are devices; here it is seen that nobody asks.
 *
 * @param {Context} t
 */
function trap(t) {
  const folder = t.file('trap');
  const calls = path.join(folder, 'calls');
  fs.mkdirSync(folder);
  fs.writeFileSync(path.join(folder, 'xl'), `#!/bin/sh\necho "$@" >> '${calls}'\nexit 1\n`, { mode: 0o755 });
  return {
    env: { PATH: `${folder}:${process.env.PATH}` },
    assertUnused() {
      if (fs.existsSync(calls)) throw new Error(`xl was called: ${fs.readFileSync(calls, 'utf8').trim()}`);
    },
  };
}

/**
 * The vcpus of a PV guest that was restored and did not run yet are in Xen what they are in the stream. Not the basic
 * state, which holds machine frames.
 *
 * @param {Context} t
 * @param {number} domid
 * @param {string} file
 */
async function sameVcpus(t, domid, file) {
  const [{ openSource, openXenHost }, { readStream }] = await Promise.all([
    t.load('index.js'),
    t.load('stream/index.js'),
  ]);
  const host = openXenHost();
  const source = await openSource(file, { signal: t.signal });
  const compared = [];
  try {
    const domain = await host.openDomain(domid);
    for await (const event of readStream(source)) {
      const kind = /^X86_PV_VCPU_(EXTENDED|XSAVE|MSRS)$/.exec(event.name ?? '')?.[1]?.toLowerCase();
      if (kind === undefined) continue;
      // vcpu_id, reserved, state
      const vcpu = Buffer.from(event.body).readUInt32LE(0);
      const state = Buffer.from(await domain.vcpuState(vcpu, kind));
      const wanted = Buffer.from(event.body).subarray(8);
      if (!state.equals(wanted))
        throw new Error(
          `${kind} of vcpu ${vcpu}: ${state.toString('hex')}\ninstead of ${wanted.toString('hex')}`,
        );
      compared.push(`${kind} of vcpu ${vcpu}, ${wanted.length} bytes`);
    }
  } finally {
    await source.close();
    await host.close();
  }
  t.log(`as in the stream: ${compared.join('; ')}`);
  if (!compared.some((text) => text.startsWith('xsave')))
    throw new Error('the stream has no X86_PV_VCPU_XSAVE');
}

/**
 * `xen-migrate save` and, where it can, `xen-migrate restore`: no libxl on the way.
 *
 * @param {GuestType} type
 * @returns {import('../lib/main.js').Scenario}
 */
const withoutXl = (type) => ({
  name: `${type}: xen-migrate save${type === 'hvm' ? '' : ' and restore'} without libxl`,
  async run(t) {
    const guest = await t.guest(type);
    const file = t.file('image');
    const command = t.bin('xen-migrate');
    const { env, assertUnused } = trap(t);

    let before = guest.lastTick();
    t.log((await t.run([command, 'save', guest.name, file], { env })).stdout);
    assertUnused();
    if (await guest.exists()) throw new Error('the guest is still there after xen-migrate save');
    await valid(t, file);
    let mark = guest.mark();
    await t.xl(['restore', file]);
    await guest.goesOn(mark);
    sameLife(guest, before);

    // A snapshot: the guest goes on, where it was and out of the image.
    t.log((await t.run([command, 'save', '--checkpoint', '--no-live', guest.name, file], { env })).stdout);
    assertUnused();
    await guest.goesOn();
    if (type === 'hvm') return;

    await guest.destroy();
    mark = guest.mark();
    t.log((await t.run([command, 'restore', ...(type === 'pv' ? ['--paused'] : []), file], { env })).stdout);
    assertUnused();
    if (type === 'pv') {
      await sameVcpus(t, await guest.domid(), file);
      await t.xl(['unpause', guest.name]);
    }
    await guest.goesOn(mark);
    t.log((await t.run([command, 'list'])).stdout);
    // What we built, stock xl can save.
    const again = t.file('again');
    await t.xl(['save', guest.name, again]);
    mark = guest.mark();
    await t.xl(['restore', again]);
    await guest.goesOn(mark);
  },
});

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  saves('pv'),
  saves('pvh'),
  saves('hvm'),
  saves('tiny'),
  lives('pvh'),
  lives('hvm'),
  lives('pv', 'shadow'),
  withoutXl('pv'),
  withoutXl('pvh'),
  withoutXl('hvm'),
  {
    name: 'pvh: xen-migrate migrate to xen-migrate receive, live, without libxl',
    async run(t) {
      const guest = await t.guest('pvh', { dirty: 2 });
      const before = guest.lastTick();
      const domid = await guest.domid();
      const command = t.bin('xen-migrate');
      const socket = `unix://${t.file('socket')}`;
      const { env, assertUnused } = trap(t);
      const receiving = t.run([command, 'receive', '--listen', socket, '--once'], { env });
      receiving.catch(() => {});
      await t.sh(`until [ -S '${t.file('socket')}' ]; do sleep 0.3; done`);
      t.log((await t.run([command, 'migrate', guest.name, socket], { env })).stdout);
      t.log((await receiving).stdout);
      assertUnused();
      if ((await guest.domid()) === domid) throw new Error(`${guest.name} is still domain ${domid}`);
      await guest.goesOn();
      sameLife(guest, before);
    },
  },
];
