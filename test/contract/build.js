/**
 * Makes JavaScript of the contract, for machines that have Node and nothing else: it imports the built library from
 * dist/. Run it after `npm run build`. Prints the folder.
 */
import fs from 'node:fs';
import path from 'node:path';
import ts from 'typescript';

const root = path.join(import.meta.dirname, '../..');
const target = path.join(root, 'node_modules/.cache/xen-migration/contract');

fs.mkdirSync(target, { recursive: true });
fs.writeFileSync(path.join(target, 'package.json'), '{"type":"module"}\n');
for (const name of fs.readdirSync(import.meta.dirname).filter((file) => file.endsWith('.ts'))) {
  const source = fs.readFileSync(path.join(import.meta.dirname, name), 'utf8');
  const { outputText } = ts.transpileModule(source, {
    fileName: name,
    compilerOptions: {
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ESNext,
      verbatimModuleSyntax: true,
    },
  });
  const dist = path.relative(target, path.join(root, 'dist'));
  fs.writeFileSync(
    path.join(target, name.replace(/\.ts$/, '.js')),
    outputText.replaceAll("'../../lib/", `'${dist}/`),
  );
}
process.stdout.write(`${target}\n`);
