/** Images of HVM guests, without Remus, tmem and headers of toolstacks. */

import { hvmContext } from '../unit/verify/streams.js';
import { bothWords, example, notImplemented, refused, type Example } from './example.js';
import * as W from './writer.js';

/** Parameters as a guest of 4.5 has them; without the width of the FPU's instruction pointer, which upstream refuses. */
export const params45: readonly W.Chunk[] = [
  W.param('HVM_GENERATION_ID_ADDR', 0xfc00_0000n),
  W.param('HVM_IDENT_PT', 0xfeff_c000n),
  W.param('HVM_PAGING_RING_PFN', 0xfeff_1n),
  W.param('HVM_ACCESS_RING_PFN', 0xfeff_2n),
  W.param('HVM_SHARING_RING_PFN', 0xfeff_3n),
  W.param('HVM_VM86_TSS', 0xfeff_b000n),
  W.param('HVM_CONSOLE_PFN', 0xfefff),
  W.param('HVM_ACPI_IOPORTS_LOCATION', 1),
  W.param('HVM_VIRIDIAN', 1),
  W.param('HVM_IOREQ_SERVER_PFN', 0xfeff8),
  W.param('HVM_NR_IOREQ_SERVER_PAGES', 8),
];

export const physmap: readonly W.Physmap[] = [
  { offset: 0x80_0000, start: 0xf000_0000, size: 0x80_0000, name: 'vga.vram' },
  { offset: 0x1_0000_0000n, start: 0xf080_0000, size: 0x1_0000, name: 'rtl8139.rom' },
];

/** What 4.5 writes between the pages and the end of the body. */
export const state45: readonly W.Chunk[] = [
  W.vcpuInfo(),
  ...params45,
  W.toolstack(physmap),
  W.lastCheckpoint,
];

const memory = (version = 1): W.Chunk => W.pages(W.ram(0, 4, version), W.holes(6), W.ram(9, 1, version));

/** A guest saved by 4.5 while it stood still. */
export const hvmPlain: W.ImageSpec = { guest: 'hvm', body: [W.tsc(), memory(), ...state45] };

/** The same, live: several passes; what must be asked of a suspended guest comes before the last one. */
export const hvmLive: W.ImageSpec = {
  guest: 'hvm',
  body: [
    W.pages(W.ram(0, 8)),
    W.pages(W.ram(16, 4), W.holes(30, 2)),
    W.pages(W.ram(2, 3, 2)),
    W.tsc({ mode: 2, incarnation: 0 }),
    W.pages(W.ram(3, 1, 3), W.ram(17, 2, 2)),
    ...state45,
  ],
};

const withBody = (...body: readonly W.Chunk[]): W.ImageSpec => ({ guest: 'hvm', body });

function plain(): Example[] {
  return [
    ...bothWords('hvm 4.5 save', hvmPlain, { description: 'Xen 4.5, non-live: TSC before the pages' }),
    ...bothWords('hvm 4.5 live', hvmLive, {
      description: 'Xen 4.5, live: three passes, TSC before the last one',
    }),
    ...bothWords(
      'hvm 4.0',
      {
        ...withBody(
          W.tsc(),
          memory(),
          W.vcpuInfo({ words: 1 }),
          W.param('HVM_IDENT_PT', 0xfeff_c000n),
          W.param('HVM_VM86_TSS', 0xfeff_b000n),
        ),
        tail: { qemu: { signature: 'QemuDeviceModelRecord' } },
      },
      {
        description: 'Xen 4.0: two parameters, no toolstack chunk, no −9, QEMU to the end of the file',
        upstream: notImplemented('Unrecognised Qemu sig'),
        like: withBody(
          W.tsc(),
          memory(),
          W.vcpuInfo(),
          W.param('HVM_IDENT_PT', 0xfeff_c000n),
          W.param('HVM_VM86_TSS', 0xfeff_b000n),
        ),
      },
    ),
    ...bothWords(
      'hvm 4.1',
      withBody(
        W.tsc(),
        memory(),
        W.vcpuInfo({ words: 1 }),
        W.param('HVM_IDENT_PT', 0xfeff_c000n),
        W.param('HVM_VM86_TSS', 0xfeff_b000n),
        W.param('HVM_CONSOLE_PFN', 0xfefff),
        W.param('HVM_ACPI_IOPORTS_LOCATION', 1),
        W.param('HVM_VIRIDIAN', 1),
        W.lastCheckpoint,
      ),
      {
        description: 'Xen 4.1: five parameters, no toolstack chunk',
      },
    ),
    example('hvm debug', withBody(W.tsc(), memory(), W.verifyMode, memory(), ...state45), {
      description: 'debug flag: −1, then all pages again',
    }),
    example(
      'hvm debug, live',
      withBody(
        memory(),
        W.tsc(),
        W.pages(W.ram(2, 1, 2)),
        W.verifyMode,
        W.pages(W.ram(0, 2)),
        W.pages(W.ram(2, 1, 2)),
        ...state45,
      ),
      {
        description: 'debug flag of a live migration: −1 after the last pass',
      },
    ),
    example('hvm hand-over', hvmPlain, {
      description: 'xl migrate: its messages stand behind the image',
      after: W.text('domain received, ready to unpause\0\0\0'),
    }),
  ];
}

function pagesOf(): Example[] {
  return [
    example(
      'hvm page types',
      withBody(
        W.tsc(),
        W.pages(W.ram(0), W.page(1, 'BROKEN'), W.page(2, 'XALLOC'), W.page(3, 'XTAB'), W.ram(4)),
        ...state45,
      ),
      {
        description: 'every type that an HVM guest can have; those without contents between others',
      },
    ),
    example(
      'hvm lost pfns',
      withBody(W.tsc(), W.pages(W.ram(0, 2), W.lost(5), W.ram(9), W.lost()), ...state45),
      {
        description: 'entries 0xf0000000, again and again: pages that the sender could not map',
      },
    ),
    example('hvm lost batch', withBody(W.tsc(), memory(), W.pages(W.lost(3)), ...state45), {
      description: 'a batch of nothing but 0xf0000000; upstream makes a PAGE_DATA without entries of it',
    }),
    example(
      'hvm full batch',
      {
        ...withBody(W.tsc(), W.pages(W.ram(0), W.holes(1, 1023)), W.pages(W.holes(2000, 1024)), ...state45),
        p2mSize: 3024,
      },
      {
        description: 'batches of 1024, the most that there may be',
      },
    ),
    example('hvm long batch', withBody(W.tsc(), W.pages(W.holes(1, 1025)), ...state45), {
      description: 'a batch of 1025',
      upstream: refused('Page batch (1025) exceeded MAX_BATCH'),
    }),
    example('hvm duplicate', withBody(W.tsc(), W.pages(W.ram(3), W.ram(3)), ...state45), {
      description: 'a page twice in one batch',
      upstream: refused('Duplicate pfns in batch'),
    }),
    example('hvm no pages', withBody(W.tsc(), ...state45), { description: 'a body without pages' }),
    example(
      'hvm largest pfn',
      { ...withBody(W.tsc(), W.pages(W.ram(0), W.ram(0x0fff_fffe)), ...state45), p2mSize: 0x0fff_ffff },
      {
        description: 'the largest guest and its last page',
      },
    ),
    example('hvm pfn beyond p2m_size', withBody(W.tsc(), W.pages(W.ram(64)), ...state45), {
      description: 'a page that the guest cannot have; upstream does not look at p2m_size',
    }),
    example('hvm bits above a pfn', withBody(W.tsc(), W.pages(W.ram(1), W.page(0x3_0000_0002)), ...state45), {
      description: 'an entry of more than 32 bits; upstream cuts them off',
    }),
    example(
      'hvm p2m_size 0',
      { ...hvmPlain, p2mSize: 0 },
      {
        description: 'a guest without pages; upstream does not look at p2m_size',
      },
    ),
    example(
      'hvm p2m_size of 35 bits',
      { ...hvmPlain, p2mSize: 0x4_0000_0040 },
      {
        description: 'a guest larger than there may be; upstream does not look at p2m_size',
      },
    ),
    example('hvm unknown page type', withBody(W.tsc(), W.pages(W.page(1, 5)), ...state45), {
      description: 'a page type that does not exist; upstream hands it on',
    }),
  ];
}

/** Chunks that may stand anywhere, each with a number that says what it is. */
const movable: readonly (readonly [string, W.Chunk])[] = [
  ['ENABLE_VERIFY_MODE', W.verifyMode],
  ['VCPU_INFO', W.vcpuInfo()],
  ['TSC_INFO', W.tsc({ incarnation: 9 })],
  ['LAST_CHECKPOINT', W.lastCheckpoint],
  ['TOOLSTACK', W.toolstack(physmap)],
  ...(Object.keys(W.PARAM_CHUNKS) as W.ParamChunk[])
    .filter((name) => name !== 'HVM_X87_FIP_WIDTH')
    .map((name, i) => [name, W.param(name, 0x1_0000_0000n + BigInt(i), 0xdead_0000 + i)] as const),
];

function placements(): Example[] {
  const rest = [W.vcpuInfo(), W.param('HVM_CONSOLE_PFN', 0xfefff)] as const;
  return movable.flatMap(([name, chunk]) => {
    const last = name === 'VCPU_INFO' ? rest.slice(1) : rest;
    const places = {
      'before the pages': [chunk, memory(), ...last],
      'between batches': [memory(), chunk, W.pages(W.ram(1, 1, 2)), ...last],
      'at the end': [memory(), ...last, chunk],
    };
    return Object.entries(places).map(([place, body]) =>
      example(`hvm ${name} ${place}`, withBody(...body), { description: `${name} ${place}` }),
    );
  });
}

function states(): Example[] {
  const x87 = withBody(
    W.tsc(),
    memory(),
    W.vcpuInfo(),
    ...params45,
    W.param('HVM_X87_FIP_WIDTH', 4),
    W.lastCheckpoint,
  );
  return [
    example('hvm −21', x87, {
      description: '4.5.4 and later on machines that no longer keep the FPU selectors',
      upstream: refused('Unrecognised chunk -21'),
      like: withBody(W.tsc(), memory(), W.vcpuInfo(), ...params45, W.lastCheckpoint),
      params: [[36, 4n]],
    }),
    example('hvm no parameters', withBody(W.tsc(), memory(), W.vcpuInfo(), W.lastCheckpoint), {
      description: 'all parameters zero, so none is sent',
    }),
    example(
      'hvm parameter twice',
      withBody(W.tsc(), memory(), W.param('HVM_VIRIDIAN', 1), W.vcpuInfo(), W.param('HVM_VIRIDIAN', 3)),
      {
        description: 'a parameter twice: both are handed on, the later one holds',
      },
    ),
    example('hvm without TSC', withBody(memory(), ...state45), { description: 'no TSC chunk' }),
    example('hvm unknown chunk', withBody(W.tsc(), W.rawChunk(-22), ...state45), {
      description: 'a chunk that nobody ever wrote',
      upstream: refused('Unrecognised chunk -22'),
    }),
    example(
      'hvm SMP',
      { ...withBody(W.tsc(), memory(), ...state45), vcpus: [0, 1, 3] },
      {
        description: 'several vcpus; an HVM image keeps them in Xen’s state',
      },
    ),
    example(
      'hvm long context',
      { ...hvmPlain, tail: { context: W.cat(hvmContext.subarray(0, 13), hvmContext) } },
      {
        description: 'a context of two records',
      },
    ),
    example(
      'hvm empty context',
      { ...hvmPlain, tail: { context: new Uint8Array(0) } },
      {
        description: 'no state of Xen; upstream makes an empty HVM_CONTEXT of it, which no receiver takes',
      },
    ),
    example(
      'hvm magic zero',
      { ...hvmPlain, tail: { magic: [0, 0, 0] } },
      {
        description: 'parameters that Xen could not tell the sender',
      },
    ),
  ];
}

function toolstacks(): Example[] {
  const of = (chunk: W.Chunk): W.ImageSpec =>
    withBody(W.tsc(), memory(), W.vcpuInfo(), chunk, W.lastCheckpoint);
  const body = (...parts: Uint8Array[]): W.Chunk => W.toolstackBytes(W.cat(...parts));
  return [
    ...bothWords('hvm toolstack, no entries', of(W.toolstack()), { description: 'version 1, count 0' }),
    ...bothWords(
      'hvm toolstack, odd names',
      of(
        W.toolstack([
          { offset: 0, start: 0n, size: 1, name: '' },
          { offset: 0xffff_ffff_ffff_ffffn, start: 1, size: 2, name: 'a/b c' },
        ]),
      ),
      {
        description: 'an empty name and the largest number',
      },
    ),
    example('hvm toolstack, no bytes', of(W.toolstackBytes(new Uint8Array(0))), {
      description: 'a length of 0',
    }),
    example('hvm toolstack, no garbage', of(W.toolstack(physmap, { garbage: false })), {
      description: 'a 64-bit image with names as 32-bit toolstacks write them',
      upstream: refused('Remaining data too short for physmap name'),
    }),
    example(
      'hvm toolstack, garbage',
      { ...of(W.toolstack(physmap.slice(0, 1), { garbage: true })), word: 4 },
      {
        description: 'a 32-bit image with bytes after its last name: nobody looks at them',
      },
    ),
    example('hvm toolstack, version 2', of(W.toolstack(physmap, { version: 2 })), {
      description: 'a version that there never was',
      upstream: refused('Cannot decode libxl toolstack version 2'),
    }),
    example('hvm toolstack, short', of(body(W.w32(1))), {
      description: 'no room for version and count',
      upstream: refused('Overly short libxl toolstack data'),
    }),
    example('hvm toolstack, count too large', of(W.toolstack(physmap, { count: 3 })), {
      description: 'an entry less than counted',
      upstream: refused('Remaining data too short for physmap header'),
    }),
    example('hvm toolstack, count too small', of(W.toolstack(physmap, { count: 1 })), {
      description: 'an entry more than counted: nobody looks at it',
    }),
    example('hvm toolstack, name without length', of(body(W.w32(1), W.w32(1), new Uint8Array(28))), {
      description: 'a name of 0 bytes, not even a NUL',
      upstream: refused('No physmap info name'),
    }),
    example(
      'hvm toolstack, NUL in a name',
      of(W.toolstack([{ offset: 1, start: 2, size: 3, name: 'vga\0vram' }])),
      {
        description: 'a name with a NUL in it: upstream makes two strings of it, so that keys become values',
      },
    ),
    example('hvm toolstack, not UTF-8', of(W.toolstack([{ offset: 1, start: 2, size: 3, name: '\xe4' }])), {
      description: 'a name that Python cannot print, so that upstream breaks down',
      upstream: refused("can't decode byte 0xe4"),
    }),
    example(
      'hvm toolstack, twice',
      withBody(
        W.tsc(),
        memory(),
        W.toolstack(physmap.slice(0, 1)),
        W.vcpuInfo(),
        W.toolstack(physmap.slice(1)),
      ),
      {
        description: 'two chunks: upstream puts them one after the other',
      },
    ),
  ];
}

function qemus(): Example[] {
  const with_ = (qemu: W.QemuRecord | 'none'): W.ImageSpec => ({ ...hvmPlain, tail: { qemu } });
  return [
    example('hvm QemuDeviceModelRecord', with_({ signature: 'QemuDeviceModelRecord' }), {
      description: 'QEMU record of xend and of libxl 4.0: up to the end of the file',
      upstream: notImplemented('Unrecognised Qemu sig'),
      like: hvmPlain,
    }),
    example('hvm RemusDeviceModelState', with_({ signature: 'RemusDeviceModelState' }), {
      description: 'QEMU record of the first Remus, with length',
      upstream: notImplemented('Unrecognised Qemu sig'),
      like: hvmPlain,
    }),
    example(
      'hvm DeviceModelRecord0002',
      with_({ signature: 'DeviceModelRecord0002', blob: W.qemuState(5000, 9) }),
      {
        description: 'QEMU record of libxl since 4.1, of odd size',
      },
    ),
    example('hvm QEMU, no bytes', with_({ signature: 'DeviceModelRecord0002', blob: new Uint8Array(0) }), {
      description: 'a QEMU record of 0 bytes; upstream hands it on',
    }),
    example('hvm QEMU, unknown', with_({ signature: 'DeviceModelRecord0003' }), {
      description: 'a signature that nobody ever wrote',
      upstream: notImplemented('Unrecognised Qemu sig'),
    }),
    example('hvm QEMU, none', with_('none'), {
      description: 'no QEMU record, as xc_save alone leaves an image',
      upstream: refused('Stream truncated'),
    }),
    example('hvm QEMU, short', with_({ signature: 'DeviceModelRecord0002', length: 1000 }), {
      description: 'a QEMU record that is longer than the file',
      upstream: refused('Stream truncated'),
    }),
  ];
}

export function hvmImages(): Example[] {
  return [...plain(), ...pagesOf(), ...placements(), ...states(), ...toolstacks(), ...qemus()];
}
