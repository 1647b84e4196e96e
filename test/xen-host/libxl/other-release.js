/**
 * libxenctrl as it would be of another Xen release than the one that runs: a copy that gives another interface version
 * with its domctls and sysctls. The hypervisor refuses it as it does the real one.
 */
import fs from 'node:fs';
import path from 'node:path';

const library = '/usr/lib/x86_64-linux-gnu/libxenctrl.so.4.17';

/** XEN_DOMCTL_INTERFACE_VERSION and XEN_SYSCTL_INTERFACE_VERSION of Xen 4.17, and 4.18's. */
const version = 0x15;
const another = 0x16;

/**
 * @param {string} folder in which the library is made
 * @returns {NodeJS.ProcessEnv} with which a program uses it
 */
export function otherRelease(folder) {
  const bytes = fs.readFileSync(library);
  const constants = section(bytes, '.rodata');
  let changed = 0;
  for (
    let at = bytes.indexOf(version, 8);
    at >= 0 && at + 4 <= bytes.length;
    at = bytes.indexOf(version, at + 1)
  ) {
    if (bytes.readUInt32LE(at) !== version) continue;
    // A constant of 8 bytes: the command, below 128, and the version, with which each of the structures begins.
    const constant =
      at >= constants.begin && at < constants.end && at % 8 === 4 && bytes.readUInt32LE(at - 4) < 128;
    // movl $version, offset(%register), and with %rsp.
    const plain = bytes[at - 3] === 0xc7 && ((bytes[at - 2] ?? 0) & 0xf8) === 0x40;
    const near = bytes[at - 4] === 0xc7 && bytes[at - 3] === 0x44 && bytes[at - 2] === 0x24;
    const far = bytes[at - 7] === 0xc7 && bytes[at - 6] === 0x84 && bytes[at - 5] === 0x24;
    if (!constant && !plain && !near && !far) continue;
    bytes[at] = another;
    changed++;
  }
  if (changed < 50) throw new Error(`${library}: ${changed} places give an interface version`);
  fs.mkdirSync(folder, { recursive: true });
  fs.writeFileSync(path.join(folder, path.basename(library)), bytes);
  return { LD_LIBRARY_PATH: folder };
}

/** Where a section of an ELF file is. @param {Buffer} elf @param {string} name */
function section(elf, name) {
  const table = Number(elf.readBigUInt64LE(0x28));
  const [size, count, names] = [0x3a, 0x3c, 0x3e].map((at) => elf.readUInt16LE(at));
  const sections = Array.from({ length: count ?? 0 }, (_, n) => {
    const header = table + n * (size ?? 0);
    const begin = Number(elf.readBigUInt64LE(header + 0x18));
    return { name: elf.readUInt32LE(header), begin, end: begin + Number(elf.readBigUInt64LE(header + 0x20)) };
  });
  const texts = sections[names ?? 0]?.begin ?? 0;
  const found = sections.find(
    (each) => elf.toString('latin1', texts + each.name, elf.indexOf(0, texts + each.name)) === name,
  );
  if (found === undefined) throw new Error(`no section ${name}`);
  return found;
}
