/**
 * The xenstore nodes of a domain without devices, as libxl makes them: at first those that the toolstack and the guest's
 * kernel look for (libxl__domain_make), and when memory is in place the rest, with the guest's rings (libxl__build_post,
 * libxl__device_console_add).
 */
import type { XenstoreClient, XenstoreNodes, XenstorePermission } from '../xenstore/index.js';
import { uuidText } from '../../bytes/uuid.js';
import { xsPath } from './paths.js';
import type { DomainPlan } from './plan.js';
import type { BackendWiring } from '../toolstack.js';

/** XenbusStateInitialising. */
const INITIALISING = '1';
/** LIBXL_XENCONSOLE_LIMIT: bytes that xenconsoled keeps of a guest's output. */
const CONSOLE_LIMIT = '1048576';
/** LIBXL_XENCONSOLE_PROTOCOL. */
const CONSOLE_PROTOCOL = 'vt100';

/** Nodes that the guest may write. */
const GUEST_NODES = [
  'device/suspend/event-channel',
  'control/shutdown',
  'control/feature-poweroff',
  'control/feature-reboot',
  'control/feature-suspend',
  'control/sysrq',
  'data',
  'drivers',
  'feature',
  'attr',
  'error',
];
/** Nodes, with what lies below them, that the guest may read. */
const READ_NODES = ['cpu', 'memory', 'device', 'control'];
const HVM_GUEST_NODES = ['control/feature-s3', 'control/feature-s4'];

/** Makes what a new domain has before it has memory. `checkName` runs in the same transaction. */
export async function makeNodes(
  store: XenstoreClient,
  domid: number,
  plan: DomainPlan,
  checkName: (nodes: XenstoreNodes) => Promise<void>,
): Promise<void> {
  const home = xsPath.domain(domid);
  const uuid = uuidText(plan.uuid);
  const vm = xsPath.vm(uuid);
  const libxl = xsPath.libxl(domid);
  const none: XenstorePermission[] = [{ domid: 0, access: 'none' }];
  const read: XenstorePermission[] = [...none, { domid, access: 'read' }];
  const own: XenstorePermission[] = [{ domid, access: 'none' }];
  await store.transaction(async (tx) => {
    const make = async (path: string, permissions: XenstorePermission[]): Promise<void> => {
      // Written, not only made: an event channel or request of another life must not stay.
      await tx.write(path, '');
      await tx.setPermissions(path, permissions);
    };
    await checkName(tx);
    for (const [path, permissions] of [
      [home, read],
      [vm, read],
      [libxl, none],
    ] as const) {
      await tx.remove(path);
      await make(path, permissions);
    }
    await make(`${libxl}/device`, none);
    await tx.write(`${home}/vm`, vm);
    await tx.write(`${home}/name`, plan.name);
    for (const name of READ_NODES) await make(`${home}/${name}`, read);
    const hvm = plan.kind === 'hvm';
    if (hvm) await make(`${home}/hvmloader`, read);
    for (const name of hvm ? [...GUEST_NODES, ...HVM_GUEST_NODES] : GUEST_NODES) {
      await make(`${home}/${name}`, own);
    }
    await tx.write(`${vm}/uuid`, uuid);
    await tx.write(`${vm}/name`, plan.name);
    await tx.write(`${home}/control/platform-feature-multiprocessor-suspend`, '1');
    await tx.write(`${home}/control/platform-feature-xs_reset_watches`, '1');
    await tx.write(`${libxl}/type`, plan.kind);
    await tx.write(`${libxl}/dm-version`, 'qemu_xen');
  });
}

/** Makes what a domain has once its memory is there, and connects it with xenstored and xenconsoled. */
export async function completeNodes(
  store: XenstoreClient,
  domid: number,
  plan: DomainPlan,
  wiring: BackendWiring,
  rings: { readonly storeGfn: number; readonly consoleGfn: number },
): Promise<void> {
  const home = xsPath.domain(domid);
  const vm = xsPath.vm(uuidText(plan.uuid));
  const nodes: Record<string, string> = {
    'memory/static-max': String(plan.maxKib),
    'memory/target': String(plan.targetKib - plan.videoKib),
    'memory/videoram': String(plan.videoKib),
    domid: String(domid),
    'store/port': String(wiring.storeEvtchn),
    'store/ring-ref': String(rings.storeGfn),
  };
  plan.online.forEach((online, vcpu) => {
    nodes[`cpu/${vcpu}/availability`] = online ? 'online' : 'offline';
  });
  await store.transaction(async (tx) => {
    for (const [name, value] of Object.entries(nodes)) await tx.write(`${home}/${name}`, value);
    // All that libxl says of the image, too, when it restores a guest.
    if (plan.kind === 'pv') await tx.write(`${vm}/image/ostype`, 'linux');
    await tx.write(`${vm}/start_time`, (Date.now() / 1000).toFixed(2));
  });
  await store.introduce(domid, rings.storeGfn, wiring.storeEvtchn);
  await addConsole(store, domid, wiring, rings.consoleGfn);
}

/** The console, whose front end is in `console`, where only its back end may write. */
async function addConsole(
  store: XenstoreClient,
  domid: number,
  { consoleDomid, consoleEvtchn }: BackendWiring,
  gfn: number,
): Promise<void> {
  const front = `${xsPath.domain(domid)}/console`;
  const back = xsPath.backend(consoleDomid, 'console', domid, '0');
  const libxl = `${xsPath.libxl(domid)}/device/console/0`;
  const permissions: XenstorePermission[] = [
    { domid: consoleDomid, access: 'none' },
    { domid, access: 'read' },
  ];
  const backNodes: Record<string, string> = {
    'frontend-id': String(domid),
    online: '1',
    state: INITIALISING,
    protocol: CONSOLE_PROTOCOL,
  };
  await store.transaction(async (tx) => {
    for (const path of [libxl, front, back]) await tx.remove(path);
    await tx.write(`${libxl}/frontend`, front);
    await tx.write(`${libxl}/backend`, back);
    for (const [path, other] of [
      [front, back],
      [back, front],
    ] as const) {
      await tx.mkdir(path);
      await tx.setPermissions(path, permissions);
      await tx.write(`${path}/${path === front ? 'backend' : 'frontend'}`, other);
    }
    // The one node that libxl gives to the guest.
    await tx.write(`${front}/backend-id`, String(consoleDomid));
    await tx.setPermissions(`${front}/backend-id`, [
      { domid, access: 'none' },
      { domid: consoleDomid, access: 'read' },
    ]);
    const frontNodes: Record<string, string> = {
      limit: CONSOLE_LIMIT,
      type: 'xenconsoled',
      output: 'pty',
      tty: '',
      port: String(consoleEvtchn),
      'ring-ref': String(gfn),
    };
    for (const [name, value] of Object.entries(frontNodes)) {
      await tx.write(`${front}/${name}`, value);
      await tx.setPermissions(`${front}/${name}`, permissions);
    }
    for (const [name, value] of Object.entries(backNodes)) {
      await tx.write(`${back}/${name}`, value);
      await tx.write(`${libxl}/${name}`, value);
    }
  });
}
