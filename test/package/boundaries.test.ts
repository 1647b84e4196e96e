/** The import rules bite: for each room, imports that must be refused and imports that must pass. */
import { ESLint } from 'eslint';
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { entries, formsOnly, movingRooms, pureRooms, rooms } from '../../scripts/rooms.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

const boundaryRules = ['no-restricted-imports', 'no-restricted-syntax'];

const eslint = new ESLint({
  cwd: root,
  ruleFilter: ({ ruleId }) => boundaryRules.includes(ruleId),
  // The files do not exist, so no project knows them; the boundary rules need no types.
  overrideConfig: [
    { files: ['**/*.ts'], languageOptions: { parserOptions: { projectService: false } } },
    { linterOptions: { reportUnusedDisableDirectives: 'off' } },
  ],
});

/** Rules that object to `text` in a file of that name. */
async function objections(filePath: string, text: string): Promise<string[]> {
  const [result] = await eslint.lintText(`${text}\n`, { filePath: `${root}${filePath}` });
  const messages = result?.messages ?? [];
  expect(messages.filter((message) => message.fatal)).toEqual([]);
  return messages.map((message) => message.ruleId ?? 'no rule');
}

const importing = (specifier: string): string => `import { x } from '${specifier}'; x();`;

describe('the order of the rooms', () => {
  const pairs = rooms.flatMap((from, i) =>
    rooms.map((to, j) => ({
      from,
      to,
      allowed: j >= i && !(pureRooms.includes(from) && movingRooms.includes(to)),
    })),
  );

  it.each(pairs.filter(({ allowed }) => !allowed))('$from does not import $to', async ({ from, to }) => {
    expect(await objections(`lib/${from}/a.ts`, importing(`../${to}/b.js`))).toEqual([
      'no-restricted-imports',
    ]);
    expect(await objections(`lib/${from}/deep/a.ts`, importing(`../../${to}/b.js`))).toEqual([
      'no-restricted-imports',
    ]);
  });

  it.each(pairs.filter(({ allowed }) => allowed))('$from may import $to', async ({ from, to }) => {
    const specifier = from === to ? './b.js' : `../${to}/b.js`;
    expect(await objections(`lib/${from}/a.ts`, importing(specifier))).toEqual([]);
    expect(await objections(`lib/${from}/deep/a.ts`, importing(`../../${to}/deep/b.js`))).toEqual([]);
  });

  it.each(rooms)('%s may import the floor and none of the entries', async (room) => {
    expect(await objections(`lib/${room}/a.ts`, importing('../errors.js'))).toEqual([]);
    for (const entry of entries) {
      expect(await objections(`lib/${room}/a.ts`, importing(`../${entry}.js`))).toHaveLength(1);
    }
  });

  it('lets the entries import every room, and the floor none', async () => {
    for (const room of rooms) {
      for (const entry of entries) {
        expect(await objections(`lib/${entry}.ts`, importing(`./${room}/b.js`))).toEqual([]);
      }
      expect(await objections('lib/errors.ts', importing(`./${room}/b.js`))).toHaveLength(1);
    }
    expect(await objections('lib/errors.ts', importing('./progress.js'))).toEqual([]);
    expect(await objections('lib/errors.ts', importing('./index.js'))).toHaveLength(1);
  });

  it('knows every folder of lib/', () => {
    const folders = fs
      .readdirSync(`${root}lib`, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name);
    expect(rooms).toEqual(expect.arrayContaining(folders));
  });
});

describe('every way to import', () => {
  it.each([
    ['import', `import { x } from '../save/b.js'; x();`],
    ['import for its effect', `import '../save/b.js';`],
    ['type import', `import type { X } from '../save/b.js'; export type Y = X;`],
    ['export', `export { x } from '../save/b.js';`],
    ['export all', `export * from '../save/b.js';`],
    ['import()', `await import('../save/b.js');`],
    ['import type()', `export type X = import('../save/b.js').X;`],
    ['a room itself', `import { x } from '../save'; x();`],
    ['a roundabout path', `import { x } from './../save/b.js'; x();`],
    ['a very roundabout path', `import { x } from '../host/../save/b.js'; x();`],
  ])('is seen: %s', async (_, text) => {
    expect((await objections('lib/stream/a.ts', text)).length).toBeGreaterThan(0);
  });

  it('is not mistaken where only the name is alike', async () => {
    expect(await objections('lib/stream/libxc/a.ts', importing('../save/b.js'))).toEqual([]);
    expect(await objections('lib/stream/a.ts', importing('./save.js'))).toEqual([]);
    expect(await objections('lib/stream/a.ts', importing('../bytes/save.js'))).toEqual([]);
  });
});

describe('what lies outside', () => {
  it.each(['../../test/a.js', '../../scripts/rooms.js', '../../bench/run.mjs', '../../package.json'])(
    'lib/ does not import %s',
    async (specifier) => {
      expect(await objections('lib/migrate/a.ts', importing(specifier))).toHaveLength(1);
      expect(await objections('lib/migrate/deep/a.ts', importing(`../${specifier}`))).toHaveLength(1);
      expect(await objections('lib/index.ts', importing(specifier.slice(3)))).toHaveLength(1);
    },
  );

  it('lib/ imports no package and no unprefixed module of Node', async () => {
    for (const specifier of [
      'bindings',
      'ws',
      '@scope/name',
      'fs',
      'xen-migration',
      'xen-migration/stream',
      '/etc/a.js',
    ]) {
      expect(await objections('lib/transport/a.ts', importing(specifier)), specifier).toHaveLength(1);
    }
    expect(await objections('lib/transport/a.ts', importing('node:fs'))).toEqual([]);
  });

  it('the addon loader imports `bindings`, and nothing else does', async () => {
    expect(await objections('lib/host/xen/addon.ts', importing('bindings'))).toEqual([]);
    expect(await objections('lib/host/xen/addon.ts', importing('ws'))).toHaveLength(1);
    expect(await objections('lib/host/a.ts', importing('bindings'))).toHaveLength(1);
    expect(await objections('lib/host/simulated/a.ts', importing('bindings'))).toHaveLength(1);
  });

  it('the two hosts do not know each other', async () => {
    expect(await objections('lib/host/simulated/a.ts', importing('../xen/addon.js'))).toHaveLength(1);
    expect(await objections('lib/host/simulated/guest/a.ts', importing('../../xen/addon.js'))).toHaveLength(
      1,
    );
    expect(await objections('lib/host/xen/a.ts', importing('../simulated/host.js'))).toHaveLength(1);
    expect(await objections('lib/host/simulated/guest/a.ts', importing('../../host.js'))).toEqual([]);
  });
});

describe('rooms without I/O', () => {
  it.each(pureRooms)('%s reaches nothing outside the process', async (room) => {
    for (const name of [
      'fs',
      'fs/promises',
      'net',
      'tls',
      'child_process',
      'worker_threads',
      'dgram',
      'http',
    ]) {
      expect(await objections(`lib/${room}/a.ts`, importing(`node:${name}`)), name).toHaveLength(1);
      expect(await objections(`lib/${room}/deep/a.ts`, importing(`node:${name}`)), name).toHaveLength(1);
    }
    expect(await objections(`lib/${room}/a.ts`, `await import('node:fs');`)).toHaveLength(1);
    expect(await objections(`lib/${room}/a.ts`, importing('node:util'))).toEqual([]);
  });

  it('stream knows the form of a source and a sink, not how they do it', async () => {
    expect(await objections('lib/stream/a.ts', importing(`../${formsOnly}`))).toEqual([]);
    expect(await objections('lib/stream/verify/a.ts', importing(`../../${formsOnly}`))).toEqual([]);
    for (const specifier of [
      'transport/file.js',
      'transport/index.js',
      'transport',
      'host/host.js',
      'toolstack/xl.js',
    ]) {
      expect(
        await objections('lib/stream/verify/a.ts', importing(`../../${specifier}`)),
        specifier,
      ).toHaveLength(1);
    }
  });
});
