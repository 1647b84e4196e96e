import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { XenMigrationError } from '../../../lib/errors.js';
import { restore } from '../../../lib/restore/restore.js';
import { LibxcRecord, StreamReader } from '../../../lib/stream/index.js';
import { MemorySource } from '../../../lib/transport/index.js';
import { FakeHost } from './fake-host.js';
import * as S from './streams.js';

const remus = S.xl(
  S.join(
    S.headers('hvm'),
    S.policies(),
    S.STATIC_DATA_END,
    S.pageData(S.plainPages(0, 2)),
    S.hvmState(),
    S.CHECKPOINT,
    ...S.deviceModel(1),
    S.CHECKPOINT_END,
    S.pageData(S.plainPages(1, 3)),
    S.record(LibxcRecord.HVM_CONTEXT, S.HVM_CONTEXT),
    S.CHECKPOINT,
    S.CHECKPOINT_END,
    S.END,
  ),
);

const streams = [
  { name: 'HVM', hvm: true, bytes: S.xl(S.hvmStream([S.pageData(S.plainPages(0, 2))]), S.deviceModel(1)) },
  { name: 'HVM, image version 2', hvm: true, bytes: S.xl(S.hvmStream(undefined, 2)) },
  { name: 'PV', hvm: false, bytes: S.xl(S.pvStream(8)) },
  { name: 'PV of 32 bits', hvm: false, bytes: S.xl(S.pvStream(4)) },
  { name: 'Remus', hvm: true, bytes: remus },
];

/** Offsets at which something other than page contents stands. */
function skeleton(bytes: Uint8Array): number[] {
  const reader = new StreamReader();
  const offsets: number[] = [];
  for (let at = 0; at < bytes.length;) {
    const piece = bytes.subarray(at, at + reader.want);
    if (reader.feed(piece)?.kind !== 'page-bytes')
      for (let i = 0; i < piece.length; i++) offsets.push(at + i);
    at += piece.length;
  }
  return offsets;
}

async function outcome(bytes: Uint8Array, hvm: boolean, cut: number): Promise<void> {
  const host = new FakeHost({ hvm, maxPages: 32 });
  const source = new MemorySource([bytes.subarray(0, cut), bytes.subarray(cut)]);
  let error: unknown;
  try {
    await restore(host, { from: source, onTruncatedCheckpoint: 'failover' });
  } catch (reason) {
    error = reason;
  }
  expect(host.leaks()).toEqual([]);
  if (error === undefined) {
    expect(host.running).toBe(true);
    expect(host.destroyed).toBe(false);
    return;
  }
  if (!XenMigrationError.is(error)) throw new Error('not a typed error', { cause: error });
  expect(host.running).toBe(false);
  expect(host.destroyed).toBe(host.created);
  expect(error.guest).toEqual({ host: 'none', state: 'gone' });
}

describe.each(streams)('$name, bent', ({ hvm, bytes }) => {
  const places = skeleton(bytes);
  const place = fc.constantFrom(...places);
  const value = fc.oneof(fc.constantFrom(0, 1, 0x7f, 0x80, 0xff), fc.integer({ min: 0, max: 255 }));

  it('at any of its bytes is a typed error or a guest, and never leaves anything behind', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(place, value), { minLength: 1, maxLength: 4 }),
        fc.nat(bytes.length),
        async (changes, cut) => {
          const bent = bytes.slice();
          for (const [at, byte] of changes) bent[at] = byte;
          await outcome(bent, hvm, cut);
        },
      ),
      { numRuns: 400 },
    );
  });

  it('by a piece taken out, put in or doubled', async () => {
    await fc.assert(
      fc.asyncProperty(place, fc.nat(200), place, fc.boolean(), async (from, length, to, remove) => {
        const piece = bytes.subarray(from, from + length * 8);
        const rest = remove ? S.join(bytes.subarray(0, from), bytes.subarray(from + piece.length)) : bytes;
        const at = Math.min(to, rest.length);
        await outcome(S.join(rest.subarray(0, at), piece, rest.subarray(at)), hvm, at);
      }),
      { numRuns: 200 },
    );
  });
});
