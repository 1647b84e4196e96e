/** A restore from a Unix socket, against reading the same bytes and copying them once; and what memory it takes. */
import { execFile, fork } from 'node:child_process';
import { once } from 'node:events';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { SimulatedHost } from '../dist/testing.js';
import { restore } from '../dist/restore/restore.js';
import { best, GIB, inFolder, mib, MIB, PAGE, rate } from './tools.mjs';

export const name = 'restore-socket';
export const about = 'a 1 GiB PVH guest from a Unix socket fed by another process';

const here = (file) => fileURLToPath(new URL(file, import.meta.url));

/** A connection to the feeder, which will send a guest of so many pages. */
export async function connect(path, pages) {
  const socket = createConnection(path);
  const request = Buffer.alloc(8);
  request.writeBigUInt64LE(BigInt(pages));
  await once(socket, 'connect');
  socket.write(request);
  return socket;
}

async function withFeeder(use) {
  return inFolder(async (folder) => {
    const path = join(folder, 'feeder');
    const child = fork(here('./feeder.mjs'), [path]);
    try {
      await once(child, 'message');
      return await use(path);
    } finally {
      child.disconnect();
      child.kill();
    }
  });
}

/**
 * Reads all there is with 'data' events, the fastest way that Node has, and copies each chunk once to where `place` says:
 * views of memory that is taken as it is needed, as a guest's is.
 */
async function readAndCopy(path, pages, place) {
  const socket = await connect(path, pages);
  const from = performance.now();
  let bytes = 0;
  socket.on('data', (chunk) => {
    for (let done = 0; done < chunk.length;) {
      const [region, at] = place(bytes);
      const n = Math.min(chunk.length - done, region.length - at);
      region.set(done === 0 && n === chunk.length ? chunk : chunk.subarray(done, done + n), at);
      done += n;
      bytes += n;
    }
  });
  await once(socket, 'close');
  return { seconds: (performance.now() - from) / 1000, bytes };
}

/** New memory of the guest's size, in the regions of 64 MiB that the simulated host takes. */
function fresh() {
  const regions = [];
  return (bytes) => {
    const r = Math.floor(bytes / (64 * MIB));
    regions[r] ??= new Uint8Array(new SharedArrayBuffer(64 * MIB));
    return [regions[r], bytes % (64 * MIB)];
  };
}

export async function run() {
  return withFeeder(async (path) => {
    const pages = GIB / PAGE;
    let size = 0;
    const seconds = await best({
      ours: async () => {
        const host = new SimulatedHost();
        const socket = await connect(path, pages);
        const from = performance.now();
        const result = await restore(host, { from: socket, run: false });
        const took = (performance.now() - from) / 1000;
        if (result.pages !== pages) throw new Error(`${result.pages} pages instead of ${pages}`);
        size = result.bytes;
        await host.close();
        return took;
      },
      copy: async () => {
        const { seconds, bytes } = await readAndCopy(path, pages, fresh());
        if (bytes !== size) throw new Error(`${bytes} bytes instead of ${size}`);
        return seconds;
      },
      hot: async () => {
        const buffer = new Uint8Array(4 * MIB);
        return (await readAndCopy(path, pages, (bytes) => [buffer, bytes % buffer.length])).seconds;
      },
    });
    const rows = [
      {
        what: 'against reading and copying once, into new memory',
        value: rate(size, seconds.ours),
        baseline: rate(size, seconds.copy),
        ratio: seconds.copy / seconds.ours,
        bar: 0.8,
      },
      {
        what: 'against reading and copying into one buffer of 4 MiB',
        value: rate(size, seconds.ours),
        baseline: rate(size, seconds.hot),
        ratio: seconds.hot / seconds.ours,
      },
    ];
    for (const gib of [1, 8]) {
      const { stdout } = await promisify(execFile)(process.execPath, [
        here('./restore-peak.mjs'),
        path,
        String((gib * GIB) / PAGE),
      ]);
      const limit = 64 * MIB + (gib * GIB) / PAGE / 8;
      rows.push({
        what: `memory beyond a guest of ${gib} GiB, at its peak`,
        value: mib(Number(stdout)),
        baseline: mib(limit),
        ratio: Number(stdout) / limit,
        bar: 1,
        atMost: true,
      });
    }
    return rows;
  });
}
