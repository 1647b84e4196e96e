/** What must hold for every value, every chunking and every damage. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { StreamFormatError } from '../../../lib/errors.js';
import * as S from '../../../lib/stream/index.js';
import { writePageDataRun } from '../../../lib/stream/libxc/page-data.js';
import { encodeWith, headerCodecs, libxcCodecs, libxlCodecs, type Codec } from './codecs.js';
import { concat, feedAll, jsonForm, pageData, PAGE, sampleStreams, toHex } from './helpers.js';

const u16 = fc.integer({ min: 0, max: 0xffff });
const u32 = fc.nat({ max: 0xffff_ffff });
const u48 = fc.nat({ max: 2 ** 48 - 1 });
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const bytes = (max: number, min = 0): fc.Arbitrary<Uint8Array> =>
  fc.uint8Array({ minLength: min, maxLength: max });
const blobOf = (...sizes: number[]): fc.Arbitrary<Uint8Array> =>
  fc.constantFrom(...sizes).chain((size) => fc.uint8Array({ minLength: size, maxLength: size }));
const vcpu = (blob: fc.Arbitrary<unknown>): fc.Arbitrary<unknown> =>
  fc.record({ vcpuId: u32, reserved: u32, blob });
const msr = fc.record({ index: u32, reserved: u32, value: u64 });

/** Values of every header and record; where none is listed, the record is opaque or empty. */
const libxcValues: Readonly<Record<string, fc.Arbitrary<unknown>>> = {
  END: fc.constant({}),
  VERIFY: fc.constant({}),
  CHECKPOINT: fc.constant({}),
  STATIC_DATA_END: fc.constant({}),
  TOOLSTACK: bytes(40),
  HVM_CONTEXT: bytes(100, 1),
  SHARED_INFO: blobOf(PAGE),
  X86_PV_INFO: fc
    .constantFrom<[4 | 8, 3 | 4]>([4, 3], [8, 4])
    .chain(([guestWidth, ptLevels]) =>
      fc.record({ guestWidth: fc.constant(guestWidth), ptLevels: fc.constant(ptLevels), reserved: u48 }),
    ),
  X86_PV_P2M_FRAMES: fc
    .tuple(u32, u32, fc.array(u32, { minLength: 1, maxLength: 20 }))
    .map(([a, b, frames]) => ({ startPfn: Math.min(a, b), endPfn: Math.max(a, b), frames })),
  X86_PV_VCPU_BASIC: vcpu(blobOf(0, 2800, 5168)),
  X86_PV_VCPU_EXTENDED: vcpu(bytes(128)),
  X86_PV_VCPU_XSAVE: vcpu(fc.oneof(fc.constant(new Uint8Array(0)), bytes(900, 16))),
  X86_PV_VCPU_MSRS: vcpu(fc.array(msr, { maxLength: 5 })),
  X86_TSC_INFO: fc.record({ mode: u32, khz: u32, nsec: u64, incarnation: u32, reserved: u32 }),
  HVM_PARAMS: fc.record({
    entries: fc.array(fc.record({ index: u32, value: u64 }), { maxLength: 20 }),
    reserved: u32,
  }),
  CHECKPOINT_DIRTY_PFN_LIST: fc.array(fc.nat({ max: S.PAGE_DATA_PFN_MAX }), { maxLength: 20 }),
  X86_CPUID_POLICY: fc.array(fc.record({ leaf: u32, subleaf: u32, a: u32, b: u32, c: u32, d: u32 }), {
    minLength: 1,
    maxLength: 20,
  }),
  X86_MSR_POLICY: fc.array(fc.record({ index: u32, flags: u32, value: u64 }), {
    minLength: 1,
    maxLength: 20,
  }),
};

const latin1 = fc.array(fc.integer({ min: 1, max: 255 })).map((codes) => String.fromCharCode(...codes));
const key = latin1.filter((text) => text !== '' && !text.startsWith('/'));
const emulator = { emulatorId: u32, index: u32 };
const libxlValues: Readonly<Record<string, fc.Arbitrary<unknown>>> = {
  END: fc.constant({}),
  LIBXC_CONTEXT: fc.constant({}),
  CHECKPOINT_END: fc.constant({}),
  EMULATOR_XENSTORE_DATA: fc.record({
    ...emulator,
    entries: fc.array(fc.tuple(key, latin1), { maxLength: 6 }),
  }),
  EMULATOR_CONTEXT: fc.record({ ...emulator, blob: bytes(100) }),
  CHECKPOINT_STATE: fc.record({ id: u32 }),
};

const headerValues: Readonly<Record<string, fc.Arbitrary<unknown>>> = {
  'image header': fc.record({
    version: fc.constantFrom(2, 3),
    options: u16.map((bits) => bits & ~S.IHDR_OPT_BIG_ENDIAN),
    reserved: u48,
  }),
  'domain header': fc.record({
    type: fc.constantFrom(1, 2),
    pageShift: fc.constant(12),
    xenMajor: u32,
    xenMinor: u32,
    reserved: u16,
  }),
  'libxl header': fc.record({ version: fc.constant(2), options: u32.map((bits) => (bits & ~1) >>> 0) }),
  'xl header': fc.record({
    mandatoryFlags: fc.integer({ min: 0, max: 3 }),
    optionalFlags: u32,
    config: fc.option(
      fc.string().filter((text) => text !== '' && !text.includes('\0')),
      { nil: undefined },
    ),
  }),
};

interface Entry {
  readonly name: string;
  readonly codec: Codec;
  readonly values: fc.Arbitrary<unknown>;
}

function entries(
  layer: string,
  codecs: Readonly<Record<string, Codec>>,
  values: Readonly<Record<string, fc.Arbitrary<unknown>>>,
): Entry[] {
  expect(Object.keys(values).sort()).toEqual(Object.keys(codecs).sort());
  return Object.entries(codecs).map(([name, codec]) => ({
    name: `${layer} ${name}`,
    codec,
    values: values[name]!,
  }));
}

const all = [
  ...entries('', headerCodecs, headerValues),
  ...entries('libxc', libxcCodecs, libxcValues),
  ...entries('libxl', libxlCodecs, libxlValues),
];

const place = { offset: 0 };

describe('encoders and decoders', () => {
  test.each(all)(
    '$name: what is encoded is decoded, and encoded again to the same bytes',
    ({ codec, values }) => {
      fc.assert(
        fc.property(values, (value) => {
          const once = encodeWith(codec, value);
          const decoded = codec.decode(once, place, {});
          expect(jsonForm(decoded)).toMatchObject(jsonForm(value) as object);
          expect(toHex(encodeWith(codec, decoded))).toBe(toHex(once));
        }),
      );
    },
  );

  test.each(all)('$name: any bytes are decoded or refused with a StreamFormatError', ({ codec, values }) => {
    const damaged = fc
      .tuple(values, fc.array(fc.tuple(fc.nat(), u32)), fc.nat())
      .map(([value, changes, cut]) => {
        const good = encodeWith(codec, value).slice();
        for (const [at, byte] of changes) if (good.length > 0) good[at % good.length] = byte;
        return good.subarray(0, cut % 3 === 0 ? cut % (good.length + 1) : good.length);
      });
    fc.assert(
      fc.property(fc.oneof(bytes(200), damaged), (input) => {
        let value: unknown;
        try {
          value = codec.decode(input, place, {});
        } catch (error) {
          expect(error).toBeInstanceOf(StreamFormatError);
          expect(Object.values(S.StreamErrorCode)).toContain((error as StreamFormatError).code);
          return;
        }
        // What was taken can be written: as it was, or as what remains when ignored bytes are left out.
        const again = encodeWith(codec, value);
        expect(jsonForm(codec.decode(again, place, {}))).toEqual(jsonForm(value));
      }),
    );
  });

  test('PAGE_DATA: what is written is read', () => {
    const type = fc.constantFrom(0, 1, 2, 3, 4, 9, 10, 11, 12, 13, 14, 15);
    const table = fc.array(fc.tuple(fc.nat({ max: S.PAGE_DATA_PFN_MAX }), type), {
      minLength: 1,
      maxLength: 6,
    });
    fc.assert(
      fc.property(table, fc.infiniteStream(fc.integer({ min: 1, max: 5000 })), (list, sizes) => {
        const stream = concat(
          S.encodeHeaders({ type: 2, xenMajor: 4, xenMinor: 17 }),
          pageData(list),
          S.encodeRecord(S.LibxcRecord.END),
        );
        const { events, error } = feedAll(new S.LibxcReader(), stream, () => sizes.next().value as number);
        expect(error).toBeUndefined();
        const page = events[2]!;
        expect(page['pfns']).toEqual(list.map(([pfn]) => pfn));
        expect(page['types']).toEqual(list.map(([, t]) => t));
        const dataPages = list.filter(([, t]) => t < 13);
        expect(page['dataPages']).toBe(dataPages.length);
        const contents = dataPages.map(([pfn]) => new Uint8Array(PAGE).fill(pfn));
        expect(page['pages'] ?? '').toBe(toHex(concat(...contents)));
        expect(events.map((event) => event['name'] ?? event['kind'])).toEqual([
          'image-header',
          'domain-header',
          'page-data',
          'page-data-end',
          'END',
        ]);
      }),
      { numRuns: 50 },
    );
  });

  test('encoders refuse numbers that do not fit', () => {
    const bad: (() => unknown)[] = [
      () => S.encodeX86PvVcpu({ vcpuId: 2 ** 32, blob: new Uint8Array(0) }),
      () => S.encodeX86TscInfo({ mode: -1, khz: 0, nsec: 0n, incarnation: 0 }),
      () => S.encodeX86TscInfo({ mode: 0, khz: 0, nsec: 2n ** 64n, incarnation: 0 }),
      () => S.encodeHvmParams({ entries: [{ index: 0.5, value: 0n }] }),
      () => S.encodeHvmParams({ entries: [{ index: 1, value: -1n }] }),
      () => S.encodeX86PvP2mFrames({ startPfn: 0, endPfn: 0, frames: [2 ** 32] }),
      () => S.encodeX86PvP2mFrames({ startPfn: 1, endPfn: 0, frames: [0] }),
      () => S.encodeDirtyPfnList([2 ** 52]),
      () => S.encodeSharedInfo(new Uint8Array(4095)),
      () => S.encodeEmulatorXenstoreData({ emulatorId: 0, index: 0, entries: [['/a', 'b']] }),
      () => S.encodeEmulatorXenstoreData({ emulatorId: 0, index: 0, entries: [['a', 'b\0']] }),
      () => S.encodeEmulatorXenstoreData({ emulatorId: 0, index: 0, entries: [['a', '\u0100']] }),
      () => S.encodeHeaders({ type: 3, xenMajor: 4, xenMinor: 17 }),
      () => S.encodeXlHeader({ config: 'x'.repeat(S.XL_OPTIONAL_DATA_MAX) }),
      () => S.encodeRecord(9, new Uint8Array(S.REC_LENGTH_MAX + 1)),
      () => S.writePageDataHead(new Uint8Array(100), [1], [0], 2),
      () => S.writePageDataHead(new Uint8Array(16), [1], [0], 1),
      () => S.writePageDataHead(new Uint8Array(100), [], [], 0),
      () =>
        S.writePageDataHead(new Uint8Array(300_000), new Float64Array(32768), new Uint8Array(32768), 32768),
      () => S.writePageDataHead(new Uint8Array(100), [2 ** 52], [0], 1),
      () => S.writePageDataHead(new Uint8Array(100), [-1], [0], 1),
      () => S.writePageDataHead(new Uint8Array(100), [0.5], [0], 1),
      () => S.writePageDataHead(new Uint8Array(100), [NaN], [0], 1),
      () => S.writePageDataHead(new Uint8Array(100), [Infinity], [0], 1),
      () => S.writePageDataHead(new Uint8Array(100), [1], [16], 1),
      () => writePageDataRun(new Uint8Array(100), 1, 16, 1),
      () => writePageDataRun(new Uint8Array(100), 1, 0, 0),
      () => writePageDataRun(new Uint8Array(100), -1, 0, 1),
      () => writePageDataRun(new Uint8Array(100), 0.5, 0, 1),
      () => writePageDataRun(new Uint8Array(100), NaN, 0, 1),
      () => writePageDataRun(new Uint8Array(100), 2 ** 32 - 1, 0, 2),
      () => writePageDataRun(new Uint8Array(31), 1, 0, 2),
      () => writePageDataRun(new Uint8Array(300_000), 0, 0, 32768),
    ];
    for (const call of bad)
      expect(call).toThrow(expect.objectContaining({ code: 'ERR_XEN_INVALID_ARGUMENT' }));
  });
});

describe('a table of pfns in a row', () => {
  test('is the one that is written entry by entry', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 2 ** 32 - 1 }),
        fc.integer({ min: 1, max: 300 }),
        fc.nat({ max: 15 }),
        fc.nat({ max: 3 }),
        (start, count, type, shift) => {
          const first = Math.min(start, 2 ** 32 - count);
          const pfns = Float64Array.from({ length: count }, (_, i) => first + i);
          const room = S.pageDataHeadSize(count) + shift;
          const [one, other] = [new Uint8Array(room), new Uint8Array(room)];
          const types = new Uint8Array(count).fill(type);
          const n = S.writePageDataHead(one.subarray(shift), pfns, types, count);
          expect(writePageDataRun(other.subarray(shift), first, type, count)).toBe(n);
          expect(Buffer.compare(one, other)).toBe(0);
        },
      ),
      { numRuns: 100 },
    );
  });
});

const streams = Object.entries(sampleStreams()).map(([name, stream]) => ({ name, stream }));

describe('readers', () => {
  test.each(streams)('$name: the same events whatever the chunks', ({ stream }) => {
    const whole = feedAll(new S.StreamReader(), stream);
    expect(whole.error).toBeUndefined();
    expect(feedAll(new S.StreamReader(), stream, 1)).toEqual(whole);
    fc.assert(
      fc.property(fc.infiniteStream(fc.integer({ min: 1, max: 40 })), fc.nat({ max: 5000 }), (sizes, big) => {
        const chunking = (): number => {
          const size = sizes.next().value as number;
          return size < 10 ? big + 1 : size;
        };
        expect(feedAll(new S.StreamReader(), stream, chunking)).toEqual(whole);
      }),
      { numRuns: 30 },
    );
  });

  test.each(streams)('$name: lenient and strict readers agree on a good stream', ({ stream }) => {
    expect(feedAll(new S.StreamReader({ lenient: true }), stream)).toEqual(
      feedAll(new S.StreamReader(), stream),
    );
  });

  // feedAll lets only StreamFormatError pass, and checks want and position at every step.
  test.each(streams)(
    '$name: damage gives events or a StreamFormatError, the same for all chunks',
    ({ stream }) => {
      const damage = fc.array(fc.tuple(fc.nat({ max: stream.length - 1 }), fc.nat({ max: 255 })), {
        minLength: 1,
        maxLength: 4,
      });
      fc.assert(
        fc.property(damage, fc.boolean(), fc.integer({ min: 1, max: 300 }), (changes, lenient, size) => {
          const bad = stream.slice();
          for (const [at, byte] of changes) bad[at] = byte;
          const outcome = (chunk: number): unknown => {
            const fed = feedAll(new S.StreamReader({ lenient }), bad, chunk);
            const { code, offset, path } = fed.error ?? {};
            return { events: fed.events, code, offset, path };
          };
          expect(outcome(size)).toEqual(outcome(Infinity));
        }),
      );
    },
  );

  test('any bytes after good headers', () => {
    const word = fc.oneof(fc.nat({ max: 0x14 }), u32, fc.constantFrom(8, 16, 24, 4112));
    const words = fc
      .array(word, { maxLength: 60 })
      .map((list) => new Uint8Array(Uint32Array.from(list).buffer));
    const headers = S.encodeHeaders({ type: 2, xenMajor: 4, xenMinor: 17 });
    const libxlHead = concat(S.encodeLibxlHeader(), S.encodeRecord(S.LibxlRecord.LIBXC_CONTEXT), headers);
    fc.assert(
      fc.property(fc.constantFrom(headers, libxlHead), words, fc.boolean(), (head, tail, lenient) => {
        const stream = concat(head, tail);
        feedAll(new S.StreamReader({ lenient }), stream, 7);
      }),
      { numRuns: 500 },
    );
  });

  test('any bytes at all', () => {
    fc.assert(fc.property(bytes(100), (input) => void feedAll(new S.StreamReader(), input, 5)));
    for (const format of ['libxc', 'libxl', 'xl'] as const) {
      fc.assert(fc.property(bytes(100), (input) => void feedAll(new S.StreamReader({ format }), input, 5)));
    }
  });
});
