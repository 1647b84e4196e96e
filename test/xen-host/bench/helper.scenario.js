/**
 * Our save helper beside Xen's own, under the same stock xl in the same boot: total times, downtime, peak memory,
 * hypercalls. `npm run bench:xen`. Rounds alternate, so that whatever else the machine does meets both.
 */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * @typedef {import('../lib/context.js').Context} Context
 * @typedef {import('../lib/guest.js').Guest} Guest
 * @typedef {'stock' | 'ours'} Whose
 */

const MEMORY = 256;
const ROUNDS = 3;
/** @type {readonly Whose[]} */
const BOTH = ['stock', 'ours'];
const stockHelper = '/usr/lib/xen-4.17/bin/libxl-save-helper';

/**
 * The program. Ours is copied to the machine's own disk, where Xen's is: /project comes over 9p.
 *
 * @param {Context} t @param {Whose} whose
 */
function helperOf(t, whose) {
  if (whose === 'stock') return stockHelper;
  const program = fs.realpathSync(t.helper);
  const bundle = path.dirname(program);
  const from = path.resolve(bundle, '../../..');
  const installed = '/var/tmp/installed';
  if (!fs.existsSync(installed)) {
    for (const piece of ['package.json', 'build/Release/xen_migration.node', path.relative(from, bundle)]) {
      fs.cpSync(path.join(from, piece), path.join(installed, piece), { recursive: true });
    }
  }
  return path.join(installed, path.relative(from, program));
}

/** @param {readonly number[]} values */
function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const [low = 0, high = 0] = sorted.slice(Math.max(0, middle - 1), middle + 1);
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : (low + high) / 2;
}

/**
 * Rounds of both, alternating; tells the medians, and the ratio without what Node takes to start.
 *
 * @param {Context} t
 * @param {string} what
 * @param {number} nodeStart s, taken off ours
 * @param {(whose: Whose) => Promise<number>} once s
 * @param {number} [rounds]
 */
async function compare(t, what, nodeStart, once, rounds = ROUNDS) {
  const times = { stock: /** @type {number[]} */ ([]), ours: /** @type {number[]} */ ([]) };
  for (let round = 0; round < rounds; round++) for (const whose of BOTH) times[whose].push(await once(whose));
  const [stock, ours] = [median(times.stock), median(times.ours)];
  t.log(
    `${what}: stock ${times.stock.map((s) => s.toFixed(2)).join(' ')}; ours ${times.ours.map((s) => s.toFixed(2)).join(' ')}`,
  );
  t.measure(`${what}, stock, s`, stock);
  t.measure(`${what}, ours, s`, ours);
  t.measure(`${what}, ours without Node's start / stock`, (ours - nodeStart) / stock);
}

/** s that Node takes to start and end, doing nothing. @param {Context} t */
async function nodeStartUp(t) {
  const times = [];
  for (let i = 0; i < 5; i++) times.push((await t.run([process.execPath, '-e', '0'])).seconds);
  const start = median(times);
  t.measure("Node's start-up, s", start);
  return start;
}

/**
 * Peak memory of the helper that runs meanwhile, KiB.
 *
 * @param {string} mode
 * @param {Promise<unknown>} running
 */
async function peakOf(mode, running) {
  let peak = 0;
  let over = false;
  void running.finally(() => (over = true)).catch(() => {});
  while (!over) {
    for (const pid of fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      try {
        if (!fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(`\0${mode}\0`)) continue;
        const status = fs.readFileSync(`/proc/${pid}/status`, 'latin1');
        peak = Math.max(peak, Number(/^VmHWM:\s+(\d+)/m.exec(status)?.[1] ?? 0));
      } catch {
        // It has ended meanwhile.
      }
    }
    await sleep(100);
  }
  await running;
  return peak;
}

/**
 * Starts a helper under strace and counts what it asks of Xen: _IOC(NONE, 'P', nr, …) of privcmd.
 *
 * @param {Context} t
 * @param {Whose} whose
 * @param {(helper: string) => Promise<unknown>} action
 */
async function countCalls(t, whose, action) {
  const trace = t.file('ioctls');
  const wrapper = t.file('traced');
  const command = `exec strace -f -qq -e trace=ioctl -o ${trace} ${helperOf(t, whose)} "$@"`;
  fs.writeFileSync(wrapper, `#!/bin/bash\n${command}\n`, { mode: 0o755 });
  await action(wrapper);
  const lines = fs.readFileSync(trace, 'latin1').split('\n');
  const count = (/** @type {number} */ nr) =>
    lines.filter((line) =>
      new RegExp(
        `ioctl\\(\\d+, (_IOC\\(_IOC_NONE, 0x50, (0x)?${nr},|IOCTL_PRIVCMD_${nr === 0 ? 'HYPERCALL' : 'MMAPBATCH_V2'})`,
      ).test(line),
    ).length;
  fs.rmSync(trace);
  return { hypercalls: count(0), mappings: count(4) };
}

/**
 * Downtime as seen from outside: from the moment in which the source is suspended to the one in which the domain at the
 * destination is let go. s.
 *
 * @param {Context} t
 * @param {Guest} guest
 * @param {Whose} whose both ends
 */
async function downtime(t, guest, whose) {
  const { XenHost } = await t.load('index.js');
  const host = new XenHost();
  const source = await guest.domid();
  let stopped = 0;
  let goes = 0;
  let over = false;
  try {
    const moving = t
      .xl(
        ['migrate', '-s', '', guest.name, `env LIBXL_SAVE_HELPER=${helperOf(t, whose)} xl migrate-receive`],
        {
          helper: helperOf(t, whose),
        },
      )
      .finally(() => (over = true));
    moving.catch(() => {});
    while (!over && goes === 0) {
      for (const domain of await host.listDomains()) {
        if (domain.domid === source) {
          if (stopped === 0 && domain.shutdown) stopped = performance.now();
        } else if (domain.domid > source && stopped > 0 && !domain.paused && !domain.shutdown) {
          goes = performance.now();
        }
      }
      await sleep(20);
    }
    await moving;
  } finally {
    await host.close();
  }
  if (stopped === 0 || goes === 0) throw new Error('the switch-over was not seen');
  await guest.goesOn();
  return (goes - stopped) / 1000;
}

/**
 * @param {'pv' | 'pvh' | 'hvm'} type
 * @param {number} [memory] MiB
 * @returns {import('../lib/main.js').Scenario}
 */
const speed = (type, memory = MEMORY) => ({
  name: `${type}: helper against stock, ${memory} MiB`,
  async run(t) {
    const start = await nodeStartUp(t);
    const guest = await t.guest(type, { memory, fill: memory / 2 });
    const save = (/** @type {string} */ helper) => t.xl(['save', '-c', guest.name, '/dev/null'], { helper });
    await compare(t, `${type} xl save`, start, async (whose) => {
      const { seconds } = await save(helperOf(t, whose));
      await guest.goesOn();
      return seconds;
    });
    for (const whose of BOTH) {
      t.measure(
        `${type} save, peak memory, ${whose}, MiB`,
        (await peakOf('--save-domain', save(helperOf(t, whose)))) / 1024,
      );
    }
    for (const whose of BOTH) {
      const { hypercalls, mappings } = await countCalls(t, whose, save);
      t.measure(`${type} save, hypercalls per MiB, ${whose}`, hypercalls / memory);
      t.measure(`${type} save, mappings per MiB, ${whose}`, mappings / memory);
    }

    const file = t.file('image');
    await t.xl(['save', guest.name, file]);
    await t.sh(`cat ${file} > /dev/null`);
    const restore = (/** @type {string} */ helper) => t.xl(['restore', file], { helper });
    await compare(t, `${type} xl restore`, start, async (whose) => {
      const { seconds } = await restore(helperOf(t, whose));
      await guest.destroy();
      return seconds;
    });
    for (const whose of BOTH) {
      const peak = await peakOf('--restore-domain', restore(helperOf(t, whose)));
      t.measure(`${type} restore, peak memory, ${whose}, MiB`, peak / 1024);
      await guest.destroy();
    }
    for (const whose of BOTH) {
      const { hypercalls, mappings } = await countCalls(t, whose, restore);
      t.measure(`${type} restore, hypercalls per MiB, ${whose}`, hypercalls / memory);
      t.measure(`${type} restore, mappings per MiB, ${whose}`, mappings / memory);
      await guest.destroy();
    }
  },
});

/**
 * @param {'pv' | 'pvh' | 'hvm'} type
 * @param {'stock' | 'shadow'} [hypervisor]
 * @returns {import('../lib/main.js').Scenario}
 */
const live = (type, hypervisor = 'stock') => ({
  name: `${type}: downtime of a live migration, ${MEMORY} MiB`,
  hypervisor,
  async run(t) {
    const guest = await t.guest(type, { memory: MEMORY, fill: 128, dirty: 4 });
    // Node has started long before the guest stands still: nothing is taken off.
    await compare(t, `${type} downtime`, 0, (whose) => downtime(t, guest, whose));
  },
});

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  speed('pv'),
  speed('pvh'),
  speed('hvm'),
  live('pvh'),
  live('hvm'),
  live('pv', 'shadow'),
  // The larger the guest, the less what is done once counts.
  speed('pv', 768),
  speed('pvh', 768),
];
