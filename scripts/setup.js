/**
 * What a fresh machine needs: npm packages, Debian packages, the built library, the built addon. Each step looks
 * first whether it is needed. Run by itself (`npm run setup`) it does all of them.
 */
import fs from 'node:fs';
import path from 'node:path';
import { ask, hasProgram, heading, quietly, root, say, stamped, StepFailed } from './steps.js';

const oldestNode = [20, 19];

/** @throws StepFailed if this Node is too old */
export function checkNode() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const [needMajor = 0, needMinor = 0] = oldestNode;
  if (major > needMajor || (major === needMajor && minor >= needMinor)) return;
  throw new StepFailed(`Node ${oldestNode.join('.')} or newer is needed; this is ${process.version}`);
}

/** The packages of package-lock.json, installed exactly. Their install scripts are not run: none is needed. */
export async function npmPackages() {
  heading('npm packages');
  if (lockIsInstalled()) {
    say('   as locked');
    return;
  }
  await quietly('npm-ci', [
    'npm',
    'ci',
    '--ignore-scripts',
    '--include=dev',
    '--prefer-offline',
    '--no-audit',
    '--no-fund',
  ]);
}

/** npm leaves a copy of what it installed in node_modules, at the very end: compare that with the lock. */
function lockIsInstalled() {
  /** @typedef {{ version?: string, integrity?: string, optional?: boolean, link?: boolean }} Entry */
  /** @param {string} file @returns {Map<string, Entry>} */
  const read = (file) => {
    const lock = JSON.parse(fs.readFileSync(path.join(root, file), 'utf8'));
    return new Map(Object.entries(lock.packages ?? {}));
  };
  try {
    const installed = read('node_modules/.package-lock.json');
    for (const [name, wanted] of read('package-lock.json')) {
      if (name === '') continue;
      const found = installed.get(name);
      if (found === undefined ? !wanted.optional : found.integrity !== wanted.integrity) return false;
    }
    return true;
  } catch {
    return false;
  }
}

/** lib/ to dist/. */
export async function library({ fresh = false } = {}) {
  heading('library (tsc)');
  const needs = {
    inputs: ['lib', 'tsconfig.json', 'tsconfig.build.json', 'package-lock.json'],
    outputs: ['dist/index.js', 'dist/cli/main.js'],
  };
  await stamped('library', needs, () => quietly('library', ['npm', 'run', 'build']), fresh);
}

/** native/ to build/Release/, with Xen if its headers are there. */
export async function addon({ fresh = false } = {}) {
  heading('native addon (cmake-js)');
  const modules = JSON.parse(fs.readFileSync(path.join(root, 'binding.gyp'), 'utf8')).variables.variables
    .xen_modules;
  const needs = {
    inputs: ['native', 'binding.gyp', 'CMakeLists.txt', 'package-lock.json'],
    outputs: ['build/Release/xen_migration.node'],
    facts: { xen: ask(['pkg-config', '--modversion', ...modules.split(' ')]) ?? 'absent' },
  };
  await stamped('addon', needs, () => quietly('addon', ['npm', 'run', 'build:native']), fresh);
}

/** @typedef {{ package: string | (() => string), there: () => boolean }} Wanted a Debian package, and whether it is there */

/**
 * What the check needs beyond Node, and the Debian package that has it. The demo needs none of these.
 *
 * @type {Wanted[]}
 */
const debianPackages = [
  { package: 'g++', there: () => hasProgram('g++') },
  { package: 'make', there: () => hasProgram('make') },
  { package: 'python3', there: () => fs.existsSync('/usr/bin/python3') },
  { package: 'pkg-config', there: () => hasProgram('pkg-config') },
  { package: 'cmake', there: () => hasProgram('cmake') },
  { package: 'ninja-build', there: () => hasProgram('ninja') },
  { package: 'libxen-dev', there: () => ask(['pkg-config', '--exists', 'xencontrol']) !== undefined },
  { package: newestXenUtils, there: () => xenTool('verify-stream-v2') !== undefined },
];

/**
 * @param {string} name
 * @returns {string | undefined} path of one of Xen's own tools, which Debian keeps in a folder for each release
 */
export function xenTool(name) {
  const folders = fs
    .readdirSync('/usr/lib')
    .filter((folder) => /^xen-\d/.test(folder))
    .map((folder) => `/usr/lib/${folder}/bin`);
  return [...folders, '/usr/lib/xen/bin', '/usr/libexec/xen/bin', '/usr/local/lib/xen/bin']
    .map((folder) => path.join(folder, name))
    .find((file) => fs.existsSync(file));
}

/** The package's name carries Xen's release. */
function newestXenUtils() {
  const names = (ask(['apt-cache', 'search', '--names-only', '^xen-utils-[0-9.]+$']) ?? '').match(
    /^xen-utils-[\d.]+/gm,
  );
  return names?.sort((a, b) => a.localeCompare(b, 'en', { numeric: true })).at(-1) ?? 'xen-utils-4.17';
}

/**
 * Compiler, CMake, Xen's headers, and Xen's own stream tools, against which ours are compared; or other packages.
 *
 * @param {Wanted[]} [packages]
 * @param {string} [title]
 * @throws StepFailed naming what to install, where it cannot be done from here
 */
export async function systemPackages(packages = debianPackages, title = 'Debian packages') {
  heading(title);
  if (packages.every(({ there }) => there())) {
    say('   all there');
    return;
  }
  const asRoot = process.getuid?.() === 0 ? [] : sudo();
  if (!hasProgram('apt-get') || asRoot === undefined) {
    throw new StepFailed(
      `packages are missing, and they cannot be installed from here. As root:\n\n` +
        `    apt-get install --no-install-recommends ${missing(packages).join(' ')}\n`,
    );
  }
  // apt's own lists may be empty or too old to name a version that still exists.
  await quietly('apt-update', [...asRoot, 'apt-get', '-q', 'update']);
  const names = missing(packages);
  say(`   installing ${names.join(' ')}`);
  // No recommended packages: xen-utils would bring a hypervisor and make it the machine's next boot.
  const install = ['apt-get', '-q', '-y', '--no-install-recommends', 'install', ...names];
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  await quietly('apt-install', [...asRoot, 'env', 'DEBIAN_FRONTEND=noninteractive', ...install], env);
  const still = missing(packages);
  if (still.length > 0) throw new StepFailed(`still missing after the installation: ${still.join(' ')}`);
}

/** @param {Wanted[]} packages */
function missing(packages) {
  return packages
    .filter(({ there }) => !there())
    .map((wanted) => (typeof wanted.package === 'string' ? wanted.package : wanted.package()));
}

/** sudo, if it works here: without a password, or with a person to ask. */
function sudo() {
  if (!hasProgram('sudo')) return undefined;
  if (ask(['sudo', '-n', 'true']) !== undefined) return ['sudo', '-n'];
  return process.stdin.isTTY ? ['sudo'] : undefined;
}

/**
 * Runs a script's steps; a step that failed has already shown why.
 *
 * @param {() => Promise<number>} steps
 */
export async function main(steps) {
  try {
    process.exitCode = await steps();
  } catch (error) {
    if (!(error instanceof StepFailed)) throw error;
    say(`\nfailed: ${error.message}`);
    process.exitCode = 1;
  }
}

if (process.argv[1] === import.meta.filename) {
  await main(async () => {
    checkNode();
    await systemPackages();
    await npmPackages();
    await library();
    await addon();
    return 0;
  });
}
