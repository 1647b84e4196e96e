/** The reference says what the code does: no code, number or limit is missing there, and none is invented. */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { ExitCode } from '../../../lib/cli/command.js';
import { commands } from '../../../lib/cli/commands.js';
import { FrameType, MAGIC, MAX_BODY, PROTOCOL_VERSIONS } from '../../../lib/migrate/frames.js';
import { fullTimeouts } from '../../../lib/migrate/limits.js';
import { SyncPoint } from '../../../lib/migrate/session.js';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const read = (file: string): string => fs.readFileSync(path.join(root, file), 'utf8');

function sources(): string[] {
  return fs
    .readdirSync(path.join(root, 'lib'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .map((file) => read(`lib/${file}`));
}

const codesIn = (text: string, pattern: RegExp): string[] =>
  Array.from(text.matchAll(pattern), (m) => String(m[1]));

test('errors.md lists exactly the codes of the library', () => {
  const used = new Set(sources().flatMap((text) => codesIn(text, /'(ERR_XEN_[A-Z0-9_]+)'/g)));
  const listed = codesIn(read('docs/reference/errors.md'), /^\| `(ERR_XEN_[A-Z0-9_]+)`/gm);
  expect(listed.sort()).toEqual([...used].sort());
});

test('exit-codes.md lists exactly the exit codes', () => {
  const listed = codesIn(read('docs/reference/exit-codes.md'), /^\| (\d+) \|/gm).map(Number);
  expect(listed).toEqual(Object.values(ExitCode));
});

test('handshake.md has the numbers of the protocol', () => {
  const text = read('docs/reference/handshake.md');
  for (const [name, type] of Object.entries(FrameType)) expect(text).toContain(`| ${type} | ${name} |`);
  for (const [name, point] of Object.entries(SyncPoint)) expect(text).toContain(`| ${point} ${name} |`);
  expect(text).toContain(`at most ${MAX_BODY}`);
  expect(text).toContain(
    Buffer.from(MAGIC)
      .toString('hex')
      .toUpperCase()
      .replace(/..(?!$)/g, '$& '),
  );
  expect(text).toContain(
    `highest version of the protocol that the speaker speaks: ${PROTOCOL_VERSIONS.highest}`,
  );
});

test('handshake.md has the default time limits', () => {
  const rows = read('docs/reference/handshake.md').split('\n');
  const [sender, receiver] = [fullTimeouts('sender'), fullTimeouts('receiver')];
  for (const name of Object.keys(sender) as (keyof typeof sender)[]) {
    const cells =
      rows
        .find((row) => row.startsWith(`| \`${name}\``))
        ?.split('|')
        .slice(3, 5) ?? [];
    const numbers = cells.map((cell) => Number(/^ (Infinity|[\d ]+\d)/.exec(cell)?.[1]?.replaceAll(' ', '')));
    if (name === 'releaseMs') expect(numbers[1]).toBe(receiver[name]);
    else expect(numbers, name).toEqual([sender[name], receiver[name]]);
  }
});

test('cli.md names every command', () => {
  const text = read('docs/guide/cli.md');
  for (const { name } of commands) expect(text).toMatch(new RegExp(`^\\| \`${name}[ \`]`, 'm'));
});
