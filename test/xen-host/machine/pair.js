/**
 * Two hosts that are joined. In the folder of the first:
 *
 *   pair/cable     their network, 10.17.0.1 and 10.17.0.2: what scenarios use, and may cut
 *   pair/control   another, 10.18.0.1 and 10.18.0.2: how the first host commands the second, cut or not
 *   pair/log       /var/log/xen of the second, which the first has as /peer/log
 *
 * Both networks are a socket between the two QEMUs: no packet goes anywhere else. Each host reaches its QEMU's QMP through
 * a serial port, so that it can cut the cable by itself (dom0/cable).
 */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { consoleOf, folderOf, pidOf, shared, start } from './machine.js';

/** @typedef {{ number: 1 | 2, folder: string }} Place which of the two, and the folder of both */

/** Octets of one frame: few large ones cost the emulation far less than many small ones. */
const mtu = 16000;

/**
 * @param {Place} place
 * @returns {string[]} arguments for QEMU
 */
export function joined({ number, folder }) {
  const nics = ['cable', 'control'].flatMap((id, n) => {
    const socket = `server=${number === 1 ? 'on' : 'off'},addr.type=unix,addr.path=${path.join(folder, id)}`;
    // No ROM: those are of another Debian package.
    const device = `virtio-net-pci,netdev=${id},mac=52:54:00:1${7 + n}:00:0${number},host_mtu=${mtu},romfile=`;
    return ['-netdev', `stream,id=${id},${socket}`, '-device', device];
  });
  return [
    ...nics,
    ...['-chardev', 'socket,id=qmp,path=qmp,server=on,wait=off', '-mon', 'chardev=qmp,mode=control'],
    ...['-chardev', 'socket,id=puller,path=qmp', '-device', 'virtserialport,chardev=puller,name=qmp'],
    ...shared('peer-log', path.join(folder, 'log'), number === 1 ? ',readonly=on' : ''),
  ];
}

/**
 * Starts two joined hosts. They share what `/share` of the first is. They are not ready yet.
 *
 * @param {readonly [first: string, second: string]} names
 * @param {import('../image/images.js').Images} images
 * @param {Omit<import('./machine.js').Options, 'pair'>} [options] of both
 */
export async function startPair([first, second], images, options = {}) {
  if (first === second) throw new Error(`${first}: a host cannot be joined to itself`);
  if (pidOf(second) !== undefined) throw new Error(`machine ${second} runs already`);
  const folder = path.join(folderOf(first), 'pair');
  await start(first, images, { ...options, pair: { number: 1, folder } });
  // The second connects when it starts, and only then.
  const there = () => ['cable', 'control'].every((name) => fs.existsSync(path.join(folder, name)));
  while (!there()) {
    if (pidOf(first) === undefined) {
      throw new Error(
        `machine ${first} ended at once\n${fs.readFileSync(path.join(folderOf(first), 'qemu.log'), 'utf8')}${consoleOf(first)}`,
      );
    }
    await sleep(20);
  }
  const share = options.share ?? path.join(folderOf(first), 'share');
  await start(second, images, { ...options, share, pair: { number: 2, folder } });
}
