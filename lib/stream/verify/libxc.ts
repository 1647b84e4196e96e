/** Checks of the libxc layer: headers, order, what records must be there, and the frames of PAGE_DATA. */

import { pageTableLevel, pageTypeName } from '../../abi/pages.js';
import { u32 } from '../../bytes/le.js';
import { StreamErrorCode } from '../codes.js';
import type {
  DomainHeaderEvent,
  ImageHeaderEvent,
  PageDataEndEvent,
  PageDataEvent,
  RecordEvent,
} from '../events.js';
import {
  DomainType,
  IHDR_OPT_BIG_ENDIAN,
  IHDR_VERSION_3,
  isLibxcRecordType,
  isOptionalRecord,
  LibxcRecord,
  libxcRecordName,
  MSR_ENTRY_SIZE,
  PAGE_DATA_ENTRY_SIZE,
  PAGE_DATA_HEAD_SIZE,
  XEN_MAJOR_CONVERTED,
} from '../libxc/constants.js';
import { DOMAIN_HEADER, IMAGE_HEADER } from '../libxc/headers.js';
import { decodeX86TscInfo } from '../libxc/x86.js';
import {
  attempt,
  checkFrame,
  checkPadding,
  checkReserved,
  countRecord,
  placeIn,
  type VerifyContext,
} from './context.js';
import { RepeatedFrames } from './frames.js';
import { HVM_RECORDS, HvmChecker, PV_RECORDS } from './hvm.js';
import { PvChecker } from './pv.js';

/** x86 has 52 bits of physical address at most: no guest has a frame beyond. */
const HVM_PFN_MAX = 2 ** 40 - 1;

const EMPTY: ReadonlySet<number> = new Set([
  LibxcRecord.END,
  LibxcRecord.VERIFY,
  LibxcRecord.CHECKPOINT,
  LibxcRecord.STATIC_DATA_END,
]);

/** Records that a sender writes once for each checkpoint; a second one replaces or repeats the first. */
const ONCE: ReadonlySet<number> = new Set([
  LibxcRecord.SHARED_INFO,
  LibxcRecord.X86_TSC_INFO,
  LibxcRecord.HVM_CONTEXT,
  LibxcRecord.HVM_PARAMS,
  LibxcRecord.VERIFY,
  LibxcRecord.X86_CPUID_POLICY,
  LibxcRecord.X86_MSR_POLICY,
]);

const VCPU_RECORDS: ReadonlySet<number> = new Set([
  LibxcRecord.X86_PV_VCPU_BASIC,
  LibxcRecord.X86_PV_VCPU_EXTENDED,
  LibxcRecord.X86_PV_VCPU_XSAVE,
  LibxcRecord.X86_PV_VCPU_MSRS,
]);

/** Follows one libxc stream. */
export class LibxcChecker {
  readonly #context: VerifyContext;
  readonly #pv: PvChecker;
  readonly #hvm: HvmChecker;
  readonly #repeated = new RepeatedFrames();
  readonly #types = new Uint32Array(16);
  #version = IHDR_VERSION_3;
  #guest: 'pv' | 'hvm' | undefined;
  #hadStaticDataEnd = false;
  #saidStaticData = false;
  #saidP2m = false;
  #hadCheckpoint = false;
  /** Records since the last CHECKPOINT: by type, or by type and vcpu. */
  readonly #seen = new Set<number>();
  /** The first record after a CHECKPOINT that END would drop. */
  #unapplied: { readonly offset: number; readonly name: string } | undefined;

  constructor(context: VerifyContext) {
    this.#context = context;
    this.#pv = new PvChecker(context);
    this.#hvm = new HvmChecker(context);
  }

  imageHeader(event: ImageHeaderEvent): void {
    const { findings, summary } = this.#context;
    const { version, options, reserved = 0 } = event.header;
    this.#version = version;
    summary.imageVersion = version;
    const fault = (path: string, at: number, value: number): void => {
      const place = { offset: event.offset + at, record: IMAGE_HEADER, path };
      findings.error(StreamErrorCode.RESERVED, place, `0x${value.toString(16)} in reserved bits`);
    };
    if ((options & ~IHDR_OPT_BIG_ENDIAN) !== 0) fault('options', 16, options & ~IHDR_OPT_BIG_ENDIAN);
    if (reserved !== 0) fault('reserved', 18, reserved);
  }

  domainHeader(event: DomainHeaderEvent): void {
    const { findings, summary, configType } = this.#context;
    const { type, reserved = 0, xenMajor, xenMinor } = event.header;
    const place = (path: string, at: number): { offset: number; record: string; path: string } => ({
      offset: event.offset + at,
      record: DOMAIN_HEADER,
      path,
    });
    if (event.violation !== undefined) findings.thrown(event.violation);
    if (reserved !== 0) {
      findings.error(
        StreamErrorCode.RESERVED,
        place('reserved', 6),
        `0x${reserved.toString(16)} in a reserved field`,
      );
    }
    if (type === DomainType.X86_PV) this.#guest = 'pv';
    else if (type === DomainType.X86_HVM) this.#guest = 'hvm';
    if (this.#guest !== undefined) summary.guest = this.#guest === 'pv' ? 'x86 PV' : 'x86 HVM';
    if (
      configType !== undefined &&
      this.#guest !== undefined &&
      (configType === 'pv') !== (this.#guest === 'pv')
    ) {
      const message = `x86 ${this.#guest.toUpperCase()}, but xl's configuration is of a ${configType} guest`;
      findings.error(StreamErrorCode.CONFIG, place('type', 0), message);
    }
    if (xenMajor === XEN_MAJOR_CONVERTED) {
      summary.converted = true;
      const message = `converted from a legacy stream (converter version ${xenMinor})`;
      findings.warning(StreamErrorCode.CONVERTED, place('xenMajor', 8), message);
    } else {
      summary.xenVersion = `${xenMajor}.${xenMinor}`;
    }
  }

  record(event: RecordEvent): void {
    const { findings, summary } = this.#context;
    countRecord(summary, event.name);
    const { type } = event;
    const whole = checkFrame(this.#context, event, EMPTY.has(type));
    if (!isLibxcRecordType(type)) {
      if (isOptionalRecord(type))
        findings.warning(StreamErrorCode.TYPE, placeIn(event), 'optional; receivers skip it');
      else findings.error(StreamErrorCode.TYPE, placeIn(event), 'mandatory, and no receiver knows it');
      return;
    }
    if (this.#refused(event)) return;
    this.#once(event);
    if (this.#hadCheckpoint && type !== LibxcRecord.CHECKPOINT && type !== LibxcRecord.END)
      this.#unapplied ??= event;
    switch (type) {
      case LibxcRecord.STATIC_DATA_END:
        this.#staticDataEnd(event);
        break;
      case LibxcRecord.X86_CPUID_POLICY:
      case LibxcRecord.X86_MSR_POLICY:
        this.#policy(event, whole);
        break;
      case LibxcRecord.X86_TSC_INFO:
        if (whole) this.#tscInfo(event);
        break;
      case LibxcRecord.VERIFY:
        summary.verifyPass = true;
        break;
      case LibxcRecord.CHECKPOINT:
        this.#boundary(event);
        this.#hadCheckpoint = true;
        this.#unapplied = undefined;
        this.#seen.clear();
        break;
      case LibxcRecord.END:
        this.#end(event);
        break;
      default:
        this.#guestRecord(event, whole);
    }
  }

  pageData(event: PageDataEvent): void {
    const { findings, summary } = this.#context;
    countRecord(summary, 'PAGE_DATA');
    const record = { offset: event.offset, name: 'PAGE_DATA' };
    summary.pageEntries += event.count;
    summary.dataPages += event.dataPages;
    if (this.#hadCheckpoint) this.#unapplied ??= record;
    this.#needStaticData(record);
    checkReserved(findings, record, event.reserved, 4);
    if (event.violation !== undefined) findings.thrown(event.violation);
    if (event.reservedBitsAt >= 0) {
      const place = this.#entry(event, event.reservedBitsAt, '');
      findings.error(StreamErrorCode.RESERVED, place, 'reserved bits 59–52 are set');
    }
    this.#pageTypes(event);
    this.#pfns(event);
  }

  pageDataEnd(event: PageDataEndEvent, length: number): void {
    checkPadding(this.#context.findings, { offset: event.offset, name: 'PAGE_DATA' }, length, event.padding);
  }

  /** Records that no receiver of this guest type takes. */
  #refused(event: RecordEvent): boolean {
    const { findings } = this.#context;
    const { type } = event;
    if (type === LibxcRecord.TOOLSTACK) {
      findings.error(StreamErrorCode.DEPRECATED, placeIn(event), 'was never used; no receiver takes it');
      return true;
    }
    if (type === LibxcRecord.CHECKPOINT_DIRTY_PFN_LIST) {
      findings.error(StreamErrorCode.ORDER, placeIn(event), "belongs to COLO's back channel");
      return true;
    }
    const foreign = this.#guest === 'pv' ? HVM_RECORDS : this.#guest === 'hvm' ? PV_RECORDS : undefined;
    if (foreign?.has(type) !== true) return false;
    const message = `an x86 ${this.#guest === 'pv' ? 'PV' : 'HVM'} guest has no such record`;
    findings.error(StreamErrorCode.TYPE, placeIn(event), message);
    return true;
  }

  #once(event: RecordEvent): void {
    const { type } = event;
    let key = type;
    if (VCPU_RECORDS.has(type) && event.body.length >= 4) {
      const vcpu = u32(event.body, 0);
      // Beyond what any guest has, the number is reported for itself.
      if (vcpu > 0xffff) return;
      key = 0x100 + vcpu * 0x20 + type;
    } else if (!ONCE.has(type)) return;
    if (this.#seen.has(key)) {
      const message = `a second one${this.#hadCheckpoint ? ' since the last checkpoint' : ''}; it replaces the first`;
      this.#context.findings.warning(StreamErrorCode.DUPLICATE, placeIn(event), message);
    }
    this.#seen.add(key);
  }

  #staticDataEnd(event: RecordEvent): void {
    const { findings } = this.#context;
    if (this.#version < IHDR_VERSION_3) {
      findings.error(StreamErrorCode.VERSION, placeIn(event), 'does not exist in image version 2');
    }
    if (this.#hadStaticDataEnd) {
      findings.error(StreamErrorCode.DUPLICATE, placeIn(event), 'a second STATIC_DATA_END');
    }
    this.#hadStaticDataEnd = true;
  }

  #policy(event: RecordEvent, whole: boolean): void {
    const { findings } = this.#context;
    if (this.#version < IHDR_VERSION_3) {
      findings.error(StreamErrorCode.VERSION, placeIn(event), 'does not exist in image version 2');
    } else if (this.#hadStaticDataEnd) {
      findings.error(
        StreamErrorCode.ORDER,
        placeIn(event),
        'after STATIC_DATA_END: receivers never apply it',
      );
    }
    if (!whole || event.type !== LibxcRecord.X86_MSR_POLICY) return;
    for (let at = 4; at < event.body.length; at += MSR_ENTRY_SIZE) {
      const path = `entries[${Math.floor(at / MSR_ENTRY_SIZE)}].flags`;
      checkReserved(findings, event, u32(event.body, at), at, path);
    }
  }

  #tscInfo(event: RecordEvent): void {
    const { findings } = this.#context;
    const info = attempt(findings, () => decodeX86TscInfo(event.body, event));
    checkReserved(findings, event, info?.reserved ?? 0, 20);
  }

  #guestRecord(event: RecordEvent, whole: boolean): void {
    switch (event.type) {
      case LibxcRecord.X86_PV_INFO:
        this.#pv.info(event, whole);
        break;
      case LibxcRecord.X86_PV_P2M_FRAMES:
        this.#needStaticData(event);
        this.#pv.p2mFrames(event, whole);
        break;
      case LibxcRecord.SHARED_INFO:
        this.#pv.sharedInfo(event);
        break;
      case LibxcRecord.HVM_CONTEXT:
        this.#hvm.context(event, whole);
        break;
      case LibxcRecord.HVM_PARAMS:
        this.#hvm.params(event, whole);
        break;
      default:
        this.#pv.vcpu(event, whole);
    }
  }

  /** Image version 3: P2M_FRAMES and PAGE_DATA stand after STATIC_DATA_END. Version 2 has none. */
  #needStaticData(event: { readonly offset: number; readonly name: string }): void {
    if (this.#version < IHDR_VERSION_3 || this.#hadStaticDataEnd || this.#saidStaticData) return;
    this.#saidStaticData = true;
    this.#context.findings.error(StreamErrorCode.ORDER, placeIn(event), 'before STATIC_DATA_END');
  }

  #entry(event: PageDataEvent, i: number, field: string): { offset: number; record: string; path: string } {
    const at = PAGE_DATA_HEAD_SIZE + i * PAGE_DATA_ENTRY_SIZE;
    return {
      ...placeIn({ offset: event.offset, name: 'PAGE_DATA' }, undefined, at),
      path: `pfns[${i}]${field}`,
    };
  }

  #pageTypes(event: PageDataEvent): void {
    if (this.#guest !== 'hvm') return;
    const { types, count } = event;
    const counts = this.#types;
    counts.fill(0);
    for (let i = 0; i < count; i++) {
      const type = types[i] as number;
      counts[type] = (counts[type] as number) + 1;
    }
    for (let type = 0; type < counts.length; type++) {
      if (counts[type] === 0 || pageTableLevel(type) === 0) continue;
      const place = this.#entry(event, types.indexOf(type), '.type');
      const message = `${pageTypeName(type)}, but an HVM guest's page tables are its own affair`;
      this.#context.findings.warning(StreamErrorCode.PAGE_TYPE, place, message);
      return;
    }
  }

  #pfns(event: PageDataEvent): void {
    const { findings } = this.#context;
    const { pfns, count } = event;
    let max = HVM_PFN_MAX;
    if (this.#guest === 'pv') {
      max = this.#pv.maxPfn;
      if (!this.#pv.hasP2m && !this.#saidP2m) {
        this.#saidP2m = true;
        const place = { offset: event.offset, record: 'PAGE_DATA', path: undefined };
        findings.error(StreamErrorCode.ORDER, place, 'before X86_PV_P2M_FRAMES: no pfn can be right yet');
      }
    }
    for (let i = 0; i < count; i++) {
      const pfn = pfns[i] as number;
      if (pfn <= max) continue;
      const message = `0x${pfn.toString(16)} is above the highest possible, 0x${max.toString(16)}`;
      findings.error(StreamErrorCode.FIELD, this.#entry(event, i, '.pfn'), message);
      break;
    }
    const repeated = this.#repeated.find(pfns, count);
    if (repeated >= 0) {
      const i = pfns.indexOf(repeated, pfns.indexOf(repeated) + 1);
      const message = `frame 0x${repeated.toString(16)} twice in one record; the last one wins`;
      findings.warning(StreamErrorCode.DUPLICATE, this.#entry(event, i, '.pfn'), message);
    }
  }

  /** CHECKPOINT or END: what came before must make a guest. */
  #boundary(event: RecordEvent): void {
    const { findings, summary } = this.#context;
    if (this.#hadCheckpoint) {
      if (this.#guest === 'pv') this.#pv.checkFrames();
      return;
    }
    if (this.#version >= IHDR_VERSION_3 && !this.#hadStaticDataEnd && !this.#saidStaticData) {
      findings.error(StreamErrorCode.MISSING, placeIn(event), 'no STATIC_DATA_END before it');
    }
    if (this.#version >= IHDR_VERSION_3 && !summary.converted) {
      for (const type of [LibxcRecord.X86_CPUID_POLICY, LibxcRecord.X86_MSR_POLICY]) {
        const name = libxcRecordName(type);
        if (summary.records[name] !== undefined) continue;
        findings.warning(StreamErrorCode.MISSING, placeIn(event), `no ${name} before it`);
      }
    }
    if (summary.pageEntries === 0)
      findings.warning(StreamErrorCode.MISSING, placeIn(event), 'the guest has no pages');
    if (this.#guest === 'pv') this.#pv.finish(event);
    else if (this.#guest === 'hvm') this.#hvm.finish(event);
  }

  #end(event: RecordEvent): void {
    if (!this.#hadCheckpoint) {
      this.#boundary(event);
      return;
    }
    if (this.#unapplied === undefined) return;
    const message = `END without another CHECKPOINT: receivers drop all from here to it`;
    this.#context.findings.warning(StreamErrorCode.ORDER, placeIn(this.#unapplied), message);
  }
}
