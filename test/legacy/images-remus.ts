/** Images that Remus left: one state of the guest after the other, until its sender was gone. */

import { hvmContext } from '../unit/verify/streams.js';
import { bothWords, example, notImplemented, type About, type Example, type Upstream } from './example.js';
import { params45, physmap } from './images-hvm.js';
import { pvPlain } from './images-pv.js';
import * as W from './writer.js';

type Guest = W.Layout['guest'];

/** State of a guest at its n-th checkpoint. Remus has no −9. */
function state(guest: Guest): W.Chunk[] {
  return guest === 'hvm' ? [W.vcpuInfo(), ...params45, W.toolstack(physmap)] : [W.vcpuInfo(), W.toolstack()];
}

function tail(guest: Guest, n: number): W.TailSpec {
  if (guest !== 'hvm') return { seed: n, unmapped: [5] };
  const context = Uint8Array.from(hvmContext);
  context[8] = n;
  const qemu = { signature: 'DeviceModelRecord0002', blob: W.qemuState(64 + 8 * n, n) };
  return { magic: [0xfeffd, 0xfeffe, 0xfeffc], context, qemu };
}

const base = (guest: Guest): W.ImageSpec =>
  guest === 'hvm' ? { guest } : { ...pvPlain(guest), body: [], tail: {} };

/** A page table, which the sender always sends whole. */
const table = (guest: Guest, version: number): W.Entry =>
  W.page(12, guest === 'hvm' ? 'NOTAB' : 'L1', W.pageOf(12, version));

const first = (guest: Guest): W.Chunk[] => [
  W.pages(W.ram(0, 8), table(guest, 1)),
  W.tsc(),
  W.pages(W.ram(2, 1, 2)),
  ...state(guest),
];

// What pages 0 to 3 become: 0 changes in a few words, 1 stays, 2 is new, 3 changes at both ends.
const p0 = [W.pageOf(0), W.touched(W.pageOf(0), [0, 1, 2, 700]), W.touched(W.pageOf(0), [512])] as const;
const p3 = [W.pageOf(3), W.touched(W.pageOf(3), [0, 1023])] as const;

const ram = (pfn: number, contents: Uint8Array): W.Entry => W.page(pfn, 'NOTAB', contents);

/** Checkpoints whose pages come whole. */
function uncompressed(guest: Guest): W.Round[] {
  return [
    { body: first(guest), tail: tail(guest, 1) },
    { body: [W.pages(ram(0, p0[1]), W.ram(20, 2), W.holes(30)), ...state(guest)], tail: tail(guest, 2) },
    {
      body: [W.pages(ram(0, p0[2])), W.pages(ram(3, p3[1]), table(guest, 3)), ...state(guest)],
      tail: tail(guest, 3),
    },
  ];
}

/** What the checkpoints up to `n` amount to. */
function sum(guest: Guest, n: 1 | 2 | 3): W.ImageSpec {
  const pages: W.Entry[][] = [
    [...W.ram(0, 2), ...W.ram(2, 1, 2), ...W.ram(3, 5), table(guest, 1)],
    [ram(0, p0[1]), ...W.ram(20, 2), ...W.holes(30)],
    [ram(0, p0[2]), ram(3, p3[1]), table(guest, 3)],
  ];
  const body = [W.tsc(), ...pages.slice(0, n).map((entries) => W.pages(entries)), ...state(guest)];
  return { ...base(guest), body, tail: tail(guest, n) };
}

/** The same checkpoints with compression, which begins behind the first one. */
function deltas(guest: Guest): W.Round[] {
  const second = [W.pfns(W.ram(0), W.ram(20, 2), W.holes(30)), W.pfns(W.ram(1))];
  const third = W.pfns(W.ram(0));
  return [
    { body: [...first(guest), W.enableCompression], tail: tail(guest, 1) },
    {
      // Two batches, then their pages in chunks that do not end where batches do.
      body: [
        ...second,
        W.compressed(W.runs(p0[0], p0[1]), W.full(W.pageOf(20))),
        W.compressed(W.full(W.pageOf(21)), W.unchanged),
        ...state(guest),
      ],
      tail: tail(guest, 2),
    },
    {
      // Pages between batches: the sender’s buffer was full.
      body: [
        third,
        W.compressed(W.runs(p0[1], p0[2])),
        W.pfns(W.ram(3), table(guest, 3), W.holes(31, 2)),
        W.compressed(
          W.rawRuns(p3[1].subarray(0, 4), 127, 127, 127, 127, 127, 127, 127, 127, 6, p3[1].subarray(4092)),
          W.full(W.pageOf(12, 3)),
        ),
        ...state(guest),
      ],
      tail: tail(guest, 3),
    },
  ];
}

function withHoles(spec: W.ImageSpec): W.ImageSpec {
  return { ...spec, body: [W.pages(W.holes(31, 2)), ...(spec.body ?? [])] };
}

function of(name: string, guest: Guest, rounds: readonly W.Round[], about: About): Example[] {
  return bothWords(`${guest} Remus ${name}`, { ...base(guest), rounds }, about);
}

/** So many bytes of an image as its first rounds have, and `more`. */
function upTo(guest: Guest, rounds: readonly W.Round[], more: number): number {
  return W.legacyImage({ ...base(guest), rounds }).length + more;
}

function plain(guest: Guest): Example[] {
  const rounds = uncompressed(guest);
  const cut = (name: string, kept: 1 | 2, more: number): Example =>
    example(
      `${guest} Remus plain, ${name}`,
      { ...base(guest), rounds },
      {
        description: `cut off ${name}: what is before it holds`,
        cut: upTo(guest, rounds.slice(0, kept), more),
        like: sum(guest, kept),
      },
    );
  return [
    ...of('plain', guest, rounds, {
      description: 'three checkpoints without compression; upstream ends at the first',
      like: sum(guest, 3),
    }),
    cut('between checkpoints', 2, 0),
    cut('in a chunk’s id', 2, 2),
    cut('in a page', 1, 300),
    example(
      `${guest} Remus plain, in the last tail`,
      { ...base(guest), rounds },
      {
        description: 'cut off before the last byte of the third tail',
        cut: -1,
        like: sum(guest, 2),
      },
    ),
    example(
      `${guest} Remus plain, damaged`,
      {
        ...base(guest),
        rounds: rounds.map((round, i) => (i < 2 ? round : { ...round, body: [W.rawChunk(-99)] })),
      },
      {
        description: 'a chunk that nobody ever wrote in the third checkpoint; upstream has stopped before it',
      },
    ),
    example(
      `${guest} Remus plain, −9`,
      {
        ...base(guest),
        rounds: rounds.map((round, i) =>
          i < 2 ? round : { ...round, body: [...round.body, W.lastCheckpoint] },
        ),
      },
      {
        description: 'the third checkpoint says that it is the last',
        like: sum(guest, 3),
      },
    ),
  ];
}

function compressed(guest: Guest): Example[] {
  const upstream: Upstream = notImplemented();
  const rounds = deltas(guest);
  const cut = (name: string, kept: 1 | 2, more: number): Example =>
    example(
      `${guest} Remus compressed, ${name}`,
      { ...base(guest), rounds },
      {
        description: `cut off ${name}: what is before it holds`,
        cut: upTo(guest, rounds.slice(0, kept), more),
        like: sum(guest, kept),
        upstream,
      },
    );
  const damaged = (name: string, ...chunks: readonly W.Chunk[]): Example =>
    example(
      `${guest} Remus compressed, ${name}`,
      {
        ...base(guest),
        rounds: [rounds[0] as W.Round, { body: [...chunks, ...state(guest)], tail: tail(guest, 2) }],
      },
      {
        description: `a second checkpoint with ${name}`,
        upstream,
      },
    );
  return [
    ...of('compressed', guest, rounds, {
      description: 'three checkpoints, the later ones as deltas',
      like: withHoles(sum(guest, 3)),
      upstream,
    }),
    cut('between checkpoints', 2, 0),
    cut('in a batch', 1, 20),
    cut('in deltas', 1, 2000),
    example(
      `${guest} Remus compressed, in the last tail`,
      { ...base(guest), rounds },
      {
        description: 'cut off before the last byte of the third tail',
        cut: -1,
        like: sum(guest, 2),
        upstream,
      },
    ),
    example(
      `${guest} Remus compressed, first only`,
      { ...base(guest), rounds: rounds.slice(0, 1) },
      {
        description: 'one checkpoint: compression was announced and never used',
        like: sum(guest, 1),
        upstream,
      },
    ),
    ...(guest === 'hvm'
      ? [
          damaged('a run of no words', W.pfns(W.ram(0)), W.compressed(W.rawRuns(5, 0, 1018))),
          damaged(
            'runs beyond the page',
            W.pfns(W.ram(0)),
            W.compressed(W.rawRuns(127, 127, 127, 127, 127, 127, 127, 127, 9)),
          ),
          damaged('runs that end early', W.pfns(W.ram(0)), W.compressed(W.rawRuns(127))),
          damaged('a delta too few', W.pfns(W.ram(0, 2)), W.compressed(W.unchanged)),
          damaged('a delta too many', W.pfns(W.ram(0)), W.compressed(W.unchanged, W.unchanged)),
          damaged('deltas without pages', W.compressed(W.unchanged)),
          damaged('pages without deltas', W.pfns(W.ram(0))),
          damaged('deltas before their batch', W.compressed(W.unchanged), W.pfns(W.ram(0))),
          {
            ...damaged(
              'an empty chunk of deltas',
              W.pfns(W.ram(0)),
              W.compressed(W.unchanged),
              W.compressed(),
            ),
            like: { ...sum(guest, 1), tail: tail(guest, 2) },
          },
          damaged('a page twice', W.pfns(W.ram(0), W.ram(0)), W.compressed(W.unchanged, W.unchanged)),
        ]
      : []),
  ];
}

export function remusImages(): Example[] {
  const guests = ['hvm', 'pv64', 'pv32'] as const;
  return [...guests.flatMap(plain), ...guests.flatMap(compressed)];
}
