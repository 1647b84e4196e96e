/** The loader tells its cases apart, and each message names a cure. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AddonError } from '../../lib/errors.js';
import { loadAddon, loadAddonWithXen, probeXen, refusal } from '../../lib/host/xen/addon.js';
import { root } from './child.js';

const built = path.join(root, 'build/Release/xen_migration.node');
let folder: string;

beforeAll(() => {
  if (!fs.existsSync(built)) throw new Error('the addon is not built: run `npm run build:native`');
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-loader-'));
});
afterAll(() => {
  fs.rmSync(folder, { recursive: true, force: true });
});

/** A package root whose addon is `binary`. */
function rootWith(name: string, binary?: Buffer): string {
  const dir = path.join(folder, name);
  fs.mkdirSync(path.join(dir, 'build/Release'), { recursive: true });
  if (binary !== undefined) fs.writeFileSync(path.join(dir, 'build/Release/xen_migration.node'), binary);
  return dir;
}

/** The built addon with one name in its string table exchanged for another of the same length. */
function patched(from: string, to: string): Buffer {
  expect(to.length).toBe(from.length);
  const binary = fs.readFileSync(built);
  const at = binary.indexOf(`\0${from}\0`, 'latin1');
  expect(at, `${from} is in the addon`).toBeGreaterThan(0);
  binary.write(to, at + 1, 'latin1');
  return binary;
}

function addonError(f: () => unknown): AddonError {
  try {
    f();
  } catch (error) {
    expect(error).toBeInstanceOf(AddonError);
    return error as AddonError;
  }
  throw new Error('did not throw');
}

describe('loading', () => {
  it('loads the built addon once', () => {
    const addon = loadAddon();
    expect(addon.build.napiVersion).toBe(8);
    expect(loadAddon()).toBe(addon);
  });

  it('tells that the addon is not built', () => {
    const error = addonError(() => loadAddon(rootWith('absent')));
    expect(error.code).toBe('ERR_XEN_ADDON_MISSING');
    expect(error.message).toContain('npm rebuild xen-migration');
    expect(error.message).toContain('npm rebuild --global xen-migration');
    expect(error.message).toContain('npm install-scripts approve xen-migration');
    expect(error.cause).toBeInstanceOf(Error);
  });

  it('names the library that is missing', () => {
    const binary = patched('libstdc++.so.6', 'libstdc++.so.9');
    const error = addonError(() => loadAddon(rootWith('library', binary)));
    expect(error.code).toBe('ERR_XEN_ADDON_LIBRARY');
    expect(error.message).toContain('needs libstdc++.so.9,');
    expect(error.message).toContain('npm rebuild xen-migration');
    expect(error.cause).toMatchObject({ code: 'ERR_DLOPEN_FAILED' });
  });

  it('tells at load, not at the first call, that a library is of another release', () => {
    // Bound lazily, a missing function would end the process in the middle of a migration.
    const binary = patched('napi_check_object_type_tag', 'napi_check_object_type_tax');
    const error = addonError(() => loadAddon(rootWith('symbol', binary)));
    expect(error.code).toBe('ERR_XEN_ADDON_LIBRARY');
    expect(error.message).toContain('undefined symbol: napi_check_object_type_tax');
    expect(error.message).toContain('npm rebuild xen-migration');
  });

  it.each([
    ['empty', Buffer.alloc(0)],
    ['text', Buffer.from('not a library at all, but long enough to be read as an ELF header of 64 bytes')],
  ])('tells that the file is no library: %s', (name, binary) => {
    const error = addonError(() => loadAddon(rootWith(name, binary)));
    expect(error.code).toBe('ERR_XEN_ADDON_LIBRARY');
    expect(error.message).toContain('npm rebuild xen-migration');
  });

  it('prefers the release build to a forgotten debug build', () => {
    const dir = rootWith('both', fs.readFileSync(built));
    fs.mkdirSync(path.join(dir, 'build/Debug'));
    fs.writeFileSync(path.join(dir, 'build/Debug/xen_migration.node'), 'stale');
    expect(loadAddon(dir).build.napiVersion).toBe(8);
  });
});

describe('reaching Xen', () => {
  it('either finds the running Xen or says in a typed error why not', () => {
    const probe = probeXen();
    expect(probe.build).toEqual(loadAddon().build);
    if (probe.hypervisor !== undefined) {
      expect(probe.problem).toBeUndefined();
      expect(probe.hypervisor.major).toBeGreaterThanOrEqual(4);
      return;
    }
    const expected = loadAddon().build.haveXen
      ? ['ERR_XEN_NO_PRIVCMD', 'ERR_XEN_PERMISSION']
      : ['ERR_XEN_ADDON_NO_XEN'];
    expect(expected).toContain(probe.problem?.code);
    const cure =
      /boot Xen and run this in its control domain, dom0.*`modprobe xen-privcmd`|run as root|npm rebuild/;
    expect(probe.problem?.message).toMatch(cure);
    expect(addonError(() => loadAddonWithXen()).code).toBe(probe.problem?.code);
  });

  it('tells a hypervisor of another release from one that obeys only its control domain', () => {
    const build = { haveXen: true, xenVersion: '4.17.0', napiVersion: 8 };
    const running = { major: 4, minor: 20, extra: '.1' };
    expect(refusal(build, running)).toBeUndefined();
    for (const errno of [{ physinfoErrno: 13 }, { domctlErrno: 13 }]) {
      const error = refusal(build, { ...running, ...errno });
      expect(error?.code).toBe('ERR_XEN_VERSION_MISMATCH');
      expect(error?.message).toMatch(/libraries of Xen 4\.17\.0, which the running Xen 4\.20\.1 refuses/);
      expect(error?.message).toContain('npm rebuild xen-migration');
    }
    const other = refusal(build, { ...running, physinfoErrno: 1, domctlErrno: 1 });
    expect(other?.code).toBe('ERR_XEN_PERMISSION');
    expect(other?.message).toContain('control domain');
  });

  it('reports an absent addon without throwing', () => {
    const probe = probeXen(rootWith('absent'));
    expect(probe.build).toBeUndefined();
    expect(probe.problem?.code).toBe('ERR_XEN_ADDON_MISSING');
  });
});
