/**
 * The save helper as one file: libxl waits for it to start, and loading a hundred modules one by one takes Node longer
 * than starting itself. Done by `npm run build`, after tsc; dist/helper/main.js does the same without, only later.
 *
 *     xen-migrate-save-helper.cjs      the program: loads the next two
 *     helper.js                        all of it, as one function
 *     helper.<Node>-<processor>.cache  V8's compilation of that. Without it, or with another Node, V8 compiles each
 *                                      function when it is first called: the last ones while the guest stands still
 */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { Script } from 'node:vm';
import { rolldown } from 'rolldown';

const root = fileURLToPath(new URL('..', import.meta.url));
const entry = path.join(root, 'dist/helper/main.js');
/** As deep below the root as the loader of the addon, which looks for it from there. */
const folder = path.join(root, 'dist/helper/bundle');

/**
 * Modules that the helper never needs, and what stands for them: libxl is its toolstack, so the one over xenstore and
 * QMP is not made.
 *
 * @type {Record<string, string>}
 */
const leftOut = {
  'dist/toolstack/xen/toolstack.js': 'export class XenToolstack {}',
  'dist/toolstack/xenstore/index.js': `export const openXenstore = () => { throw new Error('left out of the bundle'); };`,
};

const missing = new Set(Object.keys(leftOut));
const bundle = await rolldown({
  input: entry,
  platform: 'node',
  // No module of ours does anything when it is loaded, but the program itself.
  treeshake: { moduleSideEffects: (id) => id === entry },
  logLevel: 'warn',
  plugins: [
    {
      name: 'leave-out',
      load(id) {
        const name = path.relative(root, id);
        missing.delete(name);
        return leftOut[name];
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
if (missing.size > 0)
  throw new Error(`the helper no longer imports ${[...missing].join(', ')}: leave it in peace`);

const [{ code }] = output;
// A function as Node makes one of a module. ASCII alone, so that a character is a byte.
const body = code
  .replace(/^#!.*\n/, '')
  .replace(
    /[^\0-\x7f]/gu,
    (character) => `\\u{${/** @type {number} */ (character.codePointAt(0)).toString(16)}}`,
  );
const source = `(function(exports,require,module,__filename,__dirname){${body}\n})`;
const launcher = `#!/usr/bin/env node
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const { Script } = require('node:vm');
const file = path.join(__dirname, 'helper.js');
let cachedData;
try {
  cachedData = fs.readFileSync(path.join(__dirname, \`helper.\${process.version}-\${process.arch}.cache\`));
} catch {
  // Made by another Node: V8 compiles what it needs.
}
const script = new Script(fs.readFileSync(file, 'latin1'), { filename: file, cachedData });
script.runInThisContext()(exports, require, module, file, __dirname);
`;

// All functions, also those that nothing calls at first.
setFlagsFromString('--no-lazy');
const script = new Script(source, { filename: path.join(folder, 'helper.js') });
setFlagsFromString('--lazy');

fs.rmSync(folder, { recursive: true, force: true });
fs.mkdirSync(folder);
fs.writeFileSync(path.join(folder, 'helper.js'), source);
fs.writeFileSync(
  path.join(folder, `helper.${process.version}-${process.arch}.cache`),
  script.createCachedData(),
);
fs.writeFileSync(path.join(folder, 'xen-migrate-save-helper.cjs'), launcher, { mode: 0o755 });
