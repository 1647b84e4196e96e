/**
 * The catalogue of legacy images: every chunk at every place where its writers put it, all kinds of guests and both
 * word sizes of toolstacks, what Remus and tmem add, the headers of xl and xend, real images; and images that are wrong
 * in one way each. test/differential/legacy-writer.test.ts proves that upstream does with each what is said here.
 */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { accepted, example, notImplemented, refused, type Example } from './example.js';
import { hvmImages, hvmLive, hvmPlain } from './images-hvm.js';
import { pvImages, pvPlain } from './images-pv.js';
import { remusImages } from './images-remus.js';
import { tmemImages } from './images-tmem.js';
import * as W from './writer.js';

export type { Example, Upstream } from './example.js';

function enveloped(): Example[] {
  const pv = pvPlain();
  const old: W.ImageSpec = { ...hvmPlain, tail: { qemu: { signature: 'QemuDeviceModelRecord' } } };
  const sig = { exit: 2, why: 'Unrecognised Qemu sig' } as const;
  return [
    example('xl hvm', hvmPlain, { description: 'a file of xl 4.2 to 4.5', xl: W.xlJson('hvm') }),
    example('xl hvm live', hvmLive, {
      description: 'a live migration of xl',
      xl: W.xlJson('hvm', 'a "live" guest'),
    }),
    example('xl pv', pv, { description: 'a file of xl 4.2 to 4.5', xl: W.xlJson('pv') }),
    example(
      'xl pv32, 32-bit toolstack',
      { ...pvPlain('pv32'), word: 4 },
      {
        description: 'a file of xl on a 32-bit dom0',
        xl: W.xlJson('pv'),
      },
    ),
    example('xl text', pv, {
      description: 'a file of xl 4.0 or 4.1: its configuration is a text',
      xl: W.xlText('pv'),
    }),
    example('xl without configuration', hvmPlain, {
      description: 'a file of xl without optional data',
      xl: null,
    }),
    example('xl empty configuration', hvmPlain, {
      description: 'a file of xl with a configuration of 0 bytes',
      xl: '',
    }),
    example('xend pv', pv, { description: 'a file of xend', xend: W.xendConfig('pv') }),
    example(
      'xend pv32, 32-bit toolstack',
      { ...pvPlain('pv32', [W.block.vcpu(), W.block.extv()]), word: 4 },
      {
        description: 'a file of xend on a 32-bit dom0',
        xend: W.xendConfig('pv'),
      },
    ),
    example('xend hvm', old, {
      description: 'a file of xend: the QEMU record goes to its end',
      xend: W.xendConfig('hvm'),
      upstream: sig,
      like: hvmPlain,
    }),
    example(
      'xend hvm, 32-bit toolstack',
      { ...old, word: 4 },
      {
        description: 'the same, on a 32-bit dom0',
        xend: W.xendConfig('hvm'),
        upstream: sig,
        like: { ...hvmPlain, word: 4 },
      },
    ),
  ];
}

/** Images cut short: nothing of them is a whole guest. */
function cut(): Example[] {
  const short = (name: string, spec: W.ImageSpec, bytes: number): Example =>
    example(name, spec, {
      description: `${Math.abs(bytes)} bytes`,
      cut: bytes,
      upstream: refused('Stream truncated'),
    });
  return [
    short('hvm, nothing', hvmPlain, 0),
    short('hvm, p2m_size only', hvmPlain, 8),
    short('hvm, in the first batch', hvmPlain, 5000),
    short('hvm, last byte missing', hvmPlain, -1),
    short('pv, in the extended info', pvPlain(), 1000),
    short('pv, last byte missing', pvPlain(), -1),
  ];
}

const root = path.resolve(import.meta.dirname, '../..');
const golden = path.join(root, 'test/golden/streams');
const local = process.env['XEN_MIGRATION_STREAMS'] ?? path.resolve(root, '../shared/streams');

/** Images that Xen 4.5.5 wrote. The small ones are in the repository, the others may be absent. */
function real(): Example[] {
  const of = (name: string, guest: 'pv' | 'hvm', folder: string, description: string): Example => {
    const file = path.join(folder, `${name}.gz`);
    const bytes = (): Uint8Array => gunzipSync(readFileSync(file));
    return ofFile(name, guest, existsSync(file), bytes, description);
  };
  return [
    of('xen-4.5.5-hvm-nonlive.xlsave', 'hvm', golden, '32 MiB, xl save'),
    of(
      'xen-4.5.5-hvm-live.xlmigrate',
      'hvm',
      golden,
      '32 MiB, xl migrate; its hand-over stands behind the image',
    ),
    of('xen-4.5.5-pv64-nonlive-xsave.xlsave', 'pv', local, '96 MiB Linux, xl save'),
    {
      ...ofFile(
        REMUS,
        'pv',
        hasRemus(),
        unpackRemus,
        '96 MiB Linux, xl remus with compression, its sender killed',
      ),
      upstream: notImplemented(),
    },
  ];
}

const REMUS = 'xen-4.5.5-pv64-remus-compressed.xlremus';

/** That one is packed by zstd, which Node 20 cannot unpack. */
const hasRemus = (): boolean =>
  existsSync(path.join(local, `${REMUS}.zst`)) && spawnSync('zstd', ['--version']).status === 0;

function unpackRemus(): Uint8Array {
  const maxBuffer = 1 << 28;
  return spawnSync('zstd', ['-dc', path.join(local, `${REMUS}.zst`)], { maxBuffer }).stdout;
}

function ofFile(
  name: string,
  guest: 'pv' | 'hvm',
  present: boolean,
  bytes: () => Uint8Array,
  description: string,
): Example {
  return {
    name,
    description,
    guest,
    width: 64,
    bytes,
    stream: () => {
      const whole = bytes();
      return whole.subarray(xlHeaderSize(whole));
    },
    pieces: undefined,
    envelope: 'xl',
    upstream: accepted,
    like: undefined,
    params: [],
    present,
    small: false,
  };
}

/** Bytes of the xl header that a file begins with. */
export function xlHeaderSize(file: Uint8Array): number {
  return 48 + new DataView(file.buffer, file.byteOffset).getUint32(44, true);
}

/** All of them. Names are unique. */
export const images: readonly Example[] = [
  ...hvmImages(),
  ...pvImages(),
  ...remusImages(),
  ...tmemImages(),
  ...enveloped(),
  ...cut(),
  ...real(),
];

/** An image by its name. */
export function imageNamed(name: string): Example {
  const found = images.find((image) => image.name === name);
  if (found === undefined) throw new Error(`no legacy image "${name}"`);
  return found;
}
