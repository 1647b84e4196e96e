#!/usr/bin/env node
/** The program `xen-migrate-convert-helper`, which libxl starts for legacy images: LIBXL_CONVERT_HELPER. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { CancelledError } from '../../errors.js';
import { runConvertHelper } from './helper.js';

const NAME = 'xen-migrate-convert-helper';
/** ms in which a conversion that was told to end has ended; else the process goes without it. */
const PATIENCE = 2000;

const stop = new AbortController();
const onTerminate = (): void => {
  stop.abort(new CancelledError('ended by SIGTERM'));
  setTimeout(() => {
    process.off('SIGTERM', onTerminate);
    process.kill(process.pid, 'SIGTERM');
  }, PATIENCE).unref();
};
process.on('SIGTERM', onTerminate);

/** Writes all of it, to a pipe that nobody reads as far as it goes. */
function say(fd: number, text: string): void {
  try {
    fs.writeSync(fd, text);
  } catch {
    // Nobody is there to be told.
  }
}

void runConvertHelper({
  argv: process.argv.slice(2),
  env: process.env,
  signal: stop.signal,
  complain: (line) => say(2, `${NAME}: ${line}\n`),
  log: (line) =>
    void spawnSync('logger', ['-i', '-t', NAME, '-p', 'user.err', '--', line], { stdio: 'ignore' }),
  print: (text) => say(1, text),
}).then((code) => process.exit(code));
