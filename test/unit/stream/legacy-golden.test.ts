/**
 * Every chunk of legacy images, test/golden/legacy.json: bytes made without this library, what the reader gives for them,
 * and that the tests' writer writes them.
 */

import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  decodeLegacyParam,
  decodeLegacyTscInfo,
  decodeLegacyVcpuInfo,
  decodeToolstack,
} from '../../../lib/stream/legacy/decode.js';
import { LegacyReader } from '../../../lib/stream/legacy/reader.js';
import * as W from '../../legacy/writer.js';
import { concat, fromHex, jsonForm, toHex } from './helpers.js';

interface GoldenChunk {
  readonly name: string;
  readonly guest: W.Layout['guest'];
  readonly word: W.Word;
  readonly hex: string;
  readonly after?: string;
  readonly events: readonly Readonly<Record<string, unknown>>[];
  /** Of VCPU_INFO, TOOLSTACK, batches: what the writer is told. */
  readonly vcpus?: readonly number[];
  readonly entries?: number | null;
  readonly pages?: readonly (readonly [pfn: number, type: number, filled: number | null])[];
  readonly empty?: true;
}

const { cases } = JSON.parse(readFileSync(new URL('../../golden/legacy.json', import.meta.url), 'utf8')) as {
  cases: GoldenChunk[];
};

const physmap: readonly W.Physmap[] = [
  { offset: 0x80_0000, start: 0xf000_0000, size: 0x80_0000, name: 'vga.vram' },
  { offset: 0x1_0000_0000n, start: 0xf080_0000, size: 0x1_0000, name: 'rtl8139.rom' },
];

function chunksOf({ name, vcpus = [0], entries, pages = [], empty }: GoldenChunk): W.Chunk[] {
  const filled = (byte: number): Uint8Array => new Uint8Array(4096).fill(byte);
  switch (name) {
    case 'END':
      return [W.endOfBody];
    case 'ENABLE_VERIFY_MODE':
      return [W.verifyMode];
    case 'LAST_CHECKPOINT':
      return [W.lastCheckpoint];
    case 'ENABLE_COMPRESSION':
      return [W.enableCompression];
    case 'VCPU_INFO':
      return [W.vcpuInfo({ online: vcpus })];
    case 'TSC_INFO':
      return [W.tsc({ mode: 2, nsec: 0x1122_3344_5566_7788n, khz: 2_400_000, incarnation: 7 })];
    case 'TOOLSTACK':
      return entries === null
        ? [W.toolstackBytes(new Uint8Array(0))]
        : [W.toolstack(physmap.slice(0, entries))];
    case 'batch':
      return [
        W.pages(
          pages.map(([pfn, type, byte]) => W.page(pfn, type, byte === null ? undefined : filled(byte))),
        ),
      ];
    case 'COMPRESSED_DATA':
      return [W.pfns(W.ram(8, 2)), W.compressed(W.unchanged, W.full(filled(0x44)))];
    case 'TMEM': {
      const page: W.TmemPage = { object: [7n, 0n, 0n], index: 9, contents: filled(0x5c) };
      const pools = [
        { ...W.ephemeral(0, W.TMEM_POOL.SHARED), uuid: [1n, 2n] as const },
        { ...W.persistent(3, [page]), uuid: [3n, 4n] as const },
      ];
      return [W.tmem({ clientFlags: 3, weight: -2, pools })];
    }
    case 'TMEM_EXTRA':
      return [W.tmemExtra(empty ? [] : [{ pool: 3, object: [7n, 1n, 2n], index: 9 }])];
    default: {
      const id = W.ChunkId[name as W.ParamChunk];
      return [W.param(name as W.ParamChunk, 0x0123_4567_89ab_cdefn ^ BigInt(-id), 0xa5a5_a5a5)];
    }
  }
}

/** What the decoder of a chunk's body says; undefined if it has none. */
function decode(id: number, body: Uint8Array, word: W.Word): unknown {
  switch (id) {
    case W.ChunkId.VCPU_INFO:
      return decodeLegacyVcpuInfo(body);
    case W.ChunkId.TSC_INFO:
      return decodeLegacyTscInfo(body);
    case W.ChunkId.TOOLSTACK:
      return body.length === 0 ? undefined : decodeToolstack(body, word);
    default:
      return decodeLegacyParam(id, body);
  }
}

/** Events of the bytes after `before`, in the form of the corpus. */
function read(before: Uint8Array, bytes: Uint8Array, word: W.Word): unknown[] {
  const reader = new LegacyReader();
  const events: unknown[] = [];
  const all = concat(before, bytes);
  for (let at = 0; at < all.length;) {
    const fed = all.subarray(at, at + reader.want);
    const event = reader.feed(fed);
    at += fed.length;
    if (event === undefined || event.offset < before.length) continue;
    if (event.kind === 'page-data') {
      const { kind, count, dataPages, compressed } = event;
      const [pfns, types] = [event.pfns.slice(0, count), event.types.slice(0, count)].map((a) =>
        Array.from(a),
      );
      events.push({ kind, pfns, types, dataPages, ...(compressed && { compressed }) });
    } else if (event.kind === 'page-bytes') events.push({ kind: event.kind, bytes: toHex(event.bytes) });
    else if (event.kind === 'legacy-chunk') {
      const { kind, id, name, body } = event;
      const decoded = decode(id, body, word);
      events.push({
        kind,
        id,
        name,
        body: toHex(body),
        ...(decoded !== undefined && { decoded: jsonForm(decoded) }),
      });
    } else if (event.kind === 'legacy-tmem') {
      const { layer: _l, offset: _o, ...rest } = event;
      events.push(jsonForm('bytes' in rest ? { ...rest, bytes: toHex(rest.bytes) } : rest));
    }
  }
  return events;
}

function expanded(event: GoldenChunk['events'][number]): unknown {
  const hex = (key: string): object =>
    typeof event[key] === 'string' ? { [key]: toHex(fromHex(event[key])) } : {};
  return { ...event, ...hex('body'), ...hex('bytes') };
}

describe('golden: legacy', () => {
  it('has every chunk', () => {
    const names = new Set(cases.map(({ name }) => name));
    expect([...names].sort()).toEqual([...Object.keys(W.ChunkId), 'batch'].sort());
  });

  it.each(cases.map((of, i) => ({ ...of, title: `${of.name}, ${8 * of.word}-bit toolstack (${i})` })))(
    '$title',
    (of) => {
      const bytes = fromHex(of.hex);
      const layout = W.layoutOf({ guest: of.guest, word: of.word });
      const written = chunksOf(of).flatMap((chunk) => chunk(layout));
      expect(toHex(W.joinPieces(written))).toBe(toHex(bytes));
      // Another chunk first: no image begins with its end, or with −1.
      const start = [...W.legacyPieces({ guest: of.guest, word: of.word }).slice(0, 1), ...W.tsc()(layout)];
      const before = concat(W.joinPieces(start), fromHex(of.after ?? ''));
      expect(read(before, bytes, of.word)).toEqual(of.events.map(expanded));
    },
  );
});
