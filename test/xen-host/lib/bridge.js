/**
 * `node bridge.js HOST:PORT [--cut-after OCTETS | --cut-after-answer OCTETS]`: carries standard input to a TCP server and
 * its answers to standard output, as ssh would: `xl migrate -s '' NAME 'node …/bridge.js 10.17.0.2:5000'`. When as many
 * octets have gone to the server, or when more have come from it, it cuts the cable between both hosts (dom0/cable), prints
 * `bridge: cut after N` on standard error, and goes on: no more than that many come through.
 */
import { execFile } from 'node:child_process';
import net from 'node:net';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { parseArgs, promisify } from 'node:util';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { 'cut-after': { type: 'string' }, 'cut-after-answer': { type: 'string' } },
});
const [host, port] = positionals[0]?.split(':') ?? [];
const socket = net.connect({ host, port: Number(port), allowHalfOpen: true, noDelay: true });

/** @param {string | undefined} limit */
async function cut(limit) {
  await promisify(execFile)('/xen-host/cable', ['cut']);
  console.error(`bridge: cut after ${limit}`);
}

/** @param {string | undefined} limit octets after which it cuts */
function toServer(limit) {
  let left = limit === undefined ? Infinity : Number(limit);
  return new Transform({
    highWaterMark: 65536,
    /** @param {Buffer} chunk */
    async transform(chunk, _encoding, done) {
      const before = Math.min(left, chunk.length);
      left -= chunk.length;
      if (left > 0) return void done(null, chunk);
      left = Infinity;
      // These shall come through; a cable cannot tell which octets it has carried.
      this.push(chunk.subarray(0, before));
      await cut(limit);
      done(null, chunk.subarray(before));
    },
  });
}

/**
 * It cuts only when the server says more: by then all has arrived there to which that is the answer. What has come here
 * before the cable was cut is lost as well.
 *
 * @param {string | undefined} limit octets of answers that come through
 */
function fromServer(limit) {
  let left = limit === undefined ? Infinity : Number(limit);
  return new Transform({
    /** @param {Buffer} chunk */
    async transform(chunk, _encoding, done) {
      const before = Math.min(left, chunk.length);
      left -= before;
      if (before === chunk.length) return void done(null, chunk);
      this.push(chunk.subarray(0, before));
      // Nothing is taken from here on.
      await cut(limit);
    },
  });
}

/** @param {Error} error */
const failed = (error) => {
  console.error(`bridge: ${error.message}`);
  process.exit(1);
};
pipeline(process.stdin, toServer(values['cut-after']), socket).catch(failed);
// As ssh it ends with the other end, whether it has sent everything or not.
pipeline(socket, fromServer(values['cut-after-answer']), process.stdout).then(() => process.exit(0), failed);
