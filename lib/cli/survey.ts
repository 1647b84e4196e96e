/** What of Xen is on this machine, and what can be done with it: the facts behind `info`. */
import { access, constants, readdir, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { debug } from '../debug.js';
import { loadAddon, probeXen, type XenProbe } from '../host/xen/addon.js';
import type { HypervisorVersion } from '../host/xen/native.js';
import { openXenstore, xenstorePaths, type FdWatch } from '../toolstack/xenstore/index.js';
import { VERSION } from '../version.js';
import type { XenGuestKind } from './xen-side.js';

/** Time for xenstored to answer, ms. A healthy one takes less than one. */
const XENSTORE_MS = 5000;

/** Devices of the kernel by the names that Xen's libraries try, and what needs them. */
const DEVICES: readonly (readonly [paths: readonly [string, ...string[]], use: string])[] = [
  [['/dev/xen/privcmd', '/proc/xen/privcmd'], 'hypercalls and guest memory'],
  [['/dev/xen/hypercall'], 'buffers of hypercalls; not in Linux before 4.18'],
  [['/dev/xen/evtchn'], 'events, to suspend guests'],
  [['/dev/xen/xenbus'], 'xenstore, where its daemon has no socket'],
];

/** Folders in which Xen's own programs may be: Debian's by release, then those of other builds. */
const HELPER_FOLDERS = [
  '/usr/libexec/xen/bin',
  '/usr/lib/xen/bin',
  '/usr/lib64/xen/bin',
  '/usr/local/lib/xen/bin',
];

/** Programs that libxl starts, and which an environment variable replaces. */
const HELPERS = {
  save: { variable: 'LIBXL_SAVE_HELPER', stock: 'libxl-save-helper' },
  convert: { variable: 'LIBXL_CONVERT_HELPER', stock: 'convert-legacy-stream' },
} as const;
export type HelperKind = keyof typeof HELPERS;

/** Ours: what package.json names, and what that is made of. */
const here = (...files: string[]): string[] =>
  files.map((file) => fileURLToPath(new URL(`../helper/${file}`, import.meta.url)));
const OWN_HELPERS = {
  save: here('bundle/xen-migrate-save-helper.cjs', 'main.js'),
  convert: here('bundle/xen-migrate-convert-helper.cjs', 'convert/main.js'),
};

/** How far a device or file can be used by this process. */
export type Access = 'usable' | 'denied' | 'absent';

/** What is wrong, and the cure. */
export interface Problem {
  readonly code: string;
  readonly message: string;
}

/** What can be done with guests of a kind. A text says why not, or how else. */
export interface Ability {
  readonly kind: XenGuestKind;
  readonly save: true | string;
  readonly restore: true | string;
  readonly live: true | string;
}

/** Which program libxl starts for a part of its work. */
export interface HelperFacts {
  /** The environment variable that names another than Xen's own. */
  readonly variable: string;
  /** Xen's own. More than one if several releases are installed. */
  readonly stock: readonly string[];
  /** This package's. Undefined if it is not built. */
  readonly own: string | undefined;
  /** What the variable says. */
  readonly chosen: string | undefined;
  readonly chosenIsOwn: boolean;
}

export interface Survey {
  readonly version: string;
  readonly node: string;
  readonly addon: {
    readonly path: string | undefined;
    /** Release of the Xen libraries that it was built with. */
    readonly xenVersion: string | undefined;
  };
  readonly hypervisor: HypervisorVersion | undefined;
  /** Why the addon or the hypervisor cannot be used. */
  readonly problem: Problem | undefined;
  readonly devices: readonly { readonly path: string; readonly use: string; readonly access: Access }[];
  readonly xenstore: {
    /** The socket or device that is there. */
    readonly path: string | undefined;
    readonly answers: boolean;
    readonly problem: Problem | undefined;
  };
  readonly helpers: Readonly<Record<HelperKind, HelperFacts>>;
  readonly abilities: readonly Ability[];
  /** Guests can be worked with. */
  readonly usable: boolean;
}

/** Where a survey looks; other places than the machine's own are of use only to tests. */
export interface SurveyWorld {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Goes before all paths of the machine. */
  readonly root?: string | undefined;
  readonly probe?: (() => XenProbe) | undefined;
  readonly ownHelpers?: Readonly<Record<HelperKind, readonly string[]>> | undefined;
}

/** Looks around. Never rejects for what it finds. */
export async function survey(world: SurveyWorld): Promise<Survey> {
  const { root = '', probe = probeXen, ownHelpers = OWN_HELPERS } = world;
  const { build, hypervisor, problem } = probe();
  const devices = await Promise.all(
    DEVICES.map(async ([paths, use]) => ({ ...(await firstDevice(root, paths)), use })),
  );
  const xenstore = await surveyXenstore(world);
  const usable = problem === undefined && xenstore.answers;
  const helperFacts = async (kind: HelperKind): Promise<HelperFacts> => {
    const { variable, stock } = HELPERS[kind];
    const chosen = world.env[variable];
    return {
      variable,
      stock: await stockHelpers(root, stock),
      own: await firstThere(ownHelpers[kind]),
      chosen,
      chosenIsOwn: await isOneOf(chosen, ownHelpers[kind], world.env['PATH']),
    };
  };
  return {
    version: VERSION,
    node: process.version,
    addon: {
      path: build === undefined ? undefined : pathOfAddon(),
      xenVersion: build?.xenVersion ?? undefined,
    },
    hypervisor,
    problem: problem && { code: problem.code, message: problem.message },
    devices,
    xenstore,
    helpers: { save: await helperFacts('save'), convert: await helperFacts('convert') },
    abilities: usable && hypervisor !== undefined ? abilitiesOf(hypervisor) : [],
    usable,
  };
}

/** The loader notes down at the addon where it found it. */
function pathOfAddon(): string | undefined {
  const { path: file } = loadAddon() as { readonly path?: unknown };
  return typeof file === 'string' ? file : undefined;
}

async function surveyXenstore(world: SurveyWorld): Promise<Survey['xenstore']> {
  const { root = '', env } = world;
  const there: string[] = [];
  for (const place of xenstorePaths(env)) if (await exists(root + place)) there.push(root + place);
  const [first] = there;
  if (first === undefined) {
    const message = 'there is no xenstored: neither its socket nor the device of the kernel is here';
    return { path: undefined, answers: false, problem: { code: 'ERR_XEN_XENSTORE', message } };
  }
  try {
    const store = await openXenstore({ path: first, device: deviceWatch(), timeoutMs: XENSTORE_MS });
    try {
      await store.list('/local/domain');
    } finally {
      store.close();
    }
    return { path: first, answers: true, problem: undefined };
  } catch (error) {
    const { code = 'ERR_XEN_XENSTORE', message } = error as NodeJS.ErrnoException;
    return { path: first, answers: false, problem: { code, message } };
  }
}

/** Without the addon, a socket can still be asked. */
function deviceWatch(): FdWatch | undefined {
  try {
    return loadAddon();
  } catch (error) {
    debug('xenstore over sockets alone: %O', error);
    return undefined;
  }
}

/** What the running hypervisor, and this version of the library, can do. */
export function abilitiesOf({ guests }: HypervisorVersion): Ability[] {
  // A hypervisor that does not say is taken at its best: what it cannot do it will refuse by itself.
  const { pv, hvm, shadow } = guests ?? { pv: true, hvm: true, shadow: true };
  const none = (what: string): Pick<Ability, 'save' | 'restore' | 'live'> => {
    const why = `no: this hypervisor runs no ${what} guests`;
    return { save: why, restore: why, live: why };
  };
  const all = { save: true, restore: true, live: true } as const;
  // A device model that takes a state has to be started with it, which libxl does.
  const byXl = 'yes, by xl with our save helper';
  const noShadow = 'no: hypervisor without shadow paging';
  return [
    { kind: 'pv', ...(pv ? { ...all, live: shadow ? true : noShadow } : none('PV')) },
    { kind: 'pvh', ...(hvm ? all : none('PVH')) },
    { kind: 'hvm', ...(hvm ? { save: true, restore: byXl, live: byXl } : none('HVM')) },
  ];
}

async function stockHelpers(root: string, name: string): Promise<string[]> {
  const releases = await readdir(`${root}/usr/lib`).catch(() => []);
  const debian = releases.filter((name) => /^xen-\d/.test(name)).map((name) => `/usr/lib/${name}/bin`);
  const found: string[] = [];
  for (const folder of [...debian.sort(), ...HELPER_FOLDERS]) {
    const file = path.join(folder, name);
    if (await exists(root + file)) found.push(file);
  }
  return found;
}

/** Undefined if the package was not built whole. */
async function firstThere(files: readonly string[]): Promise<string | undefined> {
  for (const file of files) if (await exists(file)) return file;
  return undefined;
}

/** True if the program that libxl would start is one of `own`. It is looked for in PATH, as libxl's exec does. */
async function isOneOf(chosen: string | undefined, own: readonly string[], search = ''): Promise<boolean> {
  if (chosen === undefined || chosen === '') return false;
  const folders = chosen.includes('/') ? [''] : search.split(':');
  const targets = await Promise.all(own.map((file) => realpath(file).catch(() => undefined)));
  for (const folder of folders) {
    const real = await realpath(path.join(folder, chosen)).catch(() => undefined);
    if (real !== undefined) return targets.includes(real);
  }
  return false;
}

/** The first that is there; of none, the first. */
async function firstDevice(
  root: string,
  paths: readonly [string, ...string[]],
): Promise<{ path: string; access: Access }> {
  for (const device of paths) {
    const state = await accessTo(root + device);
    if (state !== 'absent') return { path: device, access: state };
  }
  return { path: paths[0], access: 'absent' };
}

async function accessTo(file: string): Promise<Access> {
  try {
    await access(file, constants.R_OK | constants.W_OK);
    return 'usable';
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'absent' : 'denied';
  }
}

async function exists(file: string): Promise<boolean> {
  return stat(file).then(
    () => true,
    () => false,
  );
}
