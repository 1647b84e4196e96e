/** `xen-migrate convert` of a 1 GiB legacy image against `cp` of it, and against Xen's convert-legacy-stream. */
import { open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { best, exec, GIB, inFolder, oracle, PAGE, rate } from './tools.mjs';

export const name = 'convert';
export const about =
  'the whole command, a 1 GiB legacy image from file to file; ours waits for the disk, TMPDIR=/dev/shm leaves that out';

const command = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));
const BATCH = 1024;

/** A 64-bit toolstack's image of an HVM guest, as short as it can be but for its pages. Returns its size. */
async function writeLegacyFile(path, pages) {
  const word = (value) => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(value));
    return bytes;
  };
  const int = (value) => {
    const bytes = Buffer.alloc(4);
    bytes.writeInt32LE(value);
    return bytes;
  };
  const file = await open(path, 'w');
  const contents = Buffer.alloc(BATCH * PAGE);
  for (let i = 0; i < contents.length; i += 8) contents.writeUInt32LE((i * 2654435761) >>> 0, i);
  try {
    await file.write(word(pages));
    for (let first = 0; first < pages; first += BATCH) {
      const count = Math.min(BATCH, pages - first);
      const table = Buffer.alloc(count * 8);
      for (let i = 0; i < count; i++) table.writeUInt32LE(first + i, i * 8);
      await file.writev([int(count), table, contents.subarray(0, count * PAGE)]);
    }
    const tail = [int(-7), Buffer.alloc(20), int(-2), int(0), word(1), int(-9), int(0)];
    tail.push(word(0), word(0), word(0), int(8), Buffer.alloc(8));
    tail.push(Buffer.from('DeviceModelRecord0002'), int(4), Buffer.from('QEVM'));
    await file.writev(tail);
    return (await file.stat()).size;
  } finally {
    await file.close();
  }
}

export async function run() {
  return inFolder(async (folder) => {
    const file = join(folder, 'guest.legacy');
    const out = join(folder, 'out');
    const tiny = join(folder, 'tiny.legacy');
    const size = await writeLegacyFile(file, GIB / PAGE);
    await writeLegacyFile(tiny, 1);
    // Each writes to a file that is not there: freeing the pages of an old one is nobody's work.
    const fresh = async (work) => {
      await rm(out, { force: true });
      await work();
    };
    const ours = (path) => () => exec(process.execPath, [command, 'convert', path, out]);
    const xen = oracle('convert-legacy-stream');
    const theirs = (path) => () =>
      exec(xen.path, ['-i', path, '-o', out, '-w', '64', '-g', 'hvm', '-f', 'libxl'], {
        PYTHONPATH: xen.modules,
      });
    const seconds = await best(
      {
        cp: () => fresh(() => exec('cp', ['--reflink=never', file, out])),
        ours: () => fresh(ours(file)),
        oursStart: () => fresh(ours(tiny)),
        ...(xen && { theirs: () => fresh(theirs(file)), theirsStart: () => fresh(theirs(tiny)) }),
      },
      5,
    );
    const row = (what, mine, other, bar) => ({
      what,
      value: rate(size, mine),
      baseline: rate(size, other),
      ratio: other / mine,
      bar,
    });
    return [
      row('cp', seconds.ours, seconds.cp, 0.6),
      row('cp, without start-up', seconds.ours - seconds.oursStart, seconds.cp),
      ...(xen
        ? [
            row('convert-legacy-stream', seconds.ours, seconds.theirs, 3),
            row(
              'the same without start-up',
              seconds.ours - seconds.oursStart,
              seconds.theirs - seconds.theirsStart,
            ),
          ]
        : []),
    ];
  });
}
