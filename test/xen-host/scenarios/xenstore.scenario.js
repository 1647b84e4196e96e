/** The clients of xenstored and of QEMU's monitor, beside Debian's tools and stock xl. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';

const dist = process.env.XEN_HOST_DIST ?? '/project/dist';
const DEVICE = '/dev/xen/xenbus';
/** Generous: the machine is slow. A hang still ends. */
const PATIENCE_MS = 60_000;

const addon = () => createRequire(import.meta.url)('/project/build/Release/xen_migration.node');

/** @returns {Promise<any>} */
const xenstoreLibrary = () => import(`${dist}/toolstack/xenstore/index.js`);
/** @returns {Promise<any>} */
const qmpLibrary = () => import(`${dist}/toolstack/qmp/index.js`);

/**
 * @param {string | undefined} path
 * @returns {Promise<any>}
 */
async function open(path) {
  const { openXenstore } = await xenstoreLibrary();
  const { watchReadable } = addon();
  return openXenstore({ path, device: { watchReadable }, timeoutMs: PATIENCE_MS });
}

/**
 * @param {import('../lib/context.js').Context} t
 * @param {string | undefined} path
 */
async function speak(t, path) {
  const store = await open(path);
  const base = '/local/domain/0/xen-migration-test';
  const next = (/** @type {any} */ watch) => watch.next({ timeoutMs: PATIENCE_MS });
  try {
    await store.write(`${base}/a`, 'hello');
    assert.equal(await store.read(`${base}/a`), 'hello');
    assert.equal((await t.run(['xenstore-read', `${base}/a`])).stdout, 'hello\n');
    assert.equal(await store.read(`${base}/none`), undefined);
    await assert.rejects(store.write('/sp ace', 'x'), { code: 'ERR_XEN_XENSTORE', errno: 22 });

    const watch = await store.watch(base);
    assert.equal(await next(watch), base);
    await t.run(['xenstore-write', `${base}/b`, '1']);
    assert.equal(await next(watch), `${base}/b`);
    await watch.close();

    let runs = 0;
    await store.transaction(async (/** @type {any} */ tx) => {
      runs += 1;
      await tx.read(`${base}/a`);
      if (runs < 3) await t.run(['xenstore-write', `${base}/a`, String(runs)]);
      await tx.write(`${base}/a`, 'mine');
    });
    assert.equal(runs, 3);

    const names = Array.from({ length: 150 }, (_, i) => `a-name-long-enough-to-fill-messages-${i}`);
    await Promise.all(names.map((name) => store.write(`${base}/many/${name}`, name)));
    assert.deepEqual(new Set(await store.list(`${base}/many`)), new Set(names));
    assert.deepEqual(await Promise.all(names.map((name) => store.read(`${base}/many/${name}`))), names);

    const abort = new AbortController();
    const aborted = store.read(`${base}/a`, { signal: abort.signal });
    abort.abort();
    await assert.rejects(aborted, { code: 'ERR_XEN_CANCELLED' });
    assert.equal(await store.read(`${base}/a`), 'mine');

    // A guest that comes and goes. It says so once it is introduced, and once it is gone.
    const introduced = await store.watch('@introduceDomain');
    const released = await store.watch('@releaseDomain');
    await Promise.all([next(introduced), next(released)]);
    const guest = await t.guest('tiny');
    await next(introduced);
    const domid = await guest.domid();
    assert.equal(await store.isIntroduced(domid), true);
    assert.equal(await store.read(`${await store.domainPath(domid)}/name`), guest.name);
    await store.resume(domid);
    await guest.destroy();
    while (await store.isIntroduced(domid)) await next(released);
    await assert.rejects(store.resume(domid), { operation: 'XS_RESUME', errno: 2 });
    await Promise.all([introduced.close(), released.close()]);

    if (path === DEVICE) await assert.rejects(store.resetWatches(), { operation: 'XS_RESET_WATCHES' });
    else await store.resetWatches();
  } finally {
    await store.remove(base);
    store.close();
  }
}

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  { name: 'xenstore over the socket of xenstored', run: (t) => speak(t, undefined) },
  { name: 'xenstore through the device of the kernel', run: (t) => speak(t, DEVICE) },
  {
    name: 'the monitor of QEMU, shared with stock xl',
    async run(t) {
      const { openQmp } = await qmpLibrary();
      const guest = await t.guest('tiny');
      const domid = await guest.domid();
      const path = `/var/run/xen/qmp-libxl-${domid}`;
      const askXl = () => t.xl(['qemu-monitor-command', String(domid), 'info version']);
      const qemu = await openQmp(path);
      const file = t.file('device-state');
      // xl waits until we have hung up.
      let asked;
      try {
        assert.equal((await qemu.queryStatus()).running, true);
        await qemu.setGlobalDirtyLog(true);
        await qemu.setGlobalDirtyLog(false);
        await qemu.stop();
        asked = askXl();
        // Its failure is told below, if nothing fails before.
        asked.catch(() => undefined);
        fs.writeFileSync(file, '', { mode: 0o600 });
        await qemu.saveDevicesState(file, false);
        const state = fs.readFileSync(file);
        assert.equal(state.subarray(0, 4).toString(), 'QEVM');
        assert.equal(fs.statSync(file).mode & 0o777, 0o600);
        t.measure('device state of a guest without graphics, bytes', state.length);
        await assert.rejects(qemu.saveDevicesState('/none/state', false), { errorClass: 'GenericError' });
        await qemu.cont();
        assert.equal((await qemu.queryStatus()).running, true);
      } finally {
        qemu.close();
      }
      const { version } = qemu;
      assert.match(
        (await asked).stdout,
        new RegExp(`${version.major}\\.${version.minor}\\.${version.micro}`),
      );
      // And we wait for xl, as often as need be.
      const others = [askXl(), askXl()];
      for (let i = 0; i < 5; i++) {
        const one = await openQmp(path, { timeoutMs: PATIENCE_MS });
        await one.queryStatus();
        one.close();
      }
      await Promise.all(others);
    },
  },
];
