/** Another process that takes what comes over a Unix socket, as fast as Node can. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';

/** One buffer, no stream: what is read is only counted. Tells the number of bytes at the end of each connection. */
const CHILD = `
const { createServer, Socket } = require('node:net');
const buffer = Buffer.allocUnsafeSlow(1 << 20);
const server = createServer({ pauseOnConnect: true }, (accepted) => {
  let bytes = 0;
  const callback = (n) => { bytes += n; return true; };
  const socket = new Socket({ handle: accepted._handle, onread: { buffer, callback } });
  accepted._handle = null;
  socket.on('end', () => { process.send(bytes); socket.end(); });
  socket.on('error', () => process.exit(1));
  socket.resume();
});
server.listen(process.argv[1], () => process.send('ready'));
process.on('disconnect', () => process.exit());
`;

/**
 * @param {string} path where to listen
 * @returns {Promise<{ path: string, drained(): Promise<number>, stop(): void }>} `drained` resolves to the bytes of
 *   the connection that ends next
 */
export async function startDrain(path) {
  const child = spawn(process.execPath, ['-e', CHILD, path], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  await once(child, 'message');
  return {
    path,
    drained: async () => (await once(child, 'message'))[0],
    stop: () => {
      child.disconnect();
      child.kill();
    },
  };
}
