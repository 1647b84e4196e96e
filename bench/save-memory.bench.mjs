/** Memory that a save takes beyond the guest's own: bitmaps and a bounded rest, the same for small and large guests. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { GIB, mib, MIB } from './tools.mjs';

export const name = 'save-memory';
export const about = 'peak memory of a live save into a Unix socket, beyond the guest and the process itself';

/** What a save may take beyond its bitmaps. */
const ALLOWED = 64 * MIB;

/** Two bitmaps of a bit for each frame: what is dirty, and what was put off. */
const bitmaps = (pages) => (2 * pages) / 8;

const cases = [
  ['PVH, 1 GiB', 'pvh', 1],
  ['PVH, 8 GiB', 'pvh', 8],
  ['PV, 1 GiB', 'pv', 1],
  ['PV, 8 GiB', 'pv', 8],
];

export async function run() {
  const rows = [];
  for (const [what, kind, gib] of cases) {
    // A process for each, since a heap never shrinks to what it was.
    const child = spawn(process.execPath, [fileURLToPath(new URL('save-memory.mjs', import.meta.url))], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    child.send({ kind, memory: gib * GIB });
    const [{ peak, p2mSize }] = await once(child, 'message');
    await once(child, 'exit');
    const allowed = bitmaps(p2mSize) + ALLOWED;
    rows.push({
      what,
      value: mib(peak),
      baseline: `bitmaps + ${mib(ALLOWED)}`,
      ratio: peak / allowed,
      bar: 1,
      atMost: true,
    });
  }
  return rows;
}
