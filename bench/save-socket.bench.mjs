/** A save into a Unix socket that another process drains, against writing the same bytes to the same kind of socket. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { SimulatedHost } from '../dist/testing.js';
import { save } from '../dist/save/save.js';
import { best, GIB, inFolder, MIB, rate } from './tools.mjs';

export const name = 'save-socket';
export const about = 'a 1 GiB PVH guest, suspended, into a Unix socket drained by another process';

/** Takes what comes as fast as Node can, and says at each end how much it was. */
const DRAIN = `
const { createServer } = require('node:net');
const buffer = Buffer.allocUnsafeSlow(1 << 20);
createServer({}, () => {}).on('error', () => process.exit(1));
const server = createServer({ pauseOnConnect: true }, (accepted) => {
  const { Socket } = require('node:net');
  let bytes = 0;
  const socket = new Socket({
    handle: accepted._handle,
    onread: { buffer, callback: (n) => ((bytes += n), true) },
  });
  accepted._handle = null;
  socket.on('end', () => { process.send(bytes); socket.end(); });
  socket.on('error', () => process.exit(1));
  socket.resume();
}).listen(process.argv[1], () => process.send('ready'));
process.on('disconnect', () => process.exit());
`;

async function withDrain(use) {
  return inFolder(async (folder) => {
    const path = join(folder, 'drain');
    const child = spawn(process.execPath, ['-e', DRAIN, path], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    try {
      await once(child, 'message');
      return await use(async (send) => {
        const socket = createConnection(path);
        await once(socket, 'connect');
        const drained = once(child, 'message');
        const from = performance.now();
        await send(socket);
        const [bytes] = await drained;
        return [(performance.now() - from) / 1000, bytes];
      });
    } finally {
      child.disconnect();
      child.kill();
    }
  });
}

/** Writes so many bytes, two writes of 4 MiB under way at any time, from memory as large as the guest's. */
async function writeAll(socket, regions, size) {
  let left = size;
  const pending = [];
  for (let r = 0; left > 0; r = (r + 1) % regions.length) {
    const region = regions[r];
    for (let at = 0; at < region.length && left > 0; at += 4 * MIB) {
      const n = Math.min(4 * MIB, left, region.length - at);
      if (pending.length === 2) await pending.shift();
      pending.push(new Promise((resolve) => socket.write(region.subarray(at, at + n), resolve)));
      left -= n;
    }
  }
  await Promise.all(pending);
  socket.end();
}

export async function run() {
  const host = new SimulatedHost({ memory: 2 * GIB });
  try {
    const guest = await host.createGuest({ kind: 'pvh', memory: GIB, workload: { kind: 'idle', filled: 1 } });
    const regions = host.memory.regions.filter((region) => region.length > 0);
    let size = 0;
    const seconds = await withDrain((measure) =>
      best({
        ours: async () => {
          const [took, bytes] = await measure((socket) =>
            save(host, { domid: guest.domid, to: socket, live: false, afterwards: 'resume' }),
          );
          size = bytes;
          return took;
        },
        bare: async () => {
          const [took, bytes] = await measure((socket) => writeAll(socket, regions, size));
          if (bytes !== size) throw new Error(`${bytes} bytes instead of ${size}`);
          return took;
        },
      }),
    );
    return [
      {
        what: 'against a loop of socket writes',
        value: rate(size, seconds.ours),
        baseline: rate(size, seconds.bare),
        ratio: seconds.bare / seconds.ours,
        bar: 0.85,
      },
    ];
  } finally {
    await host.close();
  }
}
