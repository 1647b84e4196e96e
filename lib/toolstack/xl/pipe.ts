/**
 * A pipe whose one end a child can open by its name. What Node makes for a child's standard input is a socket, and
 * Linux opens no socket through /proc/self/fd/0, which `xl restore` is to be given as its file.
 */
import { execFile } from 'node:child_process';
import * as fs from 'node:fs';
import * as net from 'node:net';
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
  /** Gets EPIPE once nobody has the other end open any more. */
  readonly writer: net.Socket;
  /** Closes the reading end of this process. Idempotent. */
  closeReader(): Promise<void>;
}

/** Makes a pipe. Its name is gone when this resolves. Rejects with TransportError. */
export async function openPipe(): Promise<Pipe> {
  let folder: string | undefined;
  try {
    folder = await fs.promises.mkdtemp(path.join(os.tmpdir(), 'xen-migration-'));
    const name = path.join(folder, 'pipe');
    await run('mkfifo', ['-m', '600', name]);
    // Each end is opened without waiting for somebody at the other one.
    const reader = await open(name, O_RDONLY | O_NONBLOCK);
    let writer: net.Socket;
    try {
      const fd = await open(name, O_WRONLY | O_NONBLOCK);
      writer = new net.Socket({ fd, readable: false, writable: true });
    } catch (error) {
      await close(reader);
      throw error;
    }
    let closed: Promise<void> | undefined;
    return { reader, writer, closeReader: () => (closed ??= close(reader)) };
  } catch (cause) {
    const text = cause instanceof Error ? cause.message : String(cause);
    throw new TransportError(`making a pipe to xl: ${text}`, { cause });
  } finally {
    if (folder !== undefined) await fs.promises.rm(folder, { recursive: true, force: true });
  }
}
