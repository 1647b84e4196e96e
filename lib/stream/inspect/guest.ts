/** What a stream says of its guest beside pages, and a few words on each record. */

import { hvmParamName } from '../../abi/hvm.js';
import { u32 } from '../../bytes/le.js';
import type { RecordEvent } from '../events.js';
import {
  CPUID_LEAF_SIZE,
  HvmSaveCode,
  hvmSaveCodeName,
  LibxcRecord,
  MSR_ENTRY_SIZE,
  VCPU_HEAD_SIZE,
} from '../libxc/constants.js';
import { decodeHvmParams, hvmSaveRecords } from '../libxc/hvm.js';
import { decodeX86PvInfo, decodeX86PvP2mFrames } from '../libxc/pv.js';
import { decodeX86TscInfo } from '../libxc/x86.js';
import { EmulatorId, LibxlRecord } from '../libxl/constants.js';
import { decodeEmulatorContext, decodeEmulatorXenstoreData } from '../libxl/records.js';
import type { Inspection, VcpuRow } from './report.js';

/** Vcpus that are told one by one. */
const VCPUS_MAX = 8192;

type Known<K extends keyof Inspection> = {
  -readonly [P in keyof NonNullable<Inspection[K]>]: NonNullable<Inspection[K]>[P];
};

const plural = (n: number, one: string, many = `${one}s`): string => `${n} ${n === 1 ? one : many}`;

/** Decodes records. Each method returns a few words, and throws StreamFormatError for what cannot be decoded. */
export class GuestFacts {
  readonly pv: Known<'pv'> & { vcpus: VcpuRow[] } = {
    guestWidth: undefined,
    ptLevels: undefined,
    maxPfn: undefined,
    p2mFrames: 0,
    vcpus: [],
  };
  readonly #vcpus = new Map<number, VcpuRow>();
  readonly hvm: Known<'hvm'> = { params: [], context: [], vcpus: 0 };
  tsc: Inspection['tsc'];
  cpuidLeaves = 0;
  msrs = 0;
  emulator: Known<'emulator'> | undefined;

  libxc(event: RecordEvent): string {
    const { type, body } = event;
    switch (type) {
      case LibxcRecord.X86_PV_INFO: {
        const { guestWidth, ptLevels } = decodeX86PvInfo(body, event);
        this.pv.guestWidth = guestWidth;
        this.pv.ptLevels = ptLevels;
        return `${guestWidth * 8}-bit guest, ${ptLevels} page-table levels`;
      }
      case LibxcRecord.X86_PV_P2M_FRAMES: {
        const { startPfn, endPfn, frames } = decodeX86PvP2mFrames(body, event);
        this.pv.maxPfn = Math.max(this.pv.maxPfn ?? 0, endPfn);
        this.pv.p2mFrames += frames.length;
        return `pfns 0x${startPfn.toString(16)}–0x${endPfn.toString(16)}, ${plural(frames.length, 'frame')}`;
      }
      case LibxcRecord.X86_PV_VCPU_BASIC:
      case LibxcRecord.X86_PV_VCPU_EXTENDED:
      case LibxcRecord.X86_PV_VCPU_XSAVE:
      case LibxcRecord.X86_PV_VCPU_MSRS:
        return this.#vcpu(type, body);
      case LibxcRecord.X86_TSC_INFO: {
        const { mode, khz, nsec, incarnation } = decodeX86TscInfo(body, event);
        this.tsc = { mode, khz, nsec: String(nsec), incarnation };
        return `mode ${mode}, ${khz} kHz, ${nsec} ns, incarnation ${incarnation}`;
      }
      case LibxcRecord.HVM_CONTEXT:
        return this.hvmContext(body);
      case LibxcRecord.HVM_PARAMS: {
        const { entries } = decodeHvmParams(body, event);
        this.hvm.params = entries.map(({ index, value }) => {
          return { index, name: hvmParamName(index), value: `0x${value.toString(16)}` };
        });
        return plural(entries.length, 'parameter');
      }
      case LibxcRecord.X86_CPUID_POLICY:
        this.cpuidLeaves = body.length / CPUID_LEAF_SIZE;
        return plural(this.cpuidLeaves, 'leaf', 'leaves');
      case LibxcRecord.X86_MSR_POLICY:
        this.msrs = body.length / MSR_ENTRY_SIZE;
        return plural(this.msrs, 'MSR');
      default:
        return '';
    }
  }

  libxl(event: RecordEvent): string {
    const { type, body } = event;
    switch (type) {
      case LibxlRecord.EMULATOR_XENSTORE_DATA: {
        const { emulatorId, entries } = decodeEmulatorXenstoreData(body, event);
        const emulator = this.#emulator(emulatorId);
        emulator.xenstoreEntries = entries.length;
        return `${emulator.name}, ${plural(entries.length, 'key')}`;
      }
      case LibxlRecord.EMULATOR_CONTEXT: {
        const { emulatorId, blob } = decodeEmulatorContext(body, event);
        const emulator = this.#emulator(emulatorId);
        emulator.contextLength = blob.length;
        return emulator.name;
      }
      case LibxlRecord.CHECKPOINT_STATE:
        return `state ${u32(body, 0)}`;
      default:
        return '';
    }
  }

  /** The row of a PV vcpu; undefined if there are too many. */
  vcpuRow(vcpuId: number): VcpuRow | undefined {
    let row = this.#vcpus.get(vcpuId);
    if (row === undefined && this.#vcpus.size < VCPUS_MAX) {
      row = { vcpuId, basic: 0, extended: 0, xsave: 0, msrs: 0 };
      this.#vcpus.set(vcpuId, row);
      this.pv.vcpus.push(row);
    }
    return row;
  }

  #vcpu(type: number, body: Uint8Array): string {
    const vcpuId = u32(body, 0);
    const row = this.vcpuRow(vcpuId);
    const length = body.length - VCPU_HEAD_SIZE;
    if (row !== undefined) {
      if (type === LibxcRecord.X86_PV_VCPU_BASIC) row.basic = length;
      else if (type === LibxcRecord.X86_PV_VCPU_EXTENDED) row.extended = length;
      else if (type === LibxcRecord.X86_PV_VCPU_XSAVE) row.xsave = length;
      else row.msrs = length;
    }
    return `vcpu ${vcpuId}`;
  }

  /** The hypervisor's save records. */
  hvmContext(body: Uint8Array): string {
    const byType = new Map<string, { name: string; records: number; bytes: number }>();
    let records = 0;
    let vcpus = 0;
    for (const { typecode, data } of hvmSaveRecords(body)) {
      const name = hvmSaveCodeName(typecode);
      const row = byType.get(name) ?? { name, records: 0, bytes: 0 };
      row.records++;
      row.bytes += data.length;
      byType.set(name, row);
      records++;
      if (typecode === HvmSaveCode.CPU) vcpus++;
    }
    this.hvm.context = [...byType.values()];
    this.hvm.vcpus = vcpus;
    return `${plural(records, 'save record')}, ${plural(vcpus, 'vcpu')}`;
  }

  #emulator(id: number): Known<'emulator'> {
    this.emulator ??= { name: '', contextLength: 0, xenstoreEntries: 0 };
    this.emulator.name = emulatorName(id);
    return this.emulator;
  }
}

function emulatorName(id: number): string {
  switch (id) {
    case EmulatorId.QEMU_TRADITIONAL:
      return 'qemu-traditional';
    case EmulatorId.QEMU_UPSTREAM:
      return 'qemu-upstream';
    default:
      return id === EmulatorId.UNKNOWN ? 'unknown emulator' : `emulator ${id}`;
  }
}
