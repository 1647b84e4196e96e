/** Little-endian and big-endian numbers in a Uint8Array. Callers check bounds; these helpers only read and write. */

/** Reads a u16 (LE). */
export function u16(b: Uint8Array, o: number): number {
  return (b[o] as number) | ((b[o + 1] as number) << 8);
}

/** Reads a u32 (LE) as a number 0…2^32−1. */
export function u32(b: Uint8Array, o: number): number {
  return (
    ((b[o] as number) |
      ((b[o + 1] as number) << 8) |
      ((b[o + 2] as number) << 16) |
      ((b[o + 3] as number) << 24)) >>>
    0
  );
}

/** Reads a u32 (BE) as a number. */
export function u32be(b: Uint8Array, o: number): number {
  return (
    (((b[o] as number) << 24) |
      ((b[o + 1] as number) << 16) |
      ((b[o + 2] as number) << 8) |
      (b[o + 3] as number)) >>>
    0
  );
}

/** Reads a u16 (BE). */
export function u16be(b: Uint8Array, o: number): number {
  return ((b[o] as number) << 8) | (b[o + 1] as number);
}

/** Reads a u64 (LE) as a bigint. */
export function u64(b: Uint8Array, o: number): bigint {
  return (BigInt(u32(b, o + 4)) << 32n) | BigInt(u32(b, o));
}

/** Reads a u64 (BE) as a bigint. */
export function u64be(b: Uint8Array, o: number): bigint {
  return (BigInt(u32be(b, o)) << 32n) | BigInt(u32be(b, o + 4));
}

/** Reads a u64 (LE) as a number. Exact only below 2^53: for frame numbers and counts that were checked. */
export function u64n(b: Uint8Array, o: number): number {
  return u32(b, o + 4) * 0x1_0000_0000 + u32(b, o);
}

/** Writes a u16 (LE). Returns the bytes written, as all setters do. */
export function setU16(b: Uint8Array, o: number, v: number): 2 {
  b[o] = v;
  b[o + 1] = v >>> 8;
  return 2;
}

/** Writes a u32 (LE). */
export function setU32(b: Uint8Array, o: number, v: number): 4 {
  b[o] = v;
  b[o + 1] = v >>> 8;
  b[o + 2] = v >>> 16;
  b[o + 3] = v >>> 24;
  return 4;
}

/** Writes a u32 (BE). */
export function setU32be(b: Uint8Array, o: number, v: number): 4 {
  b[o] = v >>> 24;
  b[o + 1] = v >>> 16;
  b[o + 2] = v >>> 8;
  b[o + 3] = v;
  return 4;
}

/** Writes a u16 (BE). */
export function setU16be(b: Uint8Array, o: number, v: number): 2 {
  b[o] = v >>> 8;
  b[o + 1] = v;
  return 2;
}

/** Writes a u64 (LE) from a bigint. */
export function setU64(b: Uint8Array, o: number, v: bigint): 8 {
  setU32(b, o, Number(v & 0xffff_ffffn));
  setU32(b, o + 4, Number((v >> 32n) & 0xffff_ffffn));
  return 8;
}

/** Writes a u64 (BE) from a bigint. */
export function setU64be(b: Uint8Array, o: number, v: bigint): 8 {
  setU32be(b, o, Number((v >> 32n) & 0xffff_ffffn));
  setU32be(b, o + 4, Number(v & 0xffff_ffffn));
  return 8;
}

/** Writes a u64 (LE) from a number below 2^53. */
export function setU64n(b: Uint8Array, o: number, v: number): 8 {
  setU32(b, o, v % 0x1_0000_0000);
  setU32(b, o + 4, Math.floor(v / 0x1_0000_0000));
  return 8;
}

/** True if all bytes of `b[from, to)` are zero. */
export function isZero(b: Uint8Array, from = 0, to = b.length): boolean {
  for (let i = from; i < to; i++) if (b[i] !== 0) return false;
  return true;
}
