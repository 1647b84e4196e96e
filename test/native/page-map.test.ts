/** The page map under every misuse that JavaScript can come up with. The assertions stand in scenarios.mjs. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { addonFile, expectPlayed } from './child.js';

describe('page map', () => {
  it('shows pages until it is released, and nothing afterwards', () => expectPlayed('views'));
  it('can be released before anybody has seen its pages', () => expectPlayed('release without buffer'));
  it('leaves a moved or copied buffer harmless', async () => {
    const moves = 'transfer' in ArrayBuffer.prototype;
    expect(await expectPlayed('moved')).toBe(moves ? 'moved\n' : 'copied\n');
  });
  it('maps and unmaps thousands of times without growing', () => expectPlayed('cycles'));
  it('refuses receivers of any other kind', () => expectPlayed('receivers'));
  it('can be subclassed', () => expectPlayed('subclass'));
  it('refuses bad arguments', () => expectPlayed('arguments'));
});

describe('garbage collection', () => {
  it('keeps the pages for a buffer whose map is gone', () => expectPlayed('wrapper collected first'));
  it('keeps the pages for a map whose buffer is gone', () => expectPlayed('buffer collected first'));
  it('returns what nobody released', () => expectPlayed('leaked'));
});

describe('worker threads', () => {
  it('may end with pages mapped', () => expectPlayed('workers end by themselves'));
  it('may be terminated with pages mapped', () => expectPlayed('workers are terminated'));
  it('may be terminated while they read and wait', () =>
    expectPlayed('workers are terminated in blocking calls'));
  it('may be terminated while they map and unmap', () => expectPlayed('workers are terminated while busy'));
  it('may be the only ones that load the addon', () => expectPlayed('addon only in workers'));
});

describe('addon', () => {
  it('exports what lib/host/xen/addon.ts declares', () => expectPlayed('surface'));

  // The sanitizer's own shadow memory does not fit under a limit.
  it.runIf(process.env['XEN_MIGRATION_TEST_ASAN'] !== '1')('turns a refused mapping into an error', () => {
    const scenarios = fileURLToPath(new URL('scenarios.mjs', import.meta.url));
    const command = `ulimit -v 67108864; exec "$@"`;
    const child = spawnSync(
      'bash',
      ['-c', command, 'bash', process.execPath, scenarios, addonFile, 'no memory'],
      {
        encoding: 'utf8',
      },
    );
    expect({ status: child.status, stderr: child.stderr }).toEqual({ status: 0, stderr: '' });
  });
});
