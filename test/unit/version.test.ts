import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { SOFTWARE, VERSION } from '../../lib/version.js';

test('the version in the sources is the one of the package', () => {
  const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    name: string;
    version: string;
  };
  expect(VERSION).toBe(manifest.version);
  expect(SOFTWARE).toBe(`${manifest.name}/${manifest.version}`);
});
