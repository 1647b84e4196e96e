/** Streams to test with, and ways to feed and compare them. */

import { StreamFormatError } from '../../../lib/errors.js';
import * as S from '../../../lib/stream/index.js';

export const PAGE = 4096;

/** Bytes from hex with blanks between; `00*24` stands for 24 times that byte. */
export function fromHex(hex: string): Uint8Array {
  const parts: Buffer[] = [];
  for (const token of hex.split(/\s+/).filter((t) => t !== '')) {
    const repeated = /^([0-9a-f]{2})\*(\d+)$/.exec(token);
    if (repeated) parts.push(Buffer.alloc(Number(repeated[2]), parseInt(repeated[1]!, 16)));
    else if (/^([0-9a-f]{2})+$/.test(token)) parts.push(Buffer.from(token, 'hex'));
    else throw new Error(`not hex: ${token}`);
  }
  return new Uint8Array(Buffer.concat(parts));
}

export function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

/** A PAGE_DATA record whose pages are filled with the low byte of their pfn. */
export function pageData(entries: readonly (readonly [pfn: number, type: number])[]): Uint8Array {
  const head = new Uint8Array(S.pageDataHeadSize(entries.length));
  const [pfns, types] = [entries.map(([pfn]) => pfn), entries.map(([, type]) => type)];
  S.writePageDataHead(head, pfns, types, entries.length);
  const pages = entries.filter(([, type]) => type < 0xd).map(([pfn]) => new Uint8Array(PAGE).fill(pfn));
  return concat(head, ...pages);
}

const R = S.LibxcRecord;
const L = S.LibxlRecord;

const cpuid = S.encodeRecord(
  R.X86_CPUID_POLICY,
  S.encodeX86CpuidPolicy([{ leaf: 0, subleaf: S.CPUID_NO_SUBLEAF, a: 13, b: 1, c: 2, d: 3 }]),
);
const msr = S.encodeRecord(
  R.X86_MSR_POLICY,
  S.encodeX86MsrPolicy([{ index: 0xce, flags: 0, value: 1n << 31n }]),
);
const tsc = S.encodeRecord(
  R.X86_TSC_INFO,
  S.encodeX86TscInfo({ mode: 2, khz: 2_400_000, nsec: 5n, incarnation: 1 }),
);

const hvmState = concat(
  tsc,
  // 13 bytes: padded
  S.encodeRecord(R.HVM_CONTEXT, fromHex('0100 0000 05000000 aabbccddee')),
  S.encodeRecord(R.HVM_PARAMS, S.encodeHvmParams({ entries: [{ index: 1, value: 0xfeffcn }] })),
);

/** Libxc stream of an HVM guest; two PAGE_DATA records, the second without data. */
export function libxcHvm(version: 2 | 3 = 3): Uint8Array {
  return concat(
    S.encodeHeaders({ type: 2, xenMajor: 4, xenMinor: 17, version }),
    ...(version === 3 ? [cpuid, msr, S.encodeRecord(R.STATIC_DATA_END)] : []),
    pageData([
      [0x10, 0],
      [0x11, 0xf],
    ]),
    pageData([[0x12, 0xf]]),
    hvmState,
    S.encodeRecord(R.END),
  );
}

/** Libxc stream of a 64-bit PV guest with one vcpu. */
export function libxcPv(): Uint8Array {
  const blob = (size: number): Uint8Array =>
    S.encodeX86PvVcpu({ vcpuId: 0, blob: new Uint8Array(size).fill(7) });
  return concat(
    S.encodeHeaders({ type: 1, xenMajor: 4, xenMinor: 17 }),
    S.encodeRecord(R.X86_PV_INFO, S.encodeX86PvInfo({ guestWidth: 8 })),
    cpuid,
    msr,
    S.encodeRecord(R.STATIC_DATA_END),
    S.encodeRecord(R.X86_PV_P2M_FRAMES, S.encodeX86PvP2mFrames({ startPfn: 0, endPfn: 600, frames: [3, 4] })),
    pageData([[0x1ff, 0x9]]),
    S.encodeRecord(R.VERIFY),
    pageData([[0x1ff, 0x9]]),
    tsc,
    S.encodeRecord(R.SHARED_INFO, new Uint8Array(PAGE).fill(9)),
    S.encodeRecord(R.X86_PV_VCPU_BASIC, blob(5168)),
    S.encodeRecord(R.X86_PV_VCPU_EXTENDED, blob(128)),
    S.encodeRecord(R.X86_PV_VCPU_XSAVE, blob(17)),
    S.encodeRecord(R.X86_PV_VCPU_MSRS, blob(16)),
    S.encodeRecord(R.END),
  );
}

const xenstore = S.encodeRecord(
  L.EMULATOR_XENSTORE_DATA,
  S.encodeEmulatorXenstoreData({ emulatorId: 2, index: 0, entries: [['physmap/0/name', 'vga.vram']] }),
);
const emulator = S.encodeRecord(
  L.EMULATOR_CONTEXT,
  S.encodeEmulatorContext({ emulatorId: 2, index: 0, blob: fromHex('5145564d 00000003 01') }),
);

/** Libxl stream around a libxc one. */
export function libxl(libxc = libxcHvm()): Uint8Array {
  return concat(
    S.encodeLibxlHeader(),
    S.encodeRecord(L.LIBXC_CONTEXT),
    libxc,
    xenstore,
    emulator,
    S.encodeRecord(L.END),
  );
}

/** Libxl stream with this many checkpoints, then libxc's END and libxl's. */
export function checkpointed(checkpoints = 2): Uint8Array {
  const round = concat(
    pageData([[0x20, 0]]),
    hvmState,
    S.encodeRecord(R.CHECKPOINT),
    emulator,
    S.encodeRecord(L.CHECKPOINT_END),
  );
  return concat(
    S.encodeLibxlHeader(),
    S.encodeRecord(L.LIBXC_CONTEXT),
    S.encodeHeaders({ type: 2, xenMajor: 4, xenMinor: 17 }),
    cpuid,
    msr,
    S.encodeRecord(R.STATIC_DATA_END),
    ...new Array<Uint8Array>(checkpoints).fill(round),
    S.encodeRecord(R.END),
    S.encodeRecord(L.END),
  );
}

/** File of xl around a libxl stream. */
export function xl(stream = libxl(), config = '{ "c_info": { "name": "guest" } }'): Uint8Array {
  return concat(S.encodeXlHeader({ config }), stream);
}

/** One small stream of each kind. */
export function sampleStreams(): Readonly<Record<string, Uint8Array>> {
  return {
    'libxc, HVM': libxcHvm(),
    'libxc, HVM, version 2': libxcHvm(2),
    'libxc, PV': libxcPv(),
    libxl: libxl(),
    'libxl, checkpointed': checkpointed(),
    xl: xl(),
  };
}

/** Sizes of the chunks to feed: a number for all of them, or a function asked for each. */
export type Chunking = number | (() => number);

/** What feeding came to. */
export interface Fed {
  /** Events, made independent of chunking and of what readers use again. */
  readonly events: Plain[];
  readonly error: StreamFormatError | undefined;
  /** Bytes fed without an error. */
  readonly position: number;
}

export type Plain = Record<string, unknown>;

/**
 * Feeds all bytes and says that they end; takes note of a StreamFormatError and lets nothing else pass. Each chunk is
 * fed in memory of its own that is spoilt afterwards, so that an event that keeps a view of it shows.
 */
export function feedAll(
  reader: S.IncrementalReader,
  bytes: Uint8Array,
  chunking: Chunking = Infinity,
  look: (event: S.StreamEvent) => void = () => undefined,
): Fed {
  const events: Plain[] = [];
  let at = 0;
  let error: StreamFormatError | undefined;
  try {
    while (!reader.done && at < bytes.length) {
      if (reader.want < 1) throw new Error(`want is ${reader.want} at ${reader.position}`);
      const size = typeof chunking === 'number' ? chunking : chunking();
      const chunk = bytes.slice(at, at + Math.min(size, reader.want));
      const event = reader.feed(chunk);
      at += chunk.length;
      if (reader.position !== at) throw new Error(`position ${reader.position}, fed ${at}`);
      if (event !== undefined) {
        look(event);
        note(events, event);
      }
      chunk.fill(0xa5);
    }
    reader.end();
  } catch (caught) {
    if (!(caught instanceof StreamFormatError)) throw caught;
    error = caught;
  }
  if (reader.done && reader.want !== 0) throw new Error(`done, but want is ${reader.want}`);
  return { events, error, position: at };
}

/** Adds an event in a plain form; pieces of page contents are joined. */
function note(events: Plain[], event: S.StreamEvent): void {
  if (event.kind === 'page-bytes') {
    const before = events.at(-1)!;
    const pages = before['pages'] as string | undefined;
    if (event.at !== (pages ?? '').length / 2) throw new Error(`page-bytes at ${event.at}`);
    before['pages'] = (pages ?? '') + toHex(event.bytes);
    before['last'] = event.last;
    return;
  }
  const plain: Plain = { ...event };
  if (event.kind === 'page-data') {
    plain['pfns'] = [...event.pfns.subarray(0, event.count)];
    plain['types'] = [...event.types.subarray(0, event.count)];
  }
  if ('violation' in event) plain['violation'] = String(event.violation);
  events.push(plain);
}

/** Bytes as hex and bigints as strings, for what is compared as a whole. */
export function jsonForm(value: unknown): unknown {
  if (typeof value === 'bigint') return { u64: `0x${value.toString(16)}` };
  if (value instanceof Uint8Array) return { bytes: toHex(value) };
  if (value instanceof Float64Array) return [...value];
  if (Array.isArray(value)) return value.map(jsonForm);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).filter(([, v]) => v !== undefined);
  return Object.fromEntries(entries.map(([key, v]) => [key, jsonForm(v)]));
}
