/** Images of guests that used tmem. Upstream implements none of them. */

import { bothWords, example, notImplemented, type Example } from './example.js';
import { hvmPlain, state45 } from './images-hvm.js';
import { pvPlain, pvState45 } from './images-pv.js';
import * as W from './writer.js';

const { COMPRESS, FROZEN } = W.TMEM_CLIENT;
const { PERSISTENT, SHARED, PRECOMPRESSED } = W.TMEM_POOL;
const upstream = notImplemented();

const three = [W.tmemPage(7, 0), W.tmemPage(7, 1), W.tmemPage(9, 44)] as const;

function saved(section: W.Chunk, guest: 'hvm' | 'pv64' = 'pv64'): W.ImageSpec {
  const spec = guest === 'hvm' ? hvmPlain : pvPlain();
  return { ...spec, body: [section, ...(spec.body ?? [])] };
}

const live = (guest: 'hvm' | 'pv64', ...extra: readonly W.Chunk[]): W.ImageSpec => ({
  ...(guest === 'hvm' ? hvmPlain : pvPlain()),
  body: [
    ...extra.slice(0, 1),
    W.pages(W.ram(0, 4)),
    ...extra.slice(1),
    W.tsc(),
    W.pages(W.ram(1, 1, 2)),
    ...(guest === 'hvm' ? state45 : pvState45),
  ],
});

function ephemeralOnly(): Example[] {
  const pools = [W.ephemeral(0), W.ephemeral(3, SHARED)];
  return [
    ...bothWords('tmem ephemeral, pv64', saved(W.tmem({ pools })), {
      description: 'two pools that may be dropped',
      upstream,
      like: pvPlain(),
    }),
    ...bothWords('tmem ephemeral, hvm', saved(W.tmem({ pools, clientFlags: COMPRESS }), 'hvm'), {
      description: 'two pools that may be dropped',
      upstream,
      like: hvmPlain,
    }),
    example(
      'tmem ephemeral, live',
      live('pv64', W.tmem({ pools }), W.tmemExtra([{ pool: 0, object: [1n, 2n, 3n], index: 4 }])),
      {
        description: '−5 before the pages, −6 at the last pass',
        upstream,
        like: live('pv64'),
      },
    ),
    example('tmem ephemeral, live, nothing gone', live('hvm', W.tmem({ pools }), W.tmemExtra()), {
      description: 'an empty −6',
      upstream,
      like: live('hvm'),
    }),
    example('tmem no pools', saved(W.tmem()), {
      description: 'a client without pools',
      upstream,
      like: pvPlain(),
    }),
    example('tmem weight −2', saved(W.tmem({ pools, clientFlags: FROZEN, weight: -2, cap: -2 })), {
      description: 'a weight of all ones, which Xen reports as −2',
      upstream,
      like: pvPlain(),
    }),
    example(
      'tmem sixteen pools',
      saved(W.tmem({ pools: Array.from({ length: 16 }, (_, i) => W.ephemeral(i)) })),
      {
        description: 'as many pools as there may be',
        upstream,
        like: pvPlain(),
      },
    ),
  ];
}

function persistentPools(): Example[] {
  const of = (name: string, description: string, ...pools: readonly W.TmemPool[]): Example =>
    example(`tmem persistent, ${name}`, saved(W.tmem({ pools })), { description, upstream });
  return [
    ...bothWords('tmem persistent', saved(W.tmem({ pools: [W.persistent(1, three)] })), {
      description: 'swapped-out pages; one fewer than declared, and the early end, as Xen wrote it',
      upstream,
    }),
    of('exact', 'as many pages as declared, no early end', { ...W.persistent(1, three), declared: 3 }),
    of('empty', 'a pool that is declared empty', { ...W.persistent(1, []), declared: 0 }),
    of('one page', 'declared one, sent none', W.persistent(1, [])),
    of('shared', 'a shared pool', W.persistent(2, three, SHARED)),
    of('precompressed', 'a pool of compressed pages', W.persistent(2, three, PRECOMPRESSED)),
    of('64 KiB', 'a pool of larger pages', W.persistent(0, [W.tmemPage(1, 2, 65_536)], 0, 4)),
    of(
      'mixed',
      'ephemeral and persistent pools by turns',
      W.ephemeral(0),
      W.persistent(1, three),
      W.ephemeral(2),
      W.persistent(5, three.slice(1)),
    ),
    example(
      'tmem persistent, live',
      live(
        'hvm',
        W.tmem({ pools: [W.persistent(1, three)] }),
        W.tmemExtra([{ pool: 1, object: three[0].object, index: 0 }]),
      ),
      {
        description: 'a page of a persistent pool is gone at the end',
        upstream,
      },
    ),
  ];
}

function faults(): Example[] {
  const of = (name: string, description: string, spec: W.TmemSpec): Example =>
    example(`tmem fault: ${name}`, saved(W.tmem(spec)), { description, upstream });
  const short: W.TmemPool = { ...W.persistent(1, three), declared: 5, terminated: false };
  return [
    of('pages missing before a pool', 'the writer skipped pages without a mark; a pool follows', {
      pools: [short, W.ephemeral(4)],
    }),
    of('pages missing at the end', 'the writer skipped pages without a mark; the section ends', {
      pools: [short],
    }),
    of('version 2', 'a version that there never was', { version: 2 }),
    of('pool 16', 'a pool beyond the most that there may be', { pools: [W.ephemeral(16)] }),
    of('pool twice', 'two pools of one number', { pools: [W.ephemeral(1), W.ephemeral(1)] }),
    of('pages of an ephemeral pool', 'pages where none may be', {
      pools: [{ ...W.ephemeral(1), pages: three, declared: 3 }],
    }),
    of('largest pages', 'pages of 128 MiB, of which none comes', {
      pools: [{ id: 1, flags: W.poolFlags(PERSISTENT, 15), declared: 0xffff_fffe, terminated: true }],
    }),
    ...(['version', 'maxPools', 'clientFlags', 'weight', 'cap'] as const).map((failedAt) => {
      const spec = saved(W.tmem({ failedAt }));
      const pieces = W.legacyPieces(spec);
      const until = pieces.slice(0, pieces.findIndex(({ name }) => name === 'TMEM') + 1);
      return example(`tmem fault: ${failedAt} failed`, spec, {
        description: `the sender could not ask for ${failedAt}, wrote −1 and stopped`,
        upstream,
        cut: W.joinPieces(until).length,
      });
    }),
  ];
}

export function tmemImages(): Example[] {
  return [...ephemeralOnly(), ...persistentPools(), ...faults()];
}
