/** The toolstack without libxl: what it does to real guests, and that stock xl finds what it would have left itself. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';

/** @typedef {import('../lib/context.js').Context} Context */

const dist = process.env.XEN_HOST_DIST ?? '/project/dist';
/** A Linux guest takes seconds to suspend where all is emulated and the machine is busy. */
const PATIENCE_MS = 60_000;
const SUSPENDED = 2;

const addon = () => createRequire(import.meta.url)('/project/build/Release/xen_migration.node');

/**
 * A toolstack over the addon, and the addon's calls.
 *
 * @param {(toolstack: any, calls: any, addon: any) => Promise<void>} use
 * @param {object} [options] of XenToolstack
 */
async function withToolstack(use, options = {}) {
  const { XenToolstack } = await import(`${dist}/toolstack/xen/toolstack.js`);
  const { Xen, Evtchn, watchReadable, lockFile } = addon();
  const calls = new Xen(() => undefined, 10);
  const openEvtchn = () => new Evtchn();
  const toolstack = new XenToolstack({ calls, openEvtchn, watchReadable, lockFile, ...options });
  try {
    await use(toolstack, calls, addon());
  } finally {
    await toolstack.close();
    calls.close();
  }
}

/**
 * The configuration in a file of xl save: offset 48 holds its length, then comes the text and a NUL.
 *
 * @param {string} file
 */
function configIn(file) {
  const bytes = fs.readFileSync(file);
  const text = bytes.toString('utf8', 52, 52 + bytes.readUInt32LE(48));
  return text.slice(0, text.indexOf('\0'));
}

/**
 * The toolstack's configuration of a running guest is the one that xl put into a file.
 *
 * @param {string} file
 * @param {string} name
 */
async function sameConfig(file, name) {
  const theirs = JSON.parse(configIn(file));
  // Of the scheduler libxl asks what is in force, also where nothing was configured.
  assert.deepEqual(theirs.b_info.sched_params, { sched: 'credit2', weight: 256, cap: 0 });
  await withToolstack(async (toolstack) => {
    const ours = JSON.parse(await toolstack.domainConfig(await toolstack.resolveDomain(name)));
    for (const config of [theirs, ours]) delete config.b_info.sched_params;
    assert.deepEqual(ours, theirs);
  });
}

/** What libxl keeps of domains: xenstore, and files. @param {Context} t */
async function traces(t) {
  const { stdout } = await t.run(['xenstore-ls', '-fp']);
  return {
    nodes: stdout.split('\n').filter((line) => line !== ''),
    // The history of domids is xl's own.
    files: ['/var/lib/xen', '/var/run/xen'].flatMap((folder) => {
      return fs.readdirSync(folder).filter((name) => name !== 'domid-history');
    }),
  };
}

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  ...['pv', 'pvh', 'tiny'].map((type) => ({
    name: `a ${type} guest is suspended, goes on, is given up and goes on`,
    /** @param {Context} t */
    async run(t) {
      const guest = await t.guest(/** @type {import('../lib/context.js').GuestType} */ (type));
      await withToolstack(async (toolstack, calls) => {
        const domid = await toolstack.resolveDomain(guest.name);
        assert.equal((await toolstack.listNames()).get(domid), guest.name);
        for (let i = 0; i < 2; i++) {
          const begin = performance.now();
          await toolstack.suspend(domid, { live: false, timeoutMs: PATIENCE_MS, signal: t.signal });
          t.measure(`${type}: suspend, s`, (performance.now() - begin) / 1000);
          assert.equal((await calls.domainInfo(domid)).shutdownReason, SUSPENDED);
          const state = await toolstack.deviceModelState(domid);
          assert.equal(state?.emulator, type === 'tiny' ? 2 : undefined);
          if (state !== undefined) assert.equal(Buffer.from(state.context).toString('latin1', 0, 4), 'QEVM');
          await toolstack.resume(domid);
          assert.equal((await calls.domainInfo(domid)).shutdown, false);
        }

        // Cancelled at different moments: it runs, whatever it was about to do.
        for (const ms of [1, 100, 300]) {
          const suspending = toolstack.suspend(domid, { live: false, signal: AbortSignal.timeout(ms) });
          const error = await suspending.then(
            () => toolstack.resume(domid),
            (/** @type {unknown} */ reason) => reason,
          );
          if (error !== undefined) assert.equal(error.code, 'ERR_XEN_CANCELLED', String(error));
          const info = await calls.domainInfo(domid);
          assert.equal(info.shutdown, false, `after ${ms} ms`);
        }
        await guest.goesOn();
        if (type === 'tiny') return;

        // A guest that cannot answer: the request is taken back, and it never follows it.
        await t.xl(['pause', guest.name]);
        const late = toolstack.suspend(domid, { live: false, timeoutMs: 1000 });
        await assert.rejects(late, { code: 'ERR_XEN_TIMEOUT' });
        await t.xl(['unpause', guest.name]);
        await guest.goesOn();
        assert.equal((await calls.domainInfo(domid)).shutdown, false);
      });
    },
  })),
  {
    name: 'a suspend event channel: the guest’s shutdown rings, xl is kept out meanwhile',
    async run(t) {
      const guest = await t.guest('pv');
      // No looking without being told: only events count.
      const clock = {
        after: (/** @type {number} */ ms, /** @type {() => void} */ callback) => {
          const timer = setTimeout(callback, ms < 5000 ? PATIENCE_MS * 10 : ms);
          return () => clearTimeout(timer);
        },
      };
      await withToolstack(
        async (toolstack, calls, { Evtchn }) => {
          const domid = await guest.domid();
          const node = `/local/domain/${domid}/device/suspend/event-channel`;
          // Linux has no such channel; here is one that nobody in the guest listens to.
          const port = await calls.allocUnbound(domid, 0);
          await t.run(['xenstore-write', node, String(port)]);
          const suspending = toolstack.suspend(domid, { live: false, timeoutMs: PATIENCE_MS });
          suspending.catch(() => undefined);
          const lock = `/var/run/xen/suspend-evtchn-${domid}.lock`;
          while (!fs.existsSync(lock)) await sleep(50, undefined, { signal: t.signal });
          await sleep(200);
          const { code, stderr } = await t.xl(['save', guest.name, t.file('xl')], { fails: true });
          assert.notEqual(code, 0);
          assert.match(stderr, /suspend-evtchn/);
          // What the guest would have done when the channel rang.
          await t.run(['xenstore-write', `/local/domain/${domid}/control/shutdown`, 'suspend']);
          await suspending;
          assert.equal(fs.existsSync(lock), false);
          await toolstack.resume(domid);
          await guest.goesOn();

          const other = new Evtchn();
          other.bindInterdomain(domid, port);
          const again = toolstack.suspend(domid, { live: false, timeoutMs: PATIENCE_MS });
          await assert.rejects(again, { code: 'ERR_XEN_GUEST_BUSY' });
          other.close();
          await t.run(['xenstore-write', node, '']);
        },
        { clock },
      );
    },
  },
  {
    name: 'the configuration is the one that xl puts into its files',
    async run(t) {
      const guest = await t.guest('tiny');
      const name = `${guest.name}-renamed`;
      await t.xl(['rename', guest.name, name]);
      const file = t.file('stream');
      await t.xl(['save', '-c', name, file]);
      await sameConfig(file, name);
    },
  },
  {
    name: 'a guest that is destroyed leaves as little as with xl',
    async run(t) {
      const before = await traces(t);
      fs.writeFileSync(t.file('disk'), Buffer.alloc(1 << 20));
      const disk = /** @type {any} */ ([`format=raw,vdev=hda,backendtype=qdisk,target=${t.file('disk')}`]);
      // Without devices it is done here, with a disk by xl.
      for (const config of [{}, { disk }]) {
        const guest = await t.guest('tiny', { config });
        await withToolstack(async (toolstack) => {
          await toolstack.destroy(await toolstack.resolveDomain(guest.name));
        });
        assert.equal(await guest.exists(), false);
        assert.deepEqual(await traces(t), before);
        // QEMU ends a moment after its domain.
        for (
          let i = 0;
          (await t.sh(`ps ax | grep -c "[q]emu.*${guest.name}" || true`)).stdout.trim() !== '0';
          i++
        ) {
          if (i > 100) throw new Error('QEMU is still there');
          await sleep(100);
        }
      }
    },
  },
  {
    name: 'a guest restored without libxl has what xl restore gives it, and xl can use it',
    async run(t) {
      // Each vcpu has nodes of its own.
      const guest = await t.guest('pv', { vcpus: 2 });
      const file = t.file('stream');
      await t.xl(['save', guest.name, file]);
      const none = await traces(t);

      /** Nodes and permissions, with what differs from one life to the next left out. */
      const built = async () => {
        const domid = await guest.domid();
        const { nodes, files } = await traces(t);
        const plain = (/** @type {string} */ line) => {
          return line
            .replaceAll(new RegExp(`\\b${domid}\\b`, 'g'), 'N')
            .replaceAll(new RegExp(`\\b([nrwb])${domid}\\b`, 'g'), '$1N')
            .replace(/((?:start_time|tty|ring-ref) = )"[^"]*"/, '$1…');
        };
        return {
          nodes: nodes
            .filter((line) => !none.nodes.includes(line))
            .map(plain)
            .sort(),
          files: files
            .filter((name) => !none.files.includes(name))
            .map((name) => plain(name).replace(/\.\d+\./, '.N.')),
        };
      };
      await t.xl(['restore', file]);
      await sameConfig(file, guest.name);
      const theirs = await built();
      await guest.destroy();
      assert.deepEqual(await traces(t), none);

      const mark = guest.mark();
      const { XenHost } = await import(`${dist}/host/xen/host.js`);
      const { restore } = await import(`${dist}/restore/restore.js`);
      const host = new XenHost();
      try {
        await restore(host, { from: file, signal: t.signal });
      } finally {
        await host.close();
      }
      assert.deepEqual(await built(), theirs);
      await guest.goesOn(mark);
      const { stdout } = await t.xl(['list', '-l', guest.name]);
      assert.equal(JSON.parse(stdout)[0].config.c_info.name, guest.name);
      await t.xl(['save', guest.name, file]);
      await t.xl(['restore', file]);
      await guest.goesOn();
      await guest.destroy();
      assert.deepEqual(await traces(t), none);
    },
  },
];
