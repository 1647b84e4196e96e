/**
 * The golden corpus, test/golden/*.json: bytes and what they mean, made without this library. Hex is as `fromHex` reads
 * it; `{ "u64": "0x…" }` is a bigint, `{ "bytes": "…" }` an array of bytes.
 */

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { StreamFormatError } from '../../../lib/errors.js';
import type { GuestWidth } from '../../../lib/abi/pv.js';
import * as S from '../../../lib/stream/index.js';
import { encodeWith, headerCodecs, libxcCodecs, libxlCodecs, type Codec } from './codecs.js';
import { feedAll, fromHex, jsonForm, toHex, type Fed, type Plain } from './helpers.js';

function golden(name: string): unknown {
  return JSON.parse(readFileSync(new URL(`../../golden/${name}.json`, import.meta.url), 'utf8'));
}

interface GoldenError {
  readonly code: string;
  readonly path?: string;
  readonly record?: string;
  readonly offset?: number;
}

interface CodecCase {
  readonly description: string;
  readonly hex: string;
  readonly width?: GuestWidth;
  readonly decoded?: unknown;
  /** False: the bytes hold something that the decoder ignores and the encoder does not write. */
  readonly recode?: boolean;
  readonly error?: GoldenError;
}

interface CodecGroup {
  readonly codec: string;
  readonly layer?: 'libxl';
  readonly cases: readonly CodecCase[];
}

/** Expands `{ "bytes": "00*4" }` to plain hex. */
function expand(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(expand);
  if (typeof value !== 'object' || value === null) return value;
  const { bytes } = value as { bytes?: unknown };
  if (typeof bytes === 'string') return { bytes: toHex(fromHex(bytes)) };
  return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, expand(v)]));
}

function findCodec({ codec, layer }: CodecGroup): Codec {
  const records: Readonly<Record<string, Codec>> = layer === 'libxl' ? libxlCodecs : libxcCodecs;
  const found = headerCodecs[codec] ?? records[codec];
  if (found === undefined) throw new Error(`no codec ${codec}`);
  return found;
}

function thrownBy(run: () => unknown): StreamFormatError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(StreamFormatError);
    return error as StreamFormatError;
  }
  return expect.fail('nothing was thrown');
}

function expectError(error: StreamFormatError | undefined, expected: GoldenError, shift = 0): void {
  expect(error).toBeDefined();
  const { code, path, offset, record } = error!;
  expect({ code, path }).toEqual({ code: expected.code, path: expected.path });
  if (expected.offset !== undefined) expect(offset).toBe(expected.offset + shift);
  if (expected.record !== undefined) expect(record).toBe(expected.record);
}

describe.each(['libxc-headers', 'libxc-records', 'libxl', 'xl'])('golden: %s', (file) => {
  const { groups } = golden(file) as { groups: CodecGroup[] };
  const cases = groups.flatMap((group) => group.cases.map((c) => ({ ...c, name: group.codec, group })));

  test.each(cases)('$name: $description', ({ group, hex, width, decoded, recode, error }) => {
    const codec = findCodec(group);
    const bytes = fromHex(hex);
    if (error !== undefined) {
      const thrown = thrownBy(() => codec.decode(bytes, { offset: 1000 }, { width }));
      expectError(thrown, error, 1000);
      expect(thrown.record).toBe(group.codec);
      return;
    }
    const value = codec.decode(bytes, { offset: 1000 }, { width });
    expect(jsonForm(value)).toEqual(expand(decoded));
    if (recode !== false) expect(toHex(encodeWith(codec, value))).toBe(toHex(bytes));
  });
});

test('the corpus has valid and invalid bytes for every header and every record that can be invalid', () => {
  const valid = new Set<string>();
  const invalid = new Set<string>();
  for (const file of ['libxc-headers', 'libxc-records', 'libxl', 'xl']) {
    for (const group of (golden(file) as { groups: CodecGroup[] }).groups) {
      for (const c of group.cases)
        (c.error === undefined ? valid : invalid).add(`${group.layer ?? ''} ${group.codec}`);
    }
  }
  const all = [
    ...Object.keys(headerCodecs).map((name) => ` ${name}`),
    ...Object.keys(libxcCodecs).map((name) => ` ${name}`),
    ...Object.keys(libxlCodecs).map((name) => `libxl ${name}`),
  ];
  expect([...valid].sort()).toEqual([...all].sort());
  const anything = / (END|VERIFY|CHECKPOINT|STATIC_DATA_END|TOOLSTACK|LIBXC_CONTEXT|CHECKPOINT_END)$/;
  expect([...invalid].sort()).toEqual(all.filter((name) => !anything.test(name)).sort());
});

type GoldenEvent = string | (Plain & { kind: string });

interface StreamCase {
  readonly description: string;
  readonly format: S.StreamFormat | 'auto';
  readonly hex: string;
  readonly events: readonly GoldenEvent[];
  readonly error?: GoldenError;
  readonly trailing?: number;
  readonly lenient?: readonly GoldenEvent[] | 'throws';
  readonly lenientError?: GoldenError;
}

/** What the corpus says of an event: its kind or the record's name, and what is not as usual. */
function summary(event: Plain): GoldenEvent {
  const kind = event['kind'] === 'record' ? String(event['name']) : String(event['kind']);
  const more: Plain = {};
  if (typeof event['violation'] === 'string') more['violation'] = true;
  if (event['kind'] === 'page-data') {
    const { pfns, types, pages = '' } = event as { pfns: number[]; types: number[]; pages?: string };
    Object.assign(more, { pfns, types, data: pages.length / 2 });
    if (event['reserved'] !== 0) more['reserved'] = event['reserved'];
    if (event['reservedBitsAt'] !== -1) more['reservedBitsAt'] = event['reservedBitsAt'];
    if (event['violation'] !== undefined && event['dataPages'] !== 0) more['dataPages'] = event['dataPages'];
  }
  const padding = event['padding'];
  if (kind === 'page-data-end' && padding instanceof Uint8Array && padding.length > 0)
    more['padding'] = toHex(padding);
  return Object.keys(more).length > 0 ? { kind, ...more } : kind;
}

function expectEvents(fed: Fed, expected: readonly GoldenEvent[]): void {
  const wanted = expected.map((event) => {
    if (typeof event === 'string') return event;
    const { violation, padding, ...rest } = event;
    return {
      ...rest,
      ...(violation === undefined ? {} : { violation: true }),
      ...(typeof padding === 'string' ? { padding: toHex(fromHex(padding)) } : {}),
    };
  });
  expect(fed.events.map(summary)).toEqual(wanted);
}

describe('golden: streams', () => {
  const { cases } = golden('streams') as { cases: StreamCase[] };

  test.each(cases)('$description', ({ format, hex, events, error, trailing = 0 }) => {
    const bytes = fromHex(hex);
    const fed = feedAll(new S.StreamReader({ format }), bytes);
    expectEvents(fed, events);
    if (error === undefined) {
      expect(fed.error).toBeUndefined();
      expect(bytes.length - fed.position).toBe(trailing);
    } else {
      expectError(fed.error, error);
    }
  });

  const lenientCases = cases.filter((c) => c.lenient !== undefined);
  test.each(lenientCases)(
    'lenient: $description',
    ({ format, hex, events, error, lenient, lenientError }) => {
      const codes: string[] = [];
      const reader = new S.StreamReader({ format, lenient: true });
      const fed = feedAll(reader, fromHex(hex), Infinity, (event) => {
        if (!('violation' in event) || event.violation === undefined) return;
        codes.push(event.violation.code);
        // It is the very error that the strict reader throws.
        expectError(event.violation, error!);
      });
      if (lenient === 'throws') {
        expectEvents(fed, events);
        expectError(fed.error, error!);
        return;
      }
      expectEvents(fed, lenient!);
      const violations = lenient!.flatMap((event) => (typeof event === 'string' ? [] : [event['violation']]));
      expect(codes).toEqual(
        violations.filter((code) => code !== undefined).map((code) => `ERR_XEN_STREAM_${code as string}`),
      );
      if (lenientError === undefined) expect(fed.error).toBeUndefined();
      else expectError(fed.error, lenientError);
    },
  );
});

interface WriterCase {
  readonly description: string;
  readonly encode: string;
  readonly value?: never;
  readonly hex: string;
}

describe('golden: writers', () => {
  const { cases } = golden('writers') as { cases: WriterCase[] };
  const encoders: Readonly<Record<string, (value: never) => Uint8Array>> = {
    'image header': () => S.encodeImageHeader(),
    'domain header': S.encodeDomainHeader,
    headers: S.encodeHeaders,
    record: ({ type, body = '' }: { type: number; body?: string }) => S.encodeRecord(type, fromHex(body)),
    'page data head': ({ pfns, types }: { pfns: number[]; types: number[] }) => {
      const into = new Uint8Array(4096).fill(0xff);
      return into.subarray(0, S.writePageDataHead(into, pfns, types, pfns.length));
    },
    'libxl header': () => S.encodeLibxlHeader(),
    'xl header': S.encodeXlHeader,
  };

  test.each(cases)('$description', ({ encode, value, hex }) => {
    expect(toHex(encoders[encode]!(value as never))).toBe(toHex(fromHex(hex)));
  });

  test('a record as views is the record', () => {
    for (let length = 0; length < 20; length++) {
      const body = new Uint8Array(length).fill(0xee);
      const views = S.recordViews(9, body);
      expect(toHex(Buffer.concat(views))).toBe(toHex(S.encodeRecord(9, body)));
      if (length > 0) expect(views[1]).toBe(body);
    }
  });
});
