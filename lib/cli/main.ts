#!/usr/bin/env node
/** The program `xen-migrate`: joins `runCommand` with the process. */
import type { CommandIo, Output } from './command.js';
import { Interrupted } from './exit.js';
import { runCommand } from './run.js';

const stop = new AbortController();
const io: CommandIo = {
  stdin: process.stdin,
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
};

for (const name of ['SIGINT', 'SIGTERM'] as const) {
  process.on(name, () => {
    // The first asks for an orderly end, which may take a moment; the second means it.
    if (stop.signal.aborted) process.exit(new Interrupted(name).exitCode);
    stop.abort(new Interrupted(name));
  });
}

for (const output of [process.stdout, process.stderr]) {
  // Whoever read it has gone (`| head`). That is no reason to drop a guest half-way.
  output.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
  });
}

const code = await runCommand(process.argv.slice(2), io, stop.signal);
await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
process.exit(code);

/** Resolves when all that was written has left the process, or never will. */
function flushed(
  output: Output & { readonly destroyed?: boolean; readonly writableLength?: number },
): Promise<void> {
  if (output.destroyed || output.writableLength === 0) return Promise.resolve();
  return new Promise((resolve) => {
    output.write('', () => resolve());
  });
}
