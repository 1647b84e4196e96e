/**
 * A process that sends a guest's xl stream to whoever connects: `feeder.mjs SOCKET`. The first 8 bytes of a connection
 * say how many pages of memory the guest has. State is a real (simulated) guest's; memory is 64 MiB of pattern, over and
 * over, so that the feeder stays small whatever it sends.
 */
import { createServer } from 'node:net';
import { SimulatedHost } from '../dist/testing.js';
import { save } from '../dist/save/save.js';
import * as stream from '../dist/stream/index.js';
import { MemorySink } from '../dist/transport/index.js';
import { MIB, PAGE } from './tools.mjs';

const BATCH = 1024;
/** First pfn of the hole below 4 GiB, and the first above it. */
const HOLE = 0xf0000;
const HOLE_END = 0x100000;

/** Everything of a small guest's stream but its memory. */
async function templateOf() {
  const host = new SimulatedHost({ memory: 64 * MIB });
  const guest = await host.createGuest({ kind: 'pvh', memory: 4 * MIB, workload: { kind: 'idle' } });
  const sink = new MemorySink();
  await save(host, { domid: guest.domid, to: sink, live: false });
  await host.close();
  const reader = new stream.StreamReader();
  const before = [];
  const after = [];
  let pages = false;
  for (let at = 0; !reader.done;) {
    const bytes = sink.bytes.subarray(at, at + reader.want);
    at += bytes.length;
    const event = reader.feed(bytes);
    if (event?.kind === 'page-data') pages = true;
    else if (event?.kind === 'record')
      (pages ? after : before).push(stream.encodeRecord(event.type, event.body));
    else if (event?.raw !== undefined && event.kind !== 'xl-header') before.push(event.raw);
  }
  return { before, after };
}

const pattern = new Uint8Array(64 * MIB);
for (let i = 0; i < pattern.length; i += 8) pattern[i] = (i * 2654435761) >>> 24;
const { before, after } = await templateOf();

async function feed(socket, pages) {
  const config = JSON.stringify({ c_info: { type: 'pvh' }, b_info: { max_memkb: pages * 4 } });
  const pending = [];
  const write = async (bytes) => {
    if (pending.length >= 4) await pending.shift();
    pending.push(new Promise((resolve) => socket.write(bytes, resolve)));
  };
  await write(Buffer.concat([stream.encodeXlHeader({ config }), ...before]));
  const pfns = new Float64Array(BATCH);
  const types = new Uint8Array(BATCH);
  for (let done = 0; done < pages; done += BATCH) {
    const n = Math.min(BATCH, pages - done);
    for (let i = 0; i < n; i++) pfns[i] = done + i < HOLE ? done + i : done + i + HOLE_END - HOLE;
    const head = new Uint8Array(stream.pageDataHeadSize(n));
    stream.writePageDataHead(head, pfns, types, n);
    const at = (done * PAGE) % pattern.length;
    socket.cork();
    await write(head);
    await write(pattern.subarray(at, at + n * PAGE));
    socket.uncork();
  }
  await write(Buffer.concat(after));
  await Promise.all(pending);
  socket.end();
}

const server = createServer((socket) => {
  socket.once('data', (request) => {
    feed(socket, Number(request.readBigUInt64LE())).catch((error) => socket.destroy(error));
  });
  socket.on('error', () => undefined);
});
server.listen(process.argv[2], () => process.send('ready'));
process.on('disconnect', () => process.exit());
