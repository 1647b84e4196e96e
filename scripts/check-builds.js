/**
 * Builds the addon in every way that it can be built (node-gyp as npm does for a user, cmake-js as developers do;
 * with and without Xen), each in a copy of its own, and looks at what came out. A compiler warning is a failure.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { ask, cleanEnvironment, root, say } from './steps.js';

const gyp = JSON.parse(fs.readFileSync(path.join(root, 'binding.gyp'), 'utf8'));
const xenModules = gyp.variables.variables.xen_modules.split(' ');
const xenThere = ask(['pkg-config', '--exists', ...xenModules]) !== undefined;

/** @type {{ name: string, args: string[], haveXen: boolean }[]} */
const variants = [
  { name: 'gyp', args: ['run', 'build:gyp'], haveXen: xenThere },
  { name: 'gyp-without-xen', args: ['run', 'build:gyp', '--', '--have_xen=0'], haveXen: false },
  {
    name: 'cmake-without-xen',
    args: ['exec', '--', 'cmake-js', 'compile', '--CDXM_WITH_XEN=OFF'],
    haveXen: false,
  },
];

const { loadAddon, loadAddonWithXen } = await import(path.join(root, 'dist/host/xen/addon.js'));
let failures = 0;

for (const { name, args, haveXen } of variants) {
  const folder = path.join(root, '.setup/builds', name);
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(folder, { recursive: true });
  for (const file of ['package.json', 'binding.gyp', 'CMakeLists.txt', 'native']) {
    fs.cpSync(path.join(root, file), path.join(folder, file), { recursive: true });
  }
  fs.symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'));
  const { status, stdout, stderr } = spawnSync('npm', args, {
    cwd: folder,
    env: cleanEnvironment(),
    encoding: 'utf8',
  });
  const complaint = status === 0 ? verdict(folder, haveXen, stdout + stderr) : `exit code ${status}`;
  if (complaint !== undefined) {
    failures++;
    say(`${stdout}${stderr}\n${name}: ${complaint}\n`);
  }
  fs.rmSync(folder, { recursive: true, force: true });
}
process.exitCode = failures > 0 ? 1 : 0;

/**
 * @param {string} folder
 * @param {boolean} haveXen
 * @param {string} output
 * @returns {string | undefined} what is wrong
 */
function verdict(folder, haveXen, output) {
  if (/\bwarning:/.test(output)) return 'the compiler warns';
  const { build } = createRequire(import.meta.url)(path.join(folder, 'build/Release/xen_migration.node'));
  if (build.haveXen !== haveXen) return `haveXen is ${build.haveXen}`;
  if (loadAddon(folder).build.haveXen !== haveXen) return 'the loader sees another addon';
  if (haveXen) return undefined;
  try {
    loadAddonWithXen(folder);
    return 'the loader takes an addon without Xen for one with it';
  } catch (error) {
    const { code, message } = /** @type {NodeJS.ErrnoException} */ (error);
    return code === 'ERR_XEN_ADDON_NO_XEN' && message.includes('libxen-dev')
      ? undefined
      : `the loader says: ${message}`;
  }
}
