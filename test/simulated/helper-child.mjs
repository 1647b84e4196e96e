/**
 * The save helper as a process of its own, with a simulated host in it instead of Xen. Its arguments are libxl's; what
 * else it has to know is in the environment:
 *
 *     HELPER_LIB     folder of the compiled library
 *     HELPER_ROOT    folder of the package, whose addon it takes
 *     HELPER_KIND    save: kind of the guest, which is made here as domain 1
 *     HELPER_CONFIG  restore: configuration of domain 1
 */
import { pathToFileURL } from 'node:url';

const { HELPER_LIB = '', HELPER_ROOT = '', HELPER_KIND, HELPER_CONFIG = '' } = process.env;
const load = (/** @type {string} */ file) => import(pathToFileURL(`${HELPER_LIB}/${file}`).href);

const { runHelper } = await load('helper/helper.js');
const { worldOfProcess } = await load('helper/process.js');
const { SimulatedHost } = await load('host/simulated/host.js');
const { loadAddon } = await load('host/xen/addon.js');

const MIB = 1 << 20;
const SUSPEND = 3;
const host = new SimulatedHost({ memory: 128 * MIB, keepAlive: false });
if (HELPER_KIND === undefined) await host.toolstack.createDomain(HELPER_CONFIG);
else
  await host.createGuest({ memory: 16 * MIB, kind: HELPER_KIND, workload: { kind: 'hot-set', rate: 2000 } });

const world = worldOfProcess(
  async () => {
    // A library that prints would ruin the protocol.
    console.log('printed to the console');
    process.stdout.write('printed to standard output\n');
    return host;
  },
  () => loadAddon(HELPER_ROOT),
);

// libxl suspends the guest; here it lives in this process, so that is done when libxl says that it has.
const { port } = world;
let last = 0;
const code = await runHelper({
  ...world,
  port: {
    write(/** @type {Uint8Array} */ frame) {
      last = frame[2] ?? 0;
      port.write(frame);
    },
    async read(/** @type {Uint8Array} */ into) {
      const request = last;
      const n = await port.read(into);
      if (request === SUSPEND && into[0] === 1) await host.toolstack.suspend(1, { live: true });
      return n;
    },
  },
});
process.exit(code);
