/** Bytes that legacy images are made of, for tests. */

import { setU32, setU32be, setU64, setU64n } from '../../lib/bytes/le.js';

/** Bytes of the `unsigned long` of the toolstack that writes. */
export type Word = 4 | 8;

/** A part of an image, named so that tests can find, damage or leave out one. */
export interface Piece {
  readonly name: string;
  readonly bytes: Uint8Array;
  /** Nobody between the guest and the reader of the guest looks into it: page contents, device state. */
  readonly opaque?: true;
}

export function cat(...parts: readonly Uint8Array[]): Uint8Array {
  // Into one array at once: an image is as large as its guest.
  const joined = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

export function joinPieces(pieces: readonly Piece[]): Uint8Array {
  return cat(...pieces.map((piece) => piece.bytes));
}

/** A 32-bit word, little-endian; negative numbers as two's complement. */
export function w32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  setU32(bytes, 0, value);
  return bytes;
}

/** A 32-bit word, big-endian. */
export function w32be(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  setU32be(bytes, 0, value);
  return bytes;
}

/** A 64-bit word, little-endian; −1n is all ones. */
export function w64(value: number | bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  if (typeof value === 'bigint') setU64(bytes, 0, BigInt.asUintN(64, value));
  else setU64n(bytes, 0, value);
  return bytes;
}

/** An `unsigned long` of the toolstack, little-endian. */
export function ulong(word: Word, value: number | bigint): Uint8Array {
  return word === 8 ? w64(value) : w32(Number(BigInt.asUintN(32, BigInt(value))));
}

/** `unsigned long`s of the toolstack, one after the other. */
export function ulongs(word: Word, values: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(word * values.length);
  values.forEach((value, i) => {
    if (word === 8) setU64n(bytes, 8 * i, value);
    else setU32(bytes, 4 * i, value);
  });
  return bytes;
}

/** ASCII. */
export function text(value: string): Uint8Array {
  return new Uint8Array(Buffer.from(value, 'latin1'));
}

/** Bytes that repeat for a seed and look like nothing (xorshift). */
export function seeded(size: number, seed: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(size / 4));
  let x = (Math.imul(seed, 0x9e37_79b1) ^ 0x5bd1_e995) | 1;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  return new Uint8Array(words.buffer, 0, size);
}

/** Contents of a guest's page: each frame has its own, and another one each time that it has been written. */
export function pageOf(pfn: number, version = 1): Uint8Array {
  return seeded(4096, pfn * 64 + version);
}

/** The next version of a page of which only some words changed: those of `changed`, a word's number each. */
export function touched(page: Uint8Array, changed: readonly number[], seed = 1): Uint8Array {
  const next = Uint8Array.from(page);
  // Exclusive or with an odd number: never the word that was there.
  for (const word of changed) next[4 * word] = (next[4 * word] as number) ^ ((2 * seed + 1) & 0xff);
  return next;
}
