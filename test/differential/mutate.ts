/** Seeded damage to streams: bytes, fields, records. */

import { setU32, u32 } from '../../lib/bytes/le.js';
import * as S from '../../lib/stream/index.js';
import { join, type Piece } from '../unit/verify/streams.js';

/** A damaged stream and how it came to be. */
export interface Mutant {
  readonly what: string;
  readonly bytes: Uint8Array;
}

/** Numbers that repeat for a seed (xorshift). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 1;
  }

  /** 0 … below − 1 */
  below(below: number): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return (x >>> 0) % below;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}

const WORDS = [
  0, 1, 2, 3, 4, 7, 8, 13, 16, 24, 0xff, 0x1000, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_ffff,
];

/** Bytes before page contents begin, where a change means something. */
function structured(piece: Piece): number {
  if (piece.name !== 'PAGE_DATA') return piece.bytes.length;
  return Math.min(piece.bytes.length, S.pageDataHeadSize(u32(piece.bytes, 8)));
}

/** One bit of a piece's structure, flipped. */
export function flipBit(pieces: readonly Piece[], random: Random): Mutant {
  const i = random.below(pieces.length);
  const piece = pieces[i]!;
  // The beginning of long pieces is where their fields are.
  const at = random.below(Math.min(structured(piece), random.below(2) === 0 ? 32 : Infinity));
  const bit = random.below(8);
  const bytes = Uint8Array.from(piece.bytes);
  bytes[at] = bytes[at]! ^ (1 << bit);
  return {
    what: `bit ${bit} of byte ${at} of ${piece.name} (piece ${i})`,
    bytes: join(pieces.with(i, { name: piece.name, bytes })),
  };
}

/** One word of a piece's structure, set to a telling value. */
export function setWord(pieces: readonly Piece[], random: Random): Mutant {
  const i = random.below(pieces.length);
  const piece = pieces[i]!;
  const words = Math.floor(Math.min(structured(piece), 64) / 4);
  const at = 4 * random.below(words);
  const value = random.pick(WORDS);
  const bytes = Uint8Array.from(piece.bytes);
  setU32(bytes, at, value);
  return {
    what: `word at ${at} of ${piece.name} (piece ${i}) = 0x${value.toString(16)}`,
    bytes: join(pieces.with(i, { name: piece.name, bytes })),
  };
}

/** A record of another type or length, framed well. */
export function reshape(pieces: readonly Piece[], random: Random): Mutant {
  const records = pieces.flatMap(({ name }, n) => (name.endsWith('header') ? [] : [n]));
  const i = random.pick(records);
  const piece = pieces[i]!;
  const type = u32(piece.bytes, 0);
  const length = u32(piece.bytes, 4);
  const body = piece.bytes.subarray(8, 8 + length);
  if (random.below(2) === 0) {
    const other = random.pick([...Array(0x14).keys(), 0x8000_0001, 0x55]);
    return {
      what: `${piece.name} (piece ${i}) as type 0x${other.toString(16)}`,
      bytes: join(pieces.with(i, { name: 'x', bytes: S.encodeRecord(other, body) })),
    };
  }
  const size = Math.max(
    0,
    random.pick([0, 4, 8, length - 8, length - 1, length + 1, length + 8, length + 16]),
  );
  const resized = new Uint8Array(size);
  resized.set(body.subarray(0, size));
  return {
    what: `${piece.name} (piece ${i}) with length ${size}`,
    bytes: join(pieces.with(i, { name: 'x', bytes: S.encodeRecord(type, resized) })),
  };
}

/** Records left out, doubled, swapped, put in. */
export function reorder(pieces: readonly Piece[], random: Random): Mutant {
  const i = random.below(pieces.length);
  const j = random.below(pieces.length);
  const piece = pieces[i]!;
  const name = `${piece.name} (piece ${i})`;
  switch (random.below(4)) {
    case 0:
      return { what: `without ${name}`, bytes: join(pieces.toSpliced(i, 1)) };
    case 1:
      return { what: `${name} again before piece ${j}`, bytes: join(pieces.toSpliced(j, 0, piece)) };
    case 2:
      return {
        what: `${name} and piece ${j} swapped`,
        bytes: join(pieces.with(i, pieces[j]!).with(j, piece)),
      };
    default: {
      const type = random.pick([0x02, 0x0b, 0x0d, 0x0e, 0x0f, 0x10, 0x13, 0x8000_0001]);
      const added = { name: 'x', bytes: S.encodeRecord(type, new Uint8Array(random.pick([0, 8]))) };
      return {
        what: `record 0x${type.toString(16)} before piece ${i}`,
        bytes: join(pieces.toSpliced(i, 0, added)),
      };
    }
  }
}

/** Cut short, or with bytes behind the end. */
export function resize(pieces: readonly Piece[], random: Random): Mutant {
  const bytes = join(pieces);
  if (random.below(4) === 0) {
    return { what: '8 bytes behind the end', bytes: Buffer.concat([bytes, new Uint8Array(8)]) };
  }
  const end = random.below(bytes.length);
  return { what: `cut at ${end}`, bytes: bytes.subarray(0, end) };
}

export const mutations = { flipBit, setWord, reshape, reorder, resize } as const;
