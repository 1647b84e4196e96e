/**
 * Makes one JavaScript file of the tests' writer of legacy images (from-v2.ts), for machines that have Node and nothing
 * else. Prints its path.
 */
import path from 'node:path';
import { rolldown } from 'rolldown';

const root = path.join(import.meta.dirname, '../..');
const file = path.join(root, 'node_modules/.cache/xen-migration/legacy/from-v2.js');

const bundle = await rolldown({
  input: path.join(import.meta.dirname, 'from-v2.ts'),
  platform: 'node',
  resolve: { extensionAlias: { '.js': ['.ts', '.js'] } },
  logLevel: 'warn',
});
await bundle.write({ format: 'esm', file, codeSplitting: false });
await bundle.close();
process.stdout.write(`${file}\n`);
