/** Xen's own verifier, verify-stream-v2 of Debian's xen-utils package. */

import { spawn, spawnSync, type ChildProcessByStdio } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import type { StreamFormat } from '../../lib/stream/index.js';

/** What it says of a stream. */
export interface Verdict {
  /** 0 valid, 1 invalid, 2 it broke down itself. */
  readonly exit: number;
  /** The last line of its complaint. */
  readonly text: string;
}

/** True if the tests that need it shall be left out: somebody said so. */
export const withoutOracle = process.env['XEN_MIGRATION_NO_ORACLE'] === '1';

/** One of Xen's own scripts, and the environment that it runs in. Throws, with the cure, if it is not installed. */
export function xenScript(name: string): { readonly file: string; readonly env: NodeJS.ProcessEnv } {
  const folders = existsSync('/usr/lib') ? readdirSync('/usr/lib') : [];
  for (const version of folders
    .filter((folder) => /^xen-\d/.test(folder))
    .sort()
    .reverse()) {
    const folder = path.join('/usr/lib', version);
    const file = path.join(folder, 'bin', name);
    if (!existsSync(file)) continue;
    const env = { ...process.env, PYTHONPATH: path.join(folder, 'lib/python'), PYTHONDONTWRITEBYTECODE: '1' };
    return { file, env };
  }
  throw new Error(
    `${name} is not installed: \`npm run setup\` installs it (Debian package xen-utils-4.17). ` +
      'XEN_MIGRATION_NO_ORACLE=1 leaves out the tests that compare with it.',
  );
}

/** Runs it on a file, as a user does. */
export function oracleOnFile(file: string, format: StreamFormat): Verdict {
  const { file: command, env } = xenScript('verify-stream-v2');
  const { status, stderr, error } = spawnSync(command, ['-f', format, '-i', file], { env, encoding: 'utf8' });
  if (error !== undefined) throw error;
  return { exit: status ?? -1, text: stderr.trim().split('\n').at(-1) ?? '' };
}

/** Runs it on many streams in one process. */
export class Oracle {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: Interface;
  readonly #answers: AsyncIterator<string>;

  constructor() {
    const { file, env } = xenScript('verify-stream-v2');
    const driver = path.join(import.meta.dirname, 'oracle.py');
    this.#child = spawn('/usr/bin/python3', [driver, file], { env, stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child.stdin.on('error', () => undefined);
    this.#lines = createInterface(this.#child.stdout);
    this.#answers = this.#lines[Symbol.asyncIterator]();
  }

  async ask(bytes: Uint8Array, format: StreamFormat): Promise<Verdict> {
    this.#child.stdin.write(`${format} ${bytes.length}\n`);
    this.#child.stdin.write(bytes);
    const answer = await this.#answers.next();
    if (answer.done === true) throw new Error('verify-stream-v2 ended without an answer');
    return JSON.parse(answer.value) as Verdict;
  }

  close(): void {
    this.#child.stdin.end();
    this.#lines.close();
  }
}
