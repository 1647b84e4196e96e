/** What the incremental readers promise beyond the events themselves. */

import { describe, expect, test } from 'vitest';
import { StreamFormatError, UsageError } from '../../../lib/errors.js';
import * as S from '../../../lib/stream/index.js';
import {
  checkpointed,
  concat,
  feedAll,
  libxcHvm,
  libxl,
  PAGE,
  pageData,
  sampleStreams,
  xl,
} from './helpers.js';

const R = S.LibxcRecord;
const headers = S.encodeHeaders({ type: 2, xenMajor: 4, xenMinor: 17 });
const streams = Object.entries(sampleStreams()).map(([name, stream]) => ({ name, stream }));

function recordHeader(type: number, length: number): Uint8Array {
  const bytes = new Uint8Array(8);
  S.writeRecordHeader(bytes, 0, type, length);
  return bytes;
}

/** Feeds all of the bytes, as much as is wanted at a time. */
function feed(reader: S.IncrementalReader, bytes: Uint8Array): (S.StreamEvent | undefined)[] {
  const events = [];
  for (let at = 0; at < bytes.length;) {
    const chunk = bytes.subarray(at, at + reader.want);
    events.push(reader.feed(chunk));
    at += chunk.length;
  }
  return events;
}

describe('truncation', () => {
  test.each(streams)('$name: an end at any byte is told, with its offset', ({ stream }) => {
    const whole = feedAll(new S.StreamReader(), stream);
    expect(whole.error).toBeUndefined();
    for (let end = 0; end < stream.length; end++) {
      const reader = new S.StreamReader();
      const { error, events } = feedAll(reader, stream.subarray(0, end));
      if (error === undefined) expect.fail(`cut at ${end}: no error`);
      if (error.code !== 'ERR_XEN_STREAM_TRUNCATED' || error.offset !== end) {
        expect.fail(`cut at ${end}: ${error.code} ${error.message}`);
      }
      expect(events.length).toBeLessThan(whole.events.length);
    }
  });

  test('the error names what was cut and how much is missing', () => {
    const cut = (bytes: Uint8Array): string => String(feedAll(new S.StreamReader(), bytes).error?.message);
    expect(cut(headers.subarray(0, 30))).toBe('domain header: the stream ends 10 bytes short (at offset 30)');
    const tsc = concat(headers, recordHeader(R.X86_TSC_INFO, 24), new Uint8Array(23));
    expect(cut(tsc)).toBe('X86_TSC_INFO: the stream ends 1 byte short (at offset 71)');
    expect(cut(headers)).toBe('the stream ends without its END record (at offset 40)');
    expect(cut(concat(headers, new Uint8Array(1)))).toMatch(/^record header: the stream ends 7 bytes short/);
    expect(cut(concat(headers, pageData([[1, 0]]).subarray(0, 30)))).toMatch(
      /^PAGE_DATA: .* 4090 bytes short/,
    );
    expect(cut(new Uint8Array(3))).toMatch(/too few to recognise its format/);
  });

  test('atBoundary is true exactly where a header or record begins', () => {
    const stream = checkpointed();
    const starts = new Set([0]);
    const whole = feedAll(new S.StreamReader(), stream).events;
    for (const event of whole) if (event['kind'] !== 'page-data-end') starts.add(event['offset'] as number);
    const reader = new S.StreamReader();
    for (let at = 0; at < stream.length; at++) {
      expect([at, reader.atBoundary]).toEqual([at, starts.has(at)]);
      reader.feed(stream.subarray(at, at + 1));
    }
    expect(reader.done && reader.atBoundary).toBe(true);
  });
});

describe('want', () => {
  test('never reaches into what follows: a source shared with libxl is read exactly', () => {
    const stream = checkpointed();
    const reader = new S.LibxlReader();
    let at = 0;
    const boundaries: number[] = [];
    while (!reader.done) {
      const { want } = reader;
      expect(at + want).toBeLessThanOrEqual(stream.length);
      const event = reader.feed(stream.subarray(at, at + want));
      at += want;
      if (event?.kind === 'record' && event.layer === 'libxc') {
        // The record, its padding, and not a byte more.
        expect(at).toBe(event.offset + 8 + event.body.length + event.padding.length);
        if (event.type === R.CHECKPOINT || event.type === R.END) boundaries.push(at);
      }
    }
    expect(boundaries).toHaveLength(3);
    expect(at).toBe(stream.length);
    expect(reader.want).toBe(0);
  });

  test('what is fed against it is an error of the caller', () => {
    const reader = new S.LibxcReader();
    expect(() => reader.feed(new Uint8Array(0))).toThrow(UsageError);
    expect(() => reader.feed(new Uint8Array(25))).toThrow(UsageError);
    feed(reader, libxcHvm());
    expect(reader.done).toBe(true);
    expect(() => reader.feed(new Uint8Array(1))).toThrow(UsageError);
    expect(() => reader.end()).not.toThrow();
  });
});

describe('errors', () => {
  test.each([
    ['LibxcReader', new S.LibxcReader({ offset: 100 }), 100],
    ['LibxlReader', new S.LibxlReader({ offset: 100 }), 100],
    ['XlReader', new S.XlReader({ offset: 100 }), 100],
    ['StreamReader', new S.StreamReader({ offset: 100 }), 100],
  ] as const)('%s: a reader that has thrown is dead', (_name, reader, offset) => {
    expect(reader.position).toBe(offset);
    let first: unknown;
    try {
      feed(reader, new Uint8Array(64).fill(1));
    } catch (error) {
      first = error;
    }
    expect(first).toBeInstanceOf(StreamFormatError);
    expect((first as StreamFormatError).offset).toBe(offset);
    expect(() => reader.feed(new Uint8Array(1))).toThrow(first);
    expect(() => reader.end()).toThrow(first);
  });

  test('an early end is final too', () => {
    const reader = new S.LibxcReader();
    expect(() => reader.end()).toThrow(StreamFormatError);
    expect(() => reader.feed(new Uint8Array(1))).toThrow(StreamFormatError);
  });

  test('offsets count from where the stream begins, through all layers', () => {
    const bad = xl(libxl(concat(headers, recordHeader(R.X86_TSC_INFO, 23))));
    const at = bad.length - (libxl().length - libxcHvm().length - 24) - 8;
    for (const offset of [0, 1000]) {
      const reader = new S.StreamReader({ offset });
      expect(() => feed(reader, bad)).toThrow(
        expect.objectContaining({ code: 'ERR_XEN_STREAM_LENGTH', offset: offset + at + 4 }),
      );
    }
  });
});

describe('page contents', () => {
  test('are views of what was fed; the table comes in arrays that are used again', () => {
    const reader = new S.LibxcReader();
    const page = (pfn: number): Uint8Array => pageData([[pfn, 0]]);
    const stream = concat(headers, page(1), page(2), S.encodeRecord(R.END));
    const tables: S.PageDataEvent[] = [];
    let at = 0;
    while (!reader.done) {
      const chunk = stream.subarray(at, at + Math.min(reader.want, 1000));
      const event = reader.feed(chunk);
      at += chunk.length;
      if (event?.kind === 'page-data') tables.push(event);
      if (event?.kind === 'page-bytes') {
        expect(event.bytes).toBe(chunk);
        expect(event.last).toBe(event.at + chunk.length === PAGE);
      }
    }
    expect(tables).toHaveLength(2);
    expect(tables[1]?.pfns).toBe(tables[0]?.pfns);
    expect(tables[1]?.types).toBe(tables[0]?.types);
    expect(tables[1]?.pfns[0]).toBe(2);
  });

  test('a table of more entries than a batch, in any chunks', () => {
    const count = 5000;
    const stream = concat(
      headers,
      pageData(Array.from({ length: count }, (_, i) => [i * 3, 0xf] as const)),
      S.encodeRecord(R.END),
    );
    for (const size of [7, 1000, Infinity]) {
      const { events, error } = feedAll(new S.LibxcReader(), stream, size);
      expect(error).toBeUndefined();
      const { pfns, types } = events[2] as unknown as { pfns: number[]; types: number[] };
      expect(pfns).toEqual(Array.from({ length: count }, (_, i) => i * 3));
      expect(types).toEqual(new Array(count).fill(0xf));
    }
  });

  test('record bodies are their own, also when a Buffer is fed', () => {
    const stream = Buffer.from(libxcHvm());
    const events = feed(new S.StreamReader(), stream).filter((event) => event !== undefined);
    const before = structuredClone(events.filter((event) => event.kind === 'record'));
    expect(before.length).toBeGreaterThan(5);
    stream.fill(0xee);
    expect(events.filter((event) => event.kind === 'record')).toEqual(before);
    const [header] = events;
    expect(header?.kind === 'image-header' && header.raw[0]).toBe(0xff);
  });
});

describe('memory', () => {
  // What a reader holds shows in the array buffers of the process, whatever else the heap does.
  function growth(run: () => unknown): number {
    const before = process.memoryUsage().arrayBuffers;
    const held = run();
    const after = process.memoryUsage().arrayBuffers;
    expect(held).toBeDefined();
    return after - before;
  }

  const MiB = 1 << 20;

  test.each([
    [
      'a libxc record',
      () => [new S.LibxcReader(), concat(headers, recordHeader(R.HVM_CONTEXT, S.REC_LENGTH_MAX))],
    ],
    [
      'a libxl record',
      () => [
        new S.LibxlReader(),
        concat(S.encodeLibxlHeader(), recordHeader(S.LibxlRecord.EMULATOR_CONTEXT, S.LIBXL_REC_LENGTH_MAX)),
      ],
    ],
    ['the optional data of xl', () => [new S.XlReader(), xlHeaderOf(S.XL_OPTIONAL_DATA_MAX)]],
    [
      'a PAGE_DATA table',
      () => [
        new S.LibxcReader(),
        concat(
          headers,
          recordHeader(R.PAGE_DATA, S.REC_LENGTH_MAX),
          recordHeader((S.REC_LENGTH_MAX >> 3) - 1, 0),
        ),
      ],
    ],
  ] as [string, () => [S.IncrementalReader, Uint8Array]][])('a length is not believed: %s', (_name, make) => {
    const [reader, head] = make();
    // The pages of a table of zeros do not fit beside it, which is told at its first entry; these have no data.
    const body = new Uint8Array(16 * 1024).fill(0xf0);
    const grown = growth(() => {
      feed(reader, head);
      expect(reader.want).toBeGreaterThan(15 * MiB);
      feed(reader, body);
      return reader;
    });
    expect(grown).toBeLessThan(MiB);
  });

  test('lengths above the limits are refused at once', () => {
    const refused = (reader: S.IncrementalReader, bytes: Uint8Array): void => {
      expect(() => feed(reader, bytes)).toThrow(expect.objectContaining({ code: 'ERR_XEN_STREAM_LIMIT' }));
    };
    refused(new S.LibxcReader(), concat(headers, recordHeader(0x80000000, S.REC_LENGTH_MAX + 1)));
    const emulator = recordHeader(S.LibxlRecord.EMULATOR_CONTEXT, 1001);
    refused(new S.LibxlReader({ maxRecordLength: 1000 }), concat(S.encodeLibxlHeader(), emulator));
    refused(new S.XlReader(), xlHeaderOf(S.XL_OPTIONAL_DATA_MAX + 1));
  });

  test('a body that comes in small chunks is collected without copying it time and again', () => {
    const size = 4 * MiB;
    const reader = new S.LibxcReader();
    feed(reader, concat(headers, recordHeader(R.HVM_CONTEXT, size)));
    const chunk = new Uint8Array(1024).fill(3);
    let event: S.StreamEvent | undefined;
    for (let at = 0; at < size; at += chunk.length) event = reader.feed(chunk);
    expect(event?.kind === 'record' && event.body.length).toBe(size);
    expect(event?.kind === 'record' && event.body.every((byte) => byte === 3)).toBe(true);
  });

  function xlHeaderOf(optionalData: number): Uint8Array {
    const bytes = S.encodeXlHeader({ optionalData: new Uint8Array(0) });
    new DataView(bytes.buffer).setUint32(44, optionalData, true);
    return bytes;
  }
});

describe('recognition', () => {
  test.each([
    ['libxc', libxcHvm()],
    ['libxl', libxl()],
    ['xl', xl()],
  ] as const)('%s', (format, stream) => {
    expect(S.recogniseFormat(stream)).toBe(format);
    const reader = new S.StreamReader();
    expect(reader.format).toBeUndefined();
    feed(reader, stream);
    expect(reader.format).toBe(format);
    expect(reader.done).toBe(true);
  });

  test('a format that was said is not guessed', () => {
    expect(() => feed(new S.StreamReader({ format: 'xl' }), libxl())).toThrow(
      expect.objectContaining({ code: 'ERR_XEN_STREAM_ID', record: 'xl header' }),
    );
  });

  test('fewer than 8 bytes are no format', () => {
    expect(S.recogniseFormat(libxl().subarray(0, 7))).toBeUndefined();
  });

  test('after an xl header before a legacy stream, no byte of that has been asked for', () => {
    const header = S.encodeXlHeader({ config: '{}', mandatoryFlags: S.XlMandatoryFlag.JSON });
    const reader = new S.XlReader();
    const events = feed(reader, header).filter((event) => event !== undefined);
    expect(events.map((event) => event.kind)).toEqual(['xl-header']);
    expect(reader.position).toBe(header.length);
    expect(reader.done).toBe(false);
    expect(() => reader.feed(new Uint8Array(1))).toThrow(
      expect.objectContaining({ code: 'ERR_XEN_STREAM_LEGACY' }),
    );
  });
});

describe('checkpoints', () => {
  test('libxl and libxc take turns, and offsets stay those of the whole', () => {
    const stream = checkpointed(3);
    const reader = new S.LibxlReader();
    const turns: string[] = [];
    for (let at = 0; !reader.done;) {
      const { want } = reader;
      const event = reader.feed(stream.subarray(at, at + want));
      at += want;
      if (event?.kind === 'record') {
        expect(stream[event.offset]).toBe(event.type);
        turns.push(`${event.layer} ${event.name} ${reader.inCheckpoint ? 'in' : 'out'}`);
      }
    }
    const round = ['libxc CHECKPOINT in', 'libxl EMULATOR_CONTEXT in', 'libxl CHECKPOINT_END out'];
    expect(turns.filter((turn) => /CHECKPOINT|EMULATOR/.test(turn))).toEqual([...round, ...round, ...round]);
    expect(turns.slice(-2)).toEqual(['libxc END out', 'libxl END out']);
  });
});

describe('CHECKPOINT_DIRTY_PFN_LIST as stock secondaries write it', () => {
  const state = S.encodeRecord(S.LibxlRecord.CHECKPOINT_STATE, S.encodeCheckpointState({ id: 2 })).subarray(
    0,
    8,
  );

  test.each([[[]], [[7]], [[0]], [[0, 1, 2 ** 40]]])('pfns %j', (pfns: number[]) => {
    const body = S.encodeDirtyPfnList(pfns);
    const exact = S.resolveDirtyPfnList(body, state);
    expect(exact).toEqual({ variant: 'exact', body, nextIsBody: false });

    // From Xen 4.18 on: 8 bytes of zeros before the list, which length does not count.
    const wire = concat(new Uint8Array(8), body);
    const read = wire.subarray(0, body.length);
    const next = wire.subarray(body.length);
    const shifted = S.resolveDirtyPfnList(read, next);
    expect(shifted.variant).toBe('shifted');
    expect(shifted.nextIsBody).toBe(true);
    expect([...S.decodeDirtyPfnList(shifted.body)]).toEqual(pfns);
  });

  test('neither', () => {
    const body = S.encodeDirtyPfnList([1, 2]);
    expect(S.resolveDirtyPfnList(body, new Uint8Array(8).fill(9)).variant).toBe('unknown');
  });
});

describe('HVM save records', () => {
  const record = (typecode: number, instance: number, data: Uint8Array, length = data.length): Uint8Array => {
    const head = new DataView(new ArrayBuffer(8));
    head.setUint16(0, typecode, true);
    head.setUint16(2, instance, true);
    head.setUint32(4, length, true);
    return concat(new Uint8Array(head.buffer), data);
  };

  test('are listed up to END', () => {
    const context = concat(
      record(1, 0, new Uint8Array(3).fill(1)),
      record(2, 5, new Uint8Array(0)),
      record(0, 0, new Uint8Array(0)),
      record(9, 9, new Uint8Array(1)),
    );
    const list = [...S.hvmSaveRecords(context)];
    expect(list.map((r) => [r.at, S.hvmSaveCodeName(r.typecode), r.instance, r.data.length])).toEqual([
      [0, 'HEADER', 0, 3],
      [11, 'CPU', 5, 0],
      [19, 'END', 0, 0],
    ]);
    expect(S.hvmSaveCodeName(77)).toBe('unknown (77)');
  });

  test('a blob that ends too early gives what is there', () => {
    const cut = record(2, 0, new Uint8Array(3), 0xffff_ffff);
    const [only, ...more] = S.hvmSaveRecords(cut);
    expect(more).toEqual([]);
    expect(only).toMatchObject({ length: 0xffff_ffff });
    expect(only?.data).toHaveLength(3);
    expect([...S.hvmSaveRecords(new Uint8Array(7))]).toEqual([]);
  });
});

describe('xl configuration', () => {
  test('JSON object', () => {
    expect(S.parseXlConfig('{ "c_info": { "name": "a" } }')).toEqual({ c_info: { name: 'a' } });
  });

  test.each(['', 'name = "a"', '[]', 'null', '1'])('%j is refused', (text) => {
    expect(() => S.parseXlConfig(text, { offset: 10 })).toThrow(
      expect.objectContaining({ code: 'ERR_XEN_STREAM_CONFIG', path: 'config', offset: 62 }),
    );
  });
});

describe('heads of PV blobs', () => {
  test('EXTENDED and XSAVE', () => {
    const blob = new Uint8Array(16).fill(1);
    expect(S.vcpuExtendedHead(blob)).toEqual({ vcpu: 0x01010101, size: 0x01010101 });
    expect(S.vcpuExtendedHead(blob.subarray(9))).toBeUndefined();
    expect(S.vcpuXsaveHead(blob)).toEqual({ xcr0: 0x0101010101010101n, xcr0Accum: 0x0101010101010101n });
    expect(S.vcpuXsaveHead(blob.subarray(1))).toBeUndefined();
  });
});

test('an MSR blob of a wrong size', () => {
  expect(() => S.decodeVcpuMsrs(new Uint8Array(17))).toThrow(
    expect.objectContaining({ code: 'ERR_XEN_STREAM_LENGTH', record: 'X86_PV_VCPU_MSRS' }),
  );
});

describe('tables of records are bounded', () => {
  const tooMany = S.TABLE_ENTRIES_MAX + 1;
  const limit = expect.objectContaining({ code: 'ERR_XEN_STREAM_LIMIT' }) as unknown;

  test('HVM_PARAMS, policies, MSRs, xenstore data', () => {
    const params = new Uint8Array(8 + 16 * tooMany);
    new DataView(params.buffer).setUint32(0, tooMany, true);
    expect(() => S.decodeHvmParams(params)).toThrow(limit);
    expect(() => S.decodeX86CpuidPolicy(new Uint8Array(24 * tooMany))).toThrow(limit);
    expect(() => S.decodeX86MsrPolicy(new Uint8Array(16 * tooMany))).toThrow(limit);
    expect(() => S.decodeVcpuMsrs(new Uint8Array(16 * tooMany))).toThrow(limit);
    const strings = concat(new Uint8Array(8), Buffer.from('a\0b\0'.repeat(S.XENSTORE_ENTRIES_MAX + 1)));
    expect(() => S.decodeEmulatorXenstoreData(strings)).toThrow(limit);
  });
});
