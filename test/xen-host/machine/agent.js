/** The side of the agents in dom0 that commands; frames: dom0/agent.c. */
import net from 'node:net';
import os from 'node:os';

const chunk = 32768;

/** @param {string} type @param {Uint8Array} payload */
function frame(type, payload) {
  const head = Buffer.alloc(5);
  head.write(type, 'latin1');
  head.writeUInt32LE(payload.length, 1);
  return Buffer.concat([head, payload]);
}

/**
 * Runs one command through one agent.
 *
 * @param {string | { host: string, port: number }} where a serial port's socket, or the agent of a pair's second host
 * @param {string} command
 * @param {{ stdin?: NodeJS.ReadableStream | string | Uint8Array, stdout?: (data: Buffer) => void, stderr?: (data: Buffer) => void,
 *   signal?: AbortSignal, started?: (kill: (signal: NodeJS.Signals) => void) => void }} options `started` is given what
 *   sends a signal to the command's processes
 * @returns {Promise<number>} exit code
 */
export async function converse(where, command, { stdin, stdout, stderr, signal, started }) {
  signal?.throwIfAborted();
  const socket = typeof where === 'string' ? net.connect(where) : net.connect({ ...where, noDelay: true });
  const abort = () =>
    void socket.destroy(signal?.reason instanceof Error ? signal.reason : new Error('aborted'));
  signal?.addEventListener('abort', abort, { once: true });
  socket.write(frame('X', Buffer.from(command)));
  /** @param {Buffer | string} data */
  const feed = (data) => {
    const bytes = Buffer.from(data);
    for (let at = 0; at < bytes.length; at += chunk) socket.write(frame('I', bytes.subarray(at, at + chunk)));
  };
  const end = () => void socket.write(frame('E', Buffer.alloc(0)));
  /** @param {NodeJS.Signals} name */
  const kill = (name) => void socket.write(frame('K', Uint8Array.of(os.constants.signals[name])));
  if (stdin === undefined) end();
  else if (typeof stdin === 'string' || stdin instanceof Uint8Array) {
    feed(Buffer.from(stdin));
    end();
  } else stdin.on('data', feed).once('end', end);
  try {
    let rest = Buffer.alloc(0);
    let greeted = false;
    for await (const data of socket) {
      rest = Buffer.concat([rest, data]);
      while (rest.length >= 5) {
        const size = 5 + rest.readUInt32LE(1);
        if (rest.length < size) break;
        const type = rest.toString('latin1', 0, 1);
        const payload = rest.subarray(5, size);
        rest = rest.subarray(size);
        // Whatever comes before the greeting is left over from a command whose caller went away.
        if (type === 'H') {
          if (!greeted) started?.(kill);
          greeted = true;
        } else if (!greeted) continue;
        else if (type === 'O') stdout?.(payload);
        else if (type === 'S') stderr?.(payload);
        else if (type === 'R') return payload.readUInt32LE(0);
      }
    }
    throw new Error('the machine ended the connection');
  } finally {
    signal?.removeEventListener('abort', abort);
    if (typeof stdin === 'object' && 'off' in stdin) stdin.off('data', feed).off('end', end);
    socket.destroy();
  }
}
