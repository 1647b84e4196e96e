/**
 * Small seeded generators. 32-bit integer arithmetic only, so that a sequence is the same on every machine; the guest
 * program, which must go on with a sequence after a migration, keeps the four words of `Xoshiro` in its registers.
 */

/** Mixes a 32-bit word thoroughly (the finaliser of MurmurHash3). */
export function mix32(v: number): number {
  v = Math.imul(v ^ (v >>> 16), 0x85eb_ca6b);
  v = Math.imul(v ^ (v >>> 13), 0xc2b2_ae35);
  return (v ^ (v >>> 16)) >>> 0;
}

/** xoshiro128** over four words of state, which can be saved and restored. */
export class Xoshiro {
  /** The whole state. */
  readonly state: Uint32Array;

  /** Starts from a seed (any number; its low 53 bits count). */
  constructor(seed: number) {
    this.state = new Uint32Array(4);
    const low = seed >>> 0;
    const high = Math.floor(Math.abs(seed) / 0x1_0000_0000) >>> 0;
    let v = mix32(low ^ mix32(high));
    for (let i = 0; i < 4; i++) {
      v = (v + 0x9e37_79b9) >>> 0;
      this.state[i] = mix32(v);
    }
  }

  /** 32 random bits. */
  next(): number {
    const s = this.state;
    const s0 = s[0] as number;
    const s1 = s[1] as number;
    const s2 = (s[2] as number) ^ s0;
    const s3 = (s[3] as number) ^ s1;
    const m = Math.imul(s1, 5);
    const result = Math.imul((m << 7) | (m >>> 25), 9) >>> 0;
    s[0] = s0 ^ s3;
    s[1] = s1 ^ s2;
    s[2] = s2 ^ (s1 << 9);
    s[3] = (s3 << 11) | (s3 >>> 21);
    return result;
  }

  /** A number 0…n−1, n up to 2^32. */
  below(n: number): number {
    return Math.floor((this.next() / 0x1_0000_0000) * n);
  }
}
