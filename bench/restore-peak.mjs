/**
 * One restore in a process of its own: `restore-peak.mjs SOCKET PAGES` prints the bytes that it took beyond the guest and
 * the simulated hypervisor's books on it.
 */
import { readFileSync } from 'node:fs';
import { SimulatedHost } from '../dist/testing.js';
import { restore } from '../dist/restore/restore.js';
import { PAGE } from './tools.mjs';
import { connect } from './restore-socket.bench.mjs';

/** The most memory that this process ever had; getrusage's figure would begin with the parent's. */
function memory(field) {
  return (
    Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))[1]) *
    1024
  );
}

/** Bytes that the simulated host keeps for each frame and each pfn: what is Xen's own on a real host. */
const BOOKS = 16;

const [path, pages] = [process.argv[2], Number(process.argv[3])];
const host = new SimulatedHost();
const before = memory('VmRSS');
const socket = await connect(path, pages);
const { populated } = await restore(host, { from: socket, run: false });
if (populated.pages !== pages) throw new Error(`${populated.pages} pages instead of ${pages}`);
console.log(memory('VmHWM') - before - pages * (PAGE + BOOKS));
await host.close();
