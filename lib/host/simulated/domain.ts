/** `Domain` on a simulated host: each call is counted, may be made to fail, and finds the domain alive or ESRCH. */
import { Errno } from '../../abi/errno.js';
import type { GuestWidth } from '../../abi/pv.js';
import { UsageError } from '../../errors.js';
import type {
  CpuPolicy,
  Domain,
  DomainInfo,
  LogDirtyResult,
  PageMapping,
  TscInfo,
  VcpuStateKind,
} from '../host.js';
import { newContext } from './hvm-context.js';
import type { DomainState } from './domain-state.js';
import type { Faults, SimulatedCall } from './faults.js';
import type { PvDomain } from './pv-types.js';
import { refusal } from './refuse.js';

const MAX_BATCH_ERROR = 'more than 1024';

export class SimulatedDomain implements Domain {
  readonly #state: DomainState;
  readonly #faults: Faults;
  #closed = false;

  constructor(state: DomainState, faults: Faults) {
    this.#state = state;
    this.#faults = faults;
  }

  get domid(): number {
    return this.#state.domid;
  }

  async info(): Promise<DomainInfo> {
    await this.#enter('info', 'XEN_DOMCTL_getdomaininfo', undefined, true);
    return this.#state.info();
  }

  async maxGpfn(): Promise<number> {
    await this.#enter('maxGpfn', 'XENMEM_maximum_gpfn');
    return this.#state.maxGpfn();
  }

  async pageTypes(gfns: Float64Array, types: Uint8Array): Promise<void> {
    await this.#enter('pageTypes', 'XEN_DOMCTL_getpageframeinfo3', gfns.length);
    this.#state.pageTypes(gfns, types);
  }

  async mapFrames(gfns: Float64Array, access: 'read' | 'write'): Promise<PageMapping> {
    await this.#enter('mapFrames', 'IOCTL_PRIVCMD_MMAPBATCH_V2', access);
    return this.#state.mapFrames(gfns, access);
  }

  async populate(frames: Float64Array, order: 0 | 9 = 0): Promise<number> {
    await this.#enter('populate', 'XENMEM_populate_physmap', frames.length);
    return this.#state.populateForToolstack(frames, order);
  }

  async clearPage(gfn: number): Promise<void> {
    await this.#enter('clearPage', 'MMUEXT_CLEAR_PAGE', gfn);
    this.#state.clearPage(gfn);
  }

  async enableLogDirty(): Promise<void> {
    await this.#enter('enableLogDirty', 'XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY');
    this.#state.logDirty.enable();
  }

  async disableLogDirty(): Promise<void> {
    await this.#enter('disableLogDirty', 'XEN_DOMCTL_SHADOW_OP_OFF');
    this.#state.logDirty.disable();
  }

  async logDirty(
    op: 'clean' | 'peek',
    bitmap: Uint32Array,
    pages: number,
    final = false,
  ): Promise<LogDirtyResult> {
    await this.#enter('logDirty', 'XEN_DOMCTL_SHADOW_OP', final ? `${op}-final` : op);
    return this.#state.logDirty.read(op, bitmap, pages, final);
  }

  async tscInfo(): Promise<TscInfo> {
    await this.#enter('tscInfo', 'XEN_DOMCTL_gettscinfo');
    return { ...this.#state.tsc };
  }

  async setTscInfo(info: TscInfo): Promise<void> {
    await this.#enter('setTscInfo', 'XEN_DOMCTL_settscinfo');
    this.#state.setTsc(info);
  }

  async cpuPolicy(): Promise<CpuPolicy> {
    await this.#enter('cpuPolicy', 'XEN_DOMCTL_get_cpu_policy');
    const { cpuid, msrs } = this.#state.policy;
    return { cpuid: cpuid.slice(), msrs: msrs.slice() };
  }

  async setCpuPolicy(policy: CpuPolicy): Promise<void> {
    await this.#enter('setCpuPolicy', 'XEN_DOMCTL_set_cpu_policy');
    this.#state.setPolicy(policy);
  }

  async hvmContext(): Promise<Uint8Array> {
    await this.#enter('hvmContext', 'XEN_DOMCTL_gethvmcontext');
    this.#hvmOnly('XEN_DOMCTL_gethvmcontext');
    // Vcpus that are down have no records.
    return this.#state.context?.slice() ?? newContext(0, this.#state.seed);
  }

  async setHvmContext(context: Uint8Array): Promise<void> {
    await this.#enter('setHvmContext', 'XEN_DOMCTL_sethvmcontext', context.length);
    this.#hvmOnly('XEN_DOMCTL_sethvmcontext');
    this.#state.setContext(context);
  }

  async hvmParam(index: number): Promise<bigint> {
    await this.#enter('hvmParam', 'HVMOP_get_param', index);
    this.#hvmOnly('HVMOP_get_param');
    return this.#state.params.get(index);
  }

  async setHvmParam(index: number, value: bigint): Promise<void> {
    await this.#enter('setHvmParam', 'HVMOP_set_param', index);
    this.#hvmOnly('HVMOP_set_param');
    this.#state.params.set(index, value);
  }

  async guestWidth(): Promise<GuestWidth> {
    await this.#enter('guestWidth', 'XEN_DOMCTL_get_address_size');
    return this.#pvOnly('XEN_DOMCTL_get_address_size').width;
  }

  async setGuestWidth(width: GuestWidth): Promise<void> {
    await this.#enter('setGuestWidth', 'XEN_DOMCTL_set_address_size', width);
    const syscall = 'XEN_DOMCTL_set_address_size';
    const pv = this.#pvOnly(syscall);
    if (pv.width === width) return;
    if (width === 8) throw this.#refusal(syscall, Errno.EINVAL, 'a 32-bit domain stays one');
    if (this.#state.totPages > 0) throw this.#refusal(syscall, Errno.EACCES, 'the domain has memory');
    pv.setWidth(width);
  }

  async vcpuOnline(vcpu: number): Promise<boolean> {
    await this.#enter('vcpuOnline', 'XEN_DOMCTL_getvcpuinfo', vcpu);
    this.#checkVcpu('XEN_DOMCTL_getvcpuinfo', vcpu);
    // Vcpus are down until they have state.
    return this.#state.pv?.vcpuOnline(vcpu) ?? this.#state.context !== undefined;
  }

  async vcpuState(vcpu: number, kind: VcpuStateKind): Promise<Uint8Array> {
    await this.#enter('vcpuState', 'XEN_DOMCTL_getvcpucontext', kind);
    return this.#pvVcpu('XEN_DOMCTL_getvcpucontext', vcpu).vcpuState(vcpu, kind);
  }

  async setVcpuState(vcpu: number, kind: VcpuStateKind, state: Uint8Array): Promise<void> {
    await this.#enter('setVcpuState', 'XEN_DOMCTL_setvcpucontext', kind);
    this.#pvVcpu('XEN_DOMCTL_setvcpucontext', vcpu).setVcpuState(vcpu, kind, state);
  }

  async pinTables(levels: Uint8Array, mfns: Float64Array): Promise<void> {
    await this.#enter('pinTables', 'MMUEXT_PIN_TABLE', mfns.length);
    if (mfns.length > 1024) throw this.#refusal('MMUEXT_PIN_TABLE', Errno.E2BIG, MAX_BATCH_ERROR);
    this.#pv('MMUEXT_PIN_TABLE').pinTables(levels, mfns);
  }

  async seedGrantTable(seed: {
    readonly consoleGfn: number;
    readonly consoleDomid: number;
    readonly storeGfn: number;
    readonly storeDomid: number;
  }): Promise<void> {
    await this.#enter('seedGrantTable', 'XENMEM_acquire_resource');
    this.#state.seedGrant(0, seed.consoleGfn, seed.consoleDomid);
    this.#state.seedGrant(1, seed.storeGfn, seed.storeDomid);
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#faults.before('close', this.domid);
  }

  /** Before each call: faults, then whether there is still somebody to call. */
  async #enter(
    call: SimulatedCall,
    syscall: string,
    detail?: string | number,
    alsoDying = false,
  ): Promise<void> {
    if (this.#closed) throw new UsageError(`access to domain ${this.domid} is closed`, { domid: this.domid });
    const fault = this.#faults.before(call, this.domid, detail);
    if (fault !== undefined) await fault;
    const { dying, onGone } = this.#state;
    if (dying && !(alsoDying && onGone !== undefined))
      throw this.#refusal(syscall, Errno.ESRCH, 'no such domain');
  }

  #refusal(syscall: string, errno: number, why: string): Error {
    return refusal(syscall, errno, why, this.domid);
  }

  #hvmOnly(syscall: string): void {
    if (!this.#state.hvm) throw this.#refusal(syscall, Errno.EINVAL, 'not an HVM domain');
  }

  /** The calls that an HVM domain does not have, others than those whose arguments it does not fit. */
  #pvOnly(syscall: string): PvDomain {
    const { pv } = this.#state;
    if (pv === undefined) throw this.#refusal(syscall, Errno.EOPNOTSUPP, 'not a PV domain');
    return pv;
  }

  #pv(syscall: string): PvDomain {
    const { pv } = this.#state;
    if (pv === undefined) throw this.#refusal(syscall, Errno.EINVAL, 'not a PV domain');
    return pv;
  }

  #pvVcpu(syscall: string, vcpu: number): PvDomain {
    this.#checkVcpu(syscall, vcpu);
    return this.#pv(syscall);
  }

  #checkVcpu(syscall: string, vcpu: number): void {
    if (!(vcpu >= 0 && vcpu < this.#state.maxVcpus)) {
      throw this.#refusal(syscall, Errno.EINVAL, `no vcpu ${vcpu}`);
    }
  }
}
