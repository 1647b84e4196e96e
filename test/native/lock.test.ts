/** The addon's record lock, between two processes. */
import { once } from 'node:events';
import { spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadAddon } from '../../lib/host/xen/addon.js';

/** What libxc does, in a language that has fcntl. Says what happened, and holds the lock until its input ends. */
const OTHER = `
import fcntl, sys
f = open(sys.argv[1], 'r+')
try:
    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    print('locked', flush=True)
except OSError as e:
    print('refused', flush=True)
sys.stdin.read()
`;

let dir: string;
let path: string;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'lock-'));
  path = join(dir, 'file');
});

afterEach(() => rmSync(dir, { recursive: true }));

async function other(): Promise<{ said: string; end: () => Promise<void> }> {
  const child = spawn('python3', ['-c', OTHER, path], { stdio: ['pipe', 'pipe', 'inherit'] });
  const [said] = (await once(child.stdout, 'data')) as [Buffer];
  return {
    said: said.toString().trim(),
    end: async () => {
      child.stdin.end();
      await once(child, 'exit');
    },
  };
}

describe('lockFile', () => {
  it('keeps another process out until the file is closed', async () => {
    const fd = openSync(path, 'a+');
    loadAddon().lockFile(fd);
    const first = await other();
    expect(first.said).toBe('refused');
    await first.end();
    closeSync(fd);
    const second = await other();
    expect(second.said).toBe('locked');
    await second.end();
  });

  it('is kept out by another process, and does not wait', async () => {
    const fd = openSync(path, 'a+');
    const holder = await other();
    expect(holder.said).toBe('locked');
    expect(() => loadAddon().lockFile(fd)).toThrow(
      expect.objectContaining({ syscall: 'fcntl', errno: 11, code: 'EAGAIN' }) as Error,
    );
    await holder.end();
    loadAddon().lockFile(fd);
    closeSync(fd);
  });

  it('refuses what is no descriptor', () => {
    expect(() => loadAddon().lockFile(-1)).toThrow(RangeError);
    expect(() => loadAddon().lockFile(1 << 20)).toThrow(expect.objectContaining({ code: 'EBADF' }) as Error);
  });
});
