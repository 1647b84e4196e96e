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
  let changed = 0;
  for (
    let at = bytes.indexOf(version, 8);
    at >= 0 && at + 4 <= bytes.length;
    at = bytes.indexOf(version, at + 1)
  ) {
    if (bytes.readUInt32LE(at) !== version) continue;
    // movabs $(version << 32 | command), %reg: the two words that begin a domctl, written as one.
    const both =
      bytes[at - 6] === 0x48 && ((bytes[at - 5] ?? 0) & 0xf8) === 0xb8 && bytes.readUInt32LE(at - 4) < 256;
    // movl $version, 4(%reg)
    const alone = bytes[at - 3] === 0xc7 && ((bytes[at - 2] ?? 0) & 0xf8) === 0x40 && bytes[at - 1] === 4;
    if (!both && !alone) continue;
    bytes[at] = another;
    changed++;
  }
  if (changed < 20) throw new Error(`${library}: ${changed} places give an interface version`);
  fs.mkdirSync(folder, { recursive: true });
  fs.writeFileSync(path.join(folder, path.basename(library)), bytes);
  return { LD_LIBRARY_PATH: folder };
}
