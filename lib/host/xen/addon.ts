/**
 * The loader of the native addon, whose surface native.ts declares.
 *
 * The library works without it; only what needs a hypercall or a mapped frame loads it, on first use. Not being able
 * to is an AddonError whose code tells the cases apart (not built, built without Xen, a library missing now; no Xen here,
 * no permission, a hypervisor of another release than the library) and whose message names the cure.
 */
import bindings from 'bindings';
import { fileURLToPath } from 'node:url';
import { Errno } from '../../abi/errno.js';
import { AddonError } from '../../errors.js';
import { noPrivcmd, REBUILD } from './errors.js';
import type { AddonBuild, HypervisorVersion, NativeAddon } from './native.js';

const ADDON = 'xen_migration';

/** Root of the package, from lib/host/xen/ and dist/host/xen/ alike. */
const PACKAGE_ROOT = fileURLToPath(new URL('../../..', import.meta.url));

const RUN_REBUILD = `run ${REBUILD} (npm 12 and later: \`npm install-scripts approve xen-migration\` before it)`;

const loaded = new Map<string, NativeAddon>();

/**
 * Loads the addon, once.
 *
 * @param root folder that holds `build/`; another one than the package's is of use only to tests.
 * @throws AddonError `ERR_XEN_ADDON_MISSING` or `ERR_XEN_ADDON_LIBRARY`.
 */
export function loadAddon(root: string = PACKAGE_ROOT): NativeAddon {
  let addon = loaded.get(root);
  if (addon === undefined) {
    addon = load(root);
    loaded.set(root, addon);
  }
  return addon;
}

/**
 * Loads the addon and makes sure that it can speak to a hypervisor.
 *
 * @throws AddonError as `loadAddon`, or `ERR_XEN_ADDON_NO_XEN`, `ERR_XEN_NO_PRIVCMD`, `ERR_XEN_PERMISSION`,
 * `ERR_XEN_VERSION_MISMATCH`.
 */
export function loadAddonWithXen(root?: string): { addon: NativeAddon; hypervisor: HypervisorVersion } {
  const { addon, hypervisor } = reachXen(root);
  const problem = refusal(addon.build, hypervisor);
  if (problem !== undefined) throw problem;
  return { addon, hypervisor };
}

/** The hypervisor that answers, whether or not it does what it is asked. */
function reachXen(root?: string): { addon: NativeAddon; hypervisor: HypervisorVersion } {
  const addon = loadAddon(root);
  if (addon.hypervisor === undefined) throw builtWithoutXen();
  try {
    return { addon, hypervisor: addon.hypervisor() };
  } catch (cause) {
    throw noHypervisor(cause);
  }
}

export function builtWithoutXen(): AddonError {
  return new AddonError(
    'ERR_XEN_ADDON_NO_XEN',
    `the native addon was built without Xen: install Xen's development files (Debian: libxen-dev), then ${RUN_REBUILD}`,
  );
}

/** What `probeXen` found. */
export interface XenProbe {
  /** Absent if the addon cannot be loaded. */
  readonly build?: AddonBuild;
  /** Absent if there is no Xen to speak to. */
  readonly hypervisor?: HypervisorVersion;
  /** Why one of the two is absent, or why the hypervisor cannot be used. */
  readonly problem?: AddonError;
}

/** Tells what of Xen can be used here. Never throws: for health checks, and to choose between Xen and the simulator. */
export function probeXen(root?: string): XenProbe {
  let build: AddonBuild | undefined;
  try {
    build = loadAddon(root).build;
    const { hypervisor } = reachXen(root);
    const problem = refusal(build, hypervisor);
    return problem === undefined ? { build, hypervisor } : { build, hypervisor, problem };
  } catch (problem) {
    if (!(problem instanceof AddonError)) throw problem;
    return build === undefined ? { problem } : { build, problem };
  }
}

function load(root: string): NativeAddon {
  try {
    return bindings({
      bindings: ADDON,
      // Without these two, `bindings` guesses the root from the stack and prefers a forgotten debug build.
      module_root: root,
      try: [
        ['module_root', 'build', 'Release', 'bindings'],
        ['module_root', 'build', 'Debug', 'bindings'],
      ],
    }) as NativeAddon;
  } catch (cause) {
    throw notLoaded(cause);
  }
}

/** `bindings` reports a missing file in its own words, and passes on what dlopen said about one that is there. */
function notLoaded(cause: unknown): AddonError {
  const { code, message } = facts(cause);
  if (code !== 'ERR_DLOPEN_FAILED') {
    return new AddonError('ERR_XEN_ADDON_MISSING', `the native addon is not built: ${RUN_REBUILD}`, {
      cause,
    });
  }
  const library = /^(?:.*: )?(\S+\.so[.\d]*): cannot open shared object file/.exec(message)?.[1];
  if (library !== undefined) {
    return new AddonError(
      'ERR_XEN_ADDON_LIBRARY',
      `the native addon needs ${library}, which is not on this machine: install the package that holds it, or, ` +
        `if Xen has been upgraded since the addon was built, ${RUN_REBUILD}`,
      { cause },
    );
  }
  return new AddonError(
    'ERR_XEN_ADDON_LIBRARY',
    `the native addon does not fit this machine's libraries (${message}): ${RUN_REBUILD}`,
    { cause },
  );
}

function noHypervisor(cause: unknown): AddonError {
  const { code, message } = facts(cause);
  if (code === 'EACCES' || code === 'EPERM') {
    return new AddonError(
      'ERR_XEN_PERMISSION',
      `no permission to use /dev/xen/privcmd: run as root (${message})`,
      {
        cause,
      },
    );
  }
  return noPrivcmd(message, cause);
}

/**
 * A hypervisor that tells its version to everybody may still refuse to do anything for this library, or this domain.
 *
 * @returns undefined if it does not
 */
export function refusal(build: AddonBuild, hypervisor: HypervisorVersion): AddonError | undefined {
  const errno = hypervisor.domctlErrno ?? hypervisor.physinfoErrno;
  if (errno === undefined) return undefined;
  const running = `${String(hypervisor.major)}.${String(hypervisor.minor)}${hypervisor.extra}`;
  // EACCES: the interface version of the domctl or sysctl is not the hypervisor's own.
  if (errno !== Errno.EACCES) {
    return new AddonError(
      'ERR_XEN_PERMISSION',
      `Xen ${running} refuses to act on domains (errno ${String(errno)}): run in its control domain, as root`,
    );
  }
  return new AddonError(
    'ERR_XEN_VERSION_MISMATCH',
    `the native addon uses the libraries of Xen ${String(build.xenVersion)}, which the running Xen ${running} refuses: ` +
      `boot the hypervisor that the libraries belong to; or install the libraries and libxen-dev of Xen ` +
      `${String(hypervisor.major)}.${String(hypervisor.minor)}, then ${RUN_REBUILD}`,
  );
}

function facts(error: unknown): { code: unknown; message: string } {
  if (!(error instanceof Error)) return { code: undefined, message: String(error) };
  return { code: 'code' in error ? error.code : undefined, message: error.message };
}
