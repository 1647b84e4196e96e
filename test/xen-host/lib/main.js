/**
 * Runs scenarios, in dom0: `node /project/test/xen-host/lib/main.js [--only TEXT] [--out FOLDER]`. One process for all,
 * as starting Node is slow under emulation. Prints TAP; writes results.jsonl, a line for each scenario. With
 * `--claims FOLDER`, which machines share, each takes the next scenario that no other has taken. `--folder bench` runs the
 * benchmarks instead.
 *
 * A scenario file exports `scenarios`, an array of `Scenario` (scenarios.js).
 */
import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { Context } from './context.js';
import { Peer } from './peer.js';
import { scenariosOf } from './scenarios.js';

/** @typedef {import('./scenarios.js').Scenario} Scenario */

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    out: { type: 'string', default: '/share' },
    kind: { type: 'string' },
    claims: { type: 'string' },
    folder: { type: 'string', default: 'scenarios' },
  },
});
/** s after which a scenario hangs. Far more than any needs, so that a loaded machine fails none. */
const limit = 1800;

/** What kind of machine this is: only scenarios for it run. */
const kind = /** @type {import('./scenarios.js').Kind} */ (
  values.kind ??
    (Peer.there()
      ? 'pair'
      : fs.readFileSync('/proc/cmdline', 'utf8').includes('xen_host.shadow')
        ? 'shadow'
        : 'stock')
);

/**
 * @param {Scenario} scenario
 * @param {number} number
 */
async function perform(scenario, number) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(new Error(`not done after ${limit} s`)), limit * 1000);
  const t = new Context(scenario.name, abort.signal, values.out);
  const hosts = kind === 'pair' ? [t, t.peer] : [t];
  const before = await Promise.all(hosts.map(async (host) => (await host.faults()).length));
  const begin = performance.now();
  /** @type {string[]} */
  const errors = [];
  const told = (/** @type {unknown} */ error) => {
    errors.push(error instanceof Error ? (error.stack ?? error.message) : String(error));
    for (let cause = error; cause instanceof Error && cause.cause !== undefined; cause = cause.cause) {
      errors.push(`cause: ${cause.cause instanceof Error ? cause.cause.stack : String(cause.cause)}`);
    }
  };
  try {
    const late = new Promise((_, reject) => {
      abort.signal.addEventListener('abort', () => setTimeout(() => reject(abort.signal.reason), 2000));
    });
    await Promise.race([scenario.run(t), late]);
  } catch (error) {
    told(error);
    abort.abort(error);
  }
  clearTimeout(timer);
  try {
    await t.end();
    for (const [n, host] of hosts.entries()) {
      const died = (await host.faults()).slice(before[n]);
      if (died.length > 0) errors.push(`processes died in dom0 of ${host.hostname}:\n${died.join('\n')}`);
    }
  } catch (error) {
    told(error);
  }
  if (errors.length === 0) t.tidy();
  const took = (performance.now() - begin) / 1000;
  console.log(`${errors.length === 0 ? 'ok' : 'not ok'} ${number} - ${scenario.name} # ${took.toFixed(1)} s`);
  for (const error of errors) console.log(error.replaceAll(/^/gm, '    '));
  const result = {
    name: scenario.name,
    hypervisor: kind,
    ok: errors.length === 0,
    seconds: took,
    errors,
    measured: t.measured,
  };
  fs.appendFileSync(path.join(values.out, 'results.jsonl'), `${JSON.stringify(result)}\n`);
  return result.ok;
}

/**
 * Making a folder is atomic, over 9p too: one machine succeeds.
 *
 * @param {number} number of a scenario
 */
function claim(number) {
  if (values.claims === undefined) return true;
  try {
    fs.mkdirSync(path.join(values.claims, `${kind}-${number}`));
    return true;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return false;
    throw error;
  }
}

const list = await scenariosOf(values.folder, kind, values.only);
console.log(`1..${list.length}`);
let failed = 0;
for (const [index, scenario] of list.entries()) {
  if (claim(index + 1) && !(await perform(scenario, index + 1))) failed++;
}
// A scenario that ran out of time may have left something that keeps Node running.
process.exit(failed === 0 ? 0 : 1);
