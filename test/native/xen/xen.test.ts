/** The classes Xen and Evtchn with a stand-in for the Xen libraries: threads, memory, arguments, errors, ends. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadAddon } from '../../../lib/host/xen/addon.js';
import { playFile, succeeded } from '../child.js';

const here = fileURLToPath(new URL('.', import.meta.url));
let folder: string;
let fake: string;

async function expectPlayed(name: string, env: NodeJS.ProcessEnv = {}): Promise<string> {
  return succeeded(await playFile(`${here}scenarios.mjs`, [name], [fake], env), name);
}

// Built without Xen there is nothing to test: loader.test.ts tests that this is told.
describe.runIf(loadAddon().build.haveXen)('Xen', () => {
  beforeAll(() => {
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'xen-migration-fake-'));
    fake = path.join(folder, 'fake-xen.so');
    const flags = ['-shared', '-fPIC', '-O1', '-Wall', '-Wextra', '-Werror'];
    execFileSync('gcc', [...flags, '-o', fake, `${here}fake-xen.c`]);
  });
  afterAll(() => {
    fs.rmSync(folder, { recursive: true, force: true });
  });

  it('tells what Xen tells', () => expectPlayed('information'));
  it('refuses bad arguments before anything is done', () => expectPlayed('arguments'));
  it('refuses receivers of any other kind', () => expectPlayed('receivers'));

  describe('the hypervisor', () => {
    it('tells its version and what it can do', () => expectPlayed('hypervisor'));
    it('tells its version although it refuses', () =>
      expectPlayed('hypervisor that refuses', { FAKE_XEN_ERRNO: '13' }));
    it('is told apart from one that may not be asked', () =>
      expectPlayed('no permission', { FAKE_XEN_CLOSED: '1' }));
  });

  describe('errors and messages', () => {
    it('has errno and the words of that very call', () => expectPlayed('errors'));
    it('hands on all levels if asked to', () => expectPlayed('all levels'));
    it('survives a log callback that throws', () => expectPlayed('log callback throws'));
  });

  describe('memory', () => {
    it('asks for page types in steps', () => expectPlayed('page types'));
    it('maps frames', () => expectPlayed('mapping'));
    it('puts zero pages where frames are missing', () => expectPlayed('mapping with holes'));
    it('copes with frames that vanish while being mapped', () => expectPlayed('mapping frames that vanish'));
    it('unmaps what nobody looked at', () => expectPlayed('nobody looks at what was mapped'));
    it('does not run out of mappings', async () => {
      expect(Number(await expectPlayed('many batches'))).toBeGreaterThan(0);
    });
    it('populates as much as there is', () => expectPlayed('populate'));
    it('reads the dirty bitmap', () => expectPlayed('log dirty'));
    it('writes nothing into buffers that are gone', () => expectPlayed('buffers that go'));
  });

  describe('on the thread of JavaScript', () => {
    const inline = { FAKE_XEN_INLINE: '1' };
    it('makes calls before they return, and lets others have their turn', () =>
      expectPlayed('inline', inline));
    it.each([
      'information',
      'errors',
      'all levels',
      'log callback throws',
      'arguments',
      'page types',
      'mapping',
      'mapping with holes',
      'many batches',
      'populate',
      'log dirty',
      'nobody closes',
      'workers are terminated with calls in flight',
    ])('does the same as on the pool: %s', async (name) => {
      await expectPlayed(name, inline);
    });
  });

  describe('ends', () => {
    it('closes when the last call has ended', () => expectPlayed('close with calls in flight'));
    it('closes what nobody closed', () => expectPlayed('nobody closes'));
    it('lets the process end with calls in flight', () => expectPlayed('process ends with calls in flight'));
    it('lets workers be terminated with calls in flight', () =>
      expectPlayed('workers are terminated with calls in flight'));
  });
});
