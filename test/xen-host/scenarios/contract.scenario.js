/**
 * The contract of the port `Host` (test/contract), on the real one. `node test/contract/build.js` has made JavaScript
 * of it. Guests are used by one test after the other, as long as they can be: starting one takes longer than all else.
 */
const contract = process.env.XEN_HOST_CONTRACT ?? '/project/node_modules/.cache/xen-migration/contract';
const dist = process.env.XEN_HOST_DIST ?? '/project/dist';

let empties = 0;

/** Guests that an earlier test left running, and the hosts that tests open. */
class Subjects {
  /** @param {import('../lib/context.js').Context} t */
  constructor(t) {
    this.t = t;
    /** @type {Map<string, import('../lib/guest.js').Guest>} */
    this.guests = new Map();
  }

  async open() {
    const { XenHost } = await import(`${dist}/host/xen/host.js`);
    const host = new XenHost({ hvmWithoutDeviceModel: true, acceptDefaultCpuPolicy: true });
    return {
      host,
      /** @param {'pv' | 'pvh' | 'hvm'} kind */
      createGuest: async (kind) => {
        const kept = this.guests.get(kind);
        if (kept !== undefined && (await kept.exists())) return kept.domid();
        // The OS-less guest is up in a few seconds; a Linux one as HVM takes a minute.
        const guest = await this.t.guest(kind === 'hvm' ? 'tiny' : kind, { fill: 8, dirty: 1 });
        this.guests.set(kind, guest);
        return guest.domid();
      },
      /** @param {string} kind */
      emptyConfig: (kind) =>
        JSON.stringify({
          c_info: { type: kind, name: `empty-${++empties}` },
          b_info: { max_vcpus: 2, max_memkb: 16384, target_memkb: 16384 },
        }),
      close: async () => {
        try {
          await this.tidy(host);
        } finally {
          await host.close();
        }
      },
    };
  }

  /**
   * Guests go on, everything else goes.
   *
   * @param {any} host
   */
  async tidy(host) {
    const kept = new Map();
    for (const [kind, guest] of this.guests) {
      if (await guest.exists()) kept.set(await guest.domid(), guest);
      else this.guests.delete(kind);
    }
    for (const { domid, shutdown, shutdownReason, paused } of await host.listDomains()) {
      if (domid === 0) continue;
      if (!kept.has(domid) || (shutdown && shutdownReason !== 2)) {
        await host.toolstack.destroy(domid);
        continue;
      }
      const domain = await host.openDomain(domid);
      await domain.disableLogDirty();
      await domain.close();
      if (shutdown) await host.toolstack.resume(domid);
      if (paused) await host.toolstack.unpause(domid);
    }
  }
}

/**
 * @param {import('../lib/context.js').Context} t
 * @param {string} kind
 * @param {object} limits
 */
async function run(t, kind, limits) {
  const { hostContract } = await import(`${contract}/host-contract.js`);
  const { Collector } = await import(`${contract}/collector.js`);
  const subjects = new Subjects(t);
  const collector = new Collector();
  hostContract(collector, 'real Xen', [kind], () => subjects.open(), limits);
  /** @type {string[]} */
  const failed = [];
  /** @param {{ name: string, ms: number, error: unknown }} result */
  const tell = ({ name, ms, error }) => {
    t.log(`${error === undefined ? 'ok' : 'NOT OK'} ${name} (${(ms / 1000).toFixed(1)} s)`);
    if (error !== undefined) {
      const told = error instanceof Error ? (error.stack ?? error.message) : String(error);
      t.log(told);
      failed.push(`${name}\n  ${told.split('\n').slice(0, 8).join('\n  ')}`);
    }
    t.signal.throwIfAborted();
  };
  const results = await collector.run(process.env.XEN_HOST_ONLY, tell);
  if (results.length === 0) throw new Error('there were no tests');
  t.measure('tests of the contract', results.length);
  if (failed.length > 0)
    throw new Error(`${failed.length} of ${results.length} failed:\n${failed.join('\n')}`);
}

/** @type {import('../lib/main.js').Scenario[]} */
export const scenarios = [
  ...['pv', 'pvh', 'hvm'].map((kind) => ({
    name: `the host keeps its contract: ${kind}`,
    /** @param {import('../lib/context.js').Context} t */
    run: (t) => run(t, kind, { noShadowPaging: true }),
  })),
  {
    name: 'the host keeps its contract: pv with log-dirty',
    hypervisor: 'shadow',
    run: (t) => run(t, 'pv', {}),
  },
];
