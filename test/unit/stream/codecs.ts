/** Decoder and encoder of every header and record by name, for the tests that go over all of them. */

import type { GuestWidth } from '../../../lib/abi/pv.js';
import * as S from '../../../lib/stream/index.js';

export interface Context {
  /** Guest width, where a PV record's size depends on it. */
  readonly width?: GuestWidth | undefined;
}

export interface Codec {
  /** Decodes a header or a record's body. */
  decode(bytes: Uint8Array, place: S.Place, context: Context): unknown;
  encode(value: never): Uint8Array;
}

const vcpu = (decode: typeof S.decodeX86PvVcpuBasic): Codec => ({
  decode: (body, place, { width }) => decode(body, place, width),
  encode: S.encodeX86PvVcpu,
});

/** A record without contents: whatever stands in it is ignored. */
const empty: Codec = { decode: () => ({}), encode: () => new Uint8Array(0) };

const opaque: Codec = { decode: (body) => body, encode: (body: Uint8Array) => body };

export const libxcCodecs: Readonly<Record<Exclude<S.LibxcRecordName, 'PAGE_DATA'>, Codec>> = {
  END: empty,
  X86_PV_INFO: { decode: (body, place) => S.decodeX86PvInfo(body, place), encode: S.encodeX86PvInfo },
  X86_PV_P2M_FRAMES: {
    decode: (body, place, { width }) => S.decodeX86PvP2mFrames(body, place, width),
    encode: S.encodeX86PvP2mFrames,
  },
  X86_PV_VCPU_BASIC: vcpu(S.decodeX86PvVcpuBasic),
  X86_PV_VCPU_EXTENDED: vcpu(S.decodeX86PvVcpuExtended),
  X86_PV_VCPU_XSAVE: vcpu(S.decodeX86PvVcpuXsave),
  X86_PV_VCPU_MSRS: {
    decode: (body, place) => {
      const record = S.decodeX86PvVcpuMsrs(body, place);
      return { ...record, blob: S.decodeVcpuMsrs(record.blob, place) };
    },
    encode: (value: Omit<S.X86PvVcpu, 'blob'> & { blob: S.VcpuMsr[] }) =>
      S.encodeX86PvVcpu({ ...value, blob: S.encodeVcpuMsrs(value.blob) }),
  },
  SHARED_INFO: { decode: (body, place) => S.decodeSharedInfo(body, place), encode: S.encodeSharedInfo },
  X86_TSC_INFO: { decode: (body, place) => S.decodeX86TscInfo(body, place), encode: S.encodeX86TscInfo },
  HVM_CONTEXT: {
    decode: (body, place) => S.decodeHvmContext(body, place),
    encode: (body: Uint8Array) => body,
  },
  HVM_PARAMS: { decode: (body, place) => S.decodeHvmParams(body, place), encode: S.encodeHvmParams },
  TOOLSTACK: opaque,
  VERIFY: empty,
  CHECKPOINT: empty,
  CHECKPOINT_DIRTY_PFN_LIST: {
    decode: (body, place) => S.decodeDirtyPfnList(body, place),
    encode: S.encodeDirtyPfnList,
  },
  STATIC_DATA_END: empty,
  X86_CPUID_POLICY: {
    decode: (body, place) => S.decodeX86CpuidPolicy(body, place),
    encode: S.encodeX86CpuidPolicy,
  },
  X86_MSR_POLICY: {
    decode: (body, place) => S.decodeX86MsrPolicy(body, place),
    encode: S.encodeX86MsrPolicy,
  },
};

export const libxlCodecs: Readonly<Record<S.LibxlRecordName, Codec>> = {
  END: empty,
  LIBXC_CONTEXT: empty,
  EMULATOR_XENSTORE_DATA: {
    decode: (body, place) => S.decodeEmulatorXenstoreData(body, place),
    encode: S.encodeEmulatorXenstoreData,
  },
  EMULATOR_CONTEXT: {
    decode: (body, place) => S.decodeEmulatorContext(body, place),
    encode: S.encodeEmulatorContext,
  },
  CHECKPOINT_END: empty,
  CHECKPOINT_STATE: {
    decode: (body, place) => S.decodeCheckpointState(body, place),
    encode: S.encodeCheckpointState,
  },
};

export const headerCodecs: Readonly<Record<string, Codec>> = {
  'image header': { decode: S.decodeImageHeader, encode: S.encodeImageHeader },
  'domain header': { decode: S.decodeDomainHeader, encode: S.encodeDomainHeader },
  'libxl header': { decode: S.decodeLibxlHeader, encode: S.encodeLibxlHeader },
  'xl header': { decode: S.decodeXlHeader, encode: S.encodeXlHeader },
};

/** The codec of a record event other than an unknown one. */
export function codecOf(event: S.RecordEvent): Codec | undefined {
  const codecs: Readonly<Record<string, Codec>> = event.layer === 'libxc' ? libxcCodecs : libxlCodecs;
  return codecs[event.name];
}

/** Encodes what a decoder gave. */
export function encodeWith(codec: Codec, value: unknown): Uint8Array {
  return codec.encode(value as never);
}
