/** Real images of old releases of Xen, for scenarios that restore them: unpacked into `/share/streams`. */
import fs from 'node:fs';
import path from 'node:path';
import { spawnSync } from 'node:child_process';
import { root } from '../../../scripts/steps.js';

const golden = path.join(root, 'test/golden/streams');
/** Where those are that are too large for the repository; see test/golden. They may be absent. */
const local = process.env['XEN_MIGRATION_STREAMS'] ?? path.resolve(root, '../shared/streams');

const streams = [
  path.join(golden, 'xen-4.5.5-hvm-nonlive.xlsave.gz'),
  path.join(golden, 'xen-4.5.5-hvm-live.xlmigrate.gz'),
  path.join(local, 'xen-4.5.5-pv64-nonlive-xsave.xlsave.gz'),
  path.join(local, 'xen-4.5.5-pv64-remus-compressed.xlremus.zst'),
];

/**
 * Unpacks those that are here. A scenario whose image is absent says so.
 *
 * @param {string} share folder that is `/share` in the machine
 * @returns {string[]} names of those that are absent
 */
export function putStreams(share) {
  const folder = path.join(share, 'streams');
  fs.mkdirSync(folder, { recursive: true });
  const absent = [];
  for (const file of streams) {
    const name = path.basename(file).replace(/\.(?:gz|zst)$/, '');
    if (!fs.existsSync(file)) {
      absent.push(name);
      continue;
    }
    const out = fs.openSync(path.join(folder, name), 'w');
    const command = file.endsWith('.zst') ? 'zstd' : 'gzip';
    const { status } = spawnSync(command, ['-dc', file], { stdio: ['ignore', out, 'inherit'] });
    fs.closeSync(out);
    if (status !== 0) throw new Error(`${command} -dc ${file}: exit code ${status}`);
  }
  return absent;
}
