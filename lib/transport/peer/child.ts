/** A program as a peer: its standard streams are the connection. */
import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { once } from 'node:events';
import type { Duplex, Readable, Writable } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';
import { printable } from '../../bytes/printable.js';
import { PeerError, TransportError } from '../../errors.js';
import { cancellation } from '../failure.js';
import { PairDuplex, type PairOwner } from './pair.js';

/** Bytes of its standard error that are kept: the last ones, which say why. */
const STDERR_KEPT = 4096;
/** ms that a program may take to end once it has closed its output, until that is reported without its exit status. */
const EXIT_WAIT = 2000;
/** ms that a program whose connection came to a good end has to end by itself, and one that was asked to end. */
const PATIENCE = { orderly: 2000, terminated: 3000, killed: 2000 } as const;

export interface ChildPeerOptions {
  /** What it is called in errors, for instance `ssh host2`. */
  readonly name: string;
  readonly signal?: AbortSignal | undefined;
  readonly env?: NodeJS.ProcessEnv | undefined;
}

/**
 * Starts a program, in a process group of its own and without a terminal, and resolves to its standard input and output
 * as one Duplex. When the program fails, reads and writes fail with a PeerError that has its exit status and the end of
 * what it wrote to its standard error. Destroying the Duplex ends the program and all its children; 'close' comes when
 * it is gone.
 *
 * Rejects with TransportError if it cannot be started, or with the signal's reason.
 */
export async function spawnPeer(
  program: string,
  args: readonly string[],
  options: ChildPeerOptions,
): Promise<Duplex> {
  const { name, signal } = options;
  const aborted = (): boolean => signal?.aborted === true;
  if (aborted()) throw cancellation(signal?.reason, `starting ${name}`);
  // A group of its own: Ctrl-C is for us, who end the migration in good order, and a kill reaches all that it started.
  const child = spawn(program, args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    detached: true,
    ...(options.env === undefined ? {} : { env: options.env }),
  });
  try {
    await once(child, 'spawn');
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
    const text = missing ? `there is no program ${program}` : (cause as Error).message;
    throw new TransportError(`cannot start ${name}: ${text}`, { cause });
  }
  const peer = new PairDuplex(child.stdout, child.stdin, new Child(child, name));
  if (aborted()) {
    peer.destroy();
    throw cancellation(signal?.reason, `starting ${name}`);
  }
  return peer;
}

/** A child's end, and what it said about it. */
class Child implements PairOwner {
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #name: string;
  readonly #stderr: Tail;
  readonly #exited: Promise<void>;
  /** It has ended, and nobody holds its streams any more. */
  readonly #closed: Promise<void>;
  #hasExited = false;

  constructor(child: ChildProcessByStdio<Writable, Readable, Readable>, name: string) {
    this.#child = child;
    this.#name = name;
    this.#stderr = new Tail(child.stderr);
    this.#exited = new Promise((resolve) => child.once('exit', () => resolve()));
    this.#closed = new Promise((resolve) => child.once('close', () => resolve()));
    void this.#exited.then(() => (this.#hasExited = true));
    // Of a child that runs: a signal that could not be sent.
    child.on('error', () => undefined);
  }

  async failure(): Promise<Error | undefined> {
    await within(EXIT_WAIT, this.#exited);
    if (!this.#hasExited) return undefined;
    // What it wrote last may still be in the pipe; a program that it left behind may hold it open for ever.
    await within(EXIT_WAIT, this.#closed, this.#stderr.ended);
    const { exitCode, signalCode } = this.#child;
    if (exitCode === 0) return undefined;
    const how = signalCode === null ? `exit status ${String(exitCode)}` : `killed by ${signalCode}`;
    const said = this.#stderr.text;
    return new PeerError(
      'ERR_XEN_PEER_LOST',
      said === '' ? `${this.#name} ended with ${how}` : `${this.#name}: ${said} (${how})`,
    );
  }

  async release(orderly: boolean): Promise<void> {
    if (orderly) await within(PATIENCE.orderly, this.#exited);
    if (!this.#hasExited) {
      this.#kill('SIGTERM');
      await within(PATIENCE.terminated, this.#exited);
    }
    if (!this.#hasExited) {
      this.#kill('SIGKILL');
      await within(PATIENCE.killed, this.#exited);
    }
    this.#child.stderr.destroy();
  }

  #kill(signal: NodeJS.Signals): void {
    const { pid } = this.#child;
    if (pid === undefined) return;
    try {
      process.kill(-pid, signal);
    } catch {
      this.#child.kill(signal);
    }
  }
}

/** The end of what a stream says, fit for one line. */
class Tail {
  readonly ended: Promise<void>;
  #chunks: Buffer[] = [];
  #length = 0;

  constructor(stream: Readable) {
    stream.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#length += chunk.length;
      if (this.#length <= 2 * STDERR_KEPT) return;
      const kept = Buffer.concat(this.#chunks).subarray(-STDERR_KEPT);
      this.#chunks = [Buffer.from(kept)];
      this.#length = kept.length;
    });
    stream.on('error', () => undefined);
    this.ended = new Promise((resolve) => stream.once('close', () => resolve()));
  }

  get text(): string {
    const bytes = Buffer.concat(this.#chunks).subarray(-STDERR_KEPT);
    const lines = new StringDecoder('utf8').write(bytes).split(/[\r\n]+/);
    return lines
      .map((line) => printable(line.trim()))
      .filter((line) => line !== '')
      .join(' / ');
  }
}

/** Resolves when one of the promises does, or after a time. */
async function within(ms: number, ...promises: Promise<void>[]): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  await Promise.race([...promises, late]);
  clearTimeout(timer);
}
