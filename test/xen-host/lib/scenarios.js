/** Which scenarios there are. */
import fs from 'node:fs';
import path from 'node:path';

/**
 * @typedef {object} Scenario
 * @property {string} name
 * @property {'stock' | 'shadow'} [hypervisor] which one it needs; `shadow` for log-dirty of a PV guest. Default: stock
 * @property {boolean} [pair] it needs two joined hosts, on the stock hypervisor, and runs in the first
 * @property {(t: import('./context.js').Context) => Promise<void>} run throws if it fails; domains are destroyed after it
 *
 * @typedef {'stock' | 'shadow' | 'pair'} Kind of machine
 */

/**
 * @param {string} folder of test/xen-host
 * @param {Kind} kind
 * @param {string} [only] text in their names
 * @returns {Promise<Scenario[]>} in an order that is the same on every machine
 */
export async function scenariosOf(folder, kind, only = '') {
  const place = path.join(import.meta.dirname, '..', folder);
  /** @type {Scenario[]} */
  const all = [];
  const files = fs.readdirSync(place).filter((entry) => entry.endsWith('.scenario.js'));
  for (const file of files.sort()) {
    const { scenarios } = await import(path.join(place, file));
    for (const scenario of scenarios)
      all.push({ ...scenario, name: `${file.replace('.scenario.js', '')}: ${scenario.name}` });
  }
  return all.filter(({ name, pair, hypervisor }) => {
    return (pair === true ? 'pair' : (hypervisor ?? 'stock')) === kind && name.includes(only);
  });
}
