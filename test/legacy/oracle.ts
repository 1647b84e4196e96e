/** Xen's own converter of legacy images, convert-legacy-stream of Debian's xen-utils package. */

import { spawn, spawnSync, type ChildProcessByStdio } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { xenScript } from '../differential/oracle.js';

export type ConverterFormat = 'libxc' | 'libxl';

export interface ConverterOptions {
  readonly guest: 'pv' | 'hvm';
  /** Bits of the toolstack's word. */
  readonly width: 32 | 64;
  /** Of the output. Default libxl. */
  readonly format?: ConverterFormat | undefined;
  /** libxc only: leaves the QEMU record, which it otherwise puts behind the stream as it was. */
  readonly skipQemu?: boolean | undefined;
}

/** What it makes of an image. */
export interface Conversion {
  /** 0 converted; 1 it refuses, or breaks down at something that it does not expect; 2 it says that it cannot. */
  readonly exit: number;
  /** The last line of its complaint. */
  readonly text: string;
  /** The exception that it did not expect. */
  readonly crash: string | null;
  /** Bytes that it read; undefined where it ran as a program. */
  readonly read?: number;
  /** What it wrote; up to the error if there was one. */
  readonly output: Buffer;
}

/** Runs it as a program, from file to file. The output file is left where it is, whatever comes of it. */
export function convertFile(from: string, to: string, options: ConverterOptions): Conversion {
  const { file: command, env } = xenScript('convert-legacy-stream');
  const { guest, width, format = 'libxl', skipQemu = false } = options;
  const argv = ['--in', from, '--out', to, '--width', String(width), '--guest', guest, '--format', format];
  const { status, stderr, error } = spawnSync(command, skipQemu ? [...argv, '--skip-qemu'] : argv, {
    env,
    encoding: 'utf8',
  });
  if (error !== undefined) throw error;
  const text = lastLine(stderr);
  const crash = /^(\w+)(?::|$)/.exec(text)?.[1] ?? null;
  const caught = stderr.startsWith('Stream Error:') || stderr.startsWith('Script Error:');
  return {
    exit: status ?? -1,
    text,
    crash: status === 0 || caught ? null : crash,
    output: existsSync(to) ? readFileSync(to) : Buffer.alloc(0),
  };
}

function lastLine(text: string): string {
  return text.replace('Please fix me', '').trim().split('\n').at(-1) ?? '';
}

/** Runs it on many images in one process. */
export class Converter {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #chunks: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);
  #last: Promise<unknown> = Promise.resolve();

  constructor() {
    const { file, env } = xenScript('convert-legacy-stream');
    const driver = path.join(import.meta.dirname, 'oracle.py');
    this.#child = spawn('/usr/bin/python3', [driver, file], { env, stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child.stdin.on('error', () => undefined);
    this.#chunks = this.#child.stdout[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  }

  /** Converts an image, without the header of xl or xend. Calls are answered one after the other. */
  convert(bytes: Uint8Array, options: ConverterOptions): Promise<Conversion> {
    const answer = this.#last.then(() => this.#convert(bytes, options));
    this.#last = answer.catch(() => undefined);
    return answer;
  }

  async #convert(bytes: Uint8Array, options: ConverterOptions): Promise<Conversion> {
    const { guest, width, format = 'libxl', skipQemu = false } = options;
    this.#child.stdin.write(`${guest} ${width} ${format} ${skipQemu ? 0 : 1} ${bytes.length}\n`);
    this.#child.stdin.write(bytes);
    const { length, ...answer } = JSON.parse(await this.#line()) as Omit<Conversion, 'output'> & {
      length: number;
    };
    return { ...answer, output: await this.#take(length) };
  }

  async #line(): Promise<string> {
    for (;;) {
      const end = this.#rest.indexOf(0x0a);
      if (end >= 0) {
        const line = this.#rest.toString('utf8', 0, end);
        this.#rest = this.#rest.subarray(end + 1);
        return line;
      }
      this.#rest = Buffer.concat([this.#rest, await this.#chunk()]);
    }
  }

  async #take(length: number): Promise<Buffer> {
    const parts: Buffer[] = [this.#rest];
    let have = this.#rest.length;
    while (have < length) {
      const chunk = await this.#chunk();
      parts.push(chunk);
      have += chunk.length;
    }
    const all = Buffer.concat(parts);
    this.#rest = all.subarray(length);
    return all.subarray(0, length);
  }

  async #chunk(): Promise<Buffer> {
    const chunk = await this.#chunks.next();
    if (chunk.done === true) throw new Error('convert-legacy-stream ended without an answer');
    return chunk.value;
  }

  close(): void {
    this.#child.stdin.end();
  }
}
