/**
 * Another process that takes what comes over TCP on the loopback, in one of the ways that a migration can go:
 * `transport-peer.mjs plain|tls|gzip|brotli|zstd`. Tells its port, and the number of bytes at the end of each connection.
 */
import { decompressSource, listenForPeers } from '../dist/transport/index.js';
import { openConnection } from '../dist/transport/socket.js';
import { certificates } from './transport-tls.mjs';

const way = process.argv[2];
const secure = way === 'tls';

async function drain(peer) {
  const { source, sink } = openConnection(peer);
  const from = way === 'plain' || secure ? source : decompressSource(source, way);
  let bytes = 0;
  for (;;) {
    const view = from.take(Infinity);
    if (view !== undefined) bytes += view.length;
    else if (!(await from.wait(1 << 20))) break;
  }
  await from.close();
  process.send(bytes);
  await sink.end();
}

const listener = await listenForPeers(
  `${secure ? 'tls' : 'tcp'}://127.0.0.1:0`,
  secure ? { tls: certificates('server') } : {},
  (peer) => void drain(peer).catch(() => process.exit(1)),
);
process.send(listener.addresses[0]);
process.on('disconnect', () => process.exit());
