/**
 * Tests load the library as TypeScript, but a worker thread or a child process takes JavaScript. This strips the types
 * of what those load: the worker of simulated guests, `testing.ts`, the command and the two helpers. Written only
 * where something changed.
 */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const root = fileURLToPath(new URL('../..', import.meta.url));
const lib = join(root, 'lib');
const cache = join(root, 'node_modules/.cache/xen-migration/lib');
const entries = [
  'host/simulated/guest/guest-worker.ts',
  'testing.ts',
  'cli/main.ts',
  'helper/main.ts',
  'helper/convert/main.ts',
].map((name) => join(lib, name));

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

/** Readers of another test run see the old file or the new one, whole. */
function writeIfNew(path: string, text: string): void {
  if (read(path) === text) return;
  mkdirSync(dirname(path), { recursive: true });
  const temporary = `${path}.${String(process.pid)}`;
  writeFileSync(temporary, text);
  renameSync(temporary, path);
}

export default function setup(): void {
  writeIfNew(join(cache, 'package.json'), '{"type":"module"}\n');
  const todo = [...entries];
  const seen = new Set(todo);
  for (const file of todo) {
    const { outputText } = ts.transpileModule(readFileSync(file, 'utf8'), {
      fileName: file,
      compilerOptions: {
        target: ts.ScriptTarget.ES2022,
        module: ts.ModuleKind.ESNext,
        verbatimModuleSyntax: true,
      },
    });
    writeIfNew(join(cache, relative(lib, file).replace(/\.ts$/, '.js')), outputText);
    for (const { fileName } of ts.preProcessFile(outputText).importedFiles) {
      if (!fileName.startsWith('.')) continue;
      const imported = resolve(dirname(file), fileName.replace(/\.js$/, '.ts'));
      if (seen.has(imported)) continue;
      seen.add(imported);
      todo.push(imported);
    }
  }
}
