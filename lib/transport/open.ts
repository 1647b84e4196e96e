/** Whatever a user calls a stream, as a ByteSource or ByteSink. */

import * as fs from 'node:fs';
import * as net from 'node:net';
import { Readable, Writable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { TransportError, UsageError } from '../errors.js';
import { cancellation, transportFailure } from './failure.js';
import { FileSink, FileSource } from './file.js';
import { MemorySource } from './memory.js';
import { SocketSink, SocketSource } from './socket.js';
import type { ByteSink, ByteSource } from './types.js';

const open = promisify(fs.open);
const fstat = promisify(fs.fstat);
const closeFd = promisify(fs.close);

/** How often to look whether somebody reads a FIFO by now, in milliseconds. */
const FIFO_POLL = 50;

export interface OpenSourceOptions {
  /** Aborts the opening. Give a signal to `wait` for the rest. */
  signal?: AbortSignal | undefined;
  /** For messages. Default: the path, or what kind of thing it is. */
  name?: string | undefined;
}

export interface OpenSinkOptions {
  /** Aborts the opening. Use `abort` for the rest. */
  signal?: AbortSignal | undefined;
  /** For messages. Default: the path, or what kind of thing it is. */
  name?: string | undefined;
  /** Permissions of a new file. Default 0o600: it holds a guest's whole memory. An existing file keeps its own. */
  mode?: number | undefined;
  /** Fail if the file exists. Default false: an existing file is truncated. */
  exclusive?: boolean | undefined;
  /** Wait in `end` until a file's data is on the disk. Default true. */
  sync?: boolean | undefined;
}

/**
 * Opens a source.
 *
 * @param from A path; `-` for standard input; a descriptor, which is given away; a Readable, which is given away;
 *   bytes; or a ByteSource, returned as it is
 * @throws TransportError if it cannot be opened or is a directory; CancelledError
 */
export async function openSource(
  from: string | number | Readable | Uint8Array | ByteSource,
  options: OpenSourceOptions = {},
): Promise<ByteSource> {
  const { signal, name } = options;
  if (signal?.aborted === true) throw cancellation(signal.reason, 'opening a source');
  if (from instanceof Uint8Array) return new MemorySource(from);
  if (from instanceof Readable) return sourceOfReadable(from, name);
  if (typeof from === 'number') return sourceOfFd(from, name ?? `fd ${from}`, signal);
  if (typeof from !== 'string') {
    if (isByteSource(from)) return from;
    throw new UsageError('not a path, descriptor, stream, bytes or ByteSource');
  }
  if (from === '-') return sourceOfReadable(process.stdin, name ?? 'standard input');
  // O_NONBLOCK: a FIFO without a writer would hold a thread of the pool. It changes nothing for regular files.
  const fd = await openPath(from, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  return sourceOfFd(fd, name ?? from, signal, 0);
}

/**
 * Opens a sink.
 *
 * @param to A path; `-` for standard output; a descriptor, which is given away; a Writable, which is given away; or a
 *   ByteSink, returned as it is
 * @throws TransportError if it cannot be opened; CancelledError
 */
export async function openSink(
  to: string | number | Writable | ByteSink,
  options: OpenSinkOptions = {},
): Promise<ByteSink> {
  const { signal, name } = options;
  if (signal?.aborted === true) throw cancellation(signal.reason, 'opening a sink');
  if (to === '-' || to === process.stdout) {
    return standardOutput({ ...options, name: name ?? 'standard output' });
  }
  if (to instanceof Writable) return sinkOfWritable(to, options);
  if (typeof to === 'number') return sinkOfFd(to, { ...options, name: name ?? `fd ${to}` });
  if (typeof to !== 'string') {
    if (isByteSink(to)) return to;
    throw new UsageError('not a path, descriptor, stream or ByteSink');
  }
  const fd = await openForWriting(to, options);
  return sinkOfFd(fd, { ...options, name: name ?? to });
}

async function openForWriting(path: string, options: OpenSinkOptions): Promise<number> {
  const { O_WRONLY, O_CREAT, O_TRUNC, O_EXCL, O_NONBLOCK } = fs.constants;
  const flags = O_WRONLY | O_CREAT | O_NONBLOCK | (options.exclusive === true ? O_EXCL : O_TRUNC);
  for (;;) {
    try {
      return await open(path, flags, options.mode ?? 0o600);
    } catch (error) {
      // ENXIO: a FIFO that nobody reads yet. Waiting for its reader inside open(2) would hold a thread of the pool.
      const fifo =
        (error as NodeJS.ErrnoException).code === 'ENXIO' &&
        fs.statSync(path, { throwIfNoEntry: false })?.isFIFO() === true;
      if (!fifo) throw transportFailure(error, `opening ${path}`);
    }
    try {
      await delay(FIFO_POLL, undefined, options.signal === undefined ? {} : { signal: options.signal });
    } catch {
      throw cancellation(options.signal?.reason, `opening ${path}`);
    }
  }
}

async function openPath(path: string, flags: number): Promise<number> {
  try {
    return await open(path, flags);
  } catch (error) {
    throw transportFailure(error, `opening ${path}`);
  }
}

/** What a descriptor is decides who may wait on it: the pool for files, epoll for peers. */
async function statOf(
  fd: number,
  name: string,
): Promise<{ kind: 'file' | 'peer'; size: number | undefined }> {
  let stat: fs.Stats;
  try {
    stat = await fstat(fd);
  } catch (error) {
    throw transportFailure(error, `opening ${name}`);
  }
  if (stat.isDirectory()) throw new TransportError(`opening ${name}: it is a directory`);
  const kind = stat.isFIFO() || stat.isSocket() ? 'peer' : 'file';
  return { kind, size: stat.isFile() ? stat.size : undefined };
}

/** `start`: where the descriptor stands, if that is known; then a regular file can be skipped through. */
async function sourceOfFd(
  fd: number,
  name: string,
  signal: AbortSignal | undefined,
  start?: number,
): Promise<ByteSource> {
  try {
    const { kind, size } = await statOf(fd, name);
    if (signal?.aborted === true) throw cancellation(signal.reason, `opening ${name}`);
    if (kind === 'file') return new FileSource(fd, size === undefined ? { name } : { name, size, start });
    return new SocketSource(new net.Socket({ fd, readable: true, writable: false }), { name });
  } catch (error) {
    await closeFd(fd).catch(() => undefined);
    throw error;
  }
}

async function sinkOfFd(fd: number, options: OpenSinkOptions & { name: string }): Promise<ByteSink> {
  const { name, sync, signal } = options;
  try {
    const { kind } = await statOf(fd, name);
    if (signal?.aborted === true) throw cancellation(signal.reason, `opening ${name}`);
    if (kind === 'file') return new FileSink(fd, { name, sync });
    return new SocketSink(new net.Socket({ fd, readable: false, writable: true }), { name });
  } catch (error) {
    await closeFd(fd).catch(() => undefined);
    throw error;
  }
}

/** Node's file streams read 64 KiB at a time; an untouched one is read by its descriptor instead. */
function sourceOfReadable(stream: Readable, name: string | undefined): ByteSource {
  if (stream instanceof fs.ReadStream && stream === (process.stdin as unknown) && stream.bytesRead === 0) {
    return new FileSource((stream as unknown as { fd: number }).fd, { name, autoClose: false });
  }
  return new SocketSource(stream, { name });
}

/** A Writable as sink. Ending standard output or error is not ours: others print to them too. */
function sinkOfWritable(stream: Writable, options: OpenSinkOptions): ByteSink {
  const standard = stream === process.stdout || stream === process.stderr;
  return new SocketSink(stream, { name: options.name, autoEnd: !standard });
}

/**
 * Standard output, without process.stdout where that would block the whole process: Node writes to a pipe there
 * synchronously. A description of our own, made through /proc, can be non-blocking without disturbing others.
 */
async function standardOutput(options: OpenSinkOptions & { name: string }): Promise<ByteSink> {
  const stat = await fstat(1).catch((error: unknown) => {
    throw transportFailure(error, `opening ${options.name}`);
  });
  if (stat.isFIFO()) {
    const { O_WRONLY, O_NONBLOCK } = fs.constants;
    const fd = await open('/proc/self/fd/1', O_WRONLY | O_NONBLOCK).catch(() => undefined);
    if (fd !== undefined) return sinkOfFd(fd, options);
  }
  if (stat.isFile() || stat.isBlockDevice()) return new FileSink(1, { ...options, autoClose: false });
  return sinkOfWritable(process.stdout, options);
}

function isByteSource(value: unknown): value is ByteSource {
  const v = value as Partial<ByteSource> | null;
  return typeof v?.take === 'function' && typeof v.wait === 'function';
}

function isByteSink(value: unknown): value is ByteSink {
  const v = value as Partial<ByteSink> | null;
  return typeof v?.write === 'function' && typeof v.abort === 'function' && !('pipe' in (value as object));
}
