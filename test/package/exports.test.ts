/**
 * The public names, frozen: whoever adds, renames or removes one sees it in the diff of exports.json.
 * `npm run update:exports` writes the list anew.
 */
import fs from 'node:fs';
import path from 'node:path';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';
import { entryPoints, manifest, root } from './project.js';

const listFile = path.join(root, 'test/package/exports.json');

/** What a name stands for, as a user would call it. */
function kind(symbol: ts.Symbol): string {
  const { flags } = symbol;
  if (flags & ts.SymbolFlags.Class) return 'class';
  if (flags & ts.SymbolFlags.Function) return 'function';
  const isValue = (flags & ts.SymbolFlags.Variable) !== 0;
  const isType = (flags & (ts.SymbolFlags.Interface | ts.SymbolFlags.TypeAlias)) !== 0;
  if (isValue) return isType ? 'const and type' : 'const';
  if (flags & ts.SymbolFlags.Interface) return 'interface';
  if (isType) return 'type';
  return `symbol with flags ${String(flags)}`;
}

/** True if a name of `export type` stands somewhere on the way to its declaration: then there is no value behind it. */
function isTypeOnly(checker: ts.TypeChecker, name: ts.Symbol): boolean {
  for (let symbol: ts.Symbol | undefined = name; symbol; symbol = aliased(checker, symbol)) {
    for (const declaration of symbol.declarations ?? []) {
      if (
        ts.isExportSpecifier(declaration) &&
        (declaration.isTypeOnly || declaration.parent.parent.isTypeOnly)
      ) {
        return true;
      }
    }
  }
  return false;
}

/** The next symbol on that way. */
function aliased(checker: ts.TypeChecker, symbol: ts.Symbol): ts.Symbol | undefined {
  return symbol.flags & ts.SymbolFlags.Alias ? checker.getImmediateAliasedSymbol(symbol) : undefined;
}

/** The names of each subpath, from the sources. */
function publicNames(): Record<string, Record<string, string>> {
  const config = ts.getParsedCommandLineOfConfigFile(path.join(root, 'tsconfig.build.json'), undefined, {
    ...ts.sys,
    onUnRecoverableConfigFileDiagnostic: (diagnostic) => {
      throw new Error(ts.flattenDiagnosticMessageText(diagnostic.messageText, '\n'));
    },
  });
  const files = entryPoints.map(({ source }) => path.join(root, source));
  const program = ts.createProgram(files, config?.options ?? {});
  const checker = program.getTypeChecker();
  return Object.fromEntries(
    entryPoints.map(({ subpath, source }) => {
      const file = program.getSourceFile(path.join(root, source));
      const module = file && checker.getSymbolAtLocation(file);
      const names = (module ? checker.getExportsOfModule(module) : []).map((symbol) => {
        const target = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
        const what = kind(target);
        const valueless = /^(?:class|function|const)/.test(what) && isTypeOnly(checker, symbol);
        return [symbol.name, valueless ? `type of ${what}` : what] as const;
      });
      return [subpath, Object.fromEntries(names.sort(([a], [b]) => (a < b ? -1 : 1)))];
    }),
  );
}

const names = publicNames();
if (process.env['XEN_MIGRATION_UPDATE_EXPORTS'] === '1')
  fs.writeFileSync(listFile, `${JSON.stringify(names, null, 2)}\n`);
const frozen = JSON.parse(fs.readFileSync(listFile, 'utf8')) as typeof names;

it('has the subpaths that package.json names', () => {
  expect(Object.keys(manifest.exports)).toEqual([
    '.',
    './stream',
    './convert',
    './testing',
    './package.json',
  ]);
  expect(Object.keys(frozen)).toEqual(entryPoints.map(({ subpath }) => subpath));
});

describe.each(entryPoints)('$subpath', ({ subpath, target }) => {
  it('exports the frozen names', () => {
    expect(names[subpath]).toEqual(frozen[subpath]);
  });

  it('has each value of them at run time, and no other', async () => {
    const module = (await import(path.join(root, target.default))) as object;
    const values = Object.entries(frozen[subpath] ?? {})
      .filter(([, what]) => /^(?:class|function|const)/.test(what))
      .map(([name]) => name);
    expect(Object.keys(module).sort(), 'in dist/; is it built from these sources?').toEqual(values.sort());
  });
});
