/**
 * Kernels of the machine. A raw ELF spares Xen (dom0) and libxenguest (PV, PVH) decompressing, which takes many seconds
 * under emulation.
 */
import fs from 'node:fs';
import path from 'node:path';
import { run } from './cache.js';

/** First bytes of what a bzImage may hold, and the program that unpacks it. */
const packers = [
  { magic: 'fd377a585a00', command: ['xz', '-dcq', '--single-stream'] },
  { magic: '1f8b', command: ['gzip', '-dcq'] },
  { magic: '28b52ffd', command: ['zstd', '-dcq'] },
  { magic: '02214c18', command: ['lz4', '-dc'] },
];

/**
 * @param {string} bzImage
 * @param {string} target the ELF file inside it
 * @param {string} work
 */
export async function extractVmlinux(bzImage, target, work) {
  const image = fs.readFileSync(bzImage);
  // Documentation/arch/x86/boot.rst: 0x1f1 setup_sects, 0x202 "HdrS", 0x248 payload_offset, 0x24c payload_length.
  if (image.toString('latin1', 0x202, 0x206) !== 'HdrS') throw new Error(`${bzImage}: no bzImage`);
  const start = ((image[0x1f1] || 4) + 1) * 512 + image.readUInt32LE(0x248);
  const payload = image.subarray(start, start + image.readUInt32LE(0x24c));
  const packer = packers.find(({ magic }) => payload.toString('hex').startsWith(magic));
  if (packer === undefined) throw new Error(`${bzImage}: unknown payload ${payload.toString('hex', 0, 8)}`);
  const packed = path.join(work, 'payload');
  // The kernel's build appends the unpacked size, 4 bytes that belong to no format.
  fs.writeFileSync(packed, payload.subarray(0, -4));
  await run([...packer.command, packed], { output: target });
  if (fs.readFileSync(target).toString('latin1', 1, 4) !== 'ELF')
    throw new Error(`${bzImage}: holds no ELF file`);
}

/**
 * An initramfs.
 *
 * @param {string} folder its content
 * @param {string} target
 */
export async function cpio(folder, target) {
  const names = fs.readdirSync(folder, { recursive: true }).map(String).sort();
  await run(['cpio', '-o', '-H', 'newc', '--quiet', '-R', '0:0'], {
    cwd: folder,
    input: `${names.join('\n')}\n`,
    output: target,
  });
}
