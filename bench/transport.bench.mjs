/**
 * TLS and each compression between two processes, over TCP on the loopback, against the same bytes in the clear. What a
 * network takes of its own is not in these figures: they say at which speed of a network a way begins to be worth it.
 */
import { spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { compressionsHere, compressSink, connectPeer } from '../dist/transport/index.js';
import { openConnection } from '../dist/transport/socket.js';
import { best, MIB, PAGE, rate } from './tools.mjs';
import { certificates } from './transport-tls.mjs';

export const name = 'transport';
export const about =
  'TLS and compression over loopback TCP against plain, random pages and pages as a Linux guest has them';

/** Bytes of one candidate's turn, and of one write: a batch of 1024 pages. */
const SIZE = 128 * MIB;
const BATCH = 1024 * PAGE;

/**
 * Memory as a Linux guest has it. The stream that XEN_MIGRATION_BENCH_STREAM names (a saved guest, perhaps in gzip), or in
 * its place a quarter of empty pages, half of a program's, a quarter of text.
 */
function guestMemory() {
  const file = process.env.XEN_MIGRATION_BENCH_STREAM;
  if (file !== undefined) {
    const bytes = readFileSync(file);
    return {
      what: file.replace(/.*\//, ''),
      memory: repeated(file.endsWith('.gz') ? gunzipSync(bytes) : bytes),
    };
  }
  const memory = new Uint8Array(SIZE);
  const program = readFileSync(process.execPath);
  const folder = fileURLToPath(new URL('../dist', import.meta.url));
  const texts = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((f) => f.endsWith('.js'));
  const text = Buffer.concat(texts.map((f) => readFileSync(`${folder}/${f}`)));
  for (let page = 0; page * PAGE < SIZE; page++) {
    const kind = page % 4;
    if (kind === 0) continue;
    const from = kind === 3 ? text : program;
    const at = (page * PAGE) % (from.length - PAGE);
    memory.set(from.subarray(at, at + PAGE), page * PAGE);
  }
  return { what: 'program, text, empty', memory };
}

function repeated(bytes) {
  const memory = new Uint8Array(SIZE);
  for (let at = 0; at < SIZE; at += bytes.length) memory.set(bytes.subarray(0, SIZE - at), at);
  return memory;
}

async function startPeer(way) {
  const path = fileURLToPath(new URL('./transport-peer.mjs', import.meta.url));
  const child = spawn(process.execPath, [path, way], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  const [address] = await once(child, 'message');
  return { child, address };
}

/** Sends all of it, two writes under way as a save has them. Resolves to seconds, and bytes on the wire. */
async function send({ child, address }, way, memory) {
  const peer = await connectPeer(address, way === 'tls' ? { tls: certificates('client') } : {});
  const { source, sink } = openConnection(peer);
  const compressing = way === 'plain' || way === 'tls' ? undefined : compressSink(sink, way);
  const to = compressing ?? sink;
  const drained = once(child, 'message');
  const from = performance.now();
  const pending = [];
  for (let at = 0; at < memory.length; at += BATCH) {
    if (pending.length === 2) await pending.shift();
    pending.push(to.write([memory.subarray(at, at + BATCH)]));
  }
  await Promise.all(pending);
  if (compressing !== undefined) await compressing.end();
  await sink.end();
  const [bytes] = await drained;
  const seconds = (performance.now() - from) / 1000;
  if (bytes !== memory.length) throw new Error(`${bytes} bytes arrived of ${memory.length}`);
  await source.close();
  peer.destroy();
  return { seconds, wire: compressing?.compressedBytes ?? bytes };
}

export async function run() {
  const ways = ['plain', 'tls', ...compressionsHere()];
  const peers = new Map();
  for (const way of ways) peers.set(way, await startPeer(way));
  try {
    const rows = [];
    for (const { what, memory } of [
      { what: 'random', memory: randomFillSync(new Uint8Array(SIZE)) },
      guestMemory(),
    ]) {
      const wire = {};
      const seconds = await best(
        Object.fromEntries(
          ways.map((way) => [
            way,
            async () => {
              const took = await send(peers.get(way), way, memory);
              wire[way] = took.wire;
              return took.seconds;
            },
          ]),
        ),
      );
      for (const way of ways.slice(1)) {
        const share = ((wire[way] / SIZE) * 100).toFixed(0);
        rows.push({
          what: `${way}: ${what} pages${way === 'tls' ? '' : `, ${share} % on the wire`}`,
          value: rate(SIZE, seconds[way]),
          baseline: rate(SIZE, seconds.plain),
          ratio: seconds.plain / seconds[way],
        });
      }
    }
    return rows;
  } finally {
    for (const { child } of peers.values()) {
      child.disconnect();
      child.kill();
    }
  }
}
