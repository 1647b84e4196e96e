/** QEMU's monitor, as far as libxl uses it during a save (libxl_qmp.c): one command a connection. */
import fs from 'node:fs';
import net from 'node:net';
import readline from 'node:readline';

const socketOf = (/** @type {number} */ domid) => `/var/run/xen/qmp-libxl-${domid}`;

/**
 * @param {number} domid
 * @param {string} command
 * @param {object} [args]
 * @returns {Promise<unknown>}
 */
export async function qmp(domid, command, args = {}) {
  const socket = net.connect(socketOf(domid));
  try {
    const ask = (/** @type {object} */ what) => void socket.write(`${JSON.stringify(what)}\r\n`);
    for await (const line of readline.createInterface({ input: socket })) {
      const { QMP, id, return: value, error } = JSON.parse(line);
      if (QMP !== undefined) ask({ execute: 'qmp_capabilities', id: 'hello' });
      else if (error !== undefined) throw new Error(`${command}: ${error.desc}`);
      else if (id === 'hello') ask({ execute: command, arguments: args, id: command });
      else if (id === command) return value;
    }
    throw new Error(`${command}: the monitor hung up`);
  } finally {
    socket.destroy();
  }
}

/**
 * Listens in on the monitor: whoever connects to it gets through, and what is asked is kept.
 *
 * @param {number} domid
 */
export async function tapQmp(domid) {
  const path = socketOf(domid);
  const behind = `${path}.behind`;
  /** @type {string[]} */
  let lines = [];
  const server = net.createServer((client) => {
    const qemu = net.connect(behind);
    for (const [from, to] of [
      [client, qemu],
      [qemu, client],
    ])
      from
        ?.on('error', () => {})
        .on('close', () => to?.destroy())
        .pipe(/** @type {net.Socket} */ (to));
    readline.createInterface({ input: client }).on('line', (line) => void lines.push(line));
  });
  fs.renameSync(path, behind);
  await new Promise((resolve) => server.listen(path, () => resolve(undefined)));
  return {
    /** @returns {{ execute: string, arguments?: Record<string, unknown> }[]} what has been asked since the last time */
    take() {
      const asked = lines.map((line) => JSON.parse(line));
      lines = [];
      return asked;
    },
    close() {
      // Which removes its socket, too.
      server.close();
      fs.renameSync(behind, path);
    },
  };
}
