/** What scenarios of migrations between two hosts share: how to get there, and what is where afterwards. */
import assert from 'node:assert/strict';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * @typedef {import('./context.js').Context} Context
 * @typedef {import('./guest.js').Guest} Guest
 * @typedef {import('./host.js').Host} Host
 */

const certs = path.join(import.meta.dirname, '../../certs');
const bridge = path.join(import.meta.dirname, 'bridge.js');

/** The command of this project, with which others begin. @param {Host} host */
export const program = (host) => ['node', host.bin('xen-migrate')];

/** @param {string} name */
export const tls = (name) => [
  ...['--tls-cert', `${certs}/${name}.crt`],
  ...['--tls-key', `${certs}/${name}.key`],
  ...['--tls-ca', `${certs}/ca.crt`],
];

/** A sender's, to whom a receiver with `tls('server')` is known. */
export const named = ['--tls-name', 'receiver.example', ...tls('client')];

/**
 * What stands for ssh to a host where a command is served.
 *
 * @param {Host} host
 * @param {number} port
 * @param {string[]} [options] of the bridge
 */
export const bridgeTo = (host, port, options = []) =>
  ['node', bridge, `${host.address}:${port}`, ...options].join(' ');

/** It ends, as ssh does after a while on a cable that is cut. @param {Context} t */
export const breakBridge = (t) => t.run(['pkill', '-f', '^node [^ ]*/bridge[.]js']);

/** Domains that bear the guest's name, or half of it. @param {Host} host @param {Guest} guest */
export async function names(host, guest) {
  const all = (await host.domains()).map(({ name }) => name);
  return all.filter((name) => name === guest.name || name.startsWith(`${guest.name}--`));
}

/**
 * A migration, and that the guest is the same one afterwards and at the other host alone.
 *
 * @param {Guest} from the guest where it is
 * @param {Guest} to the guest where it goes
 * @param {() => Promise<unknown>} move
 */
export async function hop(from, to, move) {
  const before = from.lastTick() ?? Infinity;
  const mark = to.mark();
  await move();
  assert.deepEqual(await names(from.t, from), []);
  assert.deepEqual(await names(to.t, to), [to.name]);
  await to.goesOn(mark);
  const now = to.lastTick() ?? 0;
  if (now <= before) throw new Error(`tick ${now} after tick ${before} at the other host: another life`);
}

/**
 * `xen-migrate recover`.
 *
 * @param {Context} t
 * @param {Host} host
 * @param {string[]} [args]
 * @returns {Promise<{ code: number, findings: any[] }>}
 */
export async function recover(t, host, args = []) {
  const { code, stdout, stderr } = await host.run([...program(host), 'recover', '--json', ...args], {
    fails: true,
  });
  assert.match(stdout, /^\[/, stderr);
  t.log(`recover at ${host.hostname}: exit code ${code}, ${stdout.replaceAll(/\s+/g, ' ')}`);
  return { code, findings: JSON.parse(stdout) };
}

/**
 * What guests have at a host, beside their domains: device models with their sockets, states and configurations.
 *
 * @param {Host} host
 * @returns {Promise<string[]>}
 */
export async function traces(host) {
  const { stdout } = await host.sh(
    'shopt -s nullglob; for f in /var/lib/xen/* /var/run/xen/qmp-*; do echo "$f"; done; pgrep -a qemu || true',
  );
  return stdout.split('\n').filter((line) => line !== '');
}

/**
 * Waits until nothing of the guest is at a host any more: who gives up there takes a moment.
 *
 * @param {Host} host
 * @param {Guest} guest
 * @param {string[]} [before] `traces` without the guest
 */
export async function nothingLeft(host, guest, before) {
  for (const end = performance.now() + 60_000; ; await sleep(500)) {
    const more = before === undefined ? [] : (await traces(host)).filter((line) => !before.includes(line));
    const left = [...(await names(host, guest)), ...more];
    if (left.length === 0) return;
    if (performance.now() > end) throw new Error(`still at ${host.hostname}: ${left.join(', ')}`);
  }
}
