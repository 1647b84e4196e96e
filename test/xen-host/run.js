/**
 * `npm run test:xen`: builds the project and the Xen test machine, runs all scenarios in it, and says how they went.
 *
 *   --only TEXT           scenarios whose name holds it
 *   --hypervisor NAME     stock or shadow only
 *   --no-build            with what stands in dist/ and build/
 *
 * Consoles, results and files that scenarios kept: .setup/xen-host/HYPERVISOR/. `XEN_MIGRATION_SKIP_XEN=1` skips it, aloud.
 */
import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { ask, hasProgram, heading, quietly, root, say, StepFailed } from '../../scripts/steps.js';
import { addon, checkNode, library, main, npmPackages, systemPackages } from '../../scripts/setup.js';
import { images } from './image/images.js';
import { consoleOf, execute, folderOf, ready, start, stop } from './machine/machine.js';

/** @typedef {import('./image/images.js').Hypervisor} Hypervisor */
/** @typedef {{ name: string, hypervisor: string, ok: boolean, seconds: number, errors: string[], measured: Record<string, number> }} Result */

/** For both boots together; the build of the shadow hypervisor goes on beside the first. */
const minutes = 22;

const needed = [
  { package: 'qemu-system-x86', there: () => hasProgram('qemu-system-x86_64') },
  { package: 'e2fsprogs', there: () => fs.existsSync('/sbin/mke2fs') },
  { package: 'cpio', there: () => hasProgram('cpio') },
  { package: 'kmod', there: () => fs.existsSync('/sbin/depmod') },
  { package: 'gcc', there: () => hasProgram('gcc') },
  { package: 'binutils', there: () => hasProgram('strip') },
  { package: 'libc6-dev', there: () => ask(['gcc', '-print-file-name=libc.a'])?.startsWith('/') === true },
  { package: 'make', there: () => hasProgram('make') },
  { package: 'bison', there: () => hasProgram('bison') },
  { package: 'flex', there: () => hasProgram('flex') },
  { package: 'dpkg-dev', there: () => hasProgram('dpkg-source') },
  { package: 'xz-utils', there: () => hasProgram('xz') },
  { package: 'lz4', there: () => hasProgram('lz4') },
  { package: 'zstd', there: () => hasProgram('zstd') },
];

/** What must not stand on the console: Xen or dom0's kernel has failed. */
const disasters =
  /Xen call trace|Xen BUG|Assertion '|FATAL TRAP|Panic on CPU|Kernel panic|Oops:|BUG: |segfault at|Call Trace:/;

/**
 * One boot: all scenarios for one hypervisor.
 *
 * @param {Hypervisor} hypervisor
 * @param {import('./image/images.js').Images} pieces
 * @param {string | undefined} only
 * @param {AbortSignal} signal
 * @returns {Promise<{ results: Result[], failures: string[] }>}
 */
async function boot(hypervisor, pieces, only, signal) {
  const name = `test-${hypervisor}-${process.pid}`;
  const kept = path.join(root, '.setup/xen-host', hypervisor);
  fs.rmSync(kept, { recursive: true, force: true });
  fs.mkdirSync(kept, { recursive: true });
  heading(`Xen test machine: scenarios on the ${hypervisor} hypervisor`);
  /** @type {string[]} */
  const failures = [];
  let plan = 0;
  const began = Date.now();
  try {
    await start(name, pieces);
    await ready(name);
    say(`   dom0 is up after ${((Date.now() - began) / 1000).toFixed(0)} s`);
    const log = fs.createWriteStream(path.join(kept, 'scenarios.log'));
    let text = '';
    /** @param {Buffer} data */
    const show = (data) => {
      text += data.toString();
      log.write(data);
      process.stderr.write(data);
    };
    const filter = only === undefined ? '' : ` --only '${only.replaceAll("'", `'\\''`)}'`;
    const command = `node /project/test/xen-host/lib/main.js${filter}`;
    const code = await execute(name, command, { stdout: show, stderr: show, signal });
    log.end();
    plan = Number(text.match(/^1\.\.(\d+)$/m)?.[1] ?? -1);
    if (code !== 0) failures.push(`${hypervisor}: scenarios ended with exit code ${code}`);
    if (!(await stop(name, 30))) failures.push(`${hypervisor}: the machine did not power off by itself`);
  } catch (error) {
    const message = signal.aborted
      ? `not done after ${minutes} minutes`
      : error instanceof Error
        ? error.message
        : String(error);
    failures.push(`${hypervisor}: ${message}`);
  } finally {
    await stop(name);
  }
  const results = collect(name, kept);
  const lines = consoleOf(name)
    .split('\n')
    .filter((line) => disasters.test(line));
  if (lines.length > 0) failures.push(`${hypervisor}: on the console:\n${lines.slice(0, 20).join('\n')}`);
  if (plan !== results.length) failures.push(`${hypervisor}: ${results.length} results of ${plan} scenarios`);
  if (failures.length === 0) fs.rmSync(folderOf(name), { recursive: true, force: true });
  say(`   ${hypervisor}: ${((Date.now() - began) / 1000).toFixed(0)} s`);
  return { results, failures };
}

/**
 * Brings out what the machine left.
 *
 * @param {string} name
 * @param {string} kept
 * @returns {Result[]}
 */
function collect(name, kept) {
  const folder = folderOf(name);
  for (const file of ['console.log', 'qemu.log']) {
    if (fs.existsSync(path.join(folder, file)))
      fs.copyFileSync(path.join(folder, file), path.join(kept, file));
  }
  const share = path.join(folder, 'share');
  if (fs.existsSync(share)) fs.cpSync(share, kept, { recursive: true });
  const file = path.join(kept, 'results.jsonl');
  if (!fs.existsSync(file)) return [];
  return fs
    .readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));
}

/** @param {Result[]} results */
function table(results) {
  const width = Math.max(0, ...results.map(({ name }) => name.length));
  for (const { name, hypervisor, ok, seconds, measured } of results) {
    const numbers = Object.entries(measured).map(
      ([what, value]) => `${what} ${Number(value.toPrecision(3))}`,
    );
    say(
      `${ok ? 'ok    ' : 'FAILED'} ${hypervisor.padEnd(6)} ${name.padEnd(width)} ${seconds.toFixed(1).padStart(6)} s  ${numbers.join('; ')}`,
    );
  }
}

/** The tests of the port `Host` as JavaScript: TypeScript and a test runner would take minutes in dom0. */
async function contract() {
  heading('contract tests (tsc)');
  await quietly('contract', [process.execPath, 'test/contract/build.js']);
}

/** Fails where the packages cannot be had: a run without the machine proves nothing. */
async function packages() {
  try {
    await systemPackages(needed, 'Debian packages for the Xen test machine');
  } catch (error) {
    if (error instanceof StepFailed)
      say(`\nTo do without the Xen test machine, say so: XEN_MIGRATION_SKIP_XEN=1`);
    throw error;
  }
}

await main(async () => {
  if (process.env['XEN_MIGRATION_SKIP_XEN'] === '1') {
    const banner = '!'.repeat(100);
    say(
      `${banner}\n!!! XEN_MIGRATION_SKIP_XEN=1: the tests on real Xen were SKIPPED. Nothing was proved there.\n${banner}`,
    );
    return 0;
  }
  const { values } = parseArgs({
    options: { only: { type: 'string' }, hypervisor: { type: 'string' }, 'no-build': { type: 'boolean' } },
  });
  checkNode();
  await systemPackages();
  await packages();
  await npmPackages();
  if (values['no-build'] !== true) {
    await library();
    await addon();
    await contract();
  }
  const wanted = /** @type {Hypervisor[]} */ (['stock', 'shadow']).filter(
    (name) => name === (values.hypervisor ?? name),
  );
  const began = Date.now();
  const limit = AbortSignal.timeout(minutes * 60_000);
  /** @type {Result[]} */
  const results = [];
  /** @type {string[]} */
  const failures = [];
  const first = await images(wanted[0]);
  // Built, where it is not cached, on the second processor while the first boot uses one.
  const second = wanted[1] === undefined ? undefined : images(wanted[1]);
  second?.catch(() => {});
  for (const hypervisor of wanted) {
    const pieces = hypervisor === wanted[0] ? first : await second;
    if (pieces === undefined) continue;
    const outcome = await boot(hypervisor, pieces, values.only, limit);
    results.push(...outcome.results);
    failures.push(...outcome.failures);
  }
  heading('Xen test machine: summary');
  table(results);
  for (const failure of failures) say(`\n${failure}`);
  if (results.length === 0) failures.push('no scenario ran');
  const bad = results.filter(({ ok }) => !ok).length;
  say(
    `\n${results.length - bad} passed, ${bad} failed, in ${((Date.now() - began) / 60_000).toFixed(1)} minutes`,
  );
  if (failures.length > 0 || bad > 0) {
    throw new StepFailed(`${bad} scenarios; consoles and logs: .setup/xen-host/`);
  }
  return 0;
});
