/** What only the command has: domains and guests by name as xl has them, what the machine can do, and what is refused. */

/**
 * @typedef {import('../lib/context.js').Context} Context
 * @typedef {{ name: string, domid: number, memory: number, vcpus: number, state: string, kind: string }} Row
 */

const hypervisors = /** @type {const} */ (['stock', 'shadow']);

/**
 * @param {Context} t
 * @param {string[]} args
 * @param {{ fails?: boolean, env?: Record<string, string> }} [options]
 */
const command = (t, args, options) => t.run([t.bin('xen-migrate'), ...args], options);

/** @param {'stock' | 'shadow'} hypervisor */
const info = (hypervisor) => ({
  name: `xen-migrate info on a ${hypervisor} hypervisor`,
  hypervisor,
  /** @param {Context} t */
  async run(t) {
    const { stdout } = await command(t, ['info', '--json'], {
      env: { LIBXL_SAVE_HELPER: 'xen-migrate-save-helper' },
    });
    const found = JSON.parse(stdout);
    const { major, minor, extra, capabilities, guests } = found.hypervisor;
    const told = (await t.xl(['info'])).stdout;
    const line = (/** @type {string} */ name) => new RegExp(`^${name} *: (.*?) *$`, 'm').exec(told)?.[1];
    same('version', `${major}.${minor}${extra}`, line('xen_version'));
    same('capabilities', capabilities.trim(), line('xen_caps'));
    const virt = String(line('virt_caps')).split(' ');
    for (const name of ['pv', 'hvm', 'hap', 'shadow']) same(name, guests[name], virt.includes(name));
    const live = found.abilities.find((/** @type {{ kind: string }} */ { kind }) => kind === 'pv').live;
    same('PV live', live === true, hypervisor === 'shadow');
    same(
      'usable',
      [found.usable, found.xenstore.answers, found.helpers.save.chosenIsOwn],
      [true, true, true],
    );
    t.log((await command(t, ['info'])).stdout);
  },
});

/**
 * @param {string} what
 * @param {unknown} ours
 * @param {unknown} theirs
 */
function same(what, ours, theirs) {
  const [a, b] = [JSON.stringify(ours), JSON.stringify(theirs)];
  if (a !== b) throw new Error(`${what}: ${a}, and xl says ${b}`);
}

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  ...hypervisors.map(info),
  {
    name: 'xen-migrate list shows what xl list shows; a second guest of a name, and another user, are refused',
    async run(t) {
      const [pv, pvh, hvm] = [await t.guest('pv'), await t.guest('pvh'), await t.guest('tiny')];
      await t.xl(['pause', hvm.name]);
      await listed(t, [pv.name, pvh.name, hvm.name]);
      await listedByXenbus(t);
      await Promise.all([pv.destroy(), hvm.destroy()]);
      await refused(t, pvh);
    },
  },
];

/**
 * @param {Context} t
 * @param {[pv: string, pvh: string, hvm: string]} names The last one is paused
 */
async function listed(t, names) {
  /** @type {Row[]} */
  const rows = JSON.parse((await command(t, ['list', '--json'])).stdout);
  const theirs = (await t.xl(['list'])).stdout
    .trim()
    .split('\n')
    .slice(1)
    .map((row) => row.split(/\s+/));
  same(
    'domains',
    rows.map(({ name, domid, vcpus }) => [name, domid, vcpus]),
    theirs.map(([name, id, , vcpus]) => [name, Number(id), Number(vcpus)]),
  );
  // Special pages are no MiB.
  for (const [i, [name, , mem]] of theirs.entries()) {
    const own = Number(rows[i]?.memory) / 2 ** 20;
    if (Math.abs(Number(mem) - own) > 1) throw new Error(`${name}: xl says ${mem} MiB, we ${own}`);
  }
  const found = names.map((wanted) => rows.find(({ name }) => name === wanted));
  same(
    'kinds',
    found.map((row) => row?.kind),
    ['pv', 'pvh', 'hvm'],
  );
  same('paused', found[2]?.state[2], 'p');
}

/** Where xenstored has no socket, as when it runs in a domain of its own: the kernel's device is used then. */
const noSocket = { XENSTORED_RUNDIR: '/none' };

/**
 * The same list by way of the kernel's device.
 *
 * @param {Context} t
 */
async function listedByXenbus(t) {
  /** @param {Record<string, string>} [env] */
  const list = async (env) => {
    const { stdout } = await command(t, ['list', '--json'], env === undefined ? {} : { env });
    // State and times are of the moment.
    const rows = /** @type {Row[]} */ (JSON.parse(stdout));
    return rows.map(({ name, domid, memory, vcpus, kind }) => [name, domid, memory, vcpus, kind]);
  };
  const [bySocket, byDevice] = [await list(), await list(noSocket)];
  if (JSON.stringify(byDevice) !== JSON.stringify(bySocket))
    throw new Error(`through xenbus ${JSON.stringify(byDevice)}, else ${JSON.stringify(bySocket)}`);
  const { stdout } = await command(t, ['info', '--json'], { env: noSocket });
  same('xenstore', JSON.parse(stdout).xenstore.path, '/dev/xen/xenbus');
}

/**
 * With its exit code, and the guest goes on.
 *
 * @param {Context} t
 * @param {import('../lib/guest.js').Guest} guest
 */
async function refused(t, guest) {
  const file = t.file('image');
  // Watches, too, go through the device.
  await command(t, ['save', '-c', guest.name, file], { env: noSocket });
  const taken = await command(t, ['restore', file], { fails: true });
  if (taken.code !== 1 || !taken.stderr.includes(`has the name "${guest.name}" already`)) {
    throw new Error(`a second guest of the name: ${taken.code} ${taken.stderr}`);
  }
  const user = ['setpriv', '--reuid', '1000', '--clear-groups', t.bin('xen-migrate'), 'list'];
  const denied = await t.run(user, { fails: true });
  if (denied.code !== 4 || !denied.stderr.includes('run as root')) {
    throw new Error(`not root: ${denied.code} ${denied.stderr}`);
  }
  await guest.goesOn();
}
