/** `RestoreOps` for x86 PV guests of 64 and 32 bits. */
import { MAX_BATCH, PageType, pageTableLevel, pageTypeName } from '../abi/pages.js';
import { fppOf, type GuestWidth } from '../abi/pv.js';
import { HypercallError, StreamFormatError } from '../errors.js';
import { Errno } from '../abi/errno.js';
import { INVALID_FRAME, type MachineToPhys } from '../host/host.js';
import { pageView } from '../host/pages.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { RecordEvent } from '../stream/events.js';
import { LibxcRecord } from '../stream/libxc/constants.js';
import { decodeX86PvInfo, decodeX86PvP2mFrames } from '../stream/libxc/pv.js';
import type { MissingStaticData } from '../toolstack/toolstack.js';
import { collectReferences, isTableOf, localiseTable } from './localise.js';
import type { PageTypes, RestoreContext, RestoreOps, RingFrames } from './ops.js';
import { LocalP2m, P2mLeaves } from './p2m.js';
import { restoreSharedInfo } from './shared-info.js';
import { X86StaticData } from './static-data.js';
import { type FrameOf, localiseContext, localiseStartInfo, startInfoPfn, VcpuStash } from './vcpus.js';

export class X86PvRestore implements RestoreOps {
  readonly guestType = 'pv';
  readonly #context: RestoreContext;
  readonly #mapM2p: () => Promise<MachineToPhys>;
  readonly #staticData: X86StaticData;
  readonly #vcpus: VcpuStash;
  readonly #p2m = new LocalP2m();
  readonly #leaves = new P2mLeaves();
  #m2p: MachineToPhys | undefined;
  #width: GuestWidth | undefined;
  #domainWidth: GuestWidth = 8;
  #sharedInfoSeen = false;

  /** `mapM2p` opens the host's M2P; called once, by `setup`. */
  constructor(context: RestoreContext, mapM2p: () => Promise<MachineToPhys>) {
    this.#context = context;
    this.#mapM2p = mapM2p;
    this.#staticData = new X86StaticData(context.domain);
    this.#vcpus = new VcpuStash(context.info.maxVcpuId);
  }

  async setup(): Promise<void> {
    this.#domainWidth = await this.#context.domain.guestWidth();
    this.#m2p = await this.#mapM2p();
  }

  get maxPfn(): number {
    return this.#p2m.maxPfn;
  }

  pfnsToGfns(pfns: Float64Array, count: number, gfns: Float64Array): void {
    for (let i = 0; i < count; i++) gfns[i] = this.#p2m.mfnOf(pfns[i] as number);
  }

  setGfns(pfns: Float64Array, gfns: Float64Array, count: number): void {
    for (let i = 0; i < count; i++) this.#setGfn(pfns[i] as number, gfns[i] as number);
  }

  setGfnRun(pfn: number, gfn: number, count: number): void {
    for (let i = 0; i < count; i++) this.#setGfn(pfn + i, gfn + i);
  }

  setPageTypes({ pfns, types, count, run }: PageTypes): void {
    if (run) {
      this.#p2m.setTypeRun(pfns[0] as number, types[0] as number, count);
    } else {
      for (let i = 0; i < count; i++) this.#p2m.setType(pfns[i] as number, types[i] as number);
    }
  }

  holdsFrames(type: number): boolean {
    return pageTableLevel(type) > 0;
  }

  collectReferences(type: number, words: Uint32Array, at: number, out: Float64Array): number {
    // A 32-bit guest has no L4: its first entry is as wrong as any.
    if (!isTableOf(type, this.#needWidth())) return -1;
    return collectReferences(pageTableLevel(type), words, at, this.#p2m, out);
  }

  localisePage(_type: number, words: Uint32Array, at: number): void {
    localiseTable(words, at, this.#p2m);
  }

  async processRecord(record: RecordEvent): Promise<boolean> {
    switch (record.type) {
      case LibxcRecord.X86_PV_INFO:
        await this.#pvInfo(record);
        return true;
      case LibxcRecord.X86_PV_P2M_FRAMES:
        this.#p2mFrames(record);
        return true;
      case LibxcRecord.SHARED_INFO:
        await this.#sharedInfo(record);
        return true;
      case LibxcRecord.X86_PV_VCPU_BASIC:
      case LibxcRecord.X86_PV_VCPU_EXTENDED:
      case LibxcRecord.X86_PV_VCPU_XSAVE:
      case LibxcRecord.X86_PV_VCPU_MSRS:
        return this.#vcpus.add(record, this.#widthFor(record));
      default:
        return this.#staticData.processRecord(record);
    }
  }

  async staticDataComplete(): Promise<MissingStaticData> {
    return this.#staticData.complete();
  }

  async streamComplete(offset: number): Promise<RingFrames> {
    const missing = (record: string): StreamFormatError =>
      new StreamFormatError(StreamErrorCode.MISSING, 'the stream has none', { offset, record });
    if (this.#width === undefined) throw missing('X86_PV_INFO');
    if (this.#leaves.empty) throw missing('X86_PV_P2M_FRAMES');
    if (!this.#sharedInfoSeen) throw missing('SHARED_INFO');
    if (this.#vcpus.get(0, 'basic') === undefined) throw missing('X86_PV_VCPU_BASIC of vcpu 0');

    const rings = await this.#startInfo(this.#width);
    for (const vcpu of this.#vcpus.online()) await this.#restoreVcpu(vcpu, this.#width);
    await this.#pinTables();
    await this.#leaves.write(
      this.#context.domain,
      this.#p2m,
      this.#width,
      (pfn, at, path) =>
        this.#frameOf(pfn, PageType.NOTAB, false, { record: 'X86_PV_P2M_FRAMES', offset: at, path }),
      offset,
    );
    const { storeDomid, consoleDomid } = this.#context.wiring;
    await this.#context.domain.seedGrantTable({ ...rings, storeDomid, consoleDomid });
    return rings;
  }

  async cleanup(): Promise<void> {
    this.#m2p?.release();
    this.#m2p = undefined;
  }

  #setGfn(pfn: number, gfn: number): void {
    // Nothing else changes the domain's frames, so this one look at the M2P stands for one at every later use.
    const m2p = this.#m2p as MachineToPhys;
    if (gfn > m2p.maxMfn || m2p.pfnOf(gfn) !== pfn) {
      const what = `mfn 0x${gfn.toString(16)} for pfn 0x${pfn.toString(16)} is not so in the M2P`;
      throw new HypercallError('XENMEM_populate_physmap', Errno.ERANGE, what);
    }
    this.#p2m.set(pfn, gfn);
  }

  async #pvInfo(record: RecordEvent): Promise<void> {
    const { offset } = record;
    if (this.#width !== undefined) {
      const reason = 'a second one';
      throw new StreamFormatError(StreamErrorCode.DUPLICATE, reason, { offset, record: record.name });
    }
    const { guestWidth } = decodeX86PvInfo(record.body, record);
    const { domain } = this.#context;
    if (guestWidth !== this.#domainWidth) {
      await domain.setGuestWidth(guestWidth);
      const now = await domain.guestWidth();
      if (now !== guestWidth) {
        const what = `the domain stays at ${now * 8} bits`;
        throw new HypercallError('XEN_DOMCTL_set_address_size', Errno.EINVAL, what);
      }
    }
    this.#width = guestWidth;
  }

  #p2mFrames(record: RecordEvent): void {
    const width = this.#widthFor(record);
    const { startPfn, endPfn, frames } = decodeX86PvP2mFrames(record.body, record, width);
    this.#leaves.add(Math.floor(startPfn / fppOf(width)), frames, record.offset);
    this.#p2m.grow(endPfn);
  }

  async #sharedInfo(record: RecordEvent): Promise<void> {
    const width = this.#widthFor(record);
    const { domain } = this.#context;
    const { sharedInfoFrame } = await domain.info();
    await this.#withPage(sharedInfoFrame, 'the shared info page', (page) => {
      restoreSharedInfo(page, record.body, width);
    });
    this.#sharedInfoSeen = true;
  }

  async #startInfo(width: GuestWidth): Promise<RingFrames> {
    const { domain, wiring } = this.#context;
    const basic = this.#vcpus.get(0, 'basic');
    if (basic === undefined) throw new TypeError('no vcpu 0');
    const { sharedInfoFrame } = await domain.info();
    const pfn = startInfoPfn(basic, width);
    const place = { record: basic.record, offset: basic.offset, path: 'context.rdx' };
    const mfn = this.#frameOf(pfn, PageType.NOTAB, false, place);
    const changes = {
      nrPages: this.#p2m.maxPfn + 1,
      sharedInfoFrame,
      storeEvtchn: wiring.storeEvtchn,
      consoleEvtchn: wiring.consoleEvtchn,
    };
    return this.#withPage(mfn, 'start_info', (page) =>
      localiseStartInfo(page, width, changes, this.#frameOf, basic),
    );
  }

  async #restoreVcpu(vcpu: number, width: GuestWidth): Promise<void> {
    const { domain } = this.#context;
    const basic = this.#vcpus.get(vcpu, 'basic');
    if (basic === undefined) return;
    await domain.setVcpuState(vcpu, 'basic', localiseContext(basic, vcpu, width, this.#frameOf));
    for (const kind of ['extended', 'xsave', 'msrs'] as const) {
      const blob = this.#vcpus.get(vcpu, kind);
      if (blob !== undefined) await domain.setVcpuState(vcpu, kind, blob.bytes);
    }
  }

  async #pinTables(): Promise<void> {
    const { domain } = this.#context;
    const levels: number[] = [];
    const mfns: number[] = [];
    this.#p2m.forEachTyped((_pfn, type, mfn) => {
      // A pinned type without a table behind it pins nothing; Xen's receiver passes over it, too.
      if ((type & PageType.PINNED) === 0 || pageTableLevel(type) === 0 || mfn === INVALID_FRAME) return;
      levels.push(pageTableLevel(type));
      mfns.push(mfn);
    });
    for (let from = 0; from < mfns.length; from += MAX_BATCH) {
      const to = Math.min(from + MAX_BATCH, mfns.length);
      await domain.pinTables(
        Uint8Array.from(levels.slice(from, to)),
        Float64Array.from(mfns.slice(from, to)),
      );
    }
  }

  readonly #frameOf: FrameOf = (pfn, type, anyPin, place) => {
    const fail = (reason: string): StreamFormatError =>
      new StreamFormatError(StreamErrorCode.FIELD, `pfn 0x${pfn.toString(16)} ${reason}`, place);
    if (pfn > this.#p2m.maxPfn)
      throw fail(`is beyond the guest's last one, 0x${this.#p2m.maxPfn.toString(16)}`);
    const has = this.#p2m.typeOf(pfn);
    const matches = anyPin ? pageTableLevel(has) === type : has === type;
    if (!matches) throw fail(`has type ${pageTypeName(has)}, expected ${pageTypeName(type)}`);
    const mfn = this.#p2m.mfnOf(pfn);
    if (mfn === INVALID_FRAME) throw fail('has no memory');
    return mfn;
  };

  /** Maps one page for writing, calls `use`, and lets go of it. */
  async #withPage<T>(mfn: number, what: string, use: (page: Uint8Array) => T): Promise<T> {
    const mapping = await this.#context.domain.mapFrames(Float64Array.of(mfn), 'write');
    try {
      const error = mapping.errors[0] as number;
      if (error !== 0) {
        const reason = `${what}, mfn 0x${mfn.toString(16)}, could not be mapped`;
        throw new HypercallError('xenforeignmemory_map', error, reason);
      }
      return use(pageView(mapping, 0));
    } finally {
      mapping.release();
    }
  }

  #widthFor({ offset, name }: RecordEvent): GuestWidth {
    if (this.#width !== undefined) return this.#width;
    throw new StreamFormatError(StreamErrorCode.ORDER, 'before X86_PV_INFO', { offset, record: name });
  }

  #needWidth(): GuestWidth {
    return this.#width ?? this.#domainWidth;
  }
}
