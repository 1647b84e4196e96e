/** `verify` of a 1 GiB file against reading the file once, and against Xen's verify-stream-v2. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { best, GIB, inFolder, oracle, PAGE, rate, writeStreamFile } from './tools.mjs';

export const name = 'verify';
export const about = 'the whole command on a 1 GiB file in the page cache';

const command = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));

/** Reads the file once, as plainly as Node can: one process, one buffer of 1 MiB. */
const READER = `
const { openSync, readSync } = require('node:fs');
const fd = openSync(process.argv[1], 'r');
const buffer = Buffer.allocUnsafeSlow(1 << 20);
while (readSync(fd, buffer) > 0);
`;

function exec(program, args, env = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { ...process.env, ...env },
    });
    child.on('error', reject);
    child.on('exit', (code) => {
      if (code === 0) resolve();
      else reject(new Error(`${program} ${args.join(' ')} ended with ${code}`));
    });
  });
}

export async function run() {
  return inFolder(async (folder) => {
    const file = join(folder, 'guest.libxc');
    const size = await writeStreamFile(file, GIB / PAGE);
    const theirs = oracle();
    const seconds = await best({
      read: () => exec(process.execPath, ['-e', READER, file]),
      ours: () => exec(process.execPath, [command, 'verify', '--format', 'libxc', file]),
      skipping: () => exec(process.execPath, [command, 'verify', '--skip-pages', '--format', 'libxc', file]),
      ...(theirs && {
        theirs: () =>
          exec('python3', [theirs.path, '-q', '-f', 'libxc', '-i', file], { PYTHONPATH: theirs.modules }),
      }),
    });
    const rows = [
      {
        what: 'against reading the file once',
        value: rate(size, seconds.ours),
        baseline: rate(size, seconds.read),
        ratio: seconds.read / seconds.ours,
        bar: 0.7,
      },
    ];
    if (theirs) {
      rows.push({
        what: 'against verify-stream-v2',
        value: rate(size, seconds.ours),
        baseline: rate(size, seconds.theirs),
        ratio: seconds.theirs / seconds.ours,
        bar: 1,
      });
    }
    rows.push({
      what: 'with --skip-pages, against reading',
      value: rate(size, seconds.skipping),
      baseline: rate(size, seconds.read),
      ratio: seconds.read / seconds.skipping,
    });
    return rows;
  });
}
