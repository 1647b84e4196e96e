/**
 * What goes wrong around a save or restore: through the helper, and through the library. A clear error each time, log-dirty
 * off, and the guest runs where it was.
 */
import fs from 'node:fs';
import { constants } from 'node:os';
import { playLibxl } from '../libxl/play.js';
import { otherRelease } from '../libxl/other-release.js';
import { check, library, onStage, Reader, same, shutdown } from '../libxl/stage.js';

/** @typedef {import('../lib/context.js').Context} Context */
/** @typedef {import('../libxl/play.js').Outcome} Outcome */
/** @typedef {import('../libxl/stage.js').Stage} Stage */

const { EACCES, ENOSPC, ENOSYS, EPIPE, ESRCH } = constants.errno;
const nobody = 65534;

/**
 * The helper said that it failed, why, and ended as libxl wants it.
 *
 * @param {Context} t
 * @param {Outcome} outcome
 * @param {string} what
 * @param {{ errno?: number, text: RegExp }} expected
 */
function failed(t, outcome, what, { errno, text }) {
  const told = `${what}: ${JSON.stringify({ ...outcome, said: outcome.said.slice(-5) })}`;
  check(outcome.code === 0 && outcome.complete?.retval === -1 && outcome.complete.errnoval > 0, told);
  if (errno !== undefined) same(outcome.complete.errnoval, errno, `errno; ${told}`);
  check(text.test(outcome.errors.join('\n')), told);
  same(outcome.stderr, '', `${what}: stderr`);
  const switches = outcome.said
    .filter(({ name }) => name === 'switch_qemu_logdirty')
    .map(({ arguments: a }) => a['enable']);
  same(switches, switches.length === 0 ? [] : [1, 0], `${what}: log-dirty of QEMU`);
  t.log(`${what}: ${outcome.errors.at(-1)}`);
}

/** Calls `act` once, at the nth progress message of a pass. @param {number} n @param {() => unknown} act */
function atProgress(n, act) {
  let seen = 0;
  return (/** @type {import('../libxl/play.js').Said} */ { name, arguments: a }) =>
    name === 'progress' && String(a['doing']).startsWith('Frames') && ++seen === n ? act() : undefined;
}

/**
 * A file system of 4 MiB.
 *
 * @param {Context} t
 * @param {(file: string) => Promise<void>} act
 */
async function onSmallDisk(t, act) {
  const folder = t.file('small');
  await t.sh(`mkdir -p ${folder} && mount -t tmpfs -o size=4m none ${folder}`);
  try {
    await act(`${folder}/stream`);
  } finally {
    await t.run(['umount', '-l', folder]);
  }
}

/** @param {Stage} stage @param {boolean} live */
async function helperFaults(stage, live) {
  const { t, oracle, domid } = stage;
  const helper = 'ours';

  const hungUp = new Reader();
  const pipe = await stage.save(hungUp.writable, {
    helper,
    live,
    onMessage: atProgress(2, () => hungUp.hangUp()),
  });
  hungUp.close();
  failed(t, pipe, 'the reader hangs up', { errno: EPIPE, text: /EPIPE|hung up|closed/i });
  await stage.unharmed();

  await onSmallDisk(t, async (file) => {
    failed(t, await stage.saveToFile(file, { helper, live }), 'disk full', {
      errno: ENOSPC,
      text: /ENOSPC|space/,
    });
  });
  await stage.unharmed();

  const dropped = new Reader();
  const answers = { suspend: 0 };
  failed(t, await stage.save(dropped.writable, { helper, answers }), 'a guest that does not suspend', {
    text: /could not suspend/,
  });
  await stage.unharmed();

  const crash = async () => {
    await oracle.shutdown(domid, shutdown.CRASH);
    return 1;
  };
  const crashed = await stage.save(dropped.writable, { helper, answers: { suspend: crash } });
  failed(t, crashed, 'a guest that crashes', { text: /crash|shut down/ });
  check(!(await oracle.logDirty(domid)), 'log-dirty is on after a crash');
  await stage.oracle.resume(domid, false);
  await stage.unharmed();

  const user = await stage.save(dropped.writable, { helper, live, user: nobody });
  failed(t, user, 'not root', { errno: EACCES, text: /root/ });
  const other = await stage.save(dropped.writable, { helper, live, env: otherRelease(t.file('lib')) });
  failed(t, other, 'libraries of another Xen', {
    errno: ENOSYS,
    text: /libraries of Xen 4\.17.*running Xen 4\.17/,
  });
  await stage.unharmed();

  // xl was killed: nobody reads messages and nobody answers. No rule for the exit code, there is nobody to look at it.
  const libxlGone = async (/** @type {string} */ whose) => {
    let seen = 0;
    const outcome = await stage.save(dropped.writable, {
      helper: whose,
      live,
      onMessage: ({ name }, playing) => {
        if (name === 'progress' && ++seen === 3) playing.hangUp();
      },
    });
    check(outcome.complete === undefined, `libxl is gone, ${whose}: ${JSON.stringify(outcome)}`);
    return outcome;
  };
  // The stock helper leaves log-dirty on, which the next save has to cope with; and it is seen here that it is on.
  await libxlGone('stock');
  check(await oracle.logDirty(domid), 'the stock helper turns log-dirty off when libxl is gone');
  same((await libxlGone('ours')).signal, null, 'libxl is gone: signal');
  await stage.unharmed();
  dropped.close();
  await stage.guest.goesOn();

  const doomed = new Reader();
  const destroy = () => stage.guest.destroy();
  const gone = await stage.save(doomed.writable, { helper, live, onMessage: atProgress(2, destroy) });
  doomed.close();
  failed(t, gone, 'destroyed in the middle', { text: /ESRCH|gone|dying|destroyed|no such/i });
  // Frames that anybody still has mapped would keep it.
  await oracle.wait(domid, 'gone', 20);
}

/**
 * @param {Context} t
 * @param {Promise<unknown>} doing
 * @param {string} what
 * @param {{ code: RegExp, text?: RegExp, guest?: object, cleanup?: RegExp }} expected
 */
async function rejects(t, doing, what, { code, text = /./, guest, cleanup = /^$/ }) {
  /** @type {any} */
  const error = await doing.then(
    () => undefined,
    (reason) => reason,
  );
  const told = `${what}: ${error === undefined ? 'no error' : `${error.code} ${error.stack}`}`;
  check(error !== undefined && code.test(error.code) && text.test(error.message), told);
  if (guest !== undefined) same(error.guest, guest, `${what}: where the guest is`);
  const later = error.cleanupErrors.map(String).filter((/** @type {string} */ each) => !cleanup.test(each));
  same(later, [], `${what}: errors of the clean-up`);
  t.log(`${what}: ${error.code} ${error.message}`);
}

const running = { host: 'source', state: 'running' };

/** @param {Stage} stage @param {boolean} live */
async function libraryFaults(stage, live) {
  const { t, oracle, domid } = stage;
  const { save, ShutdownReason } = await library();
  const { openXenHost } = await import(new URL('../../../dist/host/xen/host.js', import.meta.url).href);
  const { loadAddon } = await import(new URL('../../../dist/host/xen/addon.js', import.meta.url).href);
  const host = openXenHost();
  try {
    const options = {
      domid,
      live,
      format: /** @type {const} */ ('libxc'),
      afterwards: /** @type {const} */ ('resume'),
    };

    const hungUp = new Reader();
    const pipe = save(host, {
      ...options,
      to: hungUp.writable,
      onProgress: once(() => hungUp.hangUp()),
      progressInterval: 0,
    });
    await rejects(t, pipe, 'library: the reader hangs up', {
      code: /TRANSPORT|PEER/,
      text: /EPIPE|hung up|closed/i,
      guest: running,
    });
    await stage.unharmed();

    await onSmallDisk(t, async (file) => {
      await rejects(t, save(host, { ...options, to: file }), 'library: disk full', {
        code: /TRANSPORT/,
        text: /ENOSPC|space/,
        guest: running,
      });
    });
    await stage.unharmed();

    // Paused twice, it does not run when it is let run for its suspend.
    await oracle.pause(domid);
    await oracle.pause(domid);
    const never = save(host, { ...options, to: t.file('never'), suspendTimeoutMs: 2000 });
    await rejects(t, never, 'library: a guest that does not suspend', { code: /TIMEOUT|NOT_SUSPENDED/ });
    check(!(await oracle.logDirty(domid)), 'log-dirty is on after a timeout');
    for (let n = 0; n < 2; n++) if ((await oracle.info(domid))?.paused === 1) await oracle.unpause(domid);
    await stage.unharmed();

    // libxc has no way to let a crashed PV guest go on.
    if (stage.guest.type !== 'pv') {
      const crash = () => oracle.shutdown(domid, ShutdownReason.CRASH);
      const crashed = save(host, { ...options, to: t.file('crash'), beforeSwitchover: crash });
      await rejects(t, crashed, 'library: a guest that crashes', {
        code: /CRASHED|NOT_RUNNING|NOT_SUSPENDED/,
      });
      check(!(await oracle.logDirty(domid)), 'log-dirty is on after a crash');
      await oracle.resume(domid, false);
      await stage.unharmed();
    }
    await stage.guest.goesOn();

    const doomed = new Reader();
    let destroyed;
    const onProgress = once(() => (destroyed = stage.guest.destroy()));
    const gone = save(host, { ...options, to: doomed.writable, onProgress, progressInterval: 0 });
    await rejects(t, gone, 'library: destroyed in the middle', {
      code: /GONE|HYPERCALL/,
      guest: { host: 'none', state: 'gone' },
      // Nothing can be tidied up in a domain that is not there.
      cleanup: /ESRCH/,
    });
    await destroyed;
    doomed.close({ taken: true });
  } finally {
    await host.close();
  }
  await oracle.wait(domid, 'gone', 20);
  // Addresses stay reserved until they are collected; pages do not.
  same(loadAddon().mapped().bytes, 0, 'bytes that are still mapped');
}

/** Calls `act` at the first progress behind the setup. @param {() => unknown} act */
function once(act) {
  let done = false;
  return (/** @type {import('../../../lib/index.js').Progress} */ { phase, transferred }) => {
    if (done || transferred === 0 || (phase !== 'pre-copy' && phase !== 'stop-and-copy')) return;
    done = true;
    act();
  };
}

/** Streams that are no streams: xl restore with our helper says why, and leaves no domain. @param {Context} t */
async function badStreams(t) {
  const guest = await t.guest('pv');
  const whole = t.file('whole');
  await t.xl(['save', guest.name, whole]);
  const head = Buffer.alloc(1 << 20);
  const fd = fs.openSync(whole, 'r');
  fs.readSync(fd, head, 0, head.length, 0);
  fs.closeSync(fd);
  const libxl = head.indexOf('LibxlFmt');
  /** Behind libxl's header and the head of its LIBXC_CONTEXT. */
  const libxc = libxl + 16 + 8;
  const pages = libxc + 40;
  check(
    libxl > 0 && head.readBigUInt64BE(libxc) === 0xffff_ffff_ffff_ffffn,
    'no libxc stream where it should be',
  );

  const bad = {
    'cut off in its pages': {
      text: /stream ends/,
      edit: (/** @type {number} */ fd) => fs.ftruncateSync(fd, 30_000_000),
    },
    'cut off in its header': {
      text: /stream ends/,
      edit: (/** @type {number} */ fd) => fs.ftruncateSync(fd, libxc + 10),
    },
    'a marker that is none': {
      text: /marker/i,
      edit: (/** @type {number} */ fd) => fs.writeSync(fd, 'ZZZZZZZZ', libxc),
    },
    'an unknown record': {
      text: /unknown|0x[0-9a-f]+|type/i,
      edit: (/** @type {number} */ fd) => fs.writeSync(fd, 'ZZZZ', pages),
    },
  };
  for (const [what, { text, edit }] of Object.entries(bad)) {
    const file = t.file('bad');
    fs.copyFileSync(whole, file);
    const fd = fs.openSync(file, 'r+');
    edit(fd);
    fs.closeSync(fd);
    const { code, stderr } = await t.xl(['restore', file], { helper: t.helper, fails: true });
    check(code !== 0 && text.test(stderr), `${what}: ${code}\n${stderr}`);
    t.log(
      `${what}: ${stderr.split('\n').find((line) => /xc:|libxl-save-helper/.test(line) && text.test(line)) ?? '?'}`,
    );
    same(
      (await t.domains()).map(({ name }) => name),
      [],
      `${what}: domains`,
    );
  }

  const { restore } = await library();
  const { openXenHost } = await import(new URL('../../../dist/host/xen/host.js', import.meta.url).href);
  const host = openXenHost();
  fs.copyFileSync(whole, t.file('bad'));
  fs.truncateSync(t.file('bad'), 30_000_000);
  await rejects(t, restore(host, { from: t.file('bad') }), 'library: cut off', { code: /TRUNCATED/ });
  await host.close();
  same(
    (await t.domains()).map(({ name }) => name),
    [],
    'domains after a restore by the library',
  );

  // Nothing to restore into.
  const io = fs.openSync(whole, 'r');
  fs.readSync(io, Buffer.alloc(libxc));
  const outcome = await playLibxl({ helper: 'ours', mode: 'restore', domid: 999, io });
  fs.closeSync(io);
  failed(t, outcome, 'no such domain', { errno: ESRCH, text: /ESRCH/ });
  const results = outcome.said.find(({ name }) => name === 'restore_results')?.arguments;
  same(results, { store_gfn: 0, console_gfn: 0 }, 'results of a failed restore');
}

/** @param {Context} t */
async function libraryOfNobody(t) {
  const script = `import('/project/dist/host/xen/host.js').then(({ openXenHost }) => openXenHost()).catch((e) => console.log(e.code, e.message))`;
  const asNobody = `process.setgid(${nobody}); process.setuid(${nobody}); ${script}`;
  const { stdout } = await t.run(['node', '-e', asNobody]);
  check(/^ERR_XEN_PERMISSION .*root/.test(stdout), `not root: ${stdout}`);
  t.log(`library, not root: ${stdout.trim()}`);
  const other = await t.run(['node', '-e', script], { env: otherRelease(t.file('lib')) });
  check(
    other.stdout.startsWith('ERR_XEN_VERSION_MISMATCH '),
    `libraries of another Xen: ${other.stdout}${other.stderr}`,
  );
  t.log(`library, another Xen: ${other.stdout.trim()}`);
}

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  {
    name: 'faults of a live save by the helper, pvh',
    run: (t) => onStage(t, 'pvh', (stage) => helperFaults(stage, true)),
  },
  {
    name: 'faults of a live save by the library, pvh',
    run: (t) => onStage(t, 'pvh', (stage) => libraryFaults(stage, true)),
  },
  {
    name: 'faults of a save by the library, pv',
    run: (t) => onStage(t, 'pv', (stage) => libraryFaults(stage, false)),
  },
  { name: 'streams that are none', run: badStreams },
  { name: 'the library without permission, and with another Xen', run: libraryOfNobody },
];
