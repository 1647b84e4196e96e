/** The documents tell the truth: examples run as they stand, links lead somewhere. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';
import { entryPoints, manifest, root, run, specifier } from './project.js';

const documents = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'].concat(
  fs
    .readdirSync(path.join(root, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.md') && !file.startsWith('api/'))
    .map((file) => `docs/${file}`),
);

const read = (file: string): string => fs.readFileSync(path.join(root, file), 'utf8');

/** Blocks of JavaScript, with the heading that each stands under. */
function examples(file: string): { heading: string; code: string }[] {
  const found = [];
  let heading = file;
  for (const part of read(file).matchAll(/^#+ (.*)$|^ *```js\n([^]*?)^ *```$/gm)) {
    if (part[1] !== undefined) heading = part[1];
    else found.push({ heading, code: part[2] ?? '' });
  }
  return found;
}

const withExamples = ['README.md', 'quick-start', 'live-migration', 'save-restore', 'daemon'].map((name) =>
  name.endsWith('.md') ? name : `docs/guide/${name}.md`,
);

describe.each(withExamples)('%s', (file) => {
  it.each(examples(file))('runs as it stands: $heading', ({ code }) => {
    // A project whose one installed package is this one.
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-example-'));
    try {
      fs.mkdirSync(path.join(folder, 'node_modules'));
      fs.symlinkSync(root, path.join(folder, 'node_modules/xen-migration'));
      fs.writeFileSync(path.join(folder, 'example.mjs'), code);
      expect(run(folder, process.execPath, 'example.mjs')).not.toMatch(/undefined|NaN/);
    } finally {
      fs.rmSync(folder, { recursive: true, force: true });
    }
  });
});

it('type-checks the examples in TypeScript', () => {
  // As a user's: the package by its name, and at most one example in a file. They lie where they find Node's types.
  const programs = new Map(
    documents.flatMap((file) =>
      [...read(file).matchAll(/^```ts\n([^]*?)^```$/gm)]
        .map((match) => match[1] ?? '')
        .filter((code) => code.includes(`from '${manifest.name}`))
        .map((code, i) => [path.join(root, `${file}.${i}.mts`), code]),
    ),
  );
  expect([...programs.keys()].map((file) => path.relative(root, file))).toContain(
    'docs/guide/save-restore.md.0.mts',
  );
  const { options } = ts.convertCompilerOptionsFromJson(
    { target: 'es2023', module: 'nodenext', strict: true, noEmit: true, skipLibCheck: true, types: ['node'] },
    root,
  );
  options.paths = Object.fromEntries(
    entryPoints.map(({ subpath, source }) => [specifier(subpath), [path.join(root, source)]]),
  );
  options.lib = ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'];
  const host = ts.createCompilerHost(options);
  const fileExists = host.fileExists.bind(host);
  host.fileExists = (file) => programs.has(file) || fileExists(file);
  const getSourceFile = host.getSourceFile.bind(host);
  host.getSourceFile = (file, language, ...rest) => {
    const code = programs.get(file);
    return code === undefined
      ? getSourceFile(file, language, ...rest)
      : ts.createSourceFile(file, code, language);
  };
  const program = ts.createProgram([...programs.keys()], options, host);
  const complaints = [...programs.keys()]
    .flatMap((file) => ts.getPreEmitDiagnostics(program, program.getSourceFile(file)))
    .map(
      ({ file, messageText }) => `${file?.fileName}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`,
    );
  expect(complaints).toEqual([]);
});

it.each(documents)('%s has no dead link', (file) => {
  const links = [...read(file).matchAll(/\]\(([^)\s]+)\)/g)].map((match) => String(match[1]));
  const dead = links
    .filter((link) => !/^(?:https?:|#)/.test(link))
    .filter((link) => !fs.existsSync(path.resolve(root, path.dirname(file), link.replace(/#.*/, ''))));
  expect(dead).toEqual([]);
});

it('has every document that the sources speak of', () => {
  const sources = ['lib', 'native', 'bench', 'scripts'].flatMap((folder) =>
    fs
      .readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((file) => /\.(?:ts|m?js|cc|h)$/.test(file))
      .map((file) => `${folder}/${file}`),
  );
  const named = sources.flatMap((file) => read(file).match(/docs\/[\w-]+\/[\w-]+\.md/g) ?? []);
  expect(named.length).toBeGreaterThan(0);
  expect([...new Set(named)].filter((file) => !fs.existsSync(path.join(root, file)))).toEqual([]);
});
