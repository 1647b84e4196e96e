/**
 * The registers of a guest program: all of its state that is not in guest memory. They travel as 128 bytes of vcpu 0
 * (see REGISTERS_OFFSET), so a migration that loses, mixes up or repeats vcpu state stops the guest from going on.
 *
 *     word  field
 *        0  magic
 *        1  pfn of the boot page
 *      2-3  step, low and high
 *      4-7  state of the generator that picks pages
 *        8  errors that the program has found so far
 *        9  pfn of the first of them
 *       10  kind of the first of them (GuestFault + 1), 0 = none
 *       11  check word over the others
 */
import { mix32 } from '../prng.js';
import { REGISTERS_SIZE } from '../pv-types.js';

const MAGIC = 0x3152_4d58; // "XMR1"
const WORDS = REGISTERS_SIZE / 4;
const CHECK = 11;

/** What a guest can find wrong with its memory. The last five are found by the kernel of a PV guest. */
export type GuestFault =
  | 'magic'
  | 'misplaced'
  | 'stale'
  | 'contents'
  | 'not-zero'
  | 'ledger'
  | 'boot-page'
  | 'dma'
  | 'p2m'
  | 'm2p'
  | 'page-table'
  | 'kernel-data'
  | 'hypercall';

/** The faults by number. */
export const guestFaults: readonly GuestFault[] = [
  'magic',
  'misplaced',
  'stale',
  'contents',
  'not-zero',
  'ledger',
  'boot-page',
  'dma',
  'p2m',
  'm2p',
  'page-table',
  'kernel-data',
  'hypercall',
];

/** The decoded form. */
export interface Registers {
  bootPfn: number;
  step: number;
  rng: Uint32Array;
  errors: number;
  firstErrorPfn: number;
  firstErrorKind: number;
}

function checkWord(words: Uint32Array): number {
  let sum = 0;
  for (let i = 0; i < WORDS; i++) if (i !== CHECK) sum = mix32(sum ^ (words[i] as number) ^ i);
  return sum;
}

export function encodeRegisters(r: Registers): Uint8Array {
  const words = new Uint32Array(WORDS);
  words[0] = MAGIC;
  words[1] = r.bootPfn;
  words[2] = r.step >>> 0;
  words[3] = Math.floor(r.step / 0x1_0000_0000);
  words.set(r.rng, 4);
  words[8] = r.errors;
  words[9] = r.firstErrorPfn;
  words[10] = r.firstErrorKind;
  words[CHECK] = checkWord(words);
  return new Uint8Array(words.buffer);
}

/** 'foreign': these are not a guest program's registers. 'damaged': they were, once. */
export function decodeRegisters(bytes: Uint8Array): Registers | 'foreign' | 'damaged' {
  const words = new Uint32Array(WORDS);
  new Uint8Array(words.buffer).set(bytes.subarray(0, REGISTERS_SIZE));
  if (words[0] !== MAGIC) return 'foreign';
  if (words[CHECK] !== checkWord(words)) return 'damaged';
  return {
    bootPfn: words[1] as number,
    step: (words[3] as number) * 0x1_0000_0000 + (words[2] as number),
    rng: words.slice(4, 8),
    errors: words[8] as number,
    firstErrorPfn: words[9] as number,
    firstErrorKind: words[10] as number,
  };
}
