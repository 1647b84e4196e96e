/** Damaged images, and lengths that lie. */

import { describe, expect, it } from 'vitest';
import { LegacyReader } from '../../../../lib/stream/legacy/reader.js';
import { imageNamed } from '../../../legacy/images.js';
import { mutations } from '../../../legacy/mutate.js';
import { Random } from '../../../differential/mutate.js';
import * as W from '../../../legacy/writer.js';
import { feed } from './feed.js';

const names = [
  'hvm 4.5 live, 64-bit toolstack',
  'hvm 4.5 save, 32-bit toolstack',
  'pv64 4.5 save, 64-bit toolstack',
  'pv32 SMP, 32-bit toolstack',
  'pv64 Remus compressed, 64-bit toolstack',
  'tmem persistent, mixed',
  'tmem ephemeral, live',
  'hvm QemuDeviceModelRecord',
];

describe('damage', () => {
  it.each(names)('%s', (name) => {
    const { pieces } = imageNamed(name);
    const list = pieces?.() ?? [];
    const random = new Random(name.length);
    let good = 0;
    for (let i = 0; i < 150; i++) {
      const mutate = random.pick(Object.values(mutations));
      const { what, bytes } = mutate(list, random);
      // Nothing but StreamFormatError comes out of `feed`, and it always comes to an end.
      const strict = feed(bytes);
      const lenient = feed(bytes, { lenient: true });
      if (strict.error === undefined) good++;
      const offset = Number(/@(\d+)$/.exec(strict.error ?? '')?.[1] ?? 0);
      if (offset > bytes.length) expect.fail(`${what}: ${String(strict.error)} of ${bytes.length}`);
      // What a strict reader takes, a lenient one takes in the same way.
      if (strict.error === undefined) expect(lenient, what).toEqual(strict);
    }
    // Some damage is not seen: registers, keys, contents.
    expect(good).toBeGreaterThan(0);
    expect(good).toBeLessThan(150);
  });
});

describe('lengths that lie', () => {
  /** Images that end behind a length, and what is said there. */
  const p2m = 0x0fff_ffff;
  const hvm = W.cat(W.w64(p2m));
  const tail = W.cat(hvm, W.w32(0), new Uint8Array(24));
  const blocks = W.cat(W.text('vcpu'), W.w32(2800), new Uint8Array(2800));
  const pv = W.cat(W.w64(p2m), W.w64(-1n), W.w32(blocks.length), blocks);
  const frames = 8 * Math.ceil(p2m / 1024);
  const lies: Readonly<Record<string, Uint8Array>> = {
    'p2m frame list': pv,
    'unmapped pfns': W.cat(pv, new Uint8Array(frames), W.w32(0), W.w32(p2m)),
    TOOLSTACK: W.cat(hvm, W.w32(-18), W.w32(1 << 20)),
    COMPRESSED_DATA: W.cat(hvm, W.w32(-12), W.w64(64 << 20)),
    'HVM context': W.cat(tail, W.w32(128 << 20)),
    'QEMU record': W.cat(tail, W.w32(1), Uint8Array.of(7), W.text('DeviceModelRecord0002'), W.w32(128 << 20)),
    'tmem pages': W.cat(
      hvm,
      ...W.tmem({ pools: [{ id: 0, flags: W.poolFlags(1, 4), declared: 0xffff_ffff, terminated: false }] })(
        W.layoutOf({ guest: 'hvm' }),
      ).map(({ bytes }) => bytes),
    ).subarray(0, -4),
  };

  function held(): number {
    const { heapUsed, arrayBuffers } = process.memoryUsage();
    return heapUsed + arrayBuffers;
  }

  it.each(Object.entries(lies))('%s: costs its sender the bytes', (_what, bytes) => {
    const n = bytes.length > 1 << 20 ? 10 : 100;
    const before = held();
    const readers = Array.from({ length: n }, () => {
      const reader = new LegacyReader();
      for (let at = 0; at < bytes.length;) {
        const piece = bytes.subarray(at, at + reader.want);
        at += piece.length;
        reader.feed(piece);
      }
      reader.feed(new Uint8Array(Math.min(1000, reader.want)));
      return reader;
    });
    // The least of the lies above is a mebibyte; 64 KiB are the first buffer of a collector. A reader keeps its table of
    // 1024 entries, and a p2m frame list that has come.
    const most = n * ((bytes.length > 1 << 20 ? frames : 0) + 256 * 1024) + (8 << 20);
    expect(held() - before).toBeLessThan(most);
    for (const reader of readers) expect(() => reader.end()).toThrow(/short/);
  });

  it('QEMU’s state without length has a limit', () => {
    const reader = new LegacyReader();
    const start = W.cat(tail, W.w32(1), Uint8Array.of(7), W.text('QemuDeviceModelRecord'), W.text('QEVM'));
    for (let at = 0; at < start.length;) {
      const piece = start.subarray(at, at + reader.want);
      at += piece.length;
      reader.feed(piece);
    }
    const piece = new Uint8Array(reader.want);
    const all = (): void => {
      for (let n = 0; n <= 128 << 20; n += piece.length) reader.feed(piece);
    };
    expect(all).toThrow(/more than 134217728 bytes/);
  });
});
