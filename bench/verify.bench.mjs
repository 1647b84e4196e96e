/** `verify` of a 1 GiB file against reading the file once, and against Xen's verify-stream-v2. */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { best, exec, GIB, inFolder, oracle, PAGE, rate, writeStreamFile } from './tools.mjs';

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

export async function run() {
  return inFolder(async (folder) => {
    const file = join(folder, 'guest.libxc');
    const size = await writeStreamFile(file, GIB / PAGE);
    // What a program takes for a stream of one page is its start-up.
    const tiny = join(folder, 'tiny.libxc');
    await writeStreamFile(tiny, 1);
    const read = (path) => exec(process.execPath, ['-e', READER, path]);
    const ours = (path, ...options) =>
      exec(process.execPath, [command, 'verify', '--format', 'libxc', ...options, path]);
    const xen = oracle();
    const theirs = (path) => exec(xen.path, ['-q', '-f', 'libxc', '-i', path], { PYTHONPATH: xen.modules });
    const seconds = await best(
      {
        read: () => read(file),
        ours: () => ours(file),
        skipping: () => ours(file, '--skip-pages'),
        readStart: () => read(tiny),
        oursStart: () => ours(tiny),
        ...(xen && { theirs: () => theirs(file), theirsStart: () => theirs(tiny) }),
      },
      6,
    );
    const row = (what, mine, other, bar) => ({
      what,
      value: rate(size, mine),
      baseline: rate(size, other),
      ratio: other / mine,
      bar,
    });
    const work = seconds.ours - seconds.oursStart;
    return [
      row('reading the file once', seconds.ours, seconds.read, 0.7),
      row('the same without start-up', work, seconds.read - seconds.readStart),
      ...(xen
        ? [
            row('verify-stream-v2, without start-up', work, seconds.theirs - seconds.theirsStart, 1),
            row('the same with start-up', seconds.ours, seconds.theirs),
          ]
        : []),
      row('--skip-pages: reading the file once', seconds.skipping, seconds.read),
    ];
  });
}
