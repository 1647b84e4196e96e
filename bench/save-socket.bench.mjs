/** A save into a Unix socket that another process drains, against writing the same bytes to the same kind of socket. */
import { once } from 'node:events';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { SimulatedHost } from '../dist/testing.js';
import { save } from '../dist/save/save.js';
import { startDrain } from './drain.mjs';
import { best, GIB, inFolder, MIB, rate } from './tools.mjs';

export const name = 'save-socket';
export const about = 'a 1 GiB PVH guest, suspended, into a Unix socket drained by another process';

/** Runs `use` with a function that connects, has something sent, and resolves to seconds and bytes. */
async function withDrain(use) {
  return inFolder(async (folder) => {
    const drain = await startDrain(join(folder, 'drain'));
    try {
      return await use(async (send) => {
        const socket = createConnection(drain.path);
        await once(socket, 'connect');
        const drained = drain.drained();
        const from = performance.now();
        await send(socket);
        const bytes = await drained;
        return [(performance.now() - from) / 1000, bytes];
      });
    } finally {
      drain.stop();
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
      best(
        {
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
        },
        16,
      ),
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
