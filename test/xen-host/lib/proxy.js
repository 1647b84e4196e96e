/**
 * A TCP proxy in the scenario's own process, between a sender and a receiver of this library: it can stop or break a
 * migration at an exact moment. It reads the frames of the receiver's direction (docs/reference/handshake.md), so what it
 * carries must not be encrypted where it is to hold a frame.
 */
import { once } from 'node:events';
import net from 'node:net';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';

/**
 * What the next connection meets. `stream`: nothing beyond so many octets goes to the receiver. `YOURS`, `RUNNING`: that
 * frame does not come through, and nothing after it in its direction.
 *
 * @typedef {{ stream: number } | 'YOURS' | 'RUNNING'} Hold
 */

const preamble = 16;
const types = { RESTORED: 4, RUNNING: 6 };

export class Proxy {
  #server;
  #to;
  /** @type {Set<net.Socket>} */
  #sockets = new Set();
  /** @type {{ hold: Hold, reached: () => void } | undefined} */
  #next;

  /** @param {{ host: string, port: number }} to */
  constructor(to) {
    this.#to = to;
    this.#server = net.createServer({ allowHalfOpen: true, noDelay: true }, (client) => this.#carry(client));
  }

  /** @param {{ host: string, port: number }} to the receiver */
  static async open(to) {
    const proxy = new Proxy(to);
    proxy.#server.listen(0, '127.0.0.1');
    await once(proxy.#server, 'listening');
    return proxy;
  }

  /** HOST:PORT where it listens: on this host alone. */
  get address() {
    const { port } = /** @type {net.AddressInfo} */ (this.#server.address());
    return `127.0.0.1:${port}`;
  }

  /**
   * Stops the next connection at a moment; later ones are carried whole.
   *
   * @param {Hold} hold
   * @returns {{ reached: Promise<void> }} settled when that moment has come
   */
  hold(hold) {
    /** @type {() => void} */
    let reached = () => {};
    const moment = new Promise((/** @type {(value?: undefined) => void} */ resolve) => (reached = resolve));
    this.#next = { hold, reached };
    return { reached: moment };
  }

  /** Breaks all connections, with what is on its way in them. */
  cut() {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async close() {
    this.cut();
    this.#server.close();
    await once(this.#server, 'close');
  }

  /** @param {net.Socket} client */
  #carry(client) {
    const server = net.connect({ ...this.#to, allowHalfOpen: true, noDelay: true });
    for (const socket of [client, server]) {
      this.#sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => this.#sockets.delete(socket));
    }
    const gates = new Gates(this.#next);
    this.#next = undefined;
    // A broken connection is the scenario's matter; the other half breaks with it.
    for (const [from, gate, to] of /** @type {const} */ ([
      [client, gates.up, server],
      [server, gates.down, client],
    ]))
      pipeline(from, gate, to).catch(() => {
        client.resetAndDestroy();
        server.resetAndDestroy();
      });
  }
}

/** The two directions of one connection. A gate that is shut takes nothing more, and lets nothing more through. */
class Gates {
  #restored = false;
  #octets = 0;
  #skip = preamble;
  #rest = Buffer.alloc(0);

  /** @param {{ hold: Hold, reached: () => void } | undefined} order */
  constructor(order) {
    const hold = order?.hold;
    const most = typeof hold === 'object' ? hold.stream : Infinity;
    const shut = () => order?.reached();
    this.up = new Transform({
      highWaterMark: 65536,
      transform: (/** @type {Buffer} */ chunk, _encoding, done) => {
        // All of the stream has come through, or there would be no RESTORED.
        if (hold === 'YOURS' && this.#restored) return shut();
        const left = most - this.#octets;
        this.#octets += chunk.length;
        if (chunk.length < left) return done(null, chunk);
        this.up.push(chunk.subarray(0, left));
        shut();
      },
    });
    this.down = new Transform({
      transform: (/** @type {Buffer} */ chunk, _encoding, done) => {
        if (hold !== 'YOURS' && hold !== 'RUNNING') return done(null, chunk);
        for (const type of this.#frames(chunk)) {
          if (type === types.RESTORED) this.#restored = true;
          if (type === types.RUNNING && hold === 'RUNNING') return shut();
        }
        done(null, chunk);
      },
    });
  }

  /** @param {Buffer} chunk @returns {number[]} types of the frames that begin in it */
  #frames(chunk) {
    const found = [];
    let rest = Buffer.concat([this.#rest, chunk]);
    for (;;) {
      const skipped = Math.min(this.#skip, rest.length);
      this.#skip -= skipped;
      rest = rest.subarray(skipped);
      if (this.#skip > 0 || rest.length < 8) break;
      found.push(rest.readUInt32LE(0));
      this.#skip = 8 + rest.readUInt32LE(4);
    }
    this.#rest = rest;
    return found;
  }
}
