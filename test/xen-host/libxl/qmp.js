/** QEMU's monitor, as far as libxl uses it during a save (libxl_qmp.c): one command a connection. */
import net from 'node:net';
import readline from 'node:readline';

/**
 * @param {number} domid
 * @param {string} command
 * @param {object} [args]
 * @returns {Promise<unknown>}
 */
export async function qmp(domid, command, args = {}) {
  const socket = net.connect(`/var/run/xen/qmp-libxl-${domid}`);
  try {
    for await (const line of readline.createInterface({ input: socket })) {
      const { QMP, id, return: value, error } = JSON.parse(line);
      if (QMP !== undefined) socket.write(JSON.stringify({ execute: 'qmp_capabilities', id: 'hello' }));
      else if (error !== undefined) throw new Error(`${command}: ${error.desc}`);
      else if (id === 'hello')
        socket.write(JSON.stringify({ execute: command, arguments: args, id: command }));
      else if (id === command) return value;
    }
    throw new Error(`${command}: the monitor hung up`);
  } finally {
    socket.destroy();
  }
}
