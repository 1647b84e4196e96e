/**
 * `xl restore` as a child that reads its stream from a pipe. It builds the domain, leaves it paused, and stays behind as
 * a daemon that sees to the guest's shutdowns and reboots, just as `xl migrate-receive` does.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import * as path from 'node:path';
import { SocketSink } from '../../transport/socket.js';
import type { ByteSink } from '../../transport/types.js';
import { lastWords, XlError } from './error.js';
import { openPipe } from './pipe.js';
import { programOf, xlEnvironment, xlMissing, type XlSettings } from './run.js';

/** The file that the child is to restore: its own standard input, which is a pipe. */
const STDIN = '/proc/self/fd/0';
const STDERR_KEPT = 64 * 1024;

/** ms for the end of the standard error's text after the child's own end: grandchildren may keep it open. */
const STDERR_MS = 500;
const PATIENCE_MS = 10_000;
/** ms for xl to end once told to. */
const TERM_MS = 5_000;

export interface XlRestoreChildOptions extends XlSettings {
  /** Path of the save helper that libxl is to use; `stock` for libxl's own. */
  readonly helper: string;
  /** Leave a daemon behind for the guest's shutdowns and reboots, as stock xl does. Default true. */
  readonly monitor?: boolean | undefined;
  /** ms for xl to take down by itself what it built, when its stream ends early. Default 10 000. */
  readonly patienceMs?: number | undefined;
}

export class XlRestoreChild {
  /** Its stream. Writes reject with PeerError once nobody reads it any more; `exited` says why. */
  readonly sink: ByteSink;
  /** Resolves when it has ended: to its exit code, undefined if a signal ended it. Never rejects. */
  readonly exited: Promise<number | undefined>;
  /** What was run, for messages. */
  readonly command: string;
  readonly #child: ChildProcess;
  readonly #patienceMs: number;
  #stderr = '';
  #over = false;
  /** It had to be ended, so that it could not take down what it had begun to build. */
  #killed = false;

  private constructor(child: ChildProcess, sink: ByteSink, command: string, patienceMs = PATIENCE_MS) {
    this.#child = child;
    this.#patienceMs = patienceMs;
    this.sink = sink;
    this.command = command;
    child.stderr?.setEncoding('utf8');
    child.stderr?.on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_KEPT);
    });
    child.stderr?.on('error', () => undefined);
    this.exited = new Promise((resolve) => {
      child.once('exit', (code) => {
        this.#over = true;
        const done = (): void => {
          clearTimeout(timer);
          child.stderr?.destroy();
          resolve(code ?? undefined);
        };
        const timer = setTimeout(done, STDERR_MS);
        child.once('close', done);
      });
    });
  }

  /** Rejects with XlError (ERR_XEN_XL_MISSING) or TransportError. */
  static async start(options: XlRestoreChildOptions): Promise<XlRestoreChild> {
    const args = ['restore', '-p', ...(options.monitor === false ? ['-e'] : []), STDIN];
    const command = `xl ${args.slice(0, -1).join(' ')}`;
    const pipe = await openPipe();
    const sink = new SocketSink(pipe.writer, { name: 'xl' });
    try {
      const child = spawn(programOf(options), args, {
        stdio: [pipe.reader, 'ignore', 'pipe'],
        // A terminal's signals are for us: xl shall not die of them before it has tidied up.
        detached: true,
        env: environment(options.helper),
      });
      const started = new Promise<void>((resolve, reject) => {
        child.once('spawn', resolve);
        child.once('error', (cause) => reject(xlMissing(command, cause)));
      });
      const made = new XlRestoreChild(child, sink, command, options.patienceMs);
      await started;
      child.on('error', () => undefined);
      return made;
    } catch (error) {
      sink.abort(error);
      throw error;
    } finally {
      await pipe.closeReader();
    }
  }

  /** Whether it had to be ended, so that it may have left a half-built domain. */
  get killed(): boolean {
    return this.#killed;
  }

  /** The error for its end, which was no success. */
  failure(exitCode: number | undefined): XlError {
    const how = exitCode === undefined ? 'was ended by a signal' : `failed (exit code ${exitCode})`;
    return new XlError('ERR_XEN_XL', this.command, `${this.command} ${how}: ${lastWords(this.#stderr)}`, {
      exitCode,
      stderr: this.#stderr,
    });
  }

  /**
   * Ends it: first by the end of its stream, of which it takes down what it has built, then by signals. Resolves to its
   * exit code as `exited` does; 0 says that it had finished before, and that the domain is there.
   */
  async giveUp(reason: unknown): Promise<number | undefined> {
    this.sink.abort(reason);
    if (!(await this.#endsWithin(this.#patienceMs))) this.#kill('SIGTERM');
    if (!(await this.#endsWithin(TERM_MS))) this.#kill('SIGKILL');
    return this.exited;
  }

  /** With its children: the save helper, scripts that set up devices. */
  #kill(signal: 'SIGTERM' | 'SIGKILL'): void {
    const { pid } = this.#child;
    if (this.#over || pid === undefined) return;
    this.#killed = true;
    try {
      process.kill(-pid, signal);
    } catch {
      // It ended a moment ago.
    }
  }

  #endsWithin(ms: number): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), ms);
      void this.exited.then(() => {
        clearTimeout(timer);
        resolve(true);
      });
    });
  }
}

function environment(helper: string): NodeJS.ProcessEnv {
  if (helper === 'stock') return xlEnvironment({ LIBXL_SAVE_HELPER: undefined });
  const env = xlEnvironment({ LIBXL_SAVE_HELPER: helper });
  // The helper's first line asks env(1) for node, which a service may not have in its PATH.
  return { ...env, PATH: `${env['PATH']}:${path.dirname(process.execPath)}` };
}
