/**
 * Pipes with a blocking end for a child, as libxl makes them: what child_process gives are sockets. Each is a FIFO whose
 * name is gone as soon as both ends are open.
 */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

/** FIFOs made by one mkfifo: processes are slow to start under emulation. */
const stock = 64;

/** @type {string[]} */
let names = [];

function fifo() {
  if (names.length === 0) {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'pipes-'));
    names = Array.from({ length: stock }, (_, n) => path.join(folder, String(n)));
    execFileSync('mkfifo', names);
  }
  return /** @type {string} */ (names.pop());
}

/**
 * Opens a pipe: two descriptors with flags of their own, both blocking.
 *
 * @returns {{ readonly readable: number, readonly writable: number }}
 */
export function pipe() {
  const name = fifo();
  // Open for both, neither open below waits for the other end.
  const both = fs.openSync(name, fs.constants.O_RDWR);
  const readable = fs.openSync(name, fs.constants.O_RDONLY);
  const writable = fs.openSync(name, fs.constants.O_WRONLY);
  fs.closeSync(both);
  fs.rmSync(name);
  return { readable, writable };
}
