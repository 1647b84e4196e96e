/** Whatever the bytes: a report, no throw, no hang, bounded memory. */

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { setU32 } from '../../../lib/bytes/le.js';
import * as S from '../../../lib/stream/index.js';
import { Verifier, type VerifyReport } from '../../../lib/stream/verify/index.js';
import * as T from './streams.js';

/** Feeds bytes in chunks; fails if the verifier does not come to an end. */
function check(bytes: Uint8Array, format?: S.StreamFormat, chunk = 1 << 16): VerifyReport {
  const verifier = new Verifier({ format });
  for (let at = 0; at < bytes.length; at += chunk) verifier.feed(bytes.subarray(at, at + chunk));
  const report = verifier.end();
  expect(report.valid).toBe(report.errors === 0);
  expect(report.findings.length).toBe(report.errors + report.warnings - report.suppressed);
  expect(report.findings.length).toBeLessThanOrEqual(200);
  for (const { offset } of report.findings) {
    expect(offset).toBeGreaterThanOrEqual(0);
    expect(offset).toBeLessThanOrEqual(bytes.length);
  }
  return report;
}

const samples = T.samples().map(({ format, pieces }) => ({ format, bytes: Uint8Array.from(T.join(pieces)) }));

describe('properties', () => {
  it('random bytes', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 300 }),
        fc.constantFrom('libxc' as const, 'libxl' as const, 'xl' as const, undefined),
        (bytes, format) => {
          expect(check(bytes, format).valid).toBe(false);
        },
      ),
      { numRuns: 500 },
    );
  });

  it('random bytes behind good headers', () => {
    const heads = [
      T.join(T.headers(2, 3)),
      T.join(T.headers(1, 2)),
      S.encodeLibxlHeader(),
      T.join(T.inLibxl(T.headers(2, 3), { emulated: false }).slice(0, 4)),
    ];
    fc.assert(
      fc.property(fc.constantFrom(...heads), fc.uint8Array({ maxLength: 400 }), (head, bytes) => {
        check(Buffer.concat([head, bytes]));
      }),
      { numRuns: 500 },
    );
  });

  it('records of random types and contents', () => {
    const record = fc
      .tuple(fc.oneof(fc.integer({ min: 0, max: 0x13 }), fc.nat()), fc.uint8Array({ maxLength: 64 }))
      .map(([type, body]) => S.encodeRecord(type, body));
    fc.assert(
      fc.property(
        fc.constantFrom(1, 2),
        fc.constantFrom(2, 3),
        fc.array(record, { maxLength: 20 }),
        (type, version, list) => {
          check(Buffer.concat([T.join(T.headers(type, version)), ...list]));
        },
      ),
      { numRuns: 500 },
    );
  });

  it('good streams with bytes changed, cut anywhere, by any chunks: the same report', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...samples),
        fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }),
        fc.nat(),
        fc.integer({ min: 1, max: 5000 }),
        ({ bytes }, changes, end, chunk) => {
          const changed = bytes.slice(0, end % 3 === 0 ? end % bytes.length : bytes.length);
          for (const [at, value] of changes) if (changed.length > 0) changed[at % changed.length] = value;
          expect(check(changed, undefined, chunk)).toEqual(check(changed));
        },
      ),
      { numRuns: 300 },
    );
  });
});

describe('truncation', () => {
  it.each(samples.map((sample, i) => ({ name: T.samples()[i]!.name, ...sample })))(
    '$name, at every byte',
    ({ name, bytes }) => {
      const afterCheckpoint = name.includes('Remus') || name.includes('checkpointed');
      // Page contents and long blobs are cut at every 97th byte: all of their bytes are alike.
      for (let end = 0; end < bytes.length; end += bytes[end] === bytes[end + 40] ? 97 : 1) {
        const report = check(bytes.subarray(0, end));
        const cut = report.findings.filter((finding) => finding.code === 'ERR_XEN_STREAM_TRUNCATED');
        expect(cut).toHaveLength(1);
        expect(report.summary.complete).toBe(false);
        if (!afterCheckpoint) expect(report.valid).toBe(false);
        else expect(report.valid).toBe(report.summary.checkpoints > 0);
      }
    },
  );
});

describe('captures, damaged', () => {
  const folder = path.resolve(import.meta.dirname, '../../golden/streams');
  const capture = gunzipSync(readFileSync(path.join(folder, 'tinyhvm.remus.gz')));

  it('one byte at a time', () => {
    let seed = 1;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
      return seed % below;
    };
    for (let i = 0; i < 40; i++) {
      // The last megabyte has every kind of record; most of what is before it is page contents.
      const at = capture.length - 1 - random(1 << 20);
      const before = capture[at]!;
      capture[at] = before ^ (1 << random(8));
      check(capture, 'xl', 1 << 22);
      capture[at] = before;
    }
    expect(check(capture).valid).toBe(true);
  });
});

describe('bounded memory', () => {
  /** A verifier after its headers. */
  function begun(): Verifier {
    const verifier = new Verifier();
    verifier.feed(T.join(T.hvm().slice(0, 5)));
    return verifier;
  }

  /** Bytes held beyond the beginning, roughly. */
  function memory(): number {
    const { heapUsed, arrayBuffers } = process.memoryUsage();
    return heapUsed + arrayBuffers;
  }

  it('a length that lies costs its sender the bytes', () => {
    const before = memory();
    const verifiers = Array.from({ length: 50 }, () => {
      const verifier = begun();
      const head = new Uint8Array(16);
      setU32(head, 0, S.LibxcRecord.HVM_CONTEXT);
      setU32(head, 4, S.REC_LENGTH_MAX);
      verifier.feed(head);
      return verifier;
    });
    expect(memory() - before).toBeLessThan(64 << 20);
    for (const verifier of verifiers) expect(verifier.end().valid).toBe(false);
  });

  it('a million records, each with something wrong', () => {
    const verifier = begun();
    const records = Buffer.concat(
      Array.from({ length: 1000 }, (_, i) => S.encodeRecord(0x1000 + i, new Uint8Array(4).fill(i))),
    );
    const before = memory();
    for (let i = 0; i < 1000; i++) verifier.feed(records);
    expect(memory() - before).toBeLessThan(64 << 20);
    const report = verifier.end();
    expect(report.errors).toBe(1_000_001);
    expect(report.findings.length).toBeLessThanOrEqual(100);
  });

  it('a record of a million entries, in no order, with a frame twice', () => {
    const count = 1 << 20;
    const pfns = Float64Array.from(
      { length: count },
      (_, i) => (Math.imul(i, 2_654_435_761) >>> 0) % (1 << 30),
    );
    pfns[count - 1] = pfns[0]!;
    const head = new Uint8Array(S.pageDataHeadSize(count));
    S.writePageDataHead(head, pfns, new Uint8Array(count).fill(0xf), count);
    const verifier = begun();
    verifier.feed(head);
    const duplicate = verifier.end().findings.find((finding) => finding.code === 'ERR_XEN_STREAM_DUPLICATE');
    expect(duplicate).toMatchObject({ severity: 'warning', record: 'PAGE_DATA' });
  });
});
