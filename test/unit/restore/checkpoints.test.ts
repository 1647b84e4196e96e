import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { PageType } from '../../../lib/abi/pages.js';
import { PeerError, StreamFormatError, TransportError, XenMigrationError } from '../../../lib/errors.js';
import { restore } from '../../../lib/restore/restore.js';
import { CheckpointSpool } from '../../../lib/transport/spool.js';
import type { RestoreOptions, RestoreResult } from '../../../lib/restore/types.js';
import { LibxcRecord } from '../../../lib/stream/index.js';
import { MemorySource } from '../../../lib/transport/index.js';
import { FAKE_DOMID, FakeHost } from './fake-host.js';
import * as S from './streams.js';

const context = (n: number): Uint8Array => new Uint8Array(32).fill(n);
const pageAt = (n: number): Uint8Array => S.pageOf(1000 + n);

/** libxc part of checkpoint n: page n is touched, page 1 counts checkpoints. */
const part = (n: number): Uint8Array =>
  S.join(
    S.pageData([
      { pfn: 1, bytes: pageAt(n) },
      { pfn: 20 + n, bytes: pageAt(n) },
    ]),
    S.tscRecord(),
    S.record(LibxcRecord.HVM_CONTEXT, context(n)),
    S.hvmParams(),
    S.CHECKPOINT,
  );

const start = S.join(S.headers('hvm'), S.policies(), S.STATIC_DATA_END, S.pageData(S.HVM_PAGES));

/** `count` checkpoints around xl's and libxl's records, and offsets where each is complete. */
function remus(count: number): { stream: Uint8Array; complete: number[] } {
  const complete: number[] = [];
  const whole = S.xl(new Uint8Array(0));
  let stream = S.join(whole.subarray(0, whole.length - S.LIBXL_END.length), start);
  for (let n = 1; n <= count; n++) {
    stream = S.join(stream, part(n), S.deviceModel(n), S.CHECKPOINT_END);
    complete.push(stream.length);
  }
  return { stream, complete };
}

function expectCheckpoint(host: FakeHost, result: RestoreResult, n: number): void {
  expect(result).toMatchObject({ checkpoints: n, failedOver: true });
  expect(host.domain.page(1)).toEqual(pageAt(n));
  for (let k = 1; k <= n; k++) expect(host.domain.page(20 + k)).toEqual(pageAt(k));
  expect(host.domain.page(20 + n + 1)).toBeUndefined();
  expect(host.domain.context).toEqual(context(n));
  expect(host.toolstack.deviceModel?.context).toEqual(new Uint8Array(40).fill(n));
  expect(host.running).toBe(true);
  expect(host.leaks()).toEqual([]);
}

const FAILOVER: RestoreOptions = { onTruncatedCheckpoint: 'failover' };

describe('a checkpointed stream', () => {
  it('that is cut off anywhere goes on from its last complete checkpoint, if the caller says so', async () => {
    const { stream, complete } = remus(3);
    // All lengths around the ends of checkpoints, and some between.
    const lengths = new Set<number>([stream.length]);
    for (const at of complete)
      for (let d = -24; d <= 24; d++) if (at + d <= stream.length) lengths.add(at + d);
    for (let at = complete[0]! - 3000; at < stream.length; at += 509) lengths.add(at);
    for (const length of lengths) {
      const n = complete.filter((at) => at <= length).length;
      const host = new FakeHost({ hvm: true });
      const job = restore(host, { from: stream.subarray(0, length), ...FAILOVER });
      if (n === 0) {
        await expect(job).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_TRUNCATED', offset: length });
        expect(host.destroyed).toBe(true);
      } else {
        expectCheckpoint(host, await job, n);
      }
    }
  });

  it('that is cut off is an error otherwise, which tells the way out', async () => {
    const { stream } = remus(2);
    const host = new FakeHost({ hvm: true });
    const error = await restore(host, { from: stream }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(StreamFormatError);
    expect((error as StreamFormatError).message).toMatch(
      /ends without its END record, after 2 complete checkpoints; onTruncatedCheckpoint: 'failover'/,
    );
    expect((error as StreamFormatError).offset).toBe(stream.length);
    expect(host.destroyed).toBe(true);
    expect(host.leaks()).toEqual([]);
  });

  it.each([new PeerError('ERR_XEN_PEER_LOST', 'gone'), new TransportError('reading: broken')])(
    'whose source fails with $name goes on, too',
    async (reason) => {
      const { stream } = remus(2);
      const source = new MemorySource(stream.subarray(0, -100));
      source.wait = async () => {
        if (source.position < stream.length - 100) return true;
        throw reason;
      };
      const host = new FakeHost({ hvm: true });
      expectCheckpoint(host, await restore(host, { from: source, ...FAILOVER }), 1);
    },
  );

  it('whose bytes are wrong is an error: its sender may still run the guest', async () => {
    const { stream, complete } = remus(2);
    const bad = stream.slice();
    bad[complete[0]! + 16 + 7] = 0x50;
    const host = new FakeHost({ hvm: true });
    await expect(restore(host, { from: bad, ...FAILOVER })).rejects.toMatchObject({
      code: 'ERR_XEN_STREAM_PAGE_TYPE',
    });
    expect(host.destroyed).toBe(true);
  });

  it('whose checkpoint cannot be applied is an error at its place in the stream', async () => {
    const { stream, complete } = remus(1);
    const bad = S.join(
      stream,
      S.pageData([{ pfn: 1 }, { pfn: 2 ** 45, type: PageType.XTAB }]),
      S.CHECKPOINT,
      S.CHECKPOINT_END,
    );
    const host = new FakeHost({ hvm: true });
    await expect(restore(host, { from: bad, ...FAILOVER })).rejects.toMatchObject({
      code: 'ERR_XEN_STREAM_FIELD',
      path: 'pfns[1].pfn',
      offset: complete[0]! + 8 + 8 + 8,
    });
    expect(host.destroyed).toBe(true);
  });

  it('that ends with END right after a checkpoint is restored to it', async () => {
    const { stream } = remus(2);
    const host = new FakeHost({ hvm: true });
    const result = await restore(host, { from: S.join(stream, S.END, S.LIBXL_END) });
    expect(result).toMatchObject({ checkpoints: 2, failedOver: false });
    expect(host.domain.page(1)).toEqual(pageAt(2));
    expect(host.toolstack.deviceModel?.context).toEqual(new Uint8Array(40).fill(2));
  });

  it('that ends with END elsewhere stays at the checkpoint before, its devices too', async () => {
    const { stream } = remus(2);
    const tail = S.join(S.pageData([{ pfn: 1, bytes: S.pageOf(5) }]), S.END, S.deviceModel(99), S.LIBXL_END);
    const host = new FakeHost({ hvm: true });
    const result = await restore(host, { from: S.join(stream, tail) });
    expect(result).toMatchObject({ checkpoints: 2, failedOver: false });
    expect(host.domain.page(1)).toEqual(pageAt(2));
    expect(host.toolstack.deviceModel?.context).toEqual(new Uint8Array(40).fill(2));
  });

  it('that is cut off between both END records is an error', async () => {
    const { stream } = remus(2);
    const host = new FakeHost({ hvm: true });
    await expect(restore(host, { from: S.join(stream, S.END), ...FAILOVER })).rejects.toMatchObject({
      code: 'ERR_XEN_STREAM_TRUNCATED',
    });
    expect(host.destroyed).toBe(true);
  });

  it('may be libxc alone: a checkpoint is complete with its CHECKPOINT record', async () => {
    const bare = S.join(start, part(1), part(2), part(3));
    for (const [length, n] of [
      [bare.length, 3],
      [bare.length - 1, 2],
      [start.length + part(1).length, 1],
    ] as const) {
      const host = new FakeHost({ hvm: true });
      const result = await restore(host, { from: bare.subarray(0, length), domid: FAKE_DOMID, ...FAILOVER });
      expect(result).toMatchObject({ checkpoints: n, failedOver: true });
      expect(host.domain.page(1)).toEqual(pageAt(n));
      expect(host.domain.context).toEqual(context(n));
    }
  });

  it('of a PV guest pins and writes its tables once, at the end', async () => {
    const first = S.join(
      S.headers('pv'),
      S.pvInfo(8),
      S.policies(),
      S.STATIC_DATA_END,
      S.p2mFrames(),
      S.pageData(S.pvPages(8)),
      S.pvState(8),
      S.CHECKPOINT,
    );
    const second = S.join(
      S.pageData([
        { pfn: 7, type: PageType.L1TAB, bytes: S.table([[3, 14]]) },
        { pfn: 0, bytes: S.pageOf(55) },
      ]),
      S.pvState(8),
      S.CHECKPOINT,
    );
    const host = new FakeHost({ hvm: false });
    await restore(host, { from: S.join(first, second, second), domid: FAKE_DOMID, ...FAILOVER });
    const { domain, calls } = host;
    expect(domain.page(0)).toEqual(S.pageOf(55));
    expect(calls.filter((name) => name === 'pinTables')).toHaveLength(1);
    expect([...domain.pinned.values()]).toEqual([4]);
    expect(domain.mfnOf.has(14)).toBe(true);
  });

  it('without end fills no disk', async () => {
    const { stream } = remus(1);
    // maxPages 4: the limit is 1 GiB and a little.
    const page = S.pageData(S.plainPages(0, 1024).map(() => ({ pfn: 1, bytes: S.pageOf(1) })));
    const source = new MemorySource(stream);
    let rest: Uint8Array = stream;
    source.take = (max) => {
      if (rest.length === 0) rest = page;
      const view = rest.subarray(0, max);
      rest = rest.subarray(view.length);
      return view;
    };
    const directory = await mkdtemp(join(tmpdir(), 'xen-migration-test-'));
    try {
      const host = new FakeHost({ hvm: true, maxPages: 64 });
      const job = restore(host, { from: source, ...FAILOVER, spoolDirectory: directory });
      await expect(job).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_LIMIT' });
      expect(host.leaks()).toEqual([]);
    } finally {
      await rm(directory, { recursive: true });
    }
  });

  it('fails if its spool cannot be made', async () => {
    const { stream } = remus(1);
    const pages = Array.from({ length: 20 }, () => S.pageData(S.plainPages(0, 256).map(() => ({ pfn: 1 }))));
    const host = new FakeHost({ hvm: true });
    const job = restore(host, {
      from: S.join(stream, ...pages),
      ...FAILOVER,
      spoolDirectory: '/nonexistent/directory',
    });
    const error = await job.catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(TransportError);
    expect((error as XenMigrationError).message).toMatch(/keeping a checkpoint in \/nonexistent\/directory/);
    expect(host.destroyed).toBe(true);
  });
});

describe('CheckpointSpool', () => {
  let directory: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'xen-migration-test-'));
  });
  afterAll(async () => {
    await rm(directory, { recursive: true });
  });

  it.each([0, 1, 1 << 20, (16 << 20) - 1, 16 << 20, (40 << 20) + 12_345])(
    'gives back %d bytes in order, twice',
    async (size) => {
      const spool = new CheckpointSpool({ limit: 64 << 20, directory });
      for (const round of [1, 2]) {
        const bytes = new Uint8Array(size);
        for (let i = 0; i < size; i += 511) bytes[i] = (i >> 7) * round;
        let step = 1;
        for (let at = 0; at < size;) {
          const n = Math.min(size - at, step);
          await spool.append(bytes.subarray(at, at + n), at);
          at += n;
          step = (step * 7) % 1_500_007;
        }
        expect(spool.size).toBe(size);
        let at = 0;
        await spool.drain(async (piece) => {
          expect(Buffer.compare(piece, bytes.subarray(at, at + piece.length))).toBe(0);
          at += piece.length;
        });
        expect(at).toBe(size);
        expect(spool.size).toBe(0);
      }
      // What is in a file has no name.
      expect(await readdir(directory)).toEqual([]);
      await spool.close();
    },
  );

  it('takes up to its limit', async () => {
    const spool = new CheckpointSpool({ limit: 100, directory });
    await spool.append(new Uint8Array(100), 0);
    expect(() => spool.append(new Uint8Array(1), 4711)).toThrow(/more than 100 bytes.*offset 4711/);
    await spool.clear();
    await spool.append(new Uint8Array(100), 0);
    await spool.close();
  });
});
