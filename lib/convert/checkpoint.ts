/** One checkpoint of a legacy image but for its pages: what its chunks and its tail say, to be written as v2 records. */
import type { ConvertOutput } from './types.js';
import type { LegacyChunkEvent, LegacyHeader, LegacyTailEvent } from '../stream/legacy/events.js';
import {
  LegacyChunk,
  LegacyPart,
  LEGACY_XSAVE_HEAD_SIZE,
  QemuSignature,
} from '../stream/legacy/constants.js';
import {
  decodeLegacyParam,
  decodeLegacyTscInfo,
  decodeMagicPfns,
  decodeToolstack,
  type LegacyPhysmap,
} from '../stream/legacy/decode.js';
import { encodeRecord, recordViews } from '../stream/framing.js';
import { LibxcRecord } from '../stream/libxc/constants.js';
import { encodeHvmParams } from '../stream/libxc/hvm.js';
import { encodeSharedInfo, encodeX86PvVcpu } from '../stream/libxc/pv.js';
import { encodeX86TscInfo } from '../stream/libxc/x86.js';
import { EmulatorId, LibxlRecord } from '../stream/libxl/constants.js';
import { encodeEmulatorContext, encodeEmulatorXenstoreData } from '../stream/libxl/records.js';
import { setU32 } from '../bytes/le.js';

interface Param {
  readonly index: number;
  readonly value: bigint;
}

/** QEMU's part of a tail. */
interface QemuState {
  readonly signature: string;
  readonly body: Uint8Array;
}

/** The X86_TSC_INFO record of a legacy TSC_INFO chunk. */
export function tscRecord(body: Uint8Array): Uint8Array {
  return encodeRecord(LibxcRecord.X86_TSC_INFO, encodeX86TscInfo(decodeLegacyTscInfo(body)));
}

/** Collects a checkpoint. */
export class CheckpointState {
  readonly #header: LegacyHeader;
  readonly #output: ConvertOutput;
  readonly #params: Param[] = [];
  readonly #physmap: LegacyPhysmap[] = [];
  readonly #tail: LegacyTailEvent[] = [];
  #tsc: Uint8Array | undefined;
  #qemu: QemuState | undefined;

  constructor(header: LegacyHeader, output: ConvertOutput) {
    this.#header = header;
    this.#output = output;
  }

  /** A chunk other than page data, tmem and the first TSC_INFO, which are not held back. */
  chunk(event: LegacyChunkEvent): void {
    const { id, body } = event;
    const param = decodeLegacyParam(id, body);
    if (param !== undefined) this.#params.push(param);
    else if (id === LegacyChunk.TSC_INFO) this.#tsc = body;
    else if (id === LegacyChunk.TOOLSTACK && body.length > 0 && this.#output !== 'libxc') {
      // A bare libxc stream has no place for it, and it may be another toolstack's. Decoded for PV guests too, so that a
      // damaged one is found; they have no device model to tell of it.
      const entries = decodeToolstack(body, this.#header.wordSize, event);
      if (this.#header.guest === 'hvm') this.#physmap.push(...entries);
    }
  }

  tail(event: LegacyTailEvent): void {
    if (event.part === LegacyPart.QEMU) this.#qemu = { signature: event.signature ?? '', body: event.body };
    else this.#tail.push(event);
  }

  /** Views of the libxc records from where the pages end to END. */
  libxcRecords(): Uint8Array[] {
    const views: Uint8Array[] = [];
    if (this.#tsc !== undefined) views.push(tscRecord(this.#tsc));
    if (this.#params.length > 0) views.push(paramsRecord(this.#params));
    for (const event of this.#tail) views.push(...tailViews(event));
    views.push(encodeRecord(LibxcRecord.END));
    return views;
  }

  /** Views of the libxl records after libxc's END. */
  libxlRecords(): Uint8Array[] {
    const emulator = { emulatorId: EmulatorId.UNKNOWN, index: 0 };
    const views: Uint8Array[] = [];
    if (this.#physmap.length > 0) {
      const entries = this.#physmap.flatMap(physmapEntries);
      const body = encodeEmulatorXenstoreData({ ...emulator, entries });
      views.push(encodeRecord(LibxlRecord.EMULATOR_XENSTORE_DATA, body));
    }
    if (this.#qemu !== undefined) {
      const body = encodeEmulatorContext({ ...emulator, blob: this.#qemu.body });
      views.push(...recordViews(LibxlRecord.EMULATOR_CONTEXT, body));
    }
    views.push(encodeRecord(LibxlRecord.END));
    return views;
  }

  /** QEMU's record as it was, for behind a bare libxc stream; nothing without one. */
  qemuRecord(): Uint8Array[] {
    if (this.#qemu === undefined) return [];
    const { signature, body } = this.#qemu;
    const views = [new TextEncoder().encode(signature)];
    if (signature !== QemuSignature.UNTIL_EOF) {
      const length = new Uint8Array(4);
      setU32(length, 0, body.length);
      views.push(length);
    }
    return [...views, body];
  }
}

function paramsRecord(entries: readonly Param[]): Uint8Array {
  return encodeRecord(LibxcRecord.HVM_PARAMS, encodeHvmParams({ entries }));
}

function tailViews(event: LegacyTailEvent): Uint8Array[] {
  const { part, body, vcpuId = 0 } = event;
  const vcpu = (type: number, blob: Uint8Array): Uint8Array[] => [
    encodeRecord(type, encodeX86PvVcpu({ vcpuId, blob })),
  ];
  switch (part) {
    case LegacyPart.MAGIC_PFNS:
      return [paramsRecord(decodeMagicPfns(body))];
    case LegacyPart.HVM_CONTEXT:
      return recordViews(LibxcRecord.HVM_CONTEXT, body);
    case LegacyPart.VCPU_BASIC:
      return vcpu(LibxcRecord.X86_PV_VCPU_BASIC, body);
    case LegacyPart.VCPU_EXTENDED:
      return vcpu(LibxcRecord.X86_PV_VCPU_EXTENDED, body);
    case LegacyPart.VCPU_XSAVE:
      return vcpu(LibxcRecord.X86_PV_VCPU_XSAVE, body.subarray(LEGACY_XSAVE_HEAD_SIZE));
    case LegacyPart.SHARED_INFO:
      return [encodeRecord(LibxcRecord.SHARED_INFO, encodeSharedInfo(body))];
    default:
      // The unmapped pfns, which no receiver ever needed.
      return [];
  }
}

/** What QEMU finds in xenstore of a region that it has moved. */
function physmapEntries(entry: LegacyPhysmap): [string, string][] {
  const root = `physmap/${entry.physOffset.toString(16)}`;
  return [
    [`${root}/start_addr`, entry.startAddr.toString(16)],
    [`${root}/size`, entry.size.toString(16)],
    [`${root}/name`, entry.name],
  ];
}
