/**
 * `npm run test:xen`: builds the project and the Xen test machine, runs all scenarios in it, and says how they went.
 *
 *   --only TEXT           scenarios whose name holds it
 *   --hypervisor NAME     stock, shadow or pair (two joined hosts) only. Default: stock and shadow, the scenarios of one host;
 *                         all of them with --only. `npm run test:xen:pairs` is --hypervisor pair
 *   --folder bench        benchmarks instead, one machine after the other, with no limit of time
 *   --no-build            with what stands in dist/ and build/
 *
 * A machine uses one processor, so two of them share the work where there are two. Consoles, results and files that
 * scenarios kept: .setup/xen-host/ (of joined hosts xen-host-pairs/). `XEN_MIGRATION_SKIP_XEN=1` skips all of it, aloud.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { ask, hasProgram, heading, quietly, root, say, StepFailed } from '../../scripts/steps.js';
import { addon, checkNode, library, main, npmPackages, systemPackages } from '../../scripts/setup.js';
import { images } from './image/images.js';
import { putStreams } from './image/streams.js';
import { scenariosOf } from './lib/scenarios.js';
import { consoleOf, execute, folderOf, pidOf, ready, running, start, stop } from './machine/machine.js';
import { startPair } from './machine/pair.js';

/** @typedef {import('./lib/scenarios.js').Kind} Kind */
/** @typedef {{ name: string, hypervisor: string, ok: boolean, seconds: number, errors: string[], measured: Record<string, number> }} Result */

/** An end to a run that hangs. On two quiet cores all of it should take less than 25 minutes; a loaded machine fails nothing. */
const minutes = 45;

/** No scenario may be that quiet, whatever limit it has set itself. */
const silentMinutes = 8;

/** MiB that one machine takes at most: its memory, translated code, and QEMU itself. */
const machineMemory = 2700;

/** MiB of memory of each of two joined hosts, whose guests are few; else a machine has 2048. */
const pairMemory = 1536;

const keptFolder = '.setup/xen-host';

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

/** What all machines of one run have in common. */
class Run {
  /** @param {{ only?: string | undefined, folder: string, kept: string, signal: AbortSignal }} options */
  constructor({ only, folder, kept, signal }) {
    this.only = only;
    this.folder = folder;
    this.signal = signal;
    this.kept = path.join(root, kept);
    this.machines = 0;
    /** @type {string[]} */
    this.failures = [];
    /** @type {Map<Kind, number>} how many scenarios there are */
    this.plans = new Map();
    /** `/share` of all machines. */
    this.share = path.join(this.kept, 'share');
    fs.rmSync(this.kept, { recursive: true, force: true });
    fs.mkdirSync(path.join(this.share, 'claims'), { recursive: true });
    for (const name of putStreams(this.share)) say(`!!! absent, so nothing is proved with it: ${name}`);
  }

  /**
   * One boot, of two machines for a pair: scenarios of a kind that no other machine has taken.
   *
   * @param {Kind} kind
   */
  async boot(kind) {
    if (this.signal.aborted) return;
    const name = `test-${process.pid}-${++this.machines}-${kind}`;
    const label = `${kind} ${this.machines}`;
    /** @type {[string, ...string[]]} */
    const names = kind === 'pair' ? [name, `${name}-second`] : [name];
    const began = Date.now();
    const options = { share: this.share };
    try {
      const made = await images(kind === 'shadow' ? 'shadow' : 'stock');
      const [first, second] = names;
      if (second === undefined) await start(first, made, options);
      else await startPair([first, second], made, { ...options, memory: pairMemory });
      await Promise.all(names.map((host) => ready(host, { signal: this.signal })));
      say(`   ${label}: dom0 is up after ${seconds(began)} s`);
      const code = await this.scenarios(names, label, kind);
      if (code !== 0) this.failures.push(`${label}: scenarios ended with exit code ${code}`);
      const alone = await Promise.all(names.map((host) => stop(host, 30)));
      if (alone.includes(false)) this.failures.push(`${label}: the machine did not power off by itself`);
    } catch (error) {
      const reason = this.signal.aborted ? `ended before it was done: ${String(this.signal.reason)}` : '';
      this.failures.push(`${label}: ${reason || (error instanceof Error ? error.message : String(error))}`);
    } finally {
      for (const host of names) await stop(host);
    }
    for (const [n, host] of names.entries()) {
      const text = consoleOf(host);
      const log = `${label.replace(' ', '-')}${n === 0 ? '' : '-second'}`;
      fs.writeFileSync(path.join(this.kept, `console-${log}.log`), text);
      const lines = text.split('\n').filter((line) => disasters.test(line));
      if (lines.length > 0) this.failures.push(`${log}: on the console:\n${lines.slice(0, 20).join('\n')}`);
      fs.rmSync(folderOf(host), { recursive: true, force: true });
    }
    say(`   ${label}: done after ${seconds(began)} s`);
  }

  /**
   * @param {[string, ...string[]]} names of machines; scenarios run in the first
   * @param {string} label
   * @param {Kind} kind
   */
  async scenarios([name, second], label, kind) {
    const log = fs.createWriteStream(path.join(this.kept, `scenarios-${label.replace(' ', '-')}.log`));
    const quiet = new AbortController();
    const tooQuiet = () => void quiet.abort(new Error(`nothing heard for ${silentMinutes} minutes`));
    const watch = setTimeout(tooQuiet, silentMinutes * 60_000 * (this.folder === 'bench' ? 4 : 1));
    // Who waits for it would wait long.
    const lives = setInterval(() => {
      if (second !== undefined && pidOf(second) === undefined)
        quiet.abort(new Error('the second host has ended'));
    }, 1000);
    let rest = '';
    /** @param {Buffer} data */
    const show = (data) => {
      watch.refresh();
      log.write(data);
      const lines = (rest + data.toString()).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const plan = line.match(/^1\.\.(\d+)$/)?.[1];
        if (plan !== undefined) this.plans.set(kind, Number(plan));
        else say(`${label} | ${line}`);
      }
    };
    const filter = this.only === undefined ? '' : ` --only '${this.only.replaceAll("'", `'\\''`)}'`;
    try {
      const command = `node /project/test/xen-host/lib/main.js --folder ${this.folder} --claims /share/claims${filter}`;
      const signal = AbortSignal.any([this.signal, quiet.signal]);
      return await execute(name, command, { stdout: show, stderr: show, signal });
    } finally {
      clearTimeout(watch);
      clearInterval(lives);
      log.end();
    }
  }

  /** @returns {Result[]} */
  results() {
    const file = path.join(this.share, 'results.jsonl');
    const lines = fs.existsSync(file) ? fs.readFileSync(file, 'utf8').trim().split('\n').filter(Boolean) : [];
    return lines.map((line) => JSON.parse(line)).sort((a, b) => (a.name < b.name ? -1 : 1));
  }
}

/** @param {number} began */
const seconds = (began) => ((Date.now() - began) / 1000).toFixed(0);

/**
 * A line for each scenario; below one that failed stand its errors, as that is what one looks for.
 *
 * @param {Result[]} results
 */
function table(results) {
  const width = Math.max(0, ...results.map(({ name }) => name.length));
  for (const { name, hypervisor, ok, seconds, errors, measured } of results) {
    const numbers = Object.entries(measured).map(
      ([what, value]) => `${what} ${Number(value.toPrecision(3))}`,
    );
    const time = `${seconds.toFixed(1).padStart(6)} s`;
    say(
      `${ok ? 'ok    ' : 'FAILED'} ${hypervisor.padEnd(6)} ${name.padEnd(width)} ${time}  ${numbers.join('; ')}`,
    );
    const lines = errors.join('\n').split('\n');
    for (const line of ok ? [] : lines.slice(0, 40)) say(`       ${line}`);
  }
}

/** The tests of the port `Host` as JavaScript: TypeScript and a test runner would take minutes in dom0. */
async function contract() {
  heading('contract tests (tsc)');
  await quietly('contract', [process.execPath, 'test/contract/build.js']);
}

/** The writer of legacy images, in the same way. */
async function legacy() {
  heading('writer of legacy images (rolldown)');
  await quietly('legacy', [process.execPath, 'test/legacy/build.js']);
}

/** Fails where the packages cannot be had: a run without the machine proves nothing. */
async function packages() {
  try {
    await systemPackages();
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
    options: {
      only: { type: 'string' },
      hypervisor: { type: 'string' },
      folder: { type: 'string', default: 'scenarios' },
      'no-build': { type: 'boolean' },
    },
  });
  const bench = values.folder === 'bench';
  checkNode();
  await packages();
  await npmPackages();
  if (values['no-build'] !== true) {
    await library();
    await addon();
  }
  await contract();
  await legacy();
  /** @type {Set<Kind>} */
  const kinds = new Set();
  // Joined hosts take both processors, one pair after the other: they would double the time of all the others.
  const oneHost = values.only === undefined && !bench;
  for (const kind of /** @type {const} */ (['stock', 'shadow', 'pair'])) {
    if (kind !== (values.hypervisor ?? (oneHost && kind === 'pair' ? undefined : kind))) continue;
    if ((await scenariosOf(values.folder, kind, values.only)).length > 0) kinds.add(kind);
  }
  const wanted = (/** @type {Kind} */ kind) => kinds.has(kind);
  const began = Date.now();
  // The machines would outlive this process.
  const ended = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(name, () => ended.abort(new Error(name)));
  const signal = AbortSignal.any([AbortSignal.timeout((bench ? 10 : 1) * minutes * 60_000), ended.signal]);
  // One run does not take away what another has left.
  const kept = values.hypervisor === 'pair' ? `${keptFolder}-pairs` : keptFolder;
  const run = new Run({ only: values.only, folder: values.folder, kept, signal });
  // Machines of a run that was killed before it could end them.
  for (const name of running()) {
    const owner = name.match(/^test-(\d+)-/)?.[1];
    if (owner !== undefined && !fs.existsSync(`/proc/${owner}`)) await stop(name);
  }
  // Those that all machines need, before two of them ask at once.
  await images(wanted('stock') || wanted('pair') ? 'stock' : 'shadow');
  // Alone: its two machines take what there is.
  if (wanted('pair')) {
    const memory = 2 * (machineMemory - 2048 + pairMemory);
    if (os.freemem() / 2 ** 20 > memory) await run.boot('pair');
    else run.failures.push(`pair: no ${memory} MiB free for two joined hosts; their scenarios did not run`);
  }
  const room = !bench && os.cpus().length > 1 && os.freemem() / 2 ** 20 > 2 * machineMemory;
  /** @type {(() => Promise<void>)[]} */
  const first = wanted('stock') ? [() => run.boot('stock')] : [];
  const second = wanted('shadow') ? [() => run.boot('shadow')] : [];
  // The second machine helps the first when it is done with its own.
  if (wanted('stock') && wanted('shadow') && room) second.push(() => run.boot('stock'));
  const lists = room ? [first, second] : [[...first, ...second]];
  await Promise.all(
    lists.map(async (boots) => {
      for (const boot of boots) await boot();
    }),
  );
  heading('Xen test machine: summary');
  const results = run.results();
  table(results);
  for (const [kind, plan] of run.plans) {
    const count = results.filter((result) => result.hypervisor === kind).length;
    if (count !== plan) run.failures.push(`${kind}: ${count} results of ${plan} scenarios`);
  }
  if (results.length === 0) run.failures.push('no scenario ran');
  for (const failure of run.failures) say(`\n${failure}`);
  const bad = results.filter(({ ok }) => !ok).length;
  say(
    `\n${results.length - bad} passed, ${bad} failed, in ${(Number(seconds(began)) / 60).toFixed(1)} minutes`,
  );
  if (run.failures.length > 0 || bad > 0) {
    throw new StepFailed(`${bad} scenarios; consoles and logs: ${kept}/`);
  }
  return 0;
});
