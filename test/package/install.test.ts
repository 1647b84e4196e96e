/** The packed package in a project of its own, as a user meets it: first without the addon, then with it. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { entryPoints, manifest, root, run, specifier } from './project.js';

let project: string;

beforeAll(() => {
  project = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-install-'));
  const [packed] = JSON.parse(
    run(root, 'npm', 'pack', '--json', '--ignore-scripts', '--pack-destination', project),
  ) as [{ filename: string }];
  fs.writeFileSync(path.join(project, 'package.json'), '{ "private": true }\n');
  run(
    project,
    'npm',
    'install',
    '--ignore-scripts',
    '--prefer-offline',
    '--no-audit',
    '--no-fund',
    `./${packed.filename}`,
  );
});

afterAll(() => {
  fs.rmSync(project, { recursive: true, force: true });
});

const installed = (): string => path.join(project, 'node_modules', manifest.name);

/** Runs a program in the project. */
function node(name: string, text: string): string {
  fs.writeFileSync(path.join(project, name), text);
  return run(project, process.execPath, name).trim();
}

describe('without the addon', () => {
  it('brings only what the manifest names', () => {
    const names = fs.readdirSync(path.join(project, 'node_modules')).filter((name) => !name.startsWith('.'));
    // file-uri-to-path is what bindings needs.
    expect(names.sort()).toEqual(
      [...Object.keys(manifest.dependencies), 'file-uri-to-path', manifest.name].sort(),
    );
    expect(fs.existsSync(path.join(installed(), 'build'))).toBe(false);
  });

  it.each(entryPoints)('$subpath can be imported', ({ subpath }) => {
    const name = specifier(subpath);
    expect(node('a.mjs', `const m = await import('${name}'); console.log(typeof m);`)).toBe('object');
  });

  it.each(entryPoints)('$subpath can be required from CommonJS, and is the same module', ({ subpath }) => {
    const name = specifier(subpath);
    const text = `
      const required = require('${name}');
      import('${name}').then((imported) => {
        const names = Object.keys(imported);
        console.log(names.every((name) => imported[name] === required[name]) && Object.keys(required).length === names.length);
      });`;
    expect(node('a.cjs', text)).toBe('true');
  });

  it('gives package.json', () => {
    expect(node('b.cjs', `console.log(require('${manifest.name}/package.json').version);`)).toBe(
      manifest.version,
    );
  });

  it('keeps its insides to itself', () => {
    const text = `import('${manifest.name}/dist/errors.js').catch((error) => console.log(error.code));`;
    expect(node('c.mjs', text)).toBe('ERR_PACKAGE_PATH_NOT_EXPORTED');
  });

  it('ends by itself after an import: nothing keeps the process', () => {
    const imports = entryPoints.map(({ subpath }) => `await import('${specifier(subpath)}');`).join('\n');
    expect(node('d.mjs', imports)).toBe('');
  });

  it('has types that compile without the consumer skipping a check', () => {
    const imports = entryPoints.map(({ subpath }, i) => `import * as m${i} from '${specifier(subpath)}';`);
    const uses = entryPoints.map((_, i) => `export type M${i} = typeof m${i};`);
    fs.writeFileSync(path.join(project, 'consumer.ts'), [...imports, ...uses, ''].join('\n'));
    const compilerOptions = {
      target: 'es2022',
      module: 'nodenext',
      strict: true,
      noEmit: true,
      skipLibCheck: false,
      typeRoots: [path.join(root, 'node_modules/@types')],
      types: ['node'],
    };
    fs.writeFileSync(
      path.join(project, 'tsconfig.json'),
      JSON.stringify({ compilerOptions, files: ['consumer.ts'] }),
    );
    run(project, process.execPath, path.join(root, 'node_modules/typescript/bin/tsc'), '-p', '.');
  });

  it('has its command', () => {
    const [name] = Object.keys(manifest.bin);
    const command = path.join(project, 'node_modules/.bin', String(name));
    expect(run(project, command, '--help')).toContain('xen-migrate');
    expect(run(project, command, '--version').trim()).toContain(manifest.version);
  });

  it('says that the addon is missing, and how to get it', () => {
    const loader = path.join(installed(), 'dist/host/xen/addon.js');
    const text = `const { probeXen } = await import('${loader}'); console.log(probeXen().problem.code);`;
    expect(node('e.mjs', text)).toBe('ERR_XEN_ADDON_MISSING');
  });
});

describe('with the addon', () => {
  it('is built by the cure that the error names, and loads', () => {
    const npmMajor = Number.parseInt(run(project, 'npm', '--version'), 10);
    if (npmMajor >= 12) run(project, 'npm', 'install-scripts', 'approve', manifest.name);
    run(project, 'npm', 'rebuild', manifest.name);
    const loader = path.join(installed(), 'dist/host/xen/addon.js');
    const text = `const { probeXen } = await import('${loader}'); console.log(probeXen().build.napiVersion);`;
    expect(node('f.mjs', text)).toBe('8');
  });
});
