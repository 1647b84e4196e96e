import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { UsageError, type XenMigrationError } from '../../../lib/errors.js';
import { save, startSave } from '../../../lib/save/save.js';
import type { SaveOptions } from '../../../lib/save/types.js';
import { MemorySink } from '../../../lib/transport/memory.js';
import { DOMID, FakeWorld } from './fake.js';
import { parse } from './run.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'xen-migration-job-'));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

async function caught(promise: Promise<unknown>): Promise<XenMigrationError> {
  return promise.then(
    () => {
      throw new Error('did not fail');
    },
    (error: unknown) => error as XenMigrationError,
  );
}

const base = { domid: DOMID, live: false } as const;

describe('startSave', () => {
  it('writes to a file, xl’s format unless told otherwise', async () => {
    const world = new FakeWorld({ kind: 'hvm' });
    const path = join(folder, 'guest.save');
    const job = startSave(world.host, { ...base, to: path });
    expect(job.status).toMatchObject({ operation: 'save', state: 'active', domid: DOMID });
    const result = await job.result;
    expect((await stat(path)).size).toBe(result.bytes);
    const { names } = await parse(await readFile(path));
    expect(names[0]).toBe('xl-header');
    expect(job.status).toMatchObject({ state: 'completed', phase: 'done', transferred: result.bytes });
    // All too late.
    job.cancel();
    job.switchover();
    expect(job.status.state).toBe('completed');
  });

  it('writes to a stream and to a sink', async () => {
    const pieces: Buffer[] = [];
    const stream = new PassThrough();
    stream.on('data', (piece: Buffer) => pieces.push(piece));
    await save(new FakeWorld().host, { ...base, format: 'libxl', to: stream });
    expect((await parse(Buffer.concat(pieces))).names[0]).toBe('libxl-header');
    const sink = new MemorySink();
    await save(new FakeWorld().host, { ...base, format: 'libxc', to: sink });
    expect((await parse(sink.bytes)).names[0]).toBe('image-header');
    expect(sink.ended).toBe(true);
  });

  it('does not touch the guest if the file cannot be opened', async () => {
    const world = new FakeWorld();
    const error = await caught(startSave(world.host, { ...base, to: join(folder, 'no/such/folder') }).result);
    expect(error).toMatchObject({
      code: 'ERR_XEN_TRANSPORT',
      domid: DOMID,
      phase: 'setup',
      guest: { host: 'source', state: 'running' },
    });
    expect(world.calls.filter((call) => call !== 'host.openDomain' && call !== 'info')).toEqual([]);
    expect(world.openDomains).toBe(0);
  });

  it('does nothing if its signal is aborted already', async () => {
    const world = new FakeWorld();
    const sink = new MemorySink();
    const signal = AbortSignal.abort(new Error('changed my mind'));
    const error = await caught(save(world.host, { ...base, to: sink, signal }));
    expect(error).toMatchObject({
      code: 'ERR_XEN_CANCELLED',
      cause: { message: 'changed my mind' },
      guest: { host: 'source', state: 'running' },
    });
    expect(sink.bytesWritten).toBe(0);
    expect(world.calls).not.toContain('toolstack.suspend');
  });

  it('takes new limits while it runs, and refuses those that cannot be', async () => {
    const world = new FakeWorld({
      kind: 'pvh',
      pages: 100,
      dirty: [Array.from({ length: 80 }, (_, i) => i)],
    });
    const job = startSave(world.host, { domid: DOMID, to: new MemorySink(), maxIterations: 50 });
    expect(() => job.update({ maxIterations: -1 })).toThrow(UsageError);
    job.update({ maxIterations: 2 });
    expect((await job.result).iterations).toHaveLength(3);
  });

  it('is cancelled by its job', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 3000 });
    const sink = new MemorySink();
    const job = startSave(world.host, { domid: DOMID, to: sink });
    world.before = (call) => {
      if (call === 'mapFrames') job.cancel('by hand');
    };
    expect(await caught(job.result)).toMatchObject({ code: 'ERR_XEN_CANCELLED', cause: 'by hand' });
    expect(job.status.state).toBe('cancelled');
    await expect(sink.write([new Uint8Array(1)])).rejects.toMatchObject({ code: 'ERR_XEN_CANCELLED' });
  });

  it('says what became of a file without room', async () => {
    const world = new FakeWorld({ kind: 'pvh', pages: 3000 });
    const error = await caught(save(world.host, { ...base, to: new MemorySink({ limit: 5_000_000 }) }));
    expect(error).toMatchObject({ code: 'ERR_XEN_TRANSPORT', guest: { host: 'source', state: 'running' } });
    expect(world.openMappings).toBe(0);
  });

  it.each<Partial<Record<keyof SaveOptions, unknown>>>([
    { domid: -1 },
    { domid: 1.5 },
    { domid: '3' },
    { format: 'v2' },
    { afterwards: 'keep' },
    { suspendTimeoutMs: 0 },
    { suspendTimeoutMs: Infinity },
    { maxIterations: 0 },
  ])('throws at once for %o', (wrong) => {
    const world = new FakeWorld();
    const options = { ...base, to: new MemorySink(), ...wrong } as Parameters<typeof startSave>[1];
    expect(() => startSave(world.host, options)).toThrow(UsageError);
    expect(world.calls).toEqual([]);
  });

  it('refuses a configuration that the header cannot hold', async () => {
    const world = new FakeWorld();
    const error = await caught(save(world.host, { ...base, to: new MemorySink(), config: '{}\0' }));
    expect(error).toMatchObject({ name: 'UsageError', guest: { host: 'source', state: 'running' } });
  });

  it('does not let a device model’s strings make a stream that nobody takes', async () => {
    const world = new FakeWorld({ kind: 'hvm' });
    world.deviceModel = {
      emulator: 2,
      xenstore: new TextEncoder().encode('key\0no end'),
      context: new Uint8Array(4),
    };
    const error = await caught(save(world.host, { ...base, to: new MemorySink() }));
    expect(error).toMatchObject({ name: 'StreamFormatError', guest: { host: 'source', state: 'running' } });
  });
});
