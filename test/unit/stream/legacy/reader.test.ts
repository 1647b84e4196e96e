/** What the legacy reader gives for each chunk and part of the tail, and what it refuses. */

import { describe, expect, it } from 'vitest';
import { StreamFormatError } from '../../../../lib/errors.js';
import { decodeToolstack } from '../../../../lib/stream/legacy/decode.js';
import { LegacyReader } from '../../../../lib/stream/legacy/reader.js';
import { StreamReader } from '../../../../lib/stream/stream-reader.js';
import { imageNamed } from '../../../legacy/images.js';
import * as W from '../../../legacy/writer.js';
import { brief, feed, feedTo } from './feed.js';

type Event = Readonly<Record<string, unknown>>;

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** Offset of a piece, and of the byte `more` behind that. */
function offsetOf(spec: W.ImageSpec, name: string, more = 0): number {
  let at = 0;
  for (const piece of W.legacyPieces(spec)) {
    if (piece.name === name) return at + more;
    at += piece.bytes.length;
  }
  throw new Error(`no piece "${name}"`);
}

/** Events of one kind, or of one part. */
function events(spec: W.ImageSpec, what: string): Event[] {
  const { events: all, error } = feed(W.legacyImage(spec));
  expect(error).toBeUndefined();
  return (all as Event[]).filter(({ kind, name, part }) => [kind, name, part].includes(what));
}

const hvm = (...body: readonly W.Chunk[]): W.ImageSpec => ({ guest: 'hvm', body: [W.tsc(), ...body] });
const pv = (...body: readonly W.Chunk[]): W.ImageSpec => ({ guest: 'pv64', body: [W.tsc(), ...body] });

describe.each([8, 4] as const)('%d-byte words', (word) => {
  it('header of an HVM guest', () => {
    const [header] = events({ ...hvm(), word, p2mSize: 0x0fff_ffff }, 'legacy-header');
    expect(header).toEqual({
      kind: 'legacy-header',
      layer: 'legacy',
      offset: 0,
      length: word,
      header: {
        wordSize: word,
        guest: 'hvm',
        p2mSize: 0x0fff_ffff,
        guestWidth: undefined,
        extendedContexts: false,
        xsaveSize: 0,
        p2mFrames: undefined,
      },
    });
  });

  it.each([
    ['pv64', 8, 3],
    ['pv32', 4, 2],
  ] as const)('header of a %s guest', (guest, guestWidth, n) => {
    const blocks = [W.block.extv(), W.block.vcpu(), W.block.xcnt(0x350)];
    const frames = [9, 1030, 5].slice(0, n);
    const spec: W.ImageSpec = { guest, word, p2mSize: 1030 + n, blocks, frames: [...frames] };
    const [header] = events({ ...spec, body: [W.vcpuInfo()] }, 'legacy-header') as [Event];
    expect(header['header']).toEqual({
      wordSize: word,
      guest: 'pv',
      p2mSize: 1030 + n,
      guestWidth,
      extendedContexts: true,
      xsaveSize: 0x360,
      p2mFrames: frames,
    });
    expect(header['length']).toBe(offsetOf(spec, 'p2m frames', n * word));
  });

  it('a batch: pfns, types, contents of those that have some', () => {
    const entries = [W.page(5, 'L1_PIN'), W.holes(6), W.page(3), W.page(63, 'BROKEN'), W.page(7, 'XALLOC')];
    const spec = { ...hvm(W.pages(...entries.flat()), W.pages(W.ram(20, 3)), W.pages(W.lost(2))), word };
    const batches = events(spec, 'page-data');
    expect(batches).toMatchObject([
      {
        count: 5,
        pfns: [5, 6, 3, 63, 7],
        types: [9, 15, 0, 13, 14],
        dataPages: 2,
        length: 4 + 5 * word + 8192,
        layer: 'legacy',
      },
      { count: 3, pfns: [20, 21, 22], types: [0, 0, 0], dataPages: 3, run: true },
      { count: 2, pfns: [0, 0], types: [15, 15], dataPages: 0 },
    ]);
    expect(batches[0]).toMatchObject({ run: false });
    expect(batches.every((batch) => !('compressed' in batch) && !('violation' in batch))).toBe(true);
    const { contents } = feed(W.legacyImage(spec));
    const [first, second] = batches.map(({ offset }) => contents[offset as number]);
    expect(first).toBe(hex(W.cat(W.pageOf(5), W.pageOf(3))));
    expect(second).toBe(hex(W.cat(W.pageOf(20), W.pageOf(21), W.pageOf(22))));
  });

  it('chunks: id, name, body, where they stand', () => {
    const body = [
      W.vcpuInfo({ online: [0, 65] }),
      W.toolstack(),
      W.param('HVM_VIRIDIAN', 3),
      W.lastCheckpoint,
    ];
    const spec = { ...hvm(...body), word };
    const chunks = events(spec, 'legacy-chunk').map(({ id, name, body: data, offset }) => [
      id,
      name,
      data,
      offset,
    ]);
    expect(chunks).toEqual([
      [-7, 'TSC_INFO', expect.any(String), word],
      [-2, 'VCPU_INFO', hex(W.cat(W.w32(65), W.w64(1), W.w64(2))), offsetOf(spec, 'VCPU_INFO')],
      [-18, 'TOOLSTACK', hex(W.cat(W.w32(1), W.w32(0))), offsetOf(spec, 'TOOLSTACK')],
      [-11, 'HVM_VIRIDIAN', hex(W.cat(W.w32(0), W.w64(3))), offsetOf(spec, 'HVM_VIRIDIAN')],
      [-9, 'LAST_CHECKPOINT', '', offsetOf(spec, 'LAST_CHECKPOINT')],
      [0, 'END', '', offsetOf(spec, 'END')],
    ]);
  });

  it('a tail of an HVM guest', () => {
    const context = W.seeded(77, 1);
    const qemu = { signature: 'DeviceModelRecord0002', blob: W.qemuState(33) };
    const spec: W.ImageSpec = { ...hvm(W.lastCheckpoint), word, tail: { magic: [1, 2, 3], context, qemu } };
    expect(events(spec, 'legacy-tail')).toEqual(
      [
        { part: 'magic pfns', body: hex(W.cat(W.w64(1), W.w64(2), W.w64(3))), completes: false },
        { part: 'HVM context', body: hex(context), completes: false },
        { part: 'QEMU record', body: hex(qemu.blob), signature: qemu.signature, completes: true },
      ].map((of, i) => ({
        kind: 'legacy-tail',
        layer: 'legacy',
        offset: offsetOf(spec, ['magic pfns', 'HVM context length', 'QEMU signature'][i] as string),
        ...of,
      })),
    );
  });

  it('a tail of a PV guest', () => {
    const spec: W.ImageSpec = {
      ...pv(W.vcpuInfo(), W.lastCheckpoint),
      word,
      vcpus: [1, 4],
      blocks: [W.block.vcpu(), W.block.extv(), W.block.xcnt(96)],
      tail: { unmapped: [5, 6, 7] },
    };
    const tail = events(spec, 'legacy-tail').map(({ part, vcpuId, count, body, completes }) => [
      part,
      vcpuId ?? count,
      (body as string).length / 2,
      completes,
    ]);
    expect(tail).toEqual([
      ['unmapped pfns', 3, 0, false],
      ...[1, 4].flatMap((id) => [
        ['vcpu context', id, 5168, false],
        ['vcpu extended context', id, 128, false],
        ['vcpu xsave', id, 112, false],
      ]),
      ['shared info', undefined, 4096, true],
    ]);
  });
});

describe('vcpus of a PV guest', () => {
  const parts = (spec: W.ImageSpec): unknown[][] =>
    events(spec, 'legacy-tail').map(({ part, vcpuId }) => [part, vcpuId]);

  it('without a list there is vcpu 0 alone', () => {
    expect(parts({ ...pv(W.lastCheckpoint), blocks: [W.block.vcpu()] })).toEqual([
      ['unmapped pfns', undefined],
      ['vcpu context', 0],
      ['shared info', undefined],
    ]);
  });

  it('the list of the checkpoint before holds where none comes', () => {
    const vcpus = [0, 2];
    const spec: W.ImageSpec = {
      guest: 'pv64',
      blocks: [W.block.vcpu()],
      vcpus,
      rounds: [{ body: [W.tsc(), W.vcpuInfo()] }, { body: [W.lastCheckpoint] }],
    };
    expect(parts(spec).filter(([part]) => part === 'vcpu context')).toEqual([
      ['vcpu context', 0],
      ['vcpu context', 2],
      ['vcpu context', 0],
      ['vcpu context', 2],
    ]);
  });
});

describe('Remus', () => {
  it('batches are compressed from the checkpoint after the announcement on', () => {
    const spec: W.ImageSpec = {
      guest: 'hvm',
      rounds: [
        { body: [W.tsc(), W.enableCompression, W.pages(W.ram(0))] },
        { body: [W.pfns(W.ram(0, 2), W.holes(9)), W.compressed(W.unchanged, W.unchanged)] },
        { body: [W.pfns(W.ram(1)), W.compressed(W.unchanged), W.lastCheckpoint] },
      ],
    };
    const batches = events(spec, 'page-data').map(({ compressed, dataPages, length }) => [
      compressed,
      dataPages,
      length,
    ]);
    expect(batches).toEqual([
      [undefined, 1, 12 + 4096],
      [true, 2, 28],
      [true, 1, 12],
    ]);
    expect(Object.keys(feed(W.legacyImage(spec)).contents)).toHaveLength(1);
    expect(events(spec, 'COMPRESSED_DATA').map(({ body }) => body)).toEqual(['0000', '00']);
  });

  it('checkpoints are counted; LAST_CHECKPOINT ends the image', () => {
    const round: W.Round = { body: [W.tsc(), W.vcpuInfo()] };
    const open = W.legacyImage({ guest: 'pv64', rounds: [round, round] });
    expect(feed(open)).toMatchObject({ checkpoints: 2, done: true, error: undefined });
    const last: W.Round = { body: [...round.body, W.lastCheckpoint] };
    const closed = W.legacyImage({ guest: 'pv64', rounds: [last, round] });
    const first = W.legacyImage({ guest: 'pv64', rounds: [last] });
    expect(feed(closed)).toMatchObject({ checkpoints: 1, done: true, left: closed.length - first.length });
  });

  describe('zeros behind a checkpoint are no other one', () => {
    const round: W.Round = { body: [W.tsc(), W.vcpuInfo()] };
    const remus: W.Round = { ...round, tail: { qemu: { signature: 'RemusDeviceModelState' } } };
    const specs: W.ImageSpec[] = [
      { guest: 'pv64', rounds: [round] },
      { guest: 'pv32', word: 4, rounds: [round, round] },
      { guest: 'hvm', rounds: [remus] },
    ];
    it.each(specs)('$guest', (spec) => {
      const image = W.legacyImage(spec);
      const bare = feed(image);
      for (const n of [4, 5, 4096, 16 << 10, (64 << 10) + 7]) {
        for (const size of [1, 333, Infinity]) {
          const padded = feed(W.cat(image, new Uint8Array(n)), {}, () => size);
          expect(padded).toEqual({ ...bare, done: true });
        }
      }
      const other = W.cat(image, new Uint8Array(5000), Uint8Array.of(1), new Uint8Array(9000));
      const error = `MISSING END.id @${image.length}`;
      expect(feed(other)).toMatchObject({ error, checkpoints: bare.checkpoints });
    });
  });
});

describe('refused', () => {
  const beforeChunks = (spec: W.ImageSpec, at: number, ...bytes: number[]): Uint8Array => {
    const image = W.legacyImage(spec);
    image.set(bytes, at);
    return image;
  };
  const x = (spec: W.ImageSpec, error: string, name: string, more = 0): [Uint8Array, string] => [
    W.legacyImage(spec),
    `${error} @${offsetOf(spec, name, more)}`,
  ];
  const { block } = W;
  const blocks = (...list: readonly W.Block[]): W.ImageSpec => ({ ...pv(), blocks: list });
  const long = (id: number, ...data: Uint8Array[]): W.ImageSpec => hvm(W.rawChunk(id, W.cat(...data)));

  const cases: Readonly<Record<string, readonly [Uint8Array, string]>> = {
    'p2m_size 0': [W.cat(W.w64(0), new Uint8Array(64)), 'LIMIT header.p2m_size @0'],
    'p2m_size too large': [W.cat(W.w64(0x1000_0000), new Uint8Array(64)), 'LIMIT header.p2m_size @0'],
    'half a marker': [beforeChunks(pv(), 14, 0), 'MARKER header.marker @8'],
    'extended info too long': [beforeChunks(pv(), 16, 1, 0x40, 0, 0), 'LIMIT extended info.length @16'],
    'no blocks': x({ ...blocks(), blocksLength: 0 }, 'MISSING extended info.length', 'extended info', 8),
    'a block without size': [
      beforeChunks({ ...pv(), blocks: [block.raw('vcpu', W.seeded(5168, 1)), block.extv()] }, 16, 0x3c, 0x14),
      `LENGTH extended info.blocks @${20 + 5176}`,
    ],
    'a block too long': x(
      { ...blocks(block.vcpu(), block.extv()), blocksLength: 5175 },
      'LENGTH extended info.blocks.size',
      'block vcpu',
      4,
    ),
    'no vcpu block': x(blocks(block.extv()), 'MISSING extended info.vcpu', 'block extv'),
    'a vcpu of no width': x(blocks(block.vcpu(5000)), 'LENGTH extended info.vcpu.size', 'block vcpu', 4),
    'an unknown block': x(
      blocks(block.vcpu(), block.raw('abcd', W.w32(1))),
      'TYPE extended info.blocks.id',
      'block abcd',
    ),
    'a block twice': x(
      blocks(block.vcpu(), block.extv(), block.extv()),
      'DUPLICATE extended info.blocks.id',
      'block extv',
      8,
    ),
    'xcnt too short': x(
      blocks(block.vcpu(), block.raw('xcnt', W.w32(0).subarray(0, 3))),
      'LENGTH extended info.xcnt.size',
      'block xcnt',
      4,
    ),
    'xcnt without room': x(blocks(block.vcpu(), block.xcnt(0)), 'FIELD extended info.xcnt', 'block vcpu'),
    'xcnt too large': x(blocks(block.vcpu(), block.xcnt(1 << 20)), 'FIELD extended info.xcnt', 'block vcpu'),
    'a p2m frame beyond p2m_size': x(
      { ...pv(), p2mSize: 600, frames: [1, 600] },
      'FIELD p2m frame list.frames[1]',
      'p2m frames',
      8,
    ),
    'a batch too large': x(hvm(W.rawChunk(1025)), 'LIMIT page batch.count', 'chunk 1025'),
    'the largest batch': x(hvm(W.rawChunk(0x7fff_ffff)), 'LIMIT page batch.count', 'chunk 2147483647'),
    'a pfn beyond p2m_size': x(
      hvm(W.pages(W.ram(1), W.ram(64))),
      'FIELD page batch.pfns[1]',
      'batch of 2',
      12,
    ),
    'a hole beyond p2m_size': x(hvm(W.pages(W.holes(64))), 'FIELD page batch.pfns[0]', 'batch of 1', 4),
    'an entry above 32 bits': x(
      hvm(W.rawChunk(1, W.cat(W.w32(3), W.w32(1)))),
      'FIELD page batch.pfns[0]',
      'chunk 1',
      4,
    ),
    ...Object.fromEntries(
      [5, 6, 7, 8].map((type) => [
        `page type ${type}`,
        x(hvm(W.pages(W.page(1, type))), 'PAGE_TYPE page batch.pfns[0]', 'batch of 1', 4),
      ]),
    ),
    'a pfn twice': x(
      hvm(W.pages(W.ram(3, 2), W.ram(1), W.holes(3), W.ram(3))),
      'DUPLICATE page batch.pfns[4]',
      'batch of 5',
      36,
    ),
    'an unknown chunk': x(long(-22), 'TYPE unknown (-22).id', 'chunk -22'),
    'the smallest id': x(long(-0x8000_0000), 'TYPE unknown (-2147483648).id', `chunk ${-0x8000_0000}`),
    'max_id too high': x(hvm(W.vcpuInfo({ maxId: 4096 })), 'LIMIT VCPU_INFO.max_id', 'VCPU_INFO', 4),
    'max_id negative': x(hvm(W.rawChunk(-2, W.w32(-1))), 'LIMIT VCPU_INFO.max_id', 'chunk -2', 4),
    'a vcpu above max_id': x(
      hvm(W.vcpuInfo({ online: [0, 3], maxId: 2 })),
      'FIELD VCPU_INFO.online',
      'VCPU_INFO',
      8,
    ),
    'two lists of vcpus': [
      W.legacyImage(hvm(W.vcpuInfo(), W.vcpuInfo())),
      `DUPLICATE VCPU_INFO @${offsetOf(hvm(W.vcpuInfo()), 'END')}`,
    ],
    'a parameter of a PV guest': x(pv(W.param('HVM_VIRIDIAN', 1)), 'TYPE HVM_VIRIDIAN', 'HVM_VIRIDIAN'),
    'a toolstack chunk too long': x(
      long(-18, W.w32((1 << 20) + 1)),
      'LIMIT TOOLSTACK.length',
      'chunk -18',
      4,
    ),
    'compressed data too long': x(
      long(-12, W.w64((64 << 20) + 1)),
      'LIMIT COMPRESSED_DATA.size',
      'chunk -12',
      4,
    ),
    'compressed data beyond 32 bits': x(
      long(-12, W.w64(2 ** 32)),
      'LIMIT COMPRESSED_DATA.size',
      'chunk -12',
      4,
    ),
    'compressed data that was not announced': x(
      hvm(W.compressed(W.unchanged)),
      'ORDER COMPRESSED_DATA',
      'COMPRESSED_DATA',
      12,
    ),
    'an HVM context too long': [
      W.cat(W.legacyImage({ ...hvm(), tail: 'none' }), new Uint8Array(24), W.w32((128 << 20) + 1)),
      `LIMIT HVM context.length @${offsetOf(hvm(), 'HVM context length')}`,
    ],
    'an empty HVM context': x(
      { ...hvm(), tail: { context: new Uint8Array(0) } },
      'LENGTH HVM context.length',
      'HVM context length',
    ),
    'a QEMU record too long': x(
      { ...hvm(), tail: { qemu: { signature: 'DeviceModelRecord0002', length: (128 << 20) + 1 } } },
      'LIMIT QEMU record.length',
      'QEMU length',
    ),
    'an unknown QEMU record': x(
      { ...hvm(), tail: { qemu: { signature: 'DeviceModelRecord0003' } } },
      'ID QEMU record.signature',
      'QEMU signature',
    ),
    'a QEMU record without QEMU’s magic': x(
      { ...hvm(), tail: { qemu: { signature: 'QemuDeviceModelRecord', blob: W.text('QEVm…………') } } },
      'ID QEMU record.state',
      'QEMU state',
    ),
    'more unmapped pfns than there are': x(
      { ...pv(W.vcpuInfo()), tail: { unmapped: Array.from({ length: 65 }, () => 1) } },
      'LIMIT unmapped pfns.count',
      'unmapped',
    ),
  };

  describe('an xsave area of another size than announced', () => {
    const blocks = [block.vcpu(), block.xcnt()];
    const spec: W.ImageSpec = { ...pv(W.vcpuInfo(), W.lastCheckpoint), blocks, vcpus: [0, 1] };
    const sizes = [0n, 15n, 16n, 0x34fn, 0x351n, 0x360n, 1n << 20n, 0x100_0000_0350n, (1n << 64n) - 1n];
    it.each(sizes)('%d bytes', (size) => {
      for (const vcpu of [0, 1]) {
        const at = offsetOf(spec, `vcpu ${vcpu}: xsave head`, 8);
        const image = W.legacyImage(spec);
        image.set(W.w64(size), at);
        expect(feed(image).error).toBe(`FIELD vcpu xsave.size @${at}`);
        expect(feed(image, {}, () => 1).error).toBe(`FIELD vcpu xsave.size @${at}`);
      }
    });

    it('none at all', () => {
      const place = (name: string): string => `FIELD vcpu xsave.size @${offsetOf(spec, name, 8)}`;
      const without = (vcpu: number): Uint8Array =>
        W.legacyImage({ ...spec, tail: { withoutXsave: [vcpu] } });
      expect(feed(without(0)).error).toBe(place('vcpu 0: xsave head'));
      expect(feed(without(1)).error).toBe(place('vcpu 1: xsave head'));
    });
  });

  it.each(Object.entries(cases))('%s', (_what, [bytes, error]) => {
    expect(feed(bytes).error).toBe(error);
  });

  it('compressed data before the second checkpoint', () => {
    const spec = hvm(W.enableCompression, W.compressed(W.unchanged));
    expect(feed(W.legacyImage(spec)).error).toMatch(/^ORDER COMPRESSED_DATA/);
  });
});

describe('lenient', () => {
  const faults: Readonly<Record<string, readonly [W.ImageSpec, string]>> = {
    'a pfn beyond p2m_size': [hvm(W.pages(W.ram(1), W.ram(64), W.ram(2))), 'page-data'],
    'a page type that does not exist': [hvm(W.pages(W.page(1, 5), W.ram(2))), 'page-data'],
    'a pfn twice': [hvm(W.pages(W.ram(3), W.ram(3), W.ram(1))), 'page-data'],
    'two lists of vcpus': [hvm(W.vcpuInfo(), W.vcpuInfo()), 'legacy-chunk'],
    'a parameter of a PV guest': [pv(W.param('HVM_VIRIDIAN', 1)), 'legacy-chunk'],
    'compressed data that was not announced': [hvm(W.compressed(W.unchanged)), 'legacy-chunk'],
    'a p2m frame beyond p2m_size': [{ ...pv(), frames: [64] }, 'legacy-header'],
    'an empty HVM context': [{ ...hvm(), tail: { context: new Uint8Array(0) } }, 'legacy-tail'],
  };

  it.each(Object.entries(faults))('%s', (_what, [spec, kind]) => {
    const body = [...(spec.body ?? []), W.pages(W.ram(7)), W.lastCheckpoint];
    const bytes = W.legacyImage({ ...spec, body });
    const strict = feed(bytes);
    const lenient = feed(bytes, { lenient: true });
    expect(strict.error).toBeDefined();
    expect(lenient.error).toBeUndefined();
    const violations = (lenient.events as Event[]).filter((event) => 'violation' in event);
    expect(violations).toMatchObject([{ kind, violation: strict.error }]);
    // What follows is read as it stands.
    const after = (lenient.events as Event[]).findLast((event) => event['kind'] === 'page-data') as Event;
    expect(after).toMatchObject({ pfns: [7], count: 1 });
    expect(lenient.contents[after['offset'] as number]).toBe(hex(W.pageOf(7)));
    expect(lenient.events.at(-1)).toMatchObject({ completes: true });
    // A batch at fault: its contents are skipped, its table is good up to the fault.
    for (const { kind: of, offset } of violations) {
      if (of === 'page-data') expect(lenient.contents[offset as number]).toBeUndefined();
    }
  });

  it.each([
    ['count', hvm(W.rawChunk(1025))],
    ['id', hvm(W.rawChunk(-30))],
    ['length', hvm(W.rawChunk(-18, W.w32(-1)))],
  ])('lost framing is thrown: %s', (path, spec) => {
    expect(feed(W.legacyImage(spec), { lenient: true }).error).toMatch(new RegExp(`\\.${path} @`));
  });
});

describe('what was told', () => {
  const of = (name: string): Uint8Array => imageNamed(name).stream();
  const names = {
    'hvm 8': 'hvm 4.5 save, 64-bit toolstack',
    'hvm 4': 'hvm 4.5 save, 32-bit toolstack',
    'pv 8': 'pv32 4.5 save, 64-bit toolstack',
    'pv 4': 'pv64 4.5 save, 32-bit toolstack',
  } as const;

  it.each(Object.entries(names))('%s', (is, name) => {
    for (const guest of ['pv', 'hvm'] as const) {
      for (const wordSize of [4, 8] as const) {
        const { error } = feed(of(name), { guest, wordSize });
        const [isGuest, isWord] = is.split(' ');
        if (String(wordSize) !== isWord) expect(error).toBe('FIELD header.p2m_size @4');
        else if (guest !== isGuest) expect(error).toBe(`GUEST_TYPE header.marker @${wordSize}`);
        else expect(error).toBeUndefined();
      }
    }
  });

  it('says so in words', () => {
    const reader = new LegacyReader({ wordSize: 4 });
    const bytes = of(names['hvm 8']);
    expect(() => reader.feed(bytes.subarray(0, 8))).toThrow(/of 64 bits, not of 32 as was said/);
  });

  it('behind the headers of xl and xend too', () => {
    for (const name of ['xl hvm', 'xend hvm']) {
      const bytes = imageNamed(name).bytes();
      const size = bytes.length - imageNamed(name).stream().length;
      const wrong = feedTo(new StreamReader({ legacy: { guest: 'pv' } }), bytes);
      expect(wrong.error).toBe(`GUEST_TYPE header.marker @${size + 8}`);
      expect(
        feedTo(new StreamReader({ legacy: { guest: 'hvm', wordSize: 8 } }), bytes).error,
      ).toBeUndefined();
    }
  });
});

describe('StreamReader', () => {
  const bare = imageNamed('hvm 4.5 save, 64-bit toolstack').stream();

  it.each([
    ['legacy', bare],
    ['xl', imageNamed('xl pv').bytes()],
    ['xend', imageNamed('xend pv').bytes()],
  ] as const)('%s: only if it is wanted; recognised or named', (format, bytes) => {
    expect(feedTo(new StreamReader(), bytes).error).toMatch(/^LEGACY /);
    for (const named of ['auto', format] as const) {
      const reader = new StreamReader({ legacy: true, format: named });
      expect(feedTo(reader, bytes)).toMatchObject({ error: undefined, done: true, left: 0 });
      expect(reader.format).toBe(format);
      expect(reader.checkpoints).toBe(1);
    }
  });

  it('an offset counts from where the image stands', () => {
    const { events: there } = feed(bare);
    const reader = new StreamReader({ legacy: true, offset: 1000 });
    const found: number[] = [];
    for (let at = 0; at < bare.length;) {
      const piece = bare.subarray(at, at + reader.want);
      at += piece.length;
      const event = reader.feed(piece);
      if (event !== undefined && event.kind !== 'page-bytes') found.push(event.offset - 1000);
    }
    expect(found).toEqual((there as Event[]).map(({ offset }) => offset));
  });
});

describe('toolstack', () => {
  const entries: readonly W.Physmap[] = [
    { offset: 0xffff_ffff_ffff_ffffn, start: 1, size: 2n ** 63n, name: 'a/b c' },
    { offset: 0, start: 0, size: 0, name: '' },
  ];
  const body = (word: W.Word, options: W.ToolstackOptions = {}): Uint8Array => {
    const [piece] = W.toolstack(entries, options)(W.layoutOf({ guest: 'hvm', word })) as [W.Piece];
    return piece.bytes.subarray(8);
  };

  it.each([8, 4] as const)('%d-byte words', (word) => {
    expect(decodeToolstack(body(word), word)).toEqual([
      { physOffset: 0xffff_ffff_ffff_ffffn, startAddr: 1n, size: 2n ** 63n, name: 'a/b c' },
      { physOffset: 0n, startAddr: 0n, size: 0n, name: '' },
    ]);
  });

  it('cut short anywhere', () => {
    const whole = body(8);
    for (let n = 0; n < whole.length; n++) {
      let error = '';
      try {
        decodeToolstack(whole.subarray(0, n), 8, { offset: 500 });
      } catch (thrown) {
        if (!(thrown instanceof StreamFormatError)) throw thrown;
        error = brief(thrown);
      }
      expect(error).toMatch(/^LENGTH TOOLSTACK\.(length|entries\[[01]\](\.namelen)?) @\d+$/);
    }
  });

  it.each<[string, Uint8Array, string]>([
    ['version', W.cat(W.w32(2), W.w32(0)), 'VERSION TOOLSTACK.version @8'],
    ['count', W.cat(W.w32(1), W.w32(-1)), 'LIMIT TOOLSTACK.count @12'],
    ['no name', W.cat(W.w32(1), W.w32(1), new Uint8Array(32)), 'FIELD TOOLSTACK.entries[0].namelen @40'],
    [
      'a name without its end',
      W.cat(W.w32(1), W.w32(1), new Uint8Array(24), W.w32(2), W.text('ab\0\0\0\0')),
      'FIELD TOOLSTACK.entries[0].name @44',
    ],
    [
      'a name that is longer than all',
      W.cat(W.w32(1), W.w32(1), new Uint8Array(24), W.w32(-1), new Uint8Array(8)),
      'LENGTH TOOLSTACK.entries[0].namelen @40',
    ],
  ])('%s', (_what, bytes, error) => {
    expect(() => decodeToolstack(bytes, 8)).toThrow(StreamFormatError);
    try {
      decodeToolstack(bytes, 8);
    } catch (thrown) {
      expect(brief(thrown as StreamFormatError)).toBe(error);
    }
  });
});
