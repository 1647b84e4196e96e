/**
 * A pipe whose one end a child can open by its name. What Node makes for a child's standard input is a socket, and
 * Linux opens no socket through /proc/self/fd/0, which `xl restore` is to be given as its file.
 *
 *     this process → socket → dd → pipe → child
 *
 * A full pipe takes more whenever a page of it has been read. To wait for that is cheap for dd, which blocks in the
 * kernel; here it would be a turn of the event loop for every 4 KiB. And dd it is because it reads and writes: others, cat
 * of busybox among them, splice, and Linux then keeps the pipe locked for as long as nothing comes from the socket.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import type { Writable } from 'node:stream';
import * as os from 'node:os';
import * as path from 'node:path';
import { promisify } from 'node:util';
import { TransportError } from '../../errors.js';

const { O_RDONLY, O_WRONLY, O_NONBLOCK } = fs.constants;
const run = promisify(execFile);
const open = promisify(fs.open);
const close = promisify(fs.close);

/** Both ends; the caller's to close. */
export interface Pipe {
  /** Descriptor to read from, for a child. */
  readonly reader: number;
  /** Fails with EPIPE once nobody has the other end open any more. */
  readonly writer: Writable;
  /** Closes the reading end of this process. Idempotent. */
  closeReader(): Promise<void>;
}

/** Makes a pipe. Its name is gone when this resolves. Rejects with TransportError. */
export async function openPipe(): Promise<Pipe> {
  let folder: string | undefined;
  let reader: number | undefined;
  let end: number | undefined;
  try {
    folder = await fs.promises.mkdtemp(path.join(os.tmpdir(), 'xen-migration-'));
    const name = path.join(folder, 'pipe');
    await run('mkfifo', ['-m', '600', name]);
    // Nobody is at the other end yet, and need not be.
    reader = await open(name, O_RDONLY | O_NONBLOCK);
    end = await open(name, O_WRONLY);
    const writer = await copyTo(end);
    const fd = reader;
    let closed: Promise<void> | undefined;
    reader = undefined;
    return { reader: fd, writer, closeReader: () => (closed ??= close(fd)) };
  } catch (cause) {
    const text = cause instanceof Error ? cause.message : String(cause);
    throw new TransportError(`making a pipe to xl: ${text}`, { cause });
  } finally {
    if (reader !== undefined) await close(reader);
    if (end !== undefined) await close(end);
    if (folder !== undefined) await fs.promises.rm(folder, { recursive: true, force: true });
  }
}

/** What is written to the result is written to the descriptor, which stays the caller's. */
async function copyTo(fd: number): Promise<Writable> {
  // Not of our process group: a terminal's signals are for us.
  const dd = spawn('dd', ['bs=128k'], { stdio: ['pipe', fd, 'ignore'], detached: true });
  await once(dd, 'spawn');
  dd.on('error', () => undefined);
  return dd.stdin as Writable;
}
