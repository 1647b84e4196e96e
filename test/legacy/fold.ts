/** What a guest is after a v2 stream: pages by frame, state by kind. To compare streams that say the same otherwise. */

import { createHash } from 'node:crypto';
import * as S from '../../lib/stream/index.js';

/** Everything in plain values, so that two of them can be compared by toEqual. */
export interface Folded {
  guest: 'pv' | 'hvm' | undefined;
  guestWidth: number | undefined;
  /** Type and hash of the contents, by pfn. */
  pages: Map<number, string>;
  endPfn: number | undefined;
  p2mFrames: number[];
  sharedInfo: string | undefined;
  tsc: S.X86TscInfo | undefined;
  /** By vcpu, then by kind: hex. */
  vcpus: Record<number, Record<string, string>>;
  context: string | undefined;
  params: Record<number, bigint>;
  xenstore: readonly (readonly [string, string])[];
  emulator: string | undefined;
  /** Checkpoints that are whole. */
  checkpoints: number;
}

export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
export const hash = (bytes: Uint8Array): string =>
  createHash('sha1').update(bytes).digest('hex').slice(0, 16);

/** A guest of which nothing is known. */
export function nothing(): Folded {
  return {
    guest: undefined,
    guestWidth: undefined,
    pages: new Map(),
    endPfn: undefined,
    p2mFrames: [],
    sharedInfo: undefined,
    tsc: undefined,
    vcpus: {},
    context: undefined,
    params: {},
    xenstore: [],
    emulator: undefined,
    checkpoints: 0,
  };
}

/** Collects page contents that come in pieces, for the table of one PAGE_DATA record. */
class Pages {
  #left: (readonly [pfn: number, type: number])[] = [];
  #page = new Uint8Array(4096);
  #have = 0;
  readonly #into: Map<number, string>;

  constructor(into: Map<number, string>) {
    this.#into = into;
  }

  table({ count, pfns, types }: S.PageDataEvent): void {
    const entries = Array.from({ length: count }, (_, i) => [pfns[i] as number, types[i] as number] as const);
    for (const [pfn, type] of entries) if (type >= 0xd) this.#into.set(pfn, `type ${type}`);
    this.#left = entries.filter(([, type]) => type < 0xd);
  }

  bytes(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      const part = bytes.subarray(at, at + 4096 - this.#have);
      this.#page.set(part, this.#have);
      at += part.length;
      this.#have += part.length;
      if (this.#have < 4096) return;
      this.#have = 0;
      const [pfn, type] = this.#left.shift() ?? [-1, 0];
      this.#into.set(pfn, `type ${type}, ${hash(this.#page)}`);
    }
  }
}

type Body = (into: Folded, body: Uint8Array) => void;

function vcpu(kind: S.LibxcRecordName): Body {
  return (into, body) => {
    const { vcpuId, blob } = S.decodeX86PvVcpu(S.LibxcRecord[kind] as never, body);
    if (blob.length > 0) (into.vcpus[vcpuId] ??= {})[kind] = hex(blob);
  };
}

const LIBXC: Partial<Record<S.LibxcRecordName, Body>> = {
  X86_PV_INFO: (into, body) => void (into.guestWidth = S.decodeX86PvInfo(body).guestWidth),
  X86_PV_P2M_FRAMES: (into, body) => {
    const { endPfn, frames } = S.decodeX86PvP2mFrames(body);
    into.endPfn = endPfn;
    into.p2mFrames = Array.from(frames);
  },
  X86_PV_VCPU_BASIC: vcpu('X86_PV_VCPU_BASIC'),
  X86_PV_VCPU_EXTENDED: vcpu('X86_PV_VCPU_EXTENDED'),
  X86_PV_VCPU_XSAVE: vcpu('X86_PV_VCPU_XSAVE'),
  X86_PV_VCPU_MSRS: vcpu('X86_PV_VCPU_MSRS'),
  SHARED_INFO: (into, body) => void (into.sharedInfo = hash(body)),
  X86_TSC_INFO: (into, body) => {
    const { mode, khz, nsec, incarnation } = S.decodeX86TscInfo(body);
    into.tsc = { mode, khz, nsec, incarnation };
  },
  HVM_CONTEXT: (into, body) => void (into.context = hex(body)),
  HVM_PARAMS: (into, body) => {
    for (const { index, value } of S.decodeHvmParams(body).entries) into.params[index] = value;
  },
};

const LIBXL: Partial<Record<S.LibxlRecordName, Body>> = {
  EMULATOR_XENSTORE_DATA: (into, body) => void (into.xenstore = S.decodeEmulatorXenstoreData(body).entries),
  EMULATOR_CONTEXT: (into, body) => void (into.emulator = hash(S.decodeEmulatorContext(body).blob)),
  CHECKPOINT_END: (into) => {
    into.checkpoints++;
  },
};

/** Reads a libxc, libxl or xl stream. One that ends early is an error, unless it is that of Remus. */
export function foldV2(bytes: Uint8Array): Folded {
  const into = nothing();
  const pages = new Pages(into.pages);
  const reader = new S.StreamReader();
  for (let at = 0; !reader.done && at < bytes.length;) {
    const chunk = bytes.subarray(at, at + reader.want);
    at += chunk.length;
    const event = reader.feed(chunk);
    if (event?.kind === 'domain-header') into.guest = event.header.type === 1 ? 'pv' : 'hvm';
    else if (event?.kind === 'page-data') pages.table(event);
    else if (event?.kind === 'page-bytes') pages.bytes(event.bytes);
    else if (event?.kind === 'record') {
      const handlers: Partial<Record<string, Body>> = event.layer === 'libxc' ? LIBXC : LIBXL;
      handlers[event.name]?.(into, event.body);
    }
  }
  if (into.checkpoints === 0) reader.end();
  return into;
}
