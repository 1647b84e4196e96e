/** What the benchmarks share: turns, text with units, and a stream of any size on disk. */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as stream from '../dist/stream/index.js';

export const PAGE = 4096;
export const MIB = 1024 * 1024;
export const GIB = 1024 * MIB;

/**
 * Runs the candidates turn by turn, `rounds` times, and gives the best seconds of each. Turns, because the machine's
 * speed changes while one looks.
 *
 * @param {Record<string, () => Promise<void>>} candidates
 * @param {number} rounds
 * @returns {Promise<Record<string, number>>}
 */
export async function best(candidates, rounds = 4) {
  const seconds = {};
  for (let round = 0; round < rounds; round++) {
    for (const [name, run] of Object.entries(candidates)) {
      const from = performance.now();
      const own = await run();
      // A candidate that has work beside what is measured returns its own seconds.
      const took = typeof own === 'number' ? own : (performance.now() - from) / 1000;
      seconds[name] = Math.min(seconds[name] ?? Infinity, took);
    }
  }
  return seconds;
}

/** Runs a program to its end, its output thrown away. Rejects unless it ends with 0. */
export function exec(program, args, env = {}) {
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

/** `1.23 GB/s` */
export function rate(bytes, seconds) {
  return `${(bytes / 1e9 / seconds).toFixed(2)} GB/s`;
}

/** `12.3 MiB` */
export function mib(bytes) {
  return `${(bytes / MIB).toFixed(1)} MiB`;
}

/** Runs `use` with a fresh folder and removes it. */
export async function inFolder(use) {
  const folder = await mkdtemp(join(tmpdir(), 'xen-migration-bench-'));
  try {
    return await use(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Writes a whole HVM libxc stream with this many pages of patterned data. Returns its size. */
export async function writeStreamFile(path, pages) {
  const file = await open(path, 'w');
  try {
    const block = new Uint8Array(1024 * PAGE);
    for (let i = 0; i < block.length; i++) block[i] = (i * 2654435761) >>> 24;
    const head = new Uint8Array(stream.pageDataHeadSize(1024));
    const pfns = new Float64Array(1024);
    const types = new Uint8Array(1024);
    let size = 0;
    const write = async (...views) => {
      for (const view of views) {
        await file.write(view);
        size += view.length;
      }
    };
    await write(
      stream.encodeHeaders({ type: 2, xenMajor: 4, xenMinor: 17 }),
      stream.encodeRecord(stream.LibxcRecord.X86_CPUID_POLICY, new Uint8Array(24)),
      stream.encodeRecord(stream.LibxcRecord.X86_MSR_POLICY, new Uint8Array(16)),
      stream.encodeRecord(stream.LibxcRecord.STATIC_DATA_END),
    );
    for (let pfn = 0; pfn < pages; pfn += 1024) {
      const n = Math.min(1024, pages - pfn);
      for (let i = 0; i < n; i++) pfns[i] = pfn + i;
      const used = stream.writePageDataHead(head, pfns, types, n);
      await write(head.subarray(0, used), block.subarray(0, n * PAGE));
    }
    await write(
      stream.encodeRecord(stream.LibxcRecord.X86_TSC_INFO, new Uint8Array(24)),
      stream.encodeRecord(stream.LibxcRecord.HVM_CONTEXT, new Uint8Array(1024)),
      stream.encodeRecord(stream.LibxcRecord.HVM_PARAMS, new Uint8Array(8 + 16).fill(1, 0, 1).fill(1, 8, 9)),
      stream.encodeRecord(stream.LibxcRecord.END),
    );
    return size;
  } finally {
    await file.close();
  }
}

/** Path of one of Xen's own scripts and of its Python modules, if it is installed. */
export function oracle(script = 'verify-stream-v2') {
  const base = '/usr/lib';
  for (const name of existsSync(base) ? readdirSync(base).sort().reverse() : []) {
    const path = `${base}/${name}/bin/${script}`;
    if (name.startsWith('xen-') && existsSync(path)) return { path, modules: `${base}/${name}/lib/python` };
  }
  return undefined;
}
