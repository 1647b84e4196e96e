/**
 * Debian packages of another machine than this one: resolved, downloaded and verified by apt with a state of its own,
 * so that it needs no root, changes nothing here, and takes no notice of what is installed here.
 */
import fs from 'node:fs';
import path from 'node:path';
import { say } from '../../../scripts/steps.js';
import { cache, locked, run } from './cache.js';

/** The only release that the machine was tried with; its Xen is 4.17. */
export const suite = 'bookworm';

const apt = path.join(cache, 'apt');
const debs = path.join(cache, 'debs');
const weekly = 7 * 24 * 3600 * 1000;

/** @returns {string[]} options that make apt-get use our state */
function options() {
  return [
    ['Dir::State', `${apt}/state`],
    ['Dir::State::status', `${apt}/status`],
    ['Dir::Etc::sourcelist', `${apt}/sources.list`],
    ['Dir::Etc::sourceparts', '-'],
    ['Dir::Cache', `${apt}/cache`],
    ['APT::Sandbox::User', ''],
    ['APT::Install-Recommends', 'false'],
    ['APT::Architecture', 'amd64'],
    ['Acquire::Languages', 'none'],
    ['Acquire::Retries', '3'],
  ].flatMap(([name, value]) => ['-o', `${name}=${value}`]);
}

/**
 * The archives of this machine, for the suite wanted: whatever mirror it uses is one that it can reach.
 *
 * @returns {string}
 */
function sources() {
  const mirrors = { main: 'http://deb.debian.org/debian', security: 'http://deb.debian.org/debian-security' };
  const parts = '/etc/apt/sources.list.d';
  const files = [
    '/etc/apt/sources.list',
    ...(fs.existsSync(parts) ? fs.readdirSync(parts).map((f) => `${parts}/${f}`) : []),
  ];
  for (const name of files.filter((name) => /\.(list|sources)$/.test(name) && fs.existsSync(name))) {
    for (const uri of fs.readFileSync(name, 'utf8').match(/^(?:URIs:|deb\s).*$/gm) ?? []) {
      const url = uri.match(/\S+:\/\/\S+/)?.[0]?.replace(/\/$/, '');
      if (url?.endsWith('debian-security')) mirrors.security = url;
      else if (url?.endsWith('/debian')) mirrors.main = url;
    }
  }
  const signed = '[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]';
  // A mirror may carry the packages of the security archive without their sources.
  return [
    `deb ${signed} ${mirrors.main} ${suite} main`,
    `deb ${signed} ${mirrors.security} ${suite}-security main`,
    `deb-src ${signed} ${mirrors.main} ${suite} main`,
  ].join('\n');
}

/**
 * Gets the lists of packages, once a week: until then a cached image stays the one wanted.
 *
 * @param {number} [oldest] milliseconds that lists may be old
 */
export async function update(oldest = weekly) {
  const wanted = `${sources()}\n`;
  const list = path.join(apt, 'sources.list');
  const stamp = path.join(apt, 'updated');
  const age = Date.now() - (fs.statSync(stamp, { throwIfNoEntry: false })?.mtimeMs ?? 0);
  const same = fs.existsSync(list) && fs.readFileSync(list, 'utf8') === wanted;
  if (same && age < oldest) return;
  await locked('apt.lock', async () => {
    for (const dir of ['state/lists/partial', 'cache/archives/partial']) {
      fs.mkdirSync(path.join(apt, dir), { recursive: true });
    }
    fs.writeFileSync(path.join(apt, 'status'), '');
    fs.writeFileSync(list, wanted);
    try {
      await run(['apt-get', ...options(), '-q', '-o', 'APT::Update::Error-Mode=any', 'update']);
      fs.writeFileSync(stamp, '');
    } catch (error) {
      if (!fs.existsSync(stamp)) throw error;
      say(
        `   apt-get update failed; going on with the older lists: ${error instanceof Error ? error.message : ''}`,
      );
    }
  });
}

/**
 * @typedef {{ url: string, name: string, file: string }} Package one file of the archive
 *
 * @param {string[]} command of apt-get
 * @returns {Promise<Package[]>}
 */
async function uris(command) {
  const text = await run(['apt-get', ...options(), '-qq', '--print-uris', ...command]);
  return [...text.matchAll(/^'([^']+)' (\S+) (\d+) ?(\S*)/gm)].map(([, url = '', name = '']) => ({
    url,
    name,
    file: path.join(debs, name),
  }));
}

/**
 * The packages named and all they depend on. The names of the files carry versions: they make a key.
 *
 * @param {string[]} names
 */
export async function resolve(names) {
  return (await uris(['install', ...names])).sort((a, b) => (a.name < b.name ? -1 : 1));
}

/**
 * Downloads the packages named and all they depend on.
 *
 * @param {string[]} names
 */
export async function install(names) {
  const packages = await resolve(names);
  if (packages.every(({ file }) => fs.existsSync(file))) return packages;
  await locked('apt.lock', async () => {
    const wanted = packages.filter(({ file }) => !fs.existsSync(file));
    // Not where apt itself keeps packages: it does not print the addresses of those that it has there.
    const incoming = path.join(apt, 'incoming');
    fs.mkdirSync(path.join(incoming, 'partial'), { recursive: true });
    const there = ['-o', `Dir::Cache::archives=${incoming}`];
    await run(['apt-get', ...options(), ...there, '-q', '-y', '--download-only', 'install', ...names]);
    fs.mkdirSync(debs, { recursive: true });
    for (const { name, file } of wanted) fs.renameSync(path.join(incoming, name), file);
    fs.rmSync(incoming, { recursive: true, force: true });
  });
  return packages;
}

/**
 * One package alone, without what it depends on.
 *
 * @param {string} name
 * @returns {Promise<Package>}
 */
export async function single(name) {
  const [found] = await uris(['download', name]);
  if (found === undefined) throw new Error(`${name}: not in ${suite}`);
  return found;
}

/** @param {Package} wanted of `single` */
export async function download({ name, file }) {
  if (fs.existsSync(file)) return;
  await locked('apt.lock', async () => {
    if (fs.existsSync(file)) return;
    const [id = ''] = name.split('_');
    fs.mkdirSync(debs, { recursive: true });
    await run(['apt-get', ...options(), '-q', 'download', id], { cwd: debs });
  });
}

/** @param {string} name source package */
export async function source(name) {
  return uris(['source', '--download-only', name]);
}

/**
 * @param {string} name source package
 * @param {string} folder where it is unpacked into `folder`/x
 */
export async function unpackSource(name, folder) {
  await run(['apt-get', ...options(), '-q', 'source', '--download-only', name], { cwd: folder });
  const dsc = fs.readdirSync(folder).find((file) => file.endsWith('.dsc'));
  if (dsc === undefined) throw new Error(`apt-get source ${name}: no .dsc file came`);
  await run(['dpkg-source', '--no-check', '-x', dsc, 'x'], { cwd: folder });
}

/**
 * @param {string} name of a meta package
 * @param {RegExp} pattern
 * @returns {Promise<string>} the package that it stands for
 */
export async function dependency(name, pattern) {
  const text = await run(['apt-cache', ...options(), 'depends', name]);
  const found = [...text.matchAll(/Depends: (\S+)/g)].map(([, id = '']) => id).find((id) => pattern.test(id));
  if (found === undefined) throw new Error(`${name}: no dependency like ${pattern.source}`);
  return found;
}

/**
 * @param {Package} wanted
 * @param {string} folder
 */
export async function extract({ file }, folder) {
  await run(['dpkg-deb', '-x', file, folder]);
}
