/**
 * What goes wrong around a save or restore: through the helper, and through the library. A clear error each time, log-dirty
 * off, and the guest runs where it was.
 */
import fs from 'node:fs';
import { constants } from 'node:os';
import { playLibxl } from '../libxl/play.js';
import { otherRelease } from '../libxl/other-release.js';
import { tapQmp } from '../libxl/qmp.js';
import { check, library, onStage, Reader, same, shutdown } from '../libxl/stage.js';

/** @typedef {import('../lib/context.js').Context} Context */
/** @typedef {import('../libxl/play.js').Outcome} Outcome */
/** @typedef {import('../libxl/stage.js').Stage} Stage */

const { EACCES, EINVAL, EIO, ENOSPC, ENOSYS, EPIPE, ESRCH } = constants.errno;
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

/** The numbers of the passes that it told of. @param {Outcome} outcome */
function passes({ said }) {
  const told = said.map(({ arguments: a }) => /^Frames iteration (\d+)$/.exec(String(a['doing']))?.[1]);
  return [...new Set(told.filter((n) => n !== undefined).map(Number))];
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
  // That log-dirty is off says something where it was on.
  const tracked = async () =>
    check(await oracle.logDirty(domid), 'log-dirty is off in the suspend of a live save');
  const refuse = async () => {
    await tracked();
    return 0;
  };
  const onePass = { XEN_MIGRATE_MAX_ITERATIONS: '1' };
  const answers = { suspend: refuse };
  const refused = await stage.save(dropped.writable, { helper, live, answers, env: onePass });
  failed(t, refused, 'a guest that does not suspend', { errno: EIO, text: /could not suspend/ });
  same(passes(refused), [0], 'passes with XEN_MIGRATE_MAX_ITERATIONS=1');
  await stage.unharmed();

  const crash = async () => {
    await tracked();
    await oracle.shutdown(domid, shutdown.CRASH);
    return 1;
  };
  const crashed = await stage.save(dropped.writable, { helper, live, answers: { suspend: crash } });
  failed(t, crashed, 'a guest that crashes', { errno: EIO, text: /crash|shut down/ });
  // The guest rewrites far more than 50 pages during the first one.
  check(passes(crashed).length > 1, `passes without a limit: ${passes(crashed).join()}`);
  check(!(await oracle.logDirty(domid)), 'log-dirty is on after a crash');
  await stage.oracle.resume(domid, false);
  await stage.unharmed();

  const misspelt = { XEN_MIGRATE_MAX_ITERATION: '1' };
  const unknown = await stage.save(dropped.writable, { helper, live, env: misspelt });
  failed(t, unknown, 'a limit that does not exist', {
    errno: EINVAL,
    text: /XEN_MIGRATE_MAX_ITERATION is not/,
  });
  // Nothing has been done to the guest.
  same(
    unknown.said.filter(({ reply }) => reply !== undefined).map(({ name }) => name),
    ['complete'],
    'requests for a limit that does not exist',
  );

  const user = await stage.save(dropped.writable, { helper, live, user: nobody });
  failed(t, user, 'not root', { errno: EACCES, text: /root/ });
  const other = await stage.save(dropped.writable, { helper, live, env: otherRelease(t.file('lib')) });
  failed(t, other, 'libraries of another Xen', {
    errno: ENOSYS,
    text: /libraries of Xen 4\.17.*running Xen 4\.17/,
  });
  await stage.unharmed();

  // xl was killed: nobody reads messages and nobody answers.
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
  const lost = await libxlGone('ours');
  same([lost.code, lost.signal], [1, null], 'libxl is gone: exit code and signal');
  check(/libxl is gone/.test(lost.stderr), `libxl is gone: stderr: ${lost.stderr}`);
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

/**
 * The library's host, and nothing of it is left mapped in the end.
 *
 * @param {(host: any) => Promise<void>} act
 */
async function withHost(act) {
  const { openXenHost } = await import(new URL('../../../dist/host/xen/host.js', import.meta.url).href);
  const { loadAddon } = await import(new URL('../../../dist/host/xen/addon.js', import.meta.url).href);
  const host = openXenHost();
  try {
    await act(host);
  } finally {
    await host.close();
  }
  // Addresses stay reserved until they are collected; pages do not.
  same(loadAddon().mapped().bytes, 0, 'bytes that are still mapped');
}

/** @param {Stage} stage @param {boolean} live */
const saveOptions = ({ domid }, live) => ({
  domid,
  live,
  format: /** @type {const} */ ('libxc'),
  afterwards: /** @type {const} */ ('resume'),
});

/**
 * The stream cannot be written. While the guest runs, or, of a save that is not live, when it and its device model stand.
 *
 * @param {Stage} stage
 * @param {any} host
 * @param {boolean} live
 */
async function writeFaults(stage, host, live) {
  const { t } = stage;
  const { save } = await library();
  const options = saveOptions(stage, live);
  const how = `library, ${live ? 'live' : 'not live'}`;

  const hungUp = new Reader();
  const pipe = save(host, {
    ...options,
    to: hungUp.writable,
    onProgress: once(() => hungUp.hangUp()),
    progressInterval: 0,
  });
  await rejects(t, pipe, `${how}: the reader hangs up`, {
    code: /TRANSPORT|PEER/,
    text: /EPIPE|hung up|closed/i,
    guest: running,
  });
  await stage.unharmed({ resumed: true });

  await onSmallDisk(t, async (file) => {
    await rejects(t, save(host, { ...options, to: file }), `${how}: disk full`, {
      code: /TRANSPORT/,
      text: /ENOSPC|space/,
      guest: running,
    });
  });
  await stage.unharmed({ resumed: true });
}

/** @param {Stage} stage @param {any} host @param {boolean} live */
async function suspendFaults(stage, host, live) {
  const { t, oracle, domid } = stage;
  const { save, ShutdownReason } = await library();
  const options = saveOptions(stage, live);
  /** @param {() => unknown} act Log-dirty is on where it has to be off afterwards. */
  const beforeSwitchover = (act) => async () => {
    same(await oracle.logDirty(domid), live, 'log-dirty before the switchover');
    await act();
  };

  // Paused behind the library's back, it does not see the request.
  const pause = beforeSwitchover(() => oracle.pause(domid));
  const to = t.file('image');
  const never = save(host, { ...options, to, suspendTimeoutMs: 2000, beforeSwitchover: pause });
  await rejects(t, never, 'library: a guest that does not suspend', {
    code: /^ERR_XEN_TIMEOUT$/,
    text: /asked through xenstore to suspend, took no notice within 2000 ms; the request was taken back/,
    guest: { host: 'source', state: 'paused' },
  });
  check(!(await oracle.logDirty(domid)), 'log-dirty is on after a timeout');
  await oracle.unpause(domid);
  await stage.unharmed({ resumed: true });

  // libxc has no way to let a crashed PV guest go on.
  if (stage.guest.type === 'pv') return;
  const crash = beforeSwitchover(() => oracle.shutdown(domid, ShutdownReason.CRASH));
  const crashed = save(host, { ...options, to, beforeSwitchover: crash });
  await rejects(t, crashed, 'library: a guest that crashes', {
    code: /^ERR_XEN_GUEST_CRASHED$/,
    text: /crash/,
    guest: { host: 'source', state: 'unknown' },
  });
  check(!(await oracle.logDirty(domid)), 'log-dirty is on after a crash');
  same(
    (await oracle.info(domid))?.shutdown_reason,
    shutdown.CRASH,
    'a crashed guest is left as it is: reason',
  );
  await oracle.resume(domid, false);
  await stage.unharmed({ resumed: true });
}

/** @param {Stage} stage @param {boolean} live */
async function libraryFaults(stage, live) {
  const { t, oracle, domid } = stage;
  const { save } = await library();
  await withHost(async (host) => {
    await writeFaults(stage, host, live);
    await suspendFaults(stage, host, live);
    await stage.guest.goesOn();

    const doomed = new Reader();
    let destroyed;
    const onProgress = once(() => (destroyed = stage.guest.destroy()));
    const gone = save(host, {
      ...saveOptions(stage, live),
      to: doomed.writable,
      onProgress,
      progressInterval: 0,
    });
    await rejects(t, gone, 'library: destroyed in the middle', {
      code: /GONE|HYPERCALL/,
      guest: { host: 'none', state: 'gone' },
      // Nothing can be tidied up in a domain that is not there.
      cleanup: /ESRCH/,
    });
    await destroyed;
    doomed.close({ taken: true });
  });
  await oracle.wait(domid, 'gone', 20);
}

/**
 * With a QEMU. The hypervisor suspends a guest without PV drivers, which cannot refuse; its device model can.
 *
 * @param {Stage} stage
 */
async function deviceModelFaults(stage) {
  const { t } = stage;
  const { save } = await library();
  const tap = await tapQmp(stage.domid);
  /**
   * Its log-dirty was on and is off, and it was let go on as often as it was stopped.
   *
   * @param {string} what
   * @param {{ tracked: number, stopped: number }} expected how often
   */
  const leftAsItWas = (what, { tracked, stopped }) => {
    const asked = tap.take();
    const switches = asked.filter(({ execute }) => execute === 'xen-set-global-dirty-log');
    const stops = asked.map(({ execute }) => execute).filter((name) => name === 'stop' || name === 'cont');
    const times = (/** @type {number} */ n, /** @type {unknown[]} */ each) => Array(n).fill(each).flat();
    same(
      switches.map(({ arguments: a }) => a?.['enable']),
      times(tracked, [true, false]),
      `${what}: log-dirty of QEMU`,
    );
    same(stops, times(stopped, ['stop', 'cont']), `${what}: QEMU stopped`);
  };
  try {
    await withHost(async (host) => {
      for (const live of [true, false]) {
        const how = `library, ${live ? 'live' : 'not live'}`;
        await writeFaults(stage, host, live);
        leftAsItWas(how, { tracked: 2, stopped: live ? 0 : 2 });
        // An inode, and not a byte more, for the state of QEMU, which is stopped by then.
        const folder = '/var/lib/xen';
        await t.sh(`mount -t tmpfs -o size=4k none ${folder} && head -c 4096 /dev/zero > ${folder}/full`);
        try {
          const full = save(host, { ...saveOptions(stage, live), to: t.file('image') });
          await rejects(t, full, `${how}: no room for the state of QEMU`, {
            code: /^ERR_XEN_DEVICE_MODEL$/,
            text: /xen-save-devices-state/,
            guest: running,
          });
        } finally {
          await t.run(['umount', '-l', folder]);
        }
        await stage.unharmed({ resumed: true });
        // Not live, it is stopped before anything is set up.
        leftAsItWas(`${how}: no room for the state of QEMU`, { tracked: live ? 1 : 0, stopped: 1 });
      }
      await stage.guest.goesOn();
    });
  } finally {
    tap.close();
  }
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
  {
    name: 'faults of a live save by the library, hvm',
    run: (t) => onStage(t, 'hvm', (stage) => libraryFaults(stage, true)),
  },
  {
    name: 'faults of saves by the library, tiny',
    run: (t) => onStage(t, 'tiny', deviceModelFaults),
  },
  { name: 'streams that are none', run: badStreams },
  { name: 'the library without permission, and with another Xen', run: libraryOfNobody },
];
