/** The client of QEMU's monitor against a real QEMU, without a guest. */
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DeviceModelError, TimeoutError } from '../../lib/errors.js';
import { openQmp, type QmpClient, type QmpEvent } from '../../lib/toolstack/qmp/index.js';

const qemu = (process.env['PATH'] ?? '')
  .split(':')
  .map((folder) => join(folder, 'qemu-system-x86_64'))
  .find((file) => existsSync(file));

if (qemu === undefined) process.stderr.write('not compared with QEMU: qemu-system-x86 is not installed\n');

/** Magic and version that QEMU's device state begins with. */
const QEMU_VM_FILE = [0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3];

describe.skipIf(qemu === undefined)('QEMU', () => {
  let dir: string;
  let path: string;
  let child: ChildProcess;
  let client: QmpClient;
  const events: QmpEvent[] = [];

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'qemu-'));
    path = join(dir, 'qmp');
    const args = ['-machine', 'none', '-nodefaults', '-display', 'none', '-S'];
    child = spawn(qemu as string, [...args, '-qmp', `unix:${path},server=on,wait=off`], { stdio: 'inherit' });
    client = await openQmp(path, { starting: true, onEvent: (event) => events.push(event) });
  });
  afterAll(async () => {
    client.close();
    if (child.exitCode === null) {
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await ended;
    }
    await rm(dir, { recursive: true, force: true });
  });

  it('tells its version', async () => {
    expect(await client.queryVersion()).toEqual(client.version);
    expect(client.version.major).toBeGreaterThanOrEqual(5);
  });

  it('goes on and stops, any number of times, and tells of it', async () => {
    expect(await client.queryStatus()).toMatchObject({ running: false });
    await client.cont();
    await client.cont();
    expect(await client.queryStatus()).toEqual({ running: true, status: 'running' });
    await client.stop();
    await client.stop();
    expect(await client.queryStatus()).toEqual({ running: false, status: 'paused' });
    expect(events.map(({ name }) => name)).toEqual(['RESUME', 'STOP']);
  });

  it('turns its log-dirty on and off', async () => {
    await client.setGlobalDirtyLog(true);
    await client.setGlobalDirtyLog(false);
  });

  it('saves the state of its devices into a file that it opens itself', async () => {
    const file = join(dir, 'state');
    // A file that is there keeps its mode, and is truncated.
    await writeFile(file, new Uint8Array(100_000), { mode: 0o600 });
    for (const live of [false, true]) {
      await client.saveDevicesState(file, live);
      const state = await readFile(file);
      expect([...state.subarray(0, 8)]).toEqual(QEMU_VM_FILE);
      expect(state.length).toBeLessThan(10_000);
      expect((await stat(file)).mode & 0o777).toBe(0o600);
    }
  });

  it('refuses a file that it cannot open', async () => {
    const refused = client.saveDevicesState(join(dir, 'none/state'), false);
    await expect(refused).rejects.toThrow(DeviceModelError);
    await expect(refused).rejects.toMatchObject({
      command: 'xen-save-devices-state',
      errorClass: 'GenericError',
    });
  });

  it('refuses what it does not know', async () => {
    await expect(client.execute('no-such-command')).rejects.toMatchObject({ errorClass: 'CommandNotFound' });
    await expect(client.execute('stop', { unknown: 1 })).rejects.toMatchObject({
      errorClass: 'GenericError',
    });
    await client.queryStatus();
  });

  it('serves one client at a time', async () => {
    await expect(openQmp(path, { timeoutMs: 100 })).rejects.toThrow(TimeoutError);
    const [second, third, fourth] = [openQmp(path), openQmp(path), openQmp(path)];
    expect(await client.queryStatus()).toMatchObject({ running: false });
    client.close();
    // The queue of connections is short, so they come in any order.
    for (const opening of [second, third, fourth]) {
      void opening.then(async (one) => {
        await one.queryStatus();
        one.close();
      });
    }
    await Promise.all([second, third, fourth]);
    client = await openQmp(path);
  });

  it('gone, ends what is under way', async () => {
    const lost = client.execute('quit').then(() => client.execute('query-status'));
    await expect(lost).rejects.toMatchObject({ code: 'ERR_XEN_DEVICE_MODEL', errorClass: undefined });
  });
});
