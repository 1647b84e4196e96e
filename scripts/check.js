/**
 * `npm run check`: sets up, builds everything, and looks at it from all sides. The tests come last, so that their
 * summary is what stands at the end. `npm run check -- --fresh` repeats also what has not changed.
 */
import { cleanEnvironment, hasProgram, heading, openly, quietly, say, stamped, StepFailed } from './steps.js';
import { addon, checkNode, library, main, npmPackages, systemPackages } from './setup.js';

const fresh = process.argv.includes('--fresh');

/** Everything that lint, types and docs are made from. */
const sources = [
  'lib',
  'test',
  'scripts',
  'bench',
  'native',
  'eslint.config.js',
  'vitest.config.ts',
  'typedoc.json',
  'tsconfig.json',
  'tsconfig.build.json',
  'package.json',
  'package-lock.json',
  '.prettierrc.json',
  '.prettierignore',
  '.clang-format',
  'README.md',
];

/** @type {string[]} */
const failures = [];

/**
 * A look at the project. One that fails does not keep the next from looking.
 *
 * @param {string} name
 * @param {string} title
 * @param {string[][]} commands
 * @param {string[]} [inputs]
 */
async function step(name, title, commands, inputs = sources) {
  heading(title);
  const work = async () => {
    for (const [index, command] of commands.entries()) await quietly(`${name}-${index + 1}`, command);
  };
  try {
    await stamped(name, { inputs, facts: commands }, work, fresh);
  } catch (error) {
    if (!(error instanceof StepFailed)) throw error;
    say(`   FAILED: ${error.message}`);
    failures.push(name);
  }
}

await main(async () => {
  checkNode();
  await systemPackages();
  await npmPackages();
  await library({ fresh });
  await addon({ fresh });
  // Only where it is installed: it is large. Another major would format differently.
  const clangFormat = hasProgram('clang-format-19');
  await step('lint', `lint (eslint, prettier${clangFormat ? ', clang-format' : ''})`, [
    ['npm', 'run', 'lint'],
    ...(clangFormat ? [['sh', '-c', 'clang-format-19 --dry-run --Werror native/*.cc native/*.h']] : []),
  ]);
  await step(
    'builds',
    'addon, built in the other ways (node-gyp, without Xen)',
    [['node', 'scripts/check-builds.js']],
    [
      'native',
      'binding.gyp',
      'CMakeLists.txt',
      'package-lock.json',
      'lib/host/xen',
      'scripts/check-builds.js',
    ],
  );
  await step('types', 'types (tsc)', [['npm', 'run', 'typecheck']]);
  await step('docs', 'documentation (typedoc)', [['npm', 'run', 'docs']]);
  await step('package', 'package (publint, attw)', [
    ['npx', '--no-install', 'publint', '--strict'],
    ['npx', '--no-install', 'attw', '--pack', '.', '--profile', 'esm-only'],
  ]);
  heading('tests');
  const code = await openly([process.execPath, 'node_modules/vitest/vitest.mjs', 'run'], cleanEnvironment());
  if (code !== 0) failures.push('tests');
  if (failures.length > 0) throw new StepFailed(failures.join(', '));
  say('check: everything passed');
  return 0;
});
