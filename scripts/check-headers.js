/**
 * Compiles and links the addon against the Xen of other Debian releases than this machine's: `npm run check:headers`.
 * For whoever changes native/: it downloads some 10 MB for each release, and is no part of `npm run check`.
 *
 * node scripts/check-headers.js [SUITE…]     bullseye is Xen 4.14, bookworm 4.17, trixie 4.20
 */
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { ask, heading, quietly, root, say } from './steps.js';

const suites = process.argv.length > 2 ? process.argv.slice(2) : ['bullseye', 'bookworm', 'trixie'];
const gyp = JSON.parse(fs.readFileSync(path.join(root, 'binding.gyp'), 'utf8'));
const [target] = gyp.targets;
const sources = [...target.sources, ...target.conditions[0][1].sources];
const work = path.join(root, '.setup/headers');
const include = createRequire(import.meta.url)('node-addon-api').include_dir.replaceAll('"', '');

/** What the addon links with, by the name that the linker knows it by. */
const libraries = ['xenctrl', 'xenguest', 'xenforeignmemory', 'xenevtchn', 'xencall', 'xentoollog'];

let failures = 0;
for (const suite of suites) {
  heading(suite);
  const folder = path.join(work, suite);
  fs.mkdirSync(folder, { recursive: true });
  const xen = await unpack(suite, folder);
  const complaint = await compile(suite, folder, xen);
  say(complaint === undefined ? `   Xen ${release(xen)}: compiles and links` : `   ${complaint}`);
  if (complaint !== undefined) failures++;
}
process.exitCode = failures > 0 ? 1 : 0;

/**
 * Debian's Xen of a suite: development files and libraries, by an apt that has a state of its own.
 *
 * @param {string} suite
 * @param {string} folder
 * @returns {Promise<string>} the folder that they were unpacked to
 */
async function unpack(suite, folder) {
  const xen = path.join(folder, 'root');
  if (fs.existsSync(path.join(folder, 'done'))) return xen;
  const state = path.join(folder, 'apt');
  for (const dir of ['state/lists/partial', 'cache/archives/partial']) {
    fs.mkdirSync(path.join(state, dir), { recursive: true });
  }
  fs.writeFileSync(path.join(state, 'status'), '');
  const signed = '[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]';
  fs.writeFileSync(path.join(state, 'sources.list'), `deb ${signed} ${mirror()} ${suite} main\n`);
  const options = [
    ['Dir::State', `${state}/state`],
    ['Dir::State::status', `${state}/status`],
    ['Dir::Etc::sourcelist', `${state}/sources.list`],
    ['Dir::Etc::sourceparts', '-'],
    ['Dir::Cache', `${state}/cache`],
    ['APT::Sandbox::User', ''],
    ['APT::Install-Recommends', 'false'],
    ['APT::Architecture', 'amd64'],
    ['Acquire::Languages', 'none'],
    ['APT::Update::Error-Mode', 'any'],
  ].flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  await quietly(`headers-${suite}-update`, ['apt-get', ...options, '-q', 'update']);
  const all = ask(['apt-get', ...options, '-qq', '--print-uris', 'install', 'libxen-dev']) ?? '';
  // libxen-dev depends on the libraries; libc and the like, which they depend on, are this machine's.
  const names = [...all.matchAll(/^'\S+' ((?:libxen)[^_]*)_/gm)].map(([, name = '']) => name);
  if (!names.includes('libxen-dev')) throw new Error(`${suite} has no libxen-dev`);
  // apt-get downloads to where it runs.
  const there = ['env', '-C', folder];
  await quietly(`headers-${suite}-download`, [...there, 'apt-get', ...options, '-q', 'download', ...names]);
  for (const file of fs.readdirSync(folder).filter((name) => name.endsWith('.deb'))) {
    await quietly(`headers-${suite}-unpack`, ['dpkg-deb', '-x', path.join(folder, file), xen]);
  }
  fs.writeFileSync(path.join(folder, 'done'), '');
  return xen;
}

/** @returns {string} the archive that this machine's own sources name: one that it can reach */
function mirror() {
  const parts = '/etc/apt/sources.list.d';
  const files = [
    '/etc/apt/sources.list',
    ...(fs.existsSync(parts) ? fs.readdirSync(parts).map((name) => path.join(parts, name)) : []),
  ];
  for (const file of files.filter((name) => /\.(list|sources)$/.test(name) && fs.existsSync(name))) {
    const url = /^(?:URIs:|deb\s).*?(\S+:\/\/\S+\/debian)\/?\s/m.exec(fs.readFileSync(file, 'utf8'))?.[1];
    if (url !== undefined) return url;
  }
  return 'http://deb.debian.org/debian';
}

/**
 * @param {string} suite
 * @param {string} folder
 * @param {string} xen
 * @returns {Promise<string | undefined>} what is wrong
 */
async function compile(suite, folder, xen) {
  const lib = path.join(xen, 'usr/lib/x86_64-linux-gnu');
  const defines = target.defines
    .filter((/** @type {string} */ define) => !define.includes('<'))
    .concat('XM_HAVE_XEN=1', `XM_XEN_VERSION=${release(xen)}`);
  // The suite's headers alone: one that is not there must not be found on this machine instead.
  const own = `-I${path.join(xen, 'usr/include')}`;
  const flags = ['-std=gnu++17', '-fPIC', '-fvisibility=hidden', '-Wall', '-Wextra', '-Werror', own];
  const isystem = [include, path.join(root, 'node_modules/node-api-headers/include')];
  for (const dir of isystem) flags.push('-isystem', dir);
  for (const define of defines) flags.push(`-D${define}`);
  const objects = [];
  for (const source of sources) {
    const object = path.join(folder, `${path.basename(source, '.cc')}.o`);
    const depends = `${object}.d`;
    try {
      await quietly(`headers-${suite}-compile`, [
        'g++',
        ...flags,
        '-MD',
        '-MF',
        depends,
        '-c',
        source,
        '-o',
        object,
      ]);
    } catch {
      return `${source} does not compile`;
    }
    const foreign = /\s(\/usr\/include\/(?:xen|xc)\S*)/.exec(fs.readFileSync(depends, 'utf8'))?.[1];
    if (foreign !== undefined) return `${source} includes ${foreign}, which this suite does not have`;
    objects.push(object);
  }
  const addon = path.join(folder, 'xen_migration.node');
  const links = libraries.map((name) => `-l${name}`);
  await quietly(`headers-${suite}-link`, ['g++', '-shared', '-o', addon, ...objects, `-L${lib}`, ...links]);
  // Node's own functions are found at run time, so the linker cannot be asked what is missing.
  const needed = symbols(['--undefined-only', addon]).filter((name) => /^(xc|xen|xtl|do_)/.test(name));
  const given = new Set(
    libraries.flatMap((name) => symbols(['--defined-only', path.join(lib, `lib${name}.so`)])),
  );
  const missing = needed.filter((name) => !given.has(name));
  if (needed.length === 0) return 'the addon calls no function of Xen';
  return missing.length > 0 ? `the libraries do not export ${missing.join(', ')}` : undefined;
}

/**
 * @param {string[]} args
 * @returns {string[]}
 */
function symbols(args) {
  const text = ask(['nm', '-D', ...args]);
  if (text === undefined) throw new Error(`nm ${args.join(' ')} failed`);
  return text.split('\n').flatMap((line) => /\s[A-Za-z] (\w+)/.exec(line)?.[1] ?? []);
}

/** @param {string} xen */
function release(xen) {
  const file = path.join(xen, 'usr/lib/x86_64-linux-gnu/pkgconfig/xencontrol.pc');
  return /^Version: (\S+)/m.exec(fs.readFileSync(file, 'utf8'))?.[1] ?? '0';
}
