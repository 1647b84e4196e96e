/**
 * The two helpers as one file each: libxl waits for them to start, and loading a hundred modules one by one takes Node
 * longer than starting itself. Done by `npm run build`, after tsc; dist/helper/main.js and dist/helper/convert/main.js do
 * the same without, only later.
 *
 *     xen-migrate-save-helper.cjs      the program: loads the next two
 *     helper.js                        all of it, as one function
 *     helper.<Node>-<processor>.cache  V8's compilation of that. Without it, or with another Node, V8 compiles each
 *                                      function when it is first called: the last ones while the guest stands still
 *
 * and the same of xen-migrate-convert-helper.cjs with convert-helper.js.
 */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { Script } from 'node:vm';
import { rolldown } from 'rolldown';

const root = fileURLToPath(new URL('..', import.meta.url));
/** As deep below the root as the loader of the addon, which looks for it from there. */
const folder = path.join(root, 'dist/helper/bundle');

/**
 * @typedef {object} Program
 * @property {string} name of the program
 * @property {string} entry module below the root
 * @property {string} file of the bundle, without its ending
 * @property {Record<string, string>} leftOut modules that it never needs, and what stands for them
 */

/** @type {Program[]} */
const programs = [
  {
    name: 'xen-migrate-save-helper',
    entry: 'dist/helper/main.js',
    file: 'helper',
    // libxl is its toolstack, so the one over xenstore and QMP is not made.
    leftOut: {
      'dist/toolstack/xen/toolstack.js': 'export class XenToolstack {}',
      'dist/toolstack/xenstore/index.js': `export const openXenstore = () => { throw new Error('left out of the bundle'); };`,
    },
  },
  {
    name: 'xen-migrate-convert-helper',
    entry: 'dist/helper/convert/main.js',
    file: 'convert-helper',
    leftOut: {},
  },
];

fs.rmSync(folder, { recursive: true, force: true });
fs.mkdirSync(folder);
for (const program of programs) {
  const source = await bundled(program);
  write(program, source);
}

/**
 * @param {Program} program
 * @returns {Promise<string>} all of it as a function
 */
async function bundled({ name, entry, leftOut }) {
  const input = path.join(root, entry);
  const missing = new Set(Object.keys(leftOut));
  const bundle = await rolldown({
    input,
    platform: 'node',
    // No module of ours does anything when it is loaded, but the program itself.
    treeshake: { moduleSideEffects: (id) => id === input },
    logLevel: 'warn',
    plugins: [
      {
        name: 'leave-out',
        load(id) {
          const module = path.relative(root, id);
          missing.delete(module);
          return leftOut[module];
        },
      },
    ],
  });
  const { output } = await bundle.generate({
    format: 'cjs',
    codeSplitting: false,
    comments: false,
    // What is not there need not be parsed. Names stay: they stand in traces of errors.
    minify: { compress: true, mangle: false, codegen: { removeWhitespace: true } },
  });
  await bundle.close();
  if (missing.size > 0) {
    throw new Error(`${name} no longer imports ${[...missing].join(', ')}: leave it in peace`);
  }
  const [{ code }] = output;
  // A function as Node makes one of a module. It can import nothing, only require. ASCII alone, so that a character is a
  // byte.
  const body = code
    .replace(/^#!.*\n/, '')
    .replace(/\bimport\((["'`]node:[a-z/_]+["'`])\)/g, 'Promise.resolve(require($1))')
    .replace(
      /[^\0-\x7f]/gu,
      (character) => `\\u{${/** @type {number} */ (character.codePointAt(0)).toString(16)}}`,
    );
  if (/\bimport\(/.test(body)) throw new Error(`${name} imports something while it runs`);
  return `(function(exports,require,module,__filename,__dirname){${body}\n})`;
}

/**
 * @param {Program} program
 * @param {string} source
 */
function write({ name, file }, source) {
  const launcher = `#!/usr/bin/env node
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const { Script } = require('node:vm');
const file = path.join(__dirname, '${file}.js');
let cachedData;
try {
  cachedData = fs.readFileSync(path.join(__dirname, \`${file}.\${process.version}-\${process.arch}.cache\`));
} catch {
  // Made by another Node: V8 compiles what it needs.
}
const script = new Script(fs.readFileSync(file, 'latin1'), { filename: file, cachedData });
script.runInThisContext()(exports, require, module, file, __dirname);
`;
  // All functions, also those that nothing calls at first.
  setFlagsFromString('--no-lazy');
  const script = new Script(source, { filename: path.join(folder, `${file}.js`) });
  setFlagsFromString('--lazy');

  fs.writeFileSync(path.join(folder, `${file}.js`), source);
  fs.writeFileSync(
    path.join(folder, `${file}.${process.version}-${process.arch}.cache`),
    script.createCachedData(),
  );
  fs.writeFileSync(path.join(folder, `${name}.cjs`), launcher, { mode: 0o755 });
}
