/** The files of the package, frozen: built library, its sources (source maps point there), what builds the addon. */
import fs from 'node:fs';
import { Script } from 'node:vm';
import { describe, expect, it } from 'vitest';
import { manifest, root, run } from './project.js';

interface Packed {
  readonly files: readonly { readonly path: string; readonly mode: number }[];
}

const frozen = [
  'CHANGELOG.md',
  'CMakeLists.txt',
  'LICENSE',
  'README.md',
  'binding.gyp',
  'native/addon.cc',
  'native/addon.h',
  'native/arguments.cc',
  'native/arguments.h',
  'native/blocking_fd.cc',
  'native/blocking_fd.h',
  'native/call_log.cc',
  'native/call_log.h',
  'native/compat.h',
  'native/create.cc',
  'native/domain.cc',
  'native/error.cc',
  'native/error.h',
  'native/evtchn.cc',
  'native/evtchn.h',
  'native/grant.cc',
  'native/handles.cc',
  'native/handles.h',
  'native/hvm.cc',
  'native/hypervisor.cc',
  'native/hypervisor.h',
  'native/job.cc',
  'native/job.h',
  'native/lock.cc',
  'native/lock.h',
  'native/logdirty.cc',
  'native/memory.cc',
  'native/policy.cc',
  'native/probe.cc',
  'native/probe.h',
  'native/pv.cc',
  'native/region.cc',
  'native/region.h',
  'native/signal.cc',
  'native/signal.h',
  'native/watch.cc',
  'native/watch.h',
  'native/xen.h',
  'native/xen_handle.cc',
  'native/xen_handle.h',
  'package.json',
];

const [packed] = JSON.parse(run(root, 'npm', 'pack', '--dry-run', '--json', '--ignore-scripts')) as [Packed];
const files = packed.files.map((file) => file.path);

describe('packed files', () => {
  it('are, outside lib/ and dist/, exactly the frozen ones', () => {
    expect(files.filter((file) => !/^(?:lib|dist)\//.test(file)).sort()).toEqual(frozen);
  });

  it('are, in lib/ and dist/, each source and what is built from it', () => {
    const sources = fs
      .readdirSync(`${root}lib`, { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts'))
      .map((file) => file.slice(0, -'.ts'.length));
    const expected = sources.flatMap((name) => [
      `lib/${name}.ts`,
      ...['.js', '.js.map', '.d.ts', '.d.ts.map'].map((end) => `dist/${name}${end}`),
    ]);
    // The helpers' bundles are made of what stands beside them.
    const bundle =
      /^dist\/helper\/bundle\/(?:xen-migrate-(?:save|convert)-helper\.cjs|(?:convert-)?helper\.(?:js|v[\w.-]+\.cache))$/;
    const built = files.filter((file) => /^(?:lib|dist)\//.test(file) && !bundle.test(file));
    expect(built.sort()).toEqual(expected.sort());
  });

  it.each(['helper', 'convert-helper'])(
    'hold a compilation of %s that the Node which built it takes',
    (name) => {
      const folder = `${root}dist/helper/bundle/`;
      const source = fs.readFileSync(`${folder}${name}.js`, 'latin1');
      const cachedData = fs.readFileSync(`${folder}${name}.${process.version}-${process.arch}.cache`);
      const script = new Script(source, { filename: `${folder}${name}.js`, cachedData });
      expect(script.cachedDataRejected).toBe(false);
      // Every byte is a character: the program reads it so.
      expect(/^[\0-\x7f]*$/.test(source)).toBe(true);
    },
  );

  it('hold every target of the manifest', () => {
    const targets = [
      ...Object.values(manifest.exports).flatMap((t) => (typeof t === 'string' ? [t] : [t.types, t.default])),
      ...Object.values(manifest.bin),
    ].map((target) => target.replace(/^\.\//, ''));
    expect(files).toEqual(expect.arrayContaining(targets));
  });

  it('hold every source that binding.gyp names', () => {
    const gyp = fs.readFileSync(`${root}binding.gyp`, 'utf8');
    const sources = [...gyp.matchAll(/"(native\/[^"]+)"/g)].map((match) => match[1]);
    expect(sources.length).toBeGreaterThan(0);
    expect(files).toEqual(expect.arrayContaining(sources));
  });

  it('name no machine: the lock file holds no registry', () => {
    const lock = fs.readFileSync(`${root}package-lock.json`, 'utf8');
    expect(lock).not.toContain('"resolved"');
  });
});

describe('manifest', () => {
  it('has two dependencies at run time', () => {
    expect(Object.keys(manifest.dependencies)).toEqual(['bindings', 'node-addon-api']);
  });

  it('has a command that says what runs it', () => {
    for (const target of Object.values(manifest.bin)) {
      expect(fs.readFileSync(root + target, 'utf8')).toMatch(/^#!\/usr\/bin\/env node\n/);
    }
  });
});
