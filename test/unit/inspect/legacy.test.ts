/** Inspection of legacy images. */

import { describe, expect, it } from 'vitest';
import { formatInspection, Inspector, type Inspection } from '../../../lib/stream/index.js';
import { Random } from '../../differential/mutate.js';
import { imageNamed, images } from '../../legacy/images.js';
import { mutations } from '../../legacy/mutate.js';
import * as W from '../../legacy/writer.js';

function look(of: Uint8Array | W.ImageSpec, options = {}, piece = Infinity): Inspection {
  const bytes = of instanceof Uint8Array ? of : W.legacyImage(of);
  const inspector = new Inspector(options);
  for (let at = 0; at < bytes.length; at += piece) inspector.feed(bytes.subarray(at, at + piece));
  return inspector.end();
}

const zero = new Uint8Array(4096);
const pages = W.pages(W.ram(0, 2), W.page(4, 'NOTAB', zero), W.holes(6));
const physmap = [{ offset: 0x80_0000, start: 0xf000_0000, size: 0x1_0000, name: 'vga.vram' }];
const hvm: W.ImageSpec = {
  guest: 'hvm',
  body: [
    W.tsc(),
    pages,
    W.vcpuInfo({ online: [0, 2] }),
    W.param('HVM_VIRIDIAN', 1),
    W.param('HVM_VIRIDIAN', 3),
    W.toolstack(physmap),
    W.lastCheckpoint,
  ],
  tail: { qemu: { signature: 'DeviceModelRecord0002', blob: W.qemuState(100) } },
};
const pv: W.ImageSpec = {
  guest: 'pv32',
  word: 4,
  p2mSize: 1025,
  vcpus: [0, 3],
  blocks: [W.block.vcpu(), W.block.extv(), W.block.xcnt(96)],
  body: [W.tsc({ khz: 5, nsec: 2n ** 63n }), pages, W.verifyMode, pages, W.vcpuInfo()],
  tail: { unmapped: [1, 2, 3] },
};

describe('an HVM guest', () => {
  const seen = look(hvm);

  it('what the image says', () => {
    expect(seen).toMatchObject({
      format: 'legacy',
      complete: true,
      error: undefined,
      problems: 0,
      domain: undefined,
      pv: undefined,
      checkpointCount: 0,
      checkpoints: [],
      tmem: undefined,
      xend: undefined,
      tsc: { mode: 1, khz: 2_400_000, nsec: String(0x1_2345_6789), incarnation: 3 },
      legacy: {
        wordSize: 8,
        guest: 'hvm',
        p2mSize: 64,
        lastCheckpoint: true,
        onlineVcpus: 2,
        maxVcpuId: 2,
        unmappedPfns: undefined,
        physmap: [{ name: 'vga.vram', physOffset: '0x800000', startAddr: '0xf0000000', size: '0x10000' }],
        compression: undefined,
        qemu: { signature: 'DeviceModelRecord0002', length: 108 },
      },
    });
  });

  it('parameters, as last sent, and those of the tail', () => {
    expect(seen.hvm?.params.map(({ name, value }) => [name, value])).toEqual([
      ['VIRIDIAN', '0x3'],
      ['IOREQ_PFN', '0xfeffd'],
      ['BUFIOREQ_PFN', '0xfeffe'],
      ['STORE_PFN', '0xfeffc'],
    ]);
    expect(seen.hvm?.context[0]).toMatchObject({ name: 'HEADER', records: 1 });
  });

  it('pages', () => {
    expect(seen.pages).toEqual({
      entries: 4,
      data: 3,
      compressed: 0,
      zero: 1,
      byType: { NOTAB: 3, XTAB: 1 },
      frames: 3,
      framesSentAgain: 0,
      untracked: 0,
      highestPfn: 4,
      verified: 0,
    });
  });

  it('rows', () => {
    expect(
      seen.records.map(({ layer, name, type, length, about }) => [layer, name, type, length, about]),
    ).toEqual([
      ['legacy', 'header', undefined, 8, 'HVM, 64 pfns, 64-bit toolstack'],
      ['legacy', 'TSC_INFO', -7, 20, 'mode 1, 2400000 kHz, 4886718345 ns, incarnation 3'],
      ['legacy', 'page batch', undefined, 4 + 32 + 3 * 4096, '4 frames, 3 with data'],
      ['legacy', 'VCPU_INFO', -2, 12, '2 vcpus online, highest id 2'],
      ['legacy', 'HVM_VIRIDIAN', -11, 12, '0x1'],
      ['legacy', 'HVM_VIRIDIAN', -11, 12, '0x3'],
      ['legacy', 'TOOLSTACK', -18, 49, '1 region'],
      ['legacy', 'LAST_CHECKPOINT', -9, 0, ''],
      ['legacy', 'END', 0, 0, ''],
      ['legacy', 'magic pfns', undefined, 24, 'ioreq, buffered ioreq, xenstore'],
      ['legacy', 'HVM context', undefined, expect.any(Number), expect.stringMatching(/save records?, /)],
      ['legacy', 'QEMU record', undefined, 108, 'DeviceModelRecord0002'],
    ]);
    const offsets = seen.records.map(({ offset }) => offset);
    expect(offsets.slice(0, 4)).toEqual([0, 8, 32, 32 + 36 + 3 * 4096]);
    expect([...offsets].sort((a, b) => a - b)).toEqual(offsets);
    expect(seen.counts).toMatchObject({ 'page batch': 1, HVM_VIRIDIAN: 2, 'QEMU record': 1 });
  });

  it('as text', () => {
    const text = formatInspection(seen);
    for (const line of [
      /^format +legacy$/m,
      /^guest +x86 HVM$/m,
      /^written by +Xen 4\.5 or older, 64-bit toolstack \(legacy image\)$/m,
      /^QEMU +DeviceModelRecord0002, state of 108 bytes$/m,
      /^Regions of QEMU's memory/m,
      /^ +vga\.vram +0xf0000000 +0x10000 +0x800000$/m,
      /^ +32 +legacy +page batch +12324 +4 frames, 3 with data$/m,
    ])
      expect(text).toMatch(line);
    expect(text).not.toMatch(/undefined|NaN|\[object/);
    expect(text).not.toMatch(/compress|tmem|CPUID|checkpoints/);
  });
});

describe('a PV guest', () => {
  const seen = look(pv);

  it('what the image says', () => {
    expect(seen).toMatchObject({
      complete: true,
      problems: 0,
      hvm: undefined,
      checkpointCount: 0,
      tsc: { khz: 5, nsec: String(2n ** 63n) },
      pv: {
        guestWidth: 4,
        ptLevels: 3,
        maxPfn: 1024,
        p2mFrames: 2,
        vcpus: [
          { vcpuId: 0, basic: 2800, extended: 128, xsave: 112, msrs: 0 },
          { vcpuId: 3, basic: 2800, extended: 128, xsave: 112, msrs: 0 },
        ],
      },
      legacy: {
        wordSize: 4,
        guest: 'pv',
        extendedContexts: true,
        xsaveSize: 112,
        unmappedPfns: 3,
        qemu: undefined,
      },
    });
  });

  it('the pass of ENABLE_VERIFY_MODE is counted by itself', () => {
    expect(seen.pages).toMatchObject({
      entries: 4,
      data: 3,
      zero: 1,
      frames: 3,
      framesSentAgain: 0,
      verified: 3,
    });
    expect(seen.iterations.map(({ part, dataPages }) => [part, dataPages])).toEqual([
      ['transfer', 3],
      ['verify', 3],
    ]);
  });

  it('as text', () => {
    expect(formatInspection(seen)).toMatch(/^guest +x86 PV, 32-bit$/m);
    expect(formatInspection(seen)).toMatch(/^p2m +0x401 pfns in 2 frames$/m);
  });
});

describe('Remus', () => {
  const spec: W.ImageSpec = {
    guest: 'hvm',
    rounds: [
      { body: [W.tsc(), pages, W.pages(W.ram(8)), W.vcpuInfo(), W.enableCompression] },
      {
        body: [
          W.pfns(W.ram(0, 2)),
          W.pfns(W.ram(8), W.holes(9)),
          W.compressed(W.unchanged, W.full(W.pageOf(1))),
          W.compressed(W.runs(W.pageOf(8), W.touched(W.pageOf(8), [7]))),
        ],
      },
    ],
  };

  it('compressed pages are counted apart', () => {
    const seen = look(spec);
    expect(seen).toMatchObject({
      checkpointCount: 2,
      complete: true,
      problems: 0,
      pages: { entries: 9, data: 4, compressed: 3, zero: 1, frames: 4, framesSentAgain: 3 },
      legacy: {
        lastCheckpoint: false,
        compression: { pages: 3, chunks: 2, changes: 3, unchanged: 1, whole: 1 },
      },
    });
    expect(seen.checkpoints).toEqual([
      W.legacyImage({ ...spec, rounds: spec.rounds?.slice(0, 1) ?? [] }).length,
      W.legacyImage(spec).length,
    ]);
    expect(
      seen.iterations.map(({ part, dataPages, compressedPages }) => [part, dataPages, compressedPages]),
    ).toEqual([
      ['transfer', 4, 0],
      ['checkpoint', 0, 3],
    ]);
    const batches = seen.records.filter(({ name }) => name === 'page batch');
    expect(batches.map(({ records, about }) => [records, about])).toEqual([
      [2, '5 frames, 4 with data'],
      [2, '4 frames, 3 compressed'],
    ]);
    const chunks = seen.records.filter(({ name }) => name === 'COMPRESSED_DATA');
    expect(chunks.map(({ about }) => about)).toEqual([
      '2 pages: 1 unchanged, 1 whole',
      '1 page: 0 unchanged, 0 whole',
    ]);
  });

  it('as text', () => {
    const text = formatInspection(look(spec));
    expect(text).toMatch(/^checkpoints +2$/m);
    expect(text).toMatch(/^compression +3 pages, 3 changes \(1 of nothing, 1 whole\) in 4.1 kB/m);
    expect(text).toMatch(/^ +compressed +3$/m);
    expect(text).toMatch(/part +records +entries +with data +all zero +compressed +offset$/m);
  });

  it('compressed data that cannot be told apart is a problem, not an end', () => {
    const bad: W.ImageSpec = {
      ...spec,
      rounds: [
        spec.rounds?.[0] as W.Round,
        { body: [W.pfns(W.ram(0)), W.compressed(W.unchanged, W.rawRuns(1, 0))] },
      ],
    };
    const seen = look(bad);
    expect(seen).toMatchObject({
      complete: true,
      problems: 1,
      legacy: { compression: { pages: 1, chunks: 1, changes: 1, unchanged: 1 } },
    });
    expect(seen.records.find(({ name }) => name === 'COMPRESSED_DATA')?.problem).toBe(
      'runs: a run of no words',
    );
  });

  it.each([
    ['one checkpoint, and it is whole', 'pv64 4.0, 64-bit toolstack', 0, Infinity],
    ['cut in the second', 'pv64 Remus plain, in a page', 1, Infinity],
    ['cut in the third', 'hvm Remus plain, in the last tail', 2, Infinity],
    ['one, compression was enabled', 'hvm Remus compressed, first only', 1, Infinity],
    ['cut in the first', 'pv64 Remus plain, 64-bit toolstack', 0, 9000],
  ])('%s', (_what, name, checkpoints, length) => {
    expect(look(imageNamed(name).stream().subarray(0, length)).checkpointCount).toBe(checkpoints);
  });
});

describe('tmem', () => {
  const list = [W.tmemPage(7, 0), W.tmemPage(7, 1)];
  const pools = [
    W.ephemeral(0, W.TMEM_POOL.SHARED),
    W.persistent(2, list, W.TMEM_POOL.PRECOMPRESSED),
    { ...W.persistent(3, list), declared: 2 },
    { ...W.persistent(9, list.slice(1)), declared: 7, terminated: false },
  ];
  const gone = { pool: 2, object: [7n, 0x55n, 0n], index: 0 } as const;
  const spec: W.ImageSpec = {
    guest: 'hvm',
    body: [
      W.tmem({ pools, clientFlags: 3, weight: 4, cap: -2 }),
      pages,
      W.tmemExtra([gone]),
      W.tsc(),
      W.lastCheckpoint,
    ],
  };
  const seen = look(spec);

  it('pools, pages that were there, and how each list ended', () => {
    const row = { persistent: true, shared: false, precompressed: false, pageSize: 4096 };
    expect(seen.problems).toBe(0);
    expect(seen.tmem).toEqual({
      sections: 1,
      version: 1,
      maxPools: 16,
      flags: 3,
      weight: 4,
      cap: 0xffff_fffe,
      pages: 5,
      invalidated: 1,
      pools: [
        {
          ...row,
          poolId: 0,
          flags: 0x0100_0002,
          persistent: false,
          shared: true,
          uuid: '01000000-0000-0000-cdab-000000000000',
          declared: 0,
          present: 0,
          end: 'count',
        },
        {
          ...row,
          poolId: 2,
          flags: 0x0100_0005,
          precompressed: true,
          uuid: '03000000-0000-0000-cdab-000000000000',
          declared: 3,
          present: 2,
          end: 'terminator',
        },
        {
          ...row,
          poolId: 3,
          flags: 0x0100_0001,
          uuid: expect.any(String) as string,
          declared: 2,
          present: 2,
          end: 'count',
        },
        {
          ...row,
          poolId: 9,
          flags: 0x0100_0001,
          uuid: expect.any(String) as string,
          declared: 7,
          present: 1,
          end: 'missing terminator',
        },
      ],
    });
  });

  it('rows', () => {
    const rows = seen.records.filter(({ name }) => /tmem/i.test(name));
    expect(rows.map(({ offset, name, length, about }) => [offset, name, length, about])).toEqual([
      [8, 'TMEM', 28, 'flags 0x3 (compressed, frozen), weight 4, cap 4294967294'],
      [40, 'tmem pool', 28, 'pool 0: ephemeral, shared (flags 0x1000002)'],
      [
        68,
        'tmem pool',
        28 + 2 * 4124 + 24,
        'pool 2: persistent, precompressed (flags 0x1000005), 2 pages of at most 3 of 4096 bytes',
      ],
      [
        68 + 8300,
        'tmem pool',
        28 + 2 * 4124,
        'pool 3: persistent (flags 0x1000001), 2 pages of at most 2 of 4096 bytes',
      ],
      [
        68 + 8300 + 8276,
        'tmem pool',
        28 + 4124,
        'pool 9: persistent (flags 0x1000001), 1 page of at most 7 of 4096 bytes, terminator missing',
      ],
      [expect.any(Number), 'TMEM_EXTRA', 36, '1 page invalidated'],
    ]);
    const extra = rows.at(-1)?.offset ?? 0;
    expect(Array.from(W.legacyImage(spec).subarray(extra, extra + 8))).toEqual([
      0xfa, 0xff, 0xff, 0xff, 2, 0, 0, 0,
    ]);
  });

  it('as text', () => {
    const text = formatInspection(seen);
    expect(text).toMatch(
      /^tmem\n {2}4 pools, 3 persistent, 5 pages, 1 of them invalidated later\n {2}pool 0: /m,
    );
  });

  it('an image that ends in a pool', () => {
    const cut = look(W.legacyImage(spec).subarray(0, 40 + 28 + 28 + 4124 + 100));
    expect(cut.error?.code).toBe('ERR_XEN_STREAM_TRUNCATED');
    expect(cut.tmem?.pools[1]).toMatchObject({ declared: 3, present: 1, end: undefined });
    expect(cut.records.at(-1)?.about).toMatch(/1 page of at most 3 of 4096 bytes, cut off$/);
  });
});

describe('files', () => {
  it("behind xl's header and xend's", () => {
    const xl = look(imageNamed('xl hvm').bytes());
    expect(xl).toMatchObject({
      format: 'xl',
      xl: { type: 'hvm', mandatoryFlags: 1 },
      legacy: { guest: 'hvm' },
    });
    const xend = look(imageNamed('xend hvm').bytes());
    expect(xend).toMatchObject({
      format: 'xend',
      complete: true,
      xl: undefined,
      xend: { configLength: W.xendConfig('hvm').length },
      legacy: { qemu: { signature: 'QemuDeviceModelRecord', length: 72 } },
    });
    expect(xend.records[0]).toMatchObject({ layer: 'xend', name: 'xend header', offset: 0 });
    expect(formatInspection(xend)).toMatch(/^ +0 +xend +xend header +\d+ +\d+ bytes of configuration$/m);
  });

  it('a format that was named', () => {
    const bytes = imageNamed('hvm 4.5 save, 64-bit toolstack').stream();
    expect(look(bytes, { format: 'legacy' }).complete).toBe(true);
    expect(look(bytes, { format: 'xend' }).error?.code).toBe('ERR_XEN_STREAM_ID');
  });

  it('a fault is marked, and the rest is read', () => {
    const seen = look({
      guest: 'hvm',
      body: [W.tsc(), W.pages(W.ram(1), W.ram(1)), pages, W.lastCheckpoint],
    });
    expect(seen).toMatchObject({ complete: true, problems: 1 });
    expect(seen.records.filter(({ name }) => name === 'page batch').map(({ problem }) => problem)).toEqual([
      'pfns[1]: pfn 1 stands twice',
      undefined,
    ]);
  });

  it.each(images.filter(({ present, small }) => present && small).map(({ name }) => name))(
    'in pieces: %s',
    (name) => {
      const bytes = imageNamed(name).bytes();
      const whole = look(bytes);
      expect(look(bytes, {}, 997)).toEqual(whole);
      expect(formatInspection(whole)).not.toMatch(/undefined|NaN|\[object/);
      expect(JSON.parse(JSON.stringify(whole))).toBeTypeOf('object');
    },
  );

  it.each([
    'hvm 4.5 live, 64-bit toolstack',
    'pv64 Remus compressed, 64-bit toolstack',
    'tmem persistent, mixed',
  ])('damage makes nothing throw: %s', (name) => {
    const list = imageNamed(name).pieces?.() ?? [];
    const random = new Random(5);
    let whole = 0;
    for (let i = 0; i < 150; i++) {
      const { bytes } = random.pick(Object.values(mutations))(list, random);
      const seen = look(bytes);
      expect(formatInspection(seen)).toMatch(/^format/);
      if (seen.complete) whole++;
    }
    expect(whole).toBeGreaterThan(0);
    expect(whole).toBeLessThan(150);
  });
});
