/** Legacy images in pieces of any size, and cut short anywhere. */

import { describe, expect, it } from 'vitest';
import { LegacyReader } from '../../../../lib/stream/legacy/reader.js';
import { StreamReader } from '../../../../lib/stream/stream-reader.js';
import { imageNamed, images } from '../../../legacy/images.js';
import * as W from '../../../legacy/writer.js';
import { feed, feedTo } from './feed.js';

/** Numbers that repeat. */
function random(seed: number): (below: number) => number {
  let x = seed;
  return (below) => {
    x = (Math.imul(x, 1_103_515_245) + 12_345) & 0x7fff_ffff;
    return (x >>> 8) % below;
  };
}

/** Sizes of every order, small ones mostly. */
function sizes(seed: number): () => number {
  const next = random(seed);
  return () => next(1 << (1 + next(13)));
}

const small = images.filter((image) => image.present && image.small);

describe('pieces of any size', () => {
  it('there are images of all kinds', () => {
    expect(small.length).toBeGreaterThan(250);
    expect(new Set(small.map(({ guest, width }) => `${guest} ${width}`)).size).toBe(4);
  });

  describe.each([{ lenient: false }, { lenient: true }])('%j', (options) => {
    it.each(small.map((image) => image.name))('%s', (name) => {
      const bytes = imageNamed(name).stream();
      const whole = feed(bytes, options);
      expect(feed(bytes, options, sizes(name.length))).toEqual(whole);
      expect(feed(bytes, options, sizes(77))).toEqual(whole);
    });
  });

  it.each([
    'hvm 4.5 live, 64-bit toolstack',
    'hvm 4.5 live, 32-bit toolstack',
    'hvm QemuDeviceModelRecord',
    'pv64 4.5 save, 64-bit toolstack',
    'pv32 4.5 save, 32-bit toolstack',
    'pv64 vcpus: xsave left out',
    'pv64 Remus compressed, 32-bit toolstack',
    'tmem persistent, mixed',
    'tmem ephemeral, live',
  ])('byte by byte: %s', (name) => {
    const bytes = imageNamed(name).stream();
    expect(feed(bytes, {}, () => 1)).toEqual(feed(bytes));
  });

  it.each([
    'xl hvm',
    'xl pv32, 32-bit toolstack',
    'xl text',
    'xl without configuration',
    'xend pv',
    'xend hvm',
  ])('behind its header: %s', (name) => {
    const bytes = imageNamed(name).bytes();
    const read = (size?: () => number): unknown => feedTo(new StreamReader({ legacy: true }), bytes, size);
    const whole = read() as ReturnType<typeof feedTo>;
    expect(whole.error).toBeUndefined();
    expect(whole.done).toBe(true);
    expect(read(() => 1)).toEqual(whole);
    expect(read(sizes(5))).toEqual(whole);
  });
});

/** Offsets at which an image may end: after the last piece of each of its tails. */
function ends(pieces: readonly W.Piece[]): number[] {
  const all: number[] = [];
  let at = 0;
  for (const { name, bytes } of pieces) {
    at += bytes.length;
    if (name === 'shared info' || name === 'QEMU state') all.push(at);
  }
  return all;
}

describe('cut short anywhere', () => {
  // Few pages: nothing is to be learnt from each byte of their contents.
  const one = [W.pages(W.page(3), W.holes(6))];
  const state = [W.vcpuInfo(), W.toolstack([{ offset: 1, start: 2, size: 3, name: 'vga.vram' }])];
  const blocks = [W.block.vcpu(), W.block.extv(), W.block.xcnt(96)];
  const tmem = W.tmem({
    pools: [W.ephemeral(0), W.persistent(2, [W.tmemPage(7, 0)]), { ...W.persistent(4, []), declared: 0 }],
  });
  const specs: Readonly<Record<string, W.ImageSpec>> = {
    hvm: { guest: 'hvm', body: [W.tsc(), ...one, ...state, W.param('HVM_VIRIDIAN', 1), W.lastCheckpoint] },
    'hvm, no end said': { guest: 'hvm', body: [W.tsc(), ...one, ...state] },
    'hvm, old Remus': {
      guest: 'hvm',
      body: [...one, ...state, W.lastCheckpoint],
      tail: { qemu: { signature: 'RemusDeviceModelState' } },
    },
    'hvm, tmem': {
      guest: 'hvm',
      body: [
        tmem,
        ...one,
        W.tmemExtra([{ pool: 2, object: [7n, 0x55n, 0n], index: 0 }]),
        W.tsc(),
        ...state,
        W.lastCheckpoint,
      ],
    },
    pv64: {
      guest: 'pv64',
      blocks,
      vcpus: [0, 1],
      body: [W.tsc(), ...one, ...state, W.lastCheckpoint],
      tail: { unmapped: [5, 6] },
    },
    pv32: { guest: 'pv32', body: [W.tsc(), ...one, ...state, W.lastCheckpoint] },
    'Remus, compressed': {
      guest: 'pv32',
      rounds: [
        { body: [W.tsc(), ...one, ...state, W.enableCompression] },
        { body: [W.pfns(W.ram(3)), W.compressed(W.unchanged), ...state] },
        {
          body: [W.pfns(W.ram(3)), W.compressed(W.runs(W.pageOf(3), W.touched(W.pageOf(3), [4]))), ...state],
        },
      ],
    },
  };

  it.each(
    Object.entries(specs).flatMap(([name, spec]) =>
      ([8, 4] as const).map((word) => [`${name}, ${8 * word}-bit toolstack`, { ...spec, word }] as const),
    ),
  )('%s', (_name, spec) => {
    const pieces = W.legacyPieces(spec);
    const bytes = W.joinPieces(pieces);
    const good = ends(pieces);
    const last = spec.body?.includes(W.lastCheckpoint) === true;
    expect(good.at(-1)).toBe(bytes.length);
    let at = 0;
    for (const { name, bytes: piece, opaque } of pieces) {
      // Every byte; of contents that nobody looks into, some.
      for (let i = 0; i < piece.length; i += opaque === true && i > 8 && i < piece.length - 8 ? 7 : 1) {
        const n = at + i;
        const { error, checkpoints, done } = feed(bytes.subarray(0, n));
        const complete = good.filter((end) => end <= n).length;
        const whole = good.includes(n);
        const right =
          checkpoints === complete &&
          done === whole &&
          (whole
            ? error === undefined
            : error?.startsWith('TRUNCATED ') === true && error.endsWith(` @${n}`));
        if (!right)
          expect.fail(`${n} bytes, ${i} into ${name}: ${String(error)}, ${checkpoints} checkpoints`);
      }
      at += piece.length;
    }
    expect(feed(bytes)).toMatchObject({ error: undefined, done: true, left: 0, checkpoints: good.length });
    // What follows is not the image's, if it says where it ends.
    expect(feed(W.cat(bytes, W.w32(0))).left).toBe(last ? 4 : 0);
  });

  it('QEMU’s state up to the end of the file may end anywhere behind its magic', () => {
    const spec: W.ImageSpec = {
      guest: 'hvm',
      body: one,
      tail: { qemu: { signature: 'QemuDeviceModelRecord' } },
    };
    const pieces = W.legacyPieces(spec);
    const bytes = W.joinPieces(pieces);
    const from = bytes.length - (pieces.at(-1) as W.Piece).bytes.length;
    for (let n = from - 25; n <= bytes.length; n++) {
      const { error, done } = feed(bytes.subarray(0, n));
      const whole = n >= from + 4;
      expect([n, error?.split(' ')[0], done]).toEqual([n, whole ? undefined : 'TRUNCATED', whole]);
    }
  });

  it.each(['xl hvm', 'xend pv'])('in the header: %s', (name) => {
    const bytes = imageNamed(name).bytes();
    const size = bytes.length - imageNamed(name).stream().length;
    for (let n = 0; n < size; n++) {
      const { error, events } = feedTo(new StreamReader({ legacy: true }), bytes.subarray(0, n));
      expect(error).toMatch(new RegExp(`^TRUNCATED .*@${n}$`));
      expect(events).toEqual([]);
    }
  });
});

describe('after the end', () => {
  it('a reader that is done takes nothing; one that has thrown throws again', () => {
    const reader = new LegacyReader();
    const bytes = imageNamed('hvm 4.5 save, 64-bit toolstack').stream();
    expect(feedTo(reader, bytes).done).toBe(true);
    expect(reader.want).toBe(0);
    expect(reader.atBoundary).toBe(true);
    expect(() => reader.feed(new Uint8Array(1))).toThrow(/complete/);
    expect(reader.end()).toBeUndefined();

    const broken = new LegacyReader();
    const { error } = feedTo(broken, W.cat(W.w64(64), W.w32(2000)));
    expect(error).toBe('LIMIT page batch.count @8');
    expect(() => broken.end()).toThrow(/2000/);
  });

  it("xl's hand-over after an image that does not say where it ends", () => {
    const bytes = W.legacyImage({ guest: 'pv64', body: [W.tsc(), W.pages(W.ram(0)), W.vcpuInfo()] });
    const after = W.text('domain is yours, you are cleared to unpause\0');
    expect(feed(W.cat(bytes, after))).toMatchObject({ error: undefined, done: true, left: after.length - 4 });
  });

  it("xl's hand-over is no part of QEMU's state", () => {
    const qemu = { signature: 'QemuDeviceModelRecord', blob: W.qemuState(40) };
    const bytes = W.legacyImage({ guest: 'hvm', body: [W.tsc()], tail: { qemu } });
    const after = W.text('domain is yours, you are cleared to unpause\0');
    const { events, error } = feed(W.cat(bytes, after));
    expect(error).toBeUndefined();
    expect(events.at(-1)).toMatchObject({
      part: 'QEMU record',
      body: Buffer.from(qemu.blob).toString('hex'),
    });
  });
});
