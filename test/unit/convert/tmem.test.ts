/** What a conversion does with tmem sections: images of the tests' writer, read by the reader, taken by the keeper. */

import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { TmemKeeper, type TmemChoice, type TmemSummary } from '../../../lib/convert/tmem.js';
import { CancelledError, StreamFormatError, TransportError, UsageError } from '../../../lib/errors.js';
import { LegacyReader } from '../../../lib/stream/legacy/reader.js';
import type { LegacyTmemEvent } from '../../../lib/stream/legacy/events.js';
import * as openings from '../../../lib/transport/open.js';
import { imageNamed } from '../../legacy/images.js';
import * as W from '../../legacy/writer.js';
import { openFds } from '../transport/helpers.js';
import { concat } from '../stream/helpers.js';

/** A piece of the name of a file whose disk is full. */
const full = vi.hoisted(() => ({ name: undefined as string | undefined }));

vi.mock('../../../lib/transport/open.js', async (original) => {
  const real = await original<typeof openings>();
  const openSink: typeof real.openSink = async (to, options) => {
    const sink = await real.openSink(to, options);
    if (full.name === undefined || typeof to !== 'string' || !to.includes(full.name)) return sink;
    await sink.end();
    return real.openSink('/dev/full');
  };
  return { ...real, openSink };
});

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'xen-migration-tmem-'));
});

afterEach(async () => {
  full.name = undefined;
  await rm(folder, { recursive: true, force: true });
});

const PAGES = [W.tmemPage(7, 0), W.tmemPage(7, 1), W.tmemPage(9, 44)] as const;
const [FIRST, , LAST] = PAGES;
const contentsOf = (pages: readonly W.TmemPage[]): Uint8Array =>
  concat(...pages.map(({ contents }) => contents));

/** The tmem events of a PV image with these chunks; what stands before them is read too. */
function eventsOf(...chunks: readonly W.Chunk[]): LegacyTmemEvent[] {
  const pages = W.pages(W.ram(0, 2));
  const body = [pages, ...chunks, W.tsc(), W.vcpuInfo(), W.lastCheckpoint];
  return read(W.joinPieces(W.legacyPieces({ guest: 'pv64', body })));
}

function read(image: Uint8Array): LegacyTmemEvent[] {
  const reader = new LegacyReader();
  const events: LegacyTmemEvent[] = [];
  for (let at = 0; at < image.length && !reader.done;) {
    const fed = image.subarray(at, at + reader.want);
    const event = reader.feed(fed);
    at += fed.length;
    if (event?.kind === 'legacy-tmem') events.push(event);
  }
  return events;
}

async function take(keeper: TmemKeeper, events: readonly LegacyTmemEvent[]): Promise<void> {
  for (const event of events) await keeper.take(event);
}

/** What a conversion does: all events, `end`; `abort` if either fails. */
async function keep(
  choice: TmemChoice | undefined,
  events: readonly LegacyTmemEvent[],
): Promise<TmemSummary | undefined> {
  const keeper = new TmemKeeper(choice);
  try {
    await take(keeper, events);
    return await keeper.end();
  } catch (error) {
    await keeper.abort();
    throw error;
  }
}

async function refusalOf(work: Promise<unknown>): Promise<StreamFormatError> {
  const error: unknown = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(StreamFormatError);
  return error as StreamFormatError;
}

const sectionOffset = (events: readonly LegacyTmemEvent[]): number =>
  events.find(({ part }) => part === 'section')!.offset;

const MIXED = [W.ephemeral(0), W.persistent(1, PAGES), W.ephemeral(2, W.TMEM_POOL.SHARED)];
const empty = (id: number): W.TmemPool => ({ ...W.persistent(id, []), declared: 0 });

async function lines(name: string, of = folder): Promise<unknown[]> {
  const text = await readFile(join(of, name), 'utf8');
  expect(text.endsWith('\n')).toBe(true);
  return text
    .slice(0, -1)
    .split('\n')
    .map((line) => JSON.parse(line) as unknown);
}

describe('refuse', () => {
  it('names every pool, its pages and bytes, and what would do', async () => {
    const events = eventsOf(W.tmem({ pools: [...MIXED, empty(5)] }));
    for (const choice of [undefined, 'refuse'] as const) {
      const error = await refusalOf(keep(choice, events));
      expect(error).toMatchObject({
        code: 'ERR_XEN_STREAM_TMEM',
        offset: sectionOffset(events),
        record: 'TMEM',
        reason:
          'the guest used tmem, which v2 streams cannot carry: pool 0 (ephemeral, a cache); ' +
          'pool 1 (persistent, 4 pages claimed, 3 there, 12288 bytes); pool 2 (ephemeral, shared, a cache); ' +
          'pool 5 (persistent, 0 pages claimed, 0 there, 0 bytes); ' +
          "the choice 'export' writes their pages to a folder, and the restored guest will not find them",
      });
    }
  });

  it('says so where dropping would do', async () => {
    for (const pools of [[W.ephemeral(3)], [empty(1)]]) {
      const { reason } = await refusalOf(keep('refuse', eventsOf(W.tmem({ pools }))));
      expect(reason).toContain("the choice 'drop-ephemeral' leaves them out");
      expect(reason).not.toContain("'export'");
    }
  });

  it('comes at the end of the section, not before', async () => {
    const events = eventsOf(W.tmem({ pools: MIXED }));
    const keeper = new TmemKeeper();
    const last = events.findIndex(({ part }) => part === 'section-end');
    await take(keeper, events.slice(0, last));
    expect(() => keeper.take(events[last]!)).toThrow(StreamFormatError);
  });

  it.each(['refuse', 'drop-ephemeral', 'export'] as const)(
    'lets a section without pools pass: %s',
    async (name) => {
      const choice = name === 'export' ? { export: join(folder, 'none') } : name;
      const events = eventsOf(W.tmem({ clientFlags: 3, weight: -2, cap: 5 }), W.tmemExtra());
      expect(await keep(choice, events)).toEqual({
        sections: 1,
        offset: sectionOffset(events),
        version: 1,
        clientFlags: 3,
        weight: 0xffff_fffe,
        cap: 5,
        pools: [],
        dropped: 0,
        exported: undefined,
      });
      expect(await readdir(folder)).toEqual([]);
    },
  );

  it('has nothing to say of an image without a section', async () => {
    expect(await keep('refuse', eventsOf())).toBeUndefined();
    expect(await keep('refuse', eventsOf(W.tmemExtra()))).toBeUndefined();
  });
});

describe('drop-ephemeral', () => {
  it('drops ephemeral pools and empty persistent ones', async () => {
    const uuid = [0x0807_0605_0403_0201n, 0x100f_0e0d_0c0b_0a09n] as const;
    const shared = { ...W.ephemeral(2, W.TMEM_POOL.SHARED), uuid };
    const events = eventsOf(
      W.tmem({ pools: [{ ...W.ephemeral(0), uuid: [0n, 0n] }, shared, empty(4)] }),
      W.tmemExtra([{ pool: 2, object: [1n, 2n, 3n], index: 4 }]),
    );
    const summary = await keep('drop-ephemeral', events);
    expect(summary).toMatchObject({ sections: 1, dropped: 3, exported: undefined });
    const none = { pages: 0, pagesThere: 0, missing: 0, end: 'count', precompressed: false, pageSize: 4096 };
    expect(summary?.pools).toEqual([
      {
        ...none,
        poolId: 0,
        flags: 0x0100_0000,
        kind: 'ephemeral',
        shared: false,
        invalidated: 0,
        uuid: '00000000-0000-0000-0000-000000000000',
      },
      {
        ...none,
        poolId: 2,
        flags: 0x0100_0002,
        kind: 'ephemeral',
        shared: true,
        invalidated: 1,
        uuid: '01020304-0506-0708-090a-0b0c0d0e0f10',
      },
      expect.objectContaining({ ...none, poolId: 4, flags: 0x0100_0001, kind: 'persistent', shared: false }),
    ]);
    expect(structuredClone(summary)).toEqual(summary);
  });

  it('refuses persistent pools with pages, and names only those', async () => {
    const events = eventsOf(W.tmem({ pools: [...MIXED, empty(5)] }));
    const error = await refusalOf(keep('drop-ephemeral', events));
    expect(error).toMatchObject({ code: 'ERR_XEN_STREAM_TMEM', offset: sectionOffset(events) });
    expect(error.reason).toContain(
      'carry: pool 1 (persistent, 4 pages claimed, 3 there, 12288 bytes); the choice',
    );
    expect(error.reason).not.toContain('ephemeral');
  });

  it('refuses a pool that claims pages of which none came', async () => {
    const events = eventsOf(W.tmem({ pools: [{ ...W.persistent(1, []), declared: 1, terminated: false }] }));
    const { reason } = await refusalOf(keep('drop-ephemeral', events));
    expect(reason).toContain('1 pages claimed, 0 there, 0 bytes');
  });
});

describe('export', () => {
  const invalidated = [
    { pool: 1, object: FIRST.object, index: FIRST.index },
    { pool: 1, object: [0xffff_ffff_ffff_ffffn, 0n, 1n], index: 0xffff_ffff },
    { pool: 0, object: [5n, 6n, 7n], index: 8 },
  ] as const;

  it('writes the pages, where each belongs, what was taken back and what is missing', async () => {
    const target = join(folder, 'deep', 'export');
    const large = W.tmemPage(1, 2, 65_536);
    const pools = [...MIXED, W.persistent(6, [large], W.TMEM_POOL.PRECOMPRESSED, 4), empty(9)];
    const events = eventsOf(W.tmem({ pools, clientFlags: 1, weight: 7 }), W.tmemExtra(invalidated));
    const summary = await keep({ export: target }, events);
    expect(summary).toMatchObject({ dropped: 3, exported: target });
    expect(
      summary?.pools.map(({ poolId, pages, pagesThere, missing, invalidated: gone, end }) => ({
        poolId,
        pages,
        pagesThere,
        missing,
        gone,
        end,
      })),
    ).toEqual([
      { poolId: 0, pages: 0, pagesThere: 0, missing: 0, gone: 1, end: 'count' },
      { poolId: 1, pages: 4, pagesThere: 3, missing: 1, gone: 2, end: 'terminator' },
      { poolId: 2, pages: 0, pagesThere: 0, missing: 0, gone: 0, end: 'count' },
      { poolId: 6, pages: 2, pagesThere: 1, missing: 1, gone: 0, end: 'terminator' },
      { poolId: 9, pages: 0, pagesThere: 0, missing: 0, gone: 0, end: 'count' },
    ]);

    expect((await readdir(target)).sort()).toEqual([
      'invalidated.jsonl',
      'pool-1.jsonl',
      'pool-1.pages',
      'pool-6.jsonl',
      'pool-6.pages',
      'tmem.json',
    ]);
    expect(await readFile(join(target, 'pool-1.pages'))).toEqual(Buffer.from(contentsOf(PAGES)));
    expect(await readFile(join(target, 'pool-6.pages'))).toEqual(Buffer.from(large.contents));
    expect(await lines('pool-1.jsonl', target)).toEqual([
      { page: 0, oid: ['0x7', '0x55', '0x0'], index: 0 },
      { page: 1, oid: ['0x7', '0x55', '0x0'], index: 1 },
      { page: 2, oid: ['0x9', '0x55', '0x0'], index: 44 },
    ]);
    expect(await lines('pool-6.jsonl', target)).toEqual([{ page: 0, oid: ['0x1', '0x55', '0x0'], index: 2 }]);
    expect(await lines('invalidated.jsonl', target)).toEqual([
      { pool: 1, oid: ['0x7', '0x55', '0x0'], index: 0 },
      { pool: 1, oid: ['0xffffffffffffffff', '0x0', '0x1'], index: 0xffff_ffff },
      { pool: 0, oid: ['0x5', '0x6', '0x7'], index: 8 },
    ]);
    const description = JSON.parse(await readFile(join(target, 'tmem.json'), 'utf8')) as object;
    const files = (n: number): object => ({ pages: `pool-${n}.pages`, index: `pool-${n}.jsonl` });
    expect(description).toEqual({
      format: 'xen-migration tmem export',
      version: 1,
      note: expect.stringContaining('the guest will not find these pages') as string,
      section: { offset: sectionOffset(events), version: 1, clientFlags: 1, weight: 7, cap: 0 },
      pools: summary!.pools.map((pool) => ({
        ...pool,
        files: [1, 6].includes(pool.poolId) ? files(pool.poolId) : null,
      })),
      invalidated: 'invalidated.jsonl',
    });
    // A guest's memory is for nobody else.
    expect((await stat(join(target, 'pool-1.pages'))).mode & 0o777).toBe(0o600);
    expect((await stat(target)).mode & 0o077).toBe(0);
  });

  it('has no file of invalidated pages where there are none', async () => {
    await keep({ export: folder }, eventsOf(W.tmem({ pools: [W.persistent(1, PAGES)] }), W.tmemExtra()));
    expect((await readdir(folder)).sort()).toEqual(['pool-1.jsonl', 'pool-1.pages', 'tmem.json']);
    expect(JSON.parse(await readFile(join(folder, 'tmem.json'), 'utf8'))).toMatchObject({
      invalidated: null,
    });
  });

  it('makes no folder where nothing is to be written', async () => {
    const target = join(folder, 'export');
    const summary = await keep({ export: target }, eventsOf(W.tmem({ pools: [W.ephemeral(0), empty(1)] })));
    expect(summary).toMatchObject({ dropped: 2, exported: undefined });
    expect(existsSync(target)).toBe(false);
  });

  it.each([
    ['tmem persistent, exact', { pages: 3, pagesThere: 3, missing: 0, end: 'count' }],
    ['tmem persistent, one page', { pages: 1, pagesThere: 0, missing: 1, end: 'terminator' }],
    [
      'tmem fault: pages missing before a pool',
      { pages: 5, pagesThere: 3, missing: 2, end: 'missing terminator' },
    ],
    [
      'tmem fault: pages missing at the end',
      { pages: 5, pagesThere: 3, missing: 2, end: 'missing terminator' },
    ],
    ['tmem persistent, 32-bit toolstack', { pages: 4, pagesThere: 3, missing: 1, end: 'terminator' }],
    ['tmem persistent, live', { pagesThere: 3, invalidated: 1 }],
  ])('says how the list of a pool ended: %s', async (name, expected) => {
    const summary = await keep({ export: folder }, read(imageNamed(name).bytes()));
    const pool = summary!.pools.find(({ kind }) => kind === 'persistent')!;
    expect(pool).toMatchObject(expected);
    const pages = await readFile(join(folder, `pool-${pool.poolId}.pages`));
    expect(pages).toEqual(Buffer.from(contentsOf(PAGES.slice(0, pool.pagesThere))));
  });

  it('leaves names to `end`', async () => {
    const keeper = new TmemKeeper({ export: folder });
    await take(keeper, eventsOf(W.tmem({ pools: MIXED }), W.tmemExtra(invalidated)));
    const before = await readdir(folder);
    expect(before).toHaveLength(3);
    for (const name of before) expect(name).toMatch(/^\..*\.[0-9a-f]{8}\.partial$/);
    await keeper.end();
    expect((await readdir(folder)).filter((name) => name.startsWith('.'))).toEqual([]);
  });

  it('writes as it goes: what it holds does not grow with the pages', async () => {
    const gone = W.tmemExtra([{ pool: 1, object: LAST.object, index: LAST.index }]);
    const shape = eventsOf(W.tmem({ pools: [W.persistent(1, [LAST])] }), gone);
    const page = shape.findIndex(({ part }) => part === 'page');
    const flush = shape.findIndex(({ part }) => part === 'flush');
    const keeper = new TmemKeeper({ export: folder });
    const written = async (name: string): Promise<number> => {
      const partial = (await readdir(folder)).find((there) => there.startsWith(name))!;
      return (await stat(join(folder, partial))).size;
    };
    await take(keeper, shape.slice(0, page));
    for (let n = 0; n < 4000; n++) await keeper.take(shape[page]!);
    expect(4000 * 4096 - (await written('.pool-1.pages'))).toBeLessThan(2 << 20);
    await take(keeper, shape.slice(page + 1, flush));
    for (let n = 0; n < 50_000; n++) await keeper.take(shape[flush]!);
    const line = '{"pool":1,"oid":["0x9","0x55","0x0"],"index":44}\n';
    expect(50_000 * line.length - (await written('.invalidated.jsonl'))).toBeLessThan(2 << 20);
    await keeper.abort();
  });
});

describe('a folder', () => {
  const events = (): LegacyTmemEvent[] => eventsOf(W.tmem({ pools: MIXED }));

  it.each(['tmem.json', 'pool-11.pages', 'pool-0.jsonl', 'invalidated.jsonl'])(
    'that holds a file of an export, %s, is refused and left as it is',
    async (name) => {
      await writeFile(join(folder, name), 'old');
      const work = keep({ export: folder }, events());
      await expect(work).rejects.toBeInstanceOf(UsageError);
      await expect(work).rejects.toThrow(join(folder, name));
      expect(await readdir(folder)).toEqual([name]);
      expect(await readFile(join(folder, name), 'utf8')).toBe('old');
    },
  );

  it('may hold other files', async () => {
    await writeFile(join(folder, 'pool.txt'), 'mine');
    await keep({ export: folder }, events());
    expect(await readFile(join(folder, 'pool.txt'), 'utf8')).toBe('mine');
  });

  it('is not overwritten by a file that appeared meanwhile, and no name is left', async () => {
    const keeper = new TmemKeeper({ export: folder });
    await take(keeper, events());
    await writeFile(join(folder, 'tmem.json'), 'other');
    await expect(keeper.end()).rejects.toBeInstanceOf(UsageError);
    await keeper.abort();
    expect(await readdir(folder)).toEqual(['tmem.json']);
    expect(await readFile(join(folder, 'tmem.json'), 'utf8')).toBe('other');
  });

  it('that cannot be made is a TransportError', async () => {
    await writeFile(join(folder, 'file'), '');
    for (const target of [join(folder, 'file'), join(folder, 'file', 'below')]) {
      const work = keep({ export: target }, events());
      await expect(work).rejects.toBeInstanceOf(TransportError);
      await expect(work).rejects.toThrow(target);
    }
    expect(await readdir(folder)).toEqual(['file']);
  });

  it.each(['pool-1.pages', 'pool-1.jsonl', 'invalidated.jsonl', 'tmem.json'])(
    'on a full disk is a TransportError, and nothing stays: %s',
    async (name) => {
      full.name = name;
      const fds = openFds();
      const target = join(folder, 'a', 'b');
      const gone = W.tmemExtra([{ pool: 1, object: [1n, 2n, 3n], index: 4 }]);
      const work = keep({ export: target }, eventsOf(W.tmem({ pools: MIXED }), gone));
      await expect(work).rejects.toMatchObject({ code: 'ERR_XEN_TRANSPORT', cause: { code: 'ENOSPC' } });
      expect(await readdir(folder)).toEqual([]);
      expect(openFds()).toBe(fds);
    },
  );
});

describe('abort', () => {
  const events = eventsOf(
    W.tmem({ pools: MIXED }),
    W.tmemExtra([{ pool: 1, object: FIRST.object, index: FIRST.index }]),
  );

  it('removes everything after any event, once or twice', async () => {
    const fds = openFds();
    for (let n = 0; n <= events.length; n++) {
      const keeper = new TmemKeeper({ export: join(folder, 'new', 'export') });
      await take(keeper, events.slice(0, n));
      await keeper.abort();
      await keeper.abort();
      expect(await readdir(folder)).toEqual([]);
      expect(openFds()).toBe(fds);
    }
  });

  it('while an event is being taken', async () => {
    const fds = openFds();
    const at = events.findIndex((event) => event.part === 'pool' && event.pool.persistent);
    const keeper = new TmemKeeper({ export: join(folder, 'export') });
    await take(keeper, events.slice(0, at));
    const taking = keeper.take(events[at]!);
    await keeper.abort();
    await taking;
    expect(await readdir(folder)).toEqual([]);
    expect(openFds()).toBe(fds);
  });

  it('also after `end`: a conversion that fails then leaves nothing', async () => {
    const keeper = new TmemKeeper({ export: join(folder, 'export') });
    await take(keeper, events);
    await keeper.end();
    expect(await readdir(join(folder, 'export'))).toHaveLength(4);
    await keeper.abort();
    expect(await readdir(folder)).toEqual([]);
  });

  it('leaves a folder that was there, and what others put into a new one', async () => {
    await mkdir(join(folder, 'old'));
    for (const name of ['old', 'new']) {
      const keeper = new TmemKeeper({ export: join(folder, name) });
      await take(keeper, events);
      if (name === 'new') await writeFile(join(folder, name, 'mine'), '');
      await keeper.abort();
    }
    expect(await readdir(join(folder, 'old'))).toEqual([]);
    expect(await readdir(join(folder, 'new'))).toEqual(['mine']);
  });

  it('ends the keeper', async () => {
    const keeper = new TmemKeeper('drop-ephemeral');
    await keeper.abort();
    expect(() => keeper.take(events[0]!)).toThrow(CancelledError);
    await expect(keeper.end()).rejects.toBeInstanceOf(CancelledError);
  });
});

describe('what no writer wrote', () => {
  it('a second section', async () => {
    const events = eventsOf(W.tmem(), W.tmem());
    const error = await refusalOf(keep('drop-ephemeral', events));
    const second = events.filter(({ part }) => part === 'section')[1]!;
    expect(error).toMatchObject({ code: 'ERR_XEN_STREAM_DUPLICATE', offset: second.offset });
  });

  it('an invalidated page of no pool', async () => {
    const gone = W.tmemExtra([{ pool: 3, object: [1n, 2n, 3n], index: 4 }]);
    for (const events of [eventsOf(gone), eventsOf(W.tmem({ pools: [W.ephemeral(2)] }), gone)]) {
      const error = await refusalOf(keep('drop-ephemeral', events));
      const { offset } = events.find(({ part }) => part === 'flush')!;
      expect(error).toMatchObject({
        code: 'ERR_XEN_STREAM_FIELD',
        offset,
        record: 'TMEM_EXTRA',
        path: 'pool_id',
      });
    }
  });

  it('a section without an end', async () => {
    const events = eventsOf(W.tmem({ pools: MIXED }));
    for (const choice of ['refuse', 'drop-ephemeral', { export: join(folder, 'export') }] as const) {
      const error = await refusalOf(keep(choice, events.slice(0, -1)));
      expect(error).toMatchObject({ code: 'ERR_XEN_STREAM_TRUNCATED', offset: sectionOffset(events) });
    }
    expect(await readdir(folder)).toEqual([]);
  });
});

it.each(['drop', '', null, 3, {}, { export: '' }, { export: 3 }])('is no choice: %j', (choice) => {
  expect(() => new TmemKeeper(choice as TmemChoice)).toThrow(UsageError);
});
