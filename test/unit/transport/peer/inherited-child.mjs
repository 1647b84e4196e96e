/**
 * A process that was given a socket as descriptor 3: `connect` or `listen`, the options as JSON, and the address that both
 * ends of TCP connections shall seem to have. Prints a line of JSON for each thing that happens.
 */
import { once } from 'node:events';
import net from 'node:net';

/** Compiled by test/setup. */
const lib = new URL(
  '../../../../node_modules/.cache/xen-migration/lib/transport/peer/index.js',
  import.meta.url,
);
const { connectPeer, listenForPeers } = await import(lib.href);

const [mode, options = '{}', seeming] = process.argv.slice(2);
if (seeming !== undefined) {
  const address = () => ({ address: seeming, port: 8002, family: 'IPv4' });
  Object.assign(net.Socket.prototype, { _getsockname: address, _getpeername: address });
}

/** @param {object} what */
function tell(what) {
  console.log(JSON.stringify(what));
}

/**
 * Reads all that it is told, and answers.
 *
 * @param {import('node:stream').Duplex} peer
 */
async function talk(peer) {
  let heard = '';
  peer.on('data', (chunk) => (heard += String(chunk)));
  await once(peer, 'end');
  tell({ heard });
  peer.end(`${heard}, too`);
}

try {
  if (mode === 'connect') await talk(await connectPeer('fd://3', JSON.parse(options)));
  else {
    /** @param {import('node:stream').Duplex} peer */
    const onPeer = (peer) => void talk(peer).then(() => listener?.close());
    /** @type {{ addresses: string[], given: boolean, close: () => Promise<void> } | undefined} */
    let listener;
    listener = await listenForPeers('fd://3', JSON.parse(options), onPeer);
    tell({ addresses: listener?.addresses, given: listener?.given });
  }
} catch (error) {
  const { code, message } = /** @type {NodeJS.ErrnoException} */ (error);
  tell({ code, message });
}
