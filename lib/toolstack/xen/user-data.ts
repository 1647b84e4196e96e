/**
 * libxl's files about a domain (libxl__userdata_path): `userdata-<w>.<domid>.<uuid>.<what>` in the library folder, where
 * w is `d` for data, `n` for data being written, `l` for a lock.
 */
import * as fs from 'node:fs/promises';
import { TransportError } from '../../errors.js';
import type { XenFolders } from './paths.js';

/** What the configuration's file is called. */
const CONFIG = 'libxl-json';
/** Largest configuration read: libxl's own are some KiB. */
const CONFIG_MAX = 16 * 1024 * 1024;
const FILE_MODE = 0o600;

function userDataPath(folders: XenFolders, which: 'd' | 'n', domid: number, uuid: string): string {
  return `${folders.lib}/userdata-${which}.${domid}.${uuid}.${CONFIG}`;
}

/** The configuration that libxl keeps of a domain, without its NUL; undefined if there is none. */
export async function readConfig(
  folders: XenFolders,
  domid: number,
  uuid: string,
): Promise<string | undefined> {
  const path = userDataPath(folders, 'd', domid, uuid);
  let text: Buffer;
  try {
    const { size } = await fs.stat(path);
    if (size > CONFIG_MAX) throw new Error(`it has ${size} bytes, more than ${CONFIG_MAX}`);
    text = await fs.readFile(path);
  } catch (cause) {
    if ((cause as { code?: unknown }).code === 'ENOENT') return undefined;
    throw failed('reading', path, cause);
  }
  const end = text.indexOf(0);
  return text.toString('utf8', 0, end === -1 ? text.length : end);
}

/** Keeps a configuration for libxl, all of it or nothing. libxl reads it with a NUL at its end. */
export async function writeConfig(
  folders: XenFolders,
  domid: number,
  uuid: string,
  config: string,
): Promise<void> {
  const next = userDataPath(folders, 'n', domid, uuid);
  try {
    await fs.writeFile(next, `${config}\0`, { mode: FILE_MODE });
    await fs.rename(next, userDataPath(folders, 'd', domid, uuid));
  } catch (cause) {
    throw failed('writing', next, cause);
  }
}

/** Removes all of libxl's files about a domain, but the lock, which goes with whoever holds it. */
export async function removeUserData(folders: XenFolders, domid: number, uuid: string): Promise<void> {
  const pattern = new RegExp(`^userdata-.\\.${domid}\\.${uuid}\\.`);
  let names: string[];
  try {
    names = await fs.readdir(folders.lib);
  } catch (cause) {
    if ((cause as { code?: unknown }).code === 'ENOENT') return;
    throw failed('listing', folders.lib, cause);
  }
  for (const name of names) {
    if (!pattern.test(name) || name.endsWith('.domain-userdata-lock')) continue;
    await fs.rm(`${folders.lib}/${name}`, { force: true });
  }
}

function failed(doing: string, path: string, cause: unknown): TransportError {
  const text = cause instanceof Error ? cause.message : String(cause);
  return new TransportError(`${doing} libxl's data of a domain, ${path}: ${text}`, { cause });
}
