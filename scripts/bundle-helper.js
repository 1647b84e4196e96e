/**
 * The save helper as few files: libxl waits for it to start, and loading a hundred modules one by one takes Node longer
 * than starting itself. Done by `npm run build`, after tsc; dist/helper/main.js does the same without, only later.
 *
 * CommonJS, because Node starts it faster. A chunk for a save and one for a restore: neither needs the other.
 */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown } from 'rolldown';

const root = fileURLToPath(new URL('..', import.meta.url));
const entry = path.join(root, 'dist/helper/main.js');
/** As deep below the root as the loader of the addon, which looks for it from there. */
const folder = path.join(root, 'dist/helper/bundle');
const program = 'xen-migrate-save-helper.cjs';

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
fs.rmSync(folder, { recursive: true, force: true });
await bundle.write({
  dir: folder,
  format: 'cjs',
  entryFileNames: program,
  chunkFileNames: '[name].cjs',
  comments: false,
  // What is not there need not be parsed. Names stay: they stand in traces of errors.
  minify: { compress: true, mangle: false, codegen: { removeWhitespace: true } },
});
await bundle.close();
if (missing.size > 0)
  throw new Error(`the helper no longer imports ${[...missing].join(', ')}: leave it in peace`);
fs.chmodSync(path.join(folder, program), 0o755);
