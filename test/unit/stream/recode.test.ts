/**
 * Every real capture: each header and record is decoded, encoded again and compared with the bytes it came from, and so
 * the whole file. What is encoded passes Xen's own verifier.
 *
 * The small captures are in test/golden/streams. The larger ones are looked for in the folder that XEN_MIGRATION_STREAMS
 * names, by default ../shared/streams beside the checkout; where a file is absent its test is skipped, with a message.
 */

import { spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { GuestWidth } from '../../../lib/abi/pv.js';
import * as S from '../../../lib/stream/index.js';
import { codecOf, encodeWith } from './codecs.js';
import { libxcPv, libxl, sampleStreams, toHex, xl } from './helpers.js';

const root = path.resolve(import.meta.dirname, '../../..');
const golden = path.join(root, 'test/golden/streams');
const local = process.env['XEN_MIGRATION_STREAMS'] ?? path.resolve(root, '../shared/streams');

interface Capture {
  readonly name: string;
  readonly folder: string;
  /** Bytes after the end of the stream: xl's hand-over. */
  readonly trailing: number;
  /** False: the sender stopped without END records. */
  readonly ends: boolean;
}

const captures: readonly Capture[] = [
  { name: 'tinyhvm.save', folder: golden, trailing: 0, ends: true },
  { name: 'tinyhvm.migrate', folder: golden, trailing: 44, ends: true },
  { name: 'tinyhvm.remus', folder: golden, trailing: 0, ends: false },
  { name: 'pv.save', folder: local, trailing: 0, ends: true },
  { name: 'pvh.save', folder: local, trailing: 0, ends: true },
];

/** Decodes and encodes a stream piece by piece, the pieces in order. Page contents are passed on as they are. */
function* recode(stream: Uint8Array, reader: S.StreamReader): Generator<Uint8Array> {
  let width: GuestWidth | undefined;
  let head = new Uint8Array(0);
  for (let at = 0; !reader.done && at < stream.length;) {
    const chunk = stream.subarray(at, at + Math.min(reader.want, 1 << 20));
    const event = reader.feed(chunk);
    at += chunk.length;
    switch (event?.kind) {
      case undefined:
      case 'page-data-end':
        break;
      case 'xl-header':
        // The configuration goes through its text, and is parsed to see that it is what it should be.
        S.parseXlConfig(event.header.config ?? '');
        yield S.encodeXlHeader({ ...event.header, optionalData: undefined as never });
        break;
      case 'libxl-header':
        yield S.encodeLibxlHeader(event.header);
        break;
      case 'image-header':
        yield S.encodeImageHeader(event.header);
        break;
      case 'domain-header':
        yield S.encodeDomainHeader(event.header);
        break;
      case 'page-data':
        if (head.length < S.pageDataHeadSize(event.count))
          head = new Uint8Array(S.pageDataHeadSize(event.count));
        yield head.subarray(0, S.writePageDataHead(head, event.pfns, event.types, event.count));
        break;
      case 'page-bytes':
        yield event.bytes;
        break;
      case 'record': {
        const codec = codecOf(event);
        if (codec === undefined) throw new Error(`no codec for ${event.name}`);
        const value = codec.decode(event.body, event, { width });
        if (event.name === 'X86_PV_INFO') width = (value as S.X86PvInfo).guestWidth;
        yield S.encodeRecord(event.type, encodeWith(codec, value));
        break;
      }
      default:
        throw new Error(`${event?.kind ?? 'nothing'} in a v2 stream`);
    }
  }
}

/** Folder of the Xen tools' package: the verifier in bin, its Python modules in lib/python. */
function xenTools(): string {
  for (const name of existsSync('/usr/lib') ? readdirSync('/usr/lib') : []) {
    const tools = path.join('/usr/lib', name);
    if (name.startsWith('xen-') && existsSync(path.join(tools, 'bin/verify-stream-v2'))) return tools;
  }
  throw new Error("Xen's verify-stream-v2 is not installed: it comes with Debian's package xen-utils-4.17");
}

function verify(file: string, format: S.StreamFormat): { status: number | null; output: string } {
  const tools = xenTools();
  const { status, stdout, stderr } = spawnSync(
    path.join(tools, 'bin/verify-stream-v2'),
    ['-f', format, '-i', file],
    { encoding: 'utf8', env: { ...process.env, PYTHONPATH: path.join(tools, 'lib/python') } },
  );
  return { status, output: stdout + stderr };
}

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'xen-migration-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function fileOf(...parts: Iterable<Uint8Array>[]): string {
  const file = path.join(folder, 'stream');
  const fd = openSync(file, 'w');
  try {
    for (const pieces of parts) for (const piece of pieces) writeSync(fd, piece);
  } finally {
    closeSync(fd);
  }
  return file;
}

describe('captures', () => {
  for (const { name, folder: from, trailing, ends } of captures) {
    const file = path.join(from, `${name}.gz`);
    const present = existsSync(file);
    if (!present) console.warn(`skipped: ${name} (no ${name}.gz; XEN_MIGRATION_STREAMS names the folder)`);

    test.skipIf(!present)(`${name}: decoded and encoded again, the same bytes`, () => {
      const stream = gunzipSync(readFileSync(file));
      const reader = new S.StreamReader();
      const out = fileOf(
        (function* () {
          let at = 0;
          for (const piece of recode(stream, reader)) {
            const original = stream.subarray(at, at + piece.length);
            if (!original.equals(piece)) {
              expect.fail(`at ${at}: ${toHex(piece.subarray(0, 64))} was ${toHex(original.subarray(0, 64))}`);
            }
            at += piece.length;
            yield piece;
          }
          expect(at).toBe(stream.length - trailing);
        })(),
      );
      expect(reader.done).toBe(ends);
      expect(reader.atBoundary).toBe(true);
      expect(reader.format).toBe('xl');
      if (ends) expect(verify(out, 'xl')).toEqual({ status: 0, output: '' });
    });
  }

  test('the save records in HVM_CONTEXT fill it', () => {
    const stream = gunzipSync(readFileSync(path.join(golden, 'tinyhvm.save.gz')));
    const reader = new S.StreamReader();
    let seen = 0;
    for (let at = 0; !reader.done;) {
      const chunk = stream.subarray(at, at + reader.want);
      const event = reader.feed(chunk);
      at += chunk.length;
      if (event?.kind !== 'record' || event.name !== 'HVM_CONTEXT') continue;
      const records = [...S.hvmSaveRecords(event.body)];
      const last = records.at(-1)!;
      expect(S.hvmSaveCodeName(last.typecode)).toBe('END');
      expect(last.at + 8).toBe(event.body.length);
      expect(records.map((record) => S.hvmSaveCodeName(record.typecode))).toContain('CPU');
      seen++;
    }
    expect(seen).toBe(1);
  });
});

describe('streams made here pass verify-stream-v2', () => {
  const samples = sampleStreams();
  test.each([
    // Its test of EMULATOR_XENSTORE_DATA fails for every such record under Python 3, so that one is left out.
    ['libxc, HVM', 'libxc', samples['libxc, HVM']!],
    ['libxc, HVM, version 2', 'libxc', samples['libxc, HVM, version 2']!],
    ['libxc, PV', 'libxc', libxcPv()],
    ['libxl', 'libxl', withoutXenstore(libxl())],
    ['xl', 'xl', xl(withoutXenstore(libxl()))],
  ] as const)('%s', (_name, format, stream) => {
    expect(verify(fileOf([stream]), format)).toEqual({ status: 0, output: '' });
  });

  test('and it refuses what it should', () => {
    const bad = libxcPv();
    bad[24] = 3;
    expect(verify(fileOf([bad]), 'libxc').status).toBe(1);
  });

  function withoutXenstore(stream: Uint8Array): Uint8Array {
    const reader = new S.LibxlReader();
    const parts: Uint8Array[] = [];
    let start = 0;
    for (let at = 0; !reader.done;) {
      const { want } = reader;
      const event = reader.feed(stream.subarray(at, at + want));
      at += want;
      if (event === undefined) continue;
      if (event.kind !== 'record' || event.name !== 'EMULATOR_XENSTORE_DATA')
        parts.push(stream.subarray(start, at));
      start = at;
    }
    return new Uint8Array(Buffer.concat(parts));
  }
});
