/** Images of PV guests, without Remus, tmem and headers of toolstacks. */

import { bothWords, example, refused, type Example } from './example.js';
import { physmap } from './images-hvm.js';
import * as W from './writer.js';

type PvGuest = 'pv32' | 'pv64';

const { vcpu, extv, xcnt, raw } = W.block;

/** What 4.5 writes between the pages and the end of the body: libxl has its chunk in PV images too. */
export const pvState45: readonly W.Chunk[] = [W.vcpuInfo(), W.toolstack(), W.lastCheckpoint];

/** Pages with tables of the guest's kind; 32-bit guests have no L4. */
function memory(guest: PvGuest, version = 1): W.Chunk {
  const top = guest === 'pv64' ? [W.page(12, 'L4_PIN'), W.page(13, 'L4')] : [W.page(12, 'L3_PIN')];
  const tables = [W.page(8, 'L1'), W.page(9, 'L1_PIN'), W.page(10, 'L2'), W.page(11, 'L3')];
  return W.pages(W.ram(0, 4, version), W.holes(5), tables, top);
}

export function pvPlain(
  guest: PvGuest = 'pv64',
  blocks: readonly W.Block[] = [vcpu(), extv(), xcnt()],
): W.ImageSpec {
  return { guest, blocks, body: [W.tsc(), memory(guest), ...pvState45], tail: { unmapped: [5, 20, 21] } };
}

function plain(guest: PvGuest): Example[] {
  const spec = pvPlain(guest);
  return [
    ...bothWords(`${guest} 4.5 save`, spec, { description: 'Xen 4.5, non-live, a machine with XSAVE' }),
    ...bothWords(
      `${guest} 4.5 live`,
      {
        ...spec,
        body: [memory(guest), W.pages(W.ram(20, 3)), W.tsc(), W.pages(W.ram(1, 2, 2)), ...pvState45],
      },
      {
        description: 'Xen 4.5, live',
      },
    ),
    ...bothWords(
      `${guest} 4.0`,
      { guest, blocks: [vcpu(), extv()], body: [W.tsc(), memory(guest), W.vcpuInfo({ words: 1 })] },
      {
        description: 'Xen 4.0: no xsave, no toolstack chunk, no −9',
      },
    ),
    ...bothWords(
      `${guest} 4.0, padded`,
      { guest, blocks: [vcpu(), extv()], body: [W.tsc(), memory(guest), W.vcpuInfo({ words: 1 })] },
      {
        description: 'the same on a disk, with zeros behind it: they could be an END and an empty tail',
        after: new Uint8Array(16 << 10),
      },
    ),
    ...bothWords(
      `${guest} 4.1`,
      {
        guest,
        blocks: [vcpu(), extv()],
        body: [W.tsc(), memory(guest), W.vcpuInfo({ words: 1 }), W.lastCheckpoint],
      },
      {
        description: 'Xen 4.1: no toolstack chunk',
      },
    ),
    ...bothWords(
      `${guest} two p2m frames`,
      { ...spec, p2mSize: 2 * (4096 / W.WIDTH[guest]) - 1 },
      {
        description: 'a second frame of the p2m, which is not full',
      },
    ),
    ...bothWords(
      `${guest} full p2m frame`,
      { ...spec, p2mSize: 4096 / W.WIDTH[guest] },
      {
        description: 'a p2m of one full frame',
      },
    ),
    ...bothWords(`${guest} SMP`, { ...spec, vcpus: [0, 1, 2] }, { description: 'three vcpus' }),
    ...bothWords(
      `${guest} vcpu 1 offline`,
      { ...spec, vcpus: [0, 2] },
      {
        description: 'a vcpu between others is offline, the last one too',
      },
    ),
    example(
      `${guest} debug`,
      { ...spec, body: [W.tsc(), memory(guest), W.verifyMode, memory(guest), ...pvState45] },
      {
        description: 'debug flag: −1, then all pages again',
      },
    ),
    example(`${guest} hand-over`, spec, {
      description: 'xl migrate: its messages stand behind the image',
      after: W.text('domain received, ready to unpause\0\0\0'),
    }),
    example(
      `${guest} no unmapped`,
      { ...spec, tail: {} },
      { description: 'an empty list of unmapped frames' },
    ),
    example(
      `${guest} many unmapped`,
      { ...spec, p2mSize: 3000, tail: { unmapped: Array.from({ length: 2050 }, (_, i) => 100 + i) } },
      {
        description: 'unmapped frames in several of the sender’s pieces',
      },
    ),
    ...placements(guest),
  ];
}

/** Chunks that a PV image can have, at every place. */
function placements(guest: PvGuest): Example[] {
  const movable: readonly (readonly [string, W.Chunk])[] = [
    ['ENABLE_VERIFY_MODE', W.verifyMode],
    ['VCPU_INFO', W.vcpuInfo()],
    ['TSC_INFO', W.tsc({ incarnation: 9 })],
    ['LAST_CHECKPOINT', W.lastCheckpoint],
    ['TOOLSTACK', W.toolstack()],
  ];
  return movable.flatMap(([name, chunk]) => {
    const rest = name === 'VCPU_INFO' ? [] : [W.vcpuInfo()];
    const places = {
      'before the pages': [chunk, memory(guest), ...rest],
      'between batches': [memory(guest), chunk, W.pages(W.ram(1, 1, 2)), ...rest],
      'at the end': [memory(guest), ...rest, chunk],
    };
    return Object.entries(places).map(([place, body]) =>
      example(`${guest} ${name} ${place}`, { ...pvPlain(guest), body }, { description: `${name} ${place}` }),
    );
  });
}

function blocks(guest: PvGuest): Example[] {
  const orders: Readonly<Record<string, readonly W.Block[]>> = {
    vcpu: [vcpu()],
    'vcpu, extv': [vcpu(), extv()],
    'vcpu, xcnt': [vcpu(), xcnt()],
    'extv, vcpu': [extv(), vcpu()],
    'xcnt, vcpu, extv': [xcnt(), vcpu(), extv()],
    'extv, xcnt, vcpu': [extv(), xcnt(), vcpu()],
    'large xcnt': [vcpu(), extv(), xcnt(0xa80)],
    'odd xcnt': [vcpu(), extv(), xcnt(0x245)],
    'extv with data': [vcpu(), extv(12), xcnt()],
    'xcnt without room': [vcpu(), extv(), xcnt(0)],
  };
  return Object.entries(orders).map(([name, list]) =>
    example(`${guest} blocks: ${name}`, pvPlain(guest, list), { description: `extended info of ${name}` }),
  );
}

function blockFaults(): Example[] {
  const marked = W.legacyPieces(pvPlain()).filter(
    ({ name }) => name === 'extended info' || name.startsWith('block'),
  );
  const length = marked.slice(1).reduce((sum, { bytes }) => sum + bytes.length, 0);
  const of = (list: readonly W.Block[], blocksLength?: number): W.ImageSpec => ({
    ...pvPlain('pv64', list),
    ...(blocksLength === undefined ? {} : { blocksLength }),
  });
  return [
    example('pv64 blocks: unknown', of([vcpu(), raw('abcd', W.w32(7)), extv()]), {
      description: 'a block that nobody ever wrote; old receivers pass over it',
      upstream: refused('Unrecognised extended block'),
    }),
    example('pv64 blocks: vcpu of another size', of([vcpu(5000), extv()]), {
      description: 'a vcpu context of neither width',
      upstream: refused('Unable to determine guest width/level'),
    }),
    example('pv64 blocks: no vcpu', of([extv()]), {
      description: 'nothing tells the guest’s width, so that upstream breaks down',
      upstream: refused('ZeroDivisionError'),
    }),
    example('pv64 blocks: vcpu twice', of([vcpu(), vcpu(), extv(), xcnt()]), {
      description: 'upstream writes X86_PV_INFO twice, which no receiver takes',
    }),
    example('pv64 blocks: length too small', of([vcpu(), extv(), xcnt()], length - 4), {
      description: 'the extended info ends within a block',
      upstream: refused('Overshot Extended Info size by 4 bytes'),
    }),
    example('pv64 blocks: length too large', of([vcpu(), extv(), xcnt()], length + 8), {
      description: 'the p2m frames would be a block',
      upstream: refused('Unrecognised extended block'),
    }),
    example('pv64 blocks: none', of([], 0), {
      description: 'extended info without blocks',
      upstream: refused('ZeroDivisionError'),
    }),
  ];
}

function vcpus(): Example[] {
  const spec = pvPlain();
  const info = (options: W.VcpuInfoOptions, more: Partial<W.ImageSpec> = {}): W.ImageSpec => ({
    ...spec,
    body: [W.tsc(), memory('pv64'), W.vcpuInfo(options), W.lastCheckpoint],
    ...more,
  });
  return [
    example('pv64 vcpus: 65', info({}, { vcpus: [0, 63, 64] }), { description: 'a map of two words' }),
    example('pv64 vcpus: 128 offline', info({ maxId: 128 }), {
      description: 'a map of three words, one bit set',
    }),
    example('pv64 vcpus: highest', info({ maxId: 4095 }), {
      description: 'the highest number that there may be',
    }),
    example('pv64 vcpus: too high', info({ maxId: 4096 }), {
      description: 'a number beyond it',
      upstream: refused('Vcpu max_id out of range: 4096'),
    }),
    example('pv64 vcpus: bits beyond', info({ online: [0, 5], maxId: 3 }, { vcpus: [0, 5] }), {
      description: 'a vcpu above the highest one is online; upstream takes it',
    }),
    example('pv64 vcpus: none online', info({ online: [] }, { vcpus: [] }), {
      description: 'an empty map; upstream makes an image without vcpus of it',
    }),
    example('pv64 vcpus: negative', info({ maxId: -1, words: 0 }, { vcpus: [] }), {
      description: 'a highest number of −1; upstream reads no map then',
    }),
    example(
      'pv64 vcpus: chunk missing',
      { ...spec, body: [W.tsc(), memory('pv64'), W.lastCheckpoint], tail: { vcpus: [] } },
      {
        description: 'no −2; upstream makes an image without vcpus of it',
      },
    ),
    example(
      'pv64 vcpus: chunk twice',
      info({}, { body: [memory('pv64'), W.vcpuInfo(), W.vcpuInfo()], tail: { vcpus: [0, 0] } }),
      {
        description: 'two of −2; upstream then reads each vcpu twice',
      },
    ),
    example('pv64 vcpus: xsave left out', info({}, { vcpus: [0, 1], tail: { withoutXsave: [0] } }), {
      description: 'an announced xsave state that is not there: no writer, and no reader expects it',
      upstream: { exit: 1, why: 'AssertionError' },
    }),
    example('pv64 vcpus: last xsave left out', info({}, { vcpus: [0, 1], tail: { withoutXsave: [1] } }), {
      description: 'the same, of the last vcpu: readers see shared info instead',
      upstream: { exit: 1, why: 'AssertionError' },
    }),
  ];
}

function other(): Example[] {
  const spec = pvPlain();
  const pages = (...body: W.Chunk[]): W.ImageSpec => ({ ...spec, body: [W.tsc(), ...body, ...pvState45] });
  const zero = W.legacyPieces(spec).filter(
    ({ name }) => !name.startsWith('block') && name !== 'extended info',
  );
  return [
    example(
      'pv64 page types',
      pages(
        memory('pv64'),
        W.pages(
          W.page(30, 'BROKEN'),
          W.page(31, 'XALLOC'),
          W.holes(32),
          W.page(33, 'L2_PIN'),
          W.page(34, 'L3_PIN'),
        ),
      ),
      {
        description: 'types that PV guests can have, with and without contents',
      },
    ),
    example(
      'pv64 p2m frame beyond p2m_size',
      { ...spec, frames: [64] },
      {
        description: 'a p2m frame that the guest cannot have; upstream does not look',
      },
    ),
    example(
      'pv64 unmapped beyond p2m_size',
      { ...spec, tail: { unmapped: Array.from({ length: 65 }, (_, i) => i) } },
      {
        description: 'more unmapped frames than the guest has pages; upstream does not look',
      },
    ),
    example('pv64 lost pfns', pages(W.pages(W.lost(2), W.ram(1), W.lost())), {
      description: 'entries 0xf0000000',
    }),
    example('pv64 duplicate', pages(W.pages(W.ram(1), W.holes(2), W.ram(1))), {
      description: 'a page twice in one batch',
      upstream: refused('Duplicate pfns in batch'),
    }),
    example(
      'pv64 parameter',
      { ...spec, body: [W.tsc(), memory('pv64'), W.param('HVM_CONSOLE_PFN', 1), ...pvState45] },
      {
        description: 'an HVM parameter of a PV guest',
        upstream: refused('HVM-only param in PV stream'),
      },
    ),
    example(
      'pv64 toolstack entries',
      { ...spec, body: [W.tsc(), memory('pv64'), W.vcpuInfo(), W.toolstack(physmap)] },
      {
        description: 'device memory of a PV guest; upstream writes it, libxl refuses it',
      },
    ),
    example(
      'pv64 unknown chunk',
      { ...spec, body: [W.tsc(), memory('pv64'), W.rawChunk(-99)] },
      {
        description: 'a chunk that nobody ever wrote',
        upstream: refused('Unrecognised chunk -99'),
      },
    ),
    {
      ...example('pv64 without extended info', spec, {
        description: 'before Xen 3.0.3: the p2m frames stand where the marker is',
        upstream: refused('Unexpected extended info marker'),
      }),
      bytes: () => W.joinPieces(zero),
      stream: () => W.joinPieces(zero),
      pieces: () => zero,
    },
  ];
}

export function pvImages(): Example[] {
  return [
    ...(['pv64', 'pv32'] as const).flatMap((guest) => [...plain(guest), ...blocks(guest)]),
    ...blockFaults(),
    ...vcpus(),
    ...other(),
  ];
}
