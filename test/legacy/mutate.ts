/** Seeded damage to legacy images: bytes, fields, pieces. */

import { setU32 } from '../../lib/bytes/le.js';
import type { Mutant, Random } from '../differential/mutate.js';
import { joinPieces, rawChunk, seeded, w32, type Piece } from './writer.js';
import { layoutOf } from './writer.js';

const layout = layoutOf({ guest: 'hvm' });

/** Values that some field has, or that its neighbour could have. */
const WORDS = [
  0,
  1,
  2,
  3,
  4,
  7,
  8,
  16,
  64,
  128,
  0x350,
  0x360,
  0x400,
  0x401,
  0xaf0,
  0x1000,
  0x1430,
  0x7fff_ffff,
  0x8000_0000,
  0x0fff_ffff,
  0x1000_0000,
  0xd000_0001,
  0xe000_0002,
  0xf000_0000,
  0xf000_0003,
  0x5000_0000,
  0xffff_ffff,
  ...Array.from({ length: 22 }, (_, i) => -1 - i),
];

/** Pieces whose bytes mean something to a converter. */
function structured(pieces: readonly Piece[], random: Random): number {
  const numbers = pieces.flatMap(({ opaque, bytes }, i) =>
    opaque === true || bytes.length === 0 ? [] : [i],
  );
  return random.pick(numbers);
}

function changed(pieces: readonly Piece[], i: number, change: (bytes: Uint8Array) => void): Uint8Array {
  const piece = pieces[i] as Piece;
  const bytes = Uint8Array.from(piece.bytes);
  change(bytes);
  return joinPieces(pieces.with(i, { ...piece, bytes }));
}

/** One bit of a piece, mostly near its beginning. */
export function flipBit(pieces: readonly Piece[], random: Random): Mutant {
  const i = structured(pieces, random);
  const { name, bytes } = pieces[i] as Piece;
  const at = random.below(Math.min(bytes.length, random.below(4) === 0 ? Infinity : 24));
  const bit = random.below(8);
  return {
    what: `bit ${bit} of byte ${at} of ${name} (piece ${i})`,
    bytes: changed(pieces, i, (b) => void (b[at] = (b[at] as number) ^ (1 << bit))),
  };
}

/** One word of a piece, set to a telling value. */
export function setWord(pieces: readonly Piece[], random: Random): Mutant {
  let i = structured(pieces, random);
  while ((pieces[i] as Piece).bytes.length < 4) i = structured(pieces, random);
  const { name, bytes } = pieces[i] as Piece;
  const at = 4 * random.below(Math.floor(Math.min(bytes.length, 48) / 4));
  const value = random.pick(WORDS);
  return {
    what: `word at ${at} of ${name} (piece ${i}) = 0x${(value >>> 0).toString(16)}`,
    bytes: changed(pieces, i, (b) => setU32(b, at, value)),
  };
}

/** Pieces left out, doubled, swapped. */
export function reorder(pieces: readonly Piece[], random: Random): Mutant {
  const [i, j] = [random.below(pieces.length), random.below(pieces.length)];
  const piece = pieces[i] as Piece;
  const name = `${piece.name} (piece ${i})`;
  switch (random.below(3)) {
    case 0:
      return { what: `without ${name}`, bytes: joinPieces(pieces.toSpliced(i, 1)) };
    case 1:
      return { what: `${name} again before piece ${j}`, bytes: joinPieces(pieces.toSpliced(j, 0, piece)) };
    default: {
      const swapped = pieces.with(i, pieces[j] as Piece).with(j, piece);
      return { what: `${name} and piece ${j} swapped`, bytes: joinPieces(swapped) };
    }
  }
}

/** A chunk of any id put in, with as many bytes as it could have. */
export function addChunk(pieces: readonly Piece[], random: Random): Mutant {
  const i = random.below(pieces.length + 1);
  const id = 3 - random.below(27);
  const size = random.pick([0, 4, 8, 12, 16, 20]);
  const data = random.below(2) === 0 ? new Uint8Array(size) : seeded(size, id * 64 + size);
  const added = rawChunk(id, data)(layout);
  return {
    what: `chunk ${id} with ${size} bytes before piece ${i}`,
    bytes: joinPieces(pieces.toSpliced(i, 0, ...added)),
  };
}

/** Cut short, or with bytes behind the end. */
export function resize(pieces: readonly Piece[], random: Random): Mutant {
  const bytes = joinPieces(pieces);
  if (random.below(4) === 0) {
    const more = random.pick([w32(0), new Uint8Array(8), seeded(50, 5), w32(-9), w32(-1)]);
    return { what: `${more.length} bytes behind the end`, bytes: Buffer.concat([bytes, more]) };
  }
  const end = random.below(bytes.length);
  return { what: `cut at ${end}`, bytes: bytes.subarray(0, end) };
}

export const mutations = { flipBit, setWord, reorder, addChunk, resize } as const;
