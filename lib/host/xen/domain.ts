/** `Domain` on real Xen: each method is one native call, with the port's limits and errors around it. */
import { Errno, errnoName } from '../../abi/errno.js';
import { MAX_BATCH } from '../../abi/pages.js';
import type { GuestWidth } from '../../abi/pv.js';
import { HypercallError, UsageError } from '../../errors.js';
import {
  MAX_TYPES,
  type CpuPolicy,
  type Domain,
  type DomainInfo,
  type LogDirtyResult,
  type PageMapping,
  type TscInfo,
  type VcpuStateKind,
} from '../host.js';
import { hostError } from './errors.js';
import { Gate } from './gate.js';
import { NO_PAGES, StuckMaps, XenMapping } from './mapping.js';
import type { NativeDomainInfo, NativeXen } from './native.js';

/** Numbers of the native surface for the kinds of vcpu state. */
const VCPU_STATE_KINDS: Record<VcpuStateKind, number> = { basic: 0, extended: 1, xsave: 2, msrs: 3 };

/** The port's part of what Xen tells of a domain. */
export function domainInfo(info: NativeDomainInfo): DomainInfo {
  return {
    domid: info.domid,
    hvm: info.hvm,
    paused: info.paused,
    dying: info.dying,
    shutdown: info.shutdown,
    shutdownReason: info.shutdownReason,
    maxVcpuId: info.maxVcpuId,
    totPages: info.totPages,
    maxPages: info.maxPages,
    sharedInfoFrame: info.sharedInfoFrame,
    use: {
      running: info.running,
      blocked: info.blocked,
      onlineVcpus: info.onlineVcpus,
      cpuMs: Number(info.cpuTime) / 1e6,
    },
  };
}

export class XenDomain implements Domain {
  readonly domid: number;
  readonly #xen: NativeXen;
  readonly #hvm: boolean;
  readonly #gate: Gate;
  readonly #stuck = new StuckMaps();
  readonly #onClose: (domain: XenDomain) => void;

  /** @internal Made by its host. */
  constructor(
    xen: NativeXen,
    { domid, hvm }: Pick<DomainInfo, 'domid' | 'hvm'>,
    onClose: (domain: XenDomain) => void,
  ) {
    this.domid = domid;
    this.#xen = xen;
    this.#hvm = hvm;
    this.#gate = new Gate(`access to domain ${domid}`, domid);
    this.#onClose = onClose;
  }

  info(): Promise<DomainInfo> {
    return this.#call(async () => domainInfo(await this.#xen.domainInfo(this.domid)));
  }

  maxGpfn(): Promise<number> {
    return this.#call(() => this.#xen.maximumGpfn(this.domid));
  }

  pageTypes(gfns: Float64Array, types: Uint8Array): Promise<void> {
    return this.#call(async () => {
      checkCount('XEN_DOMCTL_getpageframeinfo3', gfns.length, MAX_TYPES, this.domid);
      if (gfns.length > 0) await this.#xen.pageTypes(this.domid, gfns, types);
    });
  }

  mapFrames(gfns: Float64Array, access: 'read' | 'write'): Promise<PageMapping> {
    return this.#call(async () => {
      checkCount('IOCTL_PRIVCMD_MMAPBATCH_V2', gfns.length, MAX_BATCH, this.domid);
      if (gfns.length === 0) return NO_PAGES;
      const errors = new Int32Array(gfns.length);
      const map = await this.#xen.mapFrames(this.domid, gfns, access === 'write', errors);
      return new XenMapping(map, errors, this.#stuck);
    });
  }

  populate(frames: Float64Array, order: 0 | 9 = 0): Promise<number> {
    return this.#call(async () => {
      if (frames.length === 0) return 0;
      const done = await this.#xen.populate(this.domid, frames, order);
      // Xen says the same of a domain that is gone: no extents. Who fails for lack of memory should know.
      if (done === 0) await this.#xen.domainInfo(this.domid);
      return done;
    });
  }

  clearPage(gfn: number): Promise<void> {
    return this.#call(() => this.#xen.clearPage(this.domid, gfn));
  }

  enableLogDirty(): Promise<void> {
    return this.#call(() => this.#xen.enableLogDirty(this.domid));
  }

  disableLogDirty(): Promise<void> {
    return this.#call(async () => {
      try {
        await this.#xen.disableLogDirty(this.domid);
      } catch (error) {
        // A PV guest under a hypervisor without shadow paging, or a domain without vcpus: there it is never on.
        const refusal = hostError(error, this.domid);
        if (!(refusal instanceof HypercallError && refusal.errno === Errno.EINVAL)) throw refusal;
      }
    });
  }

  logDirty(op: 'clean' | 'peek', bitmap: Uint32Array, pages: number, final = false): Promise<LogDirtyResult> {
    return this.#call(() => this.#xen.logDirty(this.domid, op === 'clean', final, bitmap, pages));
  }

  tscInfo(): Promise<TscInfo> {
    return this.#call(() => this.#xen.tscInfo(this.domid));
  }

  setTscInfo({ mode, khz, nsec, incarnation }: TscInfo): Promise<void> {
    return this.#call(() => this.#xen.setTscInfo(this.domid, mode, khz, nsec, incarnation));
  }

  cpuPolicy(): Promise<CpuPolicy> {
    return this.#call(() => this.#xen.cpuPolicy(this.domid));
  }

  setCpuPolicy({ cpuid, msrs }: CpuPolicy): Promise<void> {
    return this.#call(() => this.#xen.setCpuPolicy(this.domid, cpuid, msrs));
  }

  hvmContext(): Promise<Uint8Array> {
    return this.#call(() => this.#xen.hvmContext(this.domid));
  }

  setHvmContext(context: Uint8Array): Promise<void> {
    return this.#call(() => this.#xen.setHvmContext(this.domid, context));
  }

  hvmParam(index: number): Promise<bigint> {
    return this.#call(() => this.#xen.hvmParam(this.domid, index));
  }

  setHvmParam(index: number, value: bigint): Promise<void> {
    return this.#call(() => this.#xen.setHvmParam(this.domid, index, value));
  }

  guestWidth(): Promise<GuestWidth> {
    return this.#call(async () => {
      const width = await this.#xen.guestWidth(this.domid);
      if (width !== 4 && width !== 8) throw new UsageError(`guests have no words of ${width} bytes`);
      return width;
    });
  }

  setGuestWidth(width: GuestWidth): Promise<void> {
    return this.#call(() => this.#xen.setGuestWidth(this.domid, width));
  }

  vcpuOnline(vcpu: number): Promise<boolean> {
    return this.#call(() => this.#xen.vcpuOnline(this.domid, vcpu));
  }

  vcpuState(vcpu: number, kind: VcpuStateKind): Promise<Uint8Array> {
    return this.#call(() => this.#xen.vcpuState(this.domid, vcpu, VCPU_STATE_KINDS[kind]));
  }

  setVcpuState(vcpu: number, kind: VcpuStateKind, state: Uint8Array): Promise<void> {
    return this.#call(() => this.#xen.setVcpuState(this.domid, vcpu, VCPU_STATE_KINDS[kind], state));
  }

  pinTables(levels: Uint8Array, mfns: Float64Array): Promise<void> {
    return this.#call(async () => {
      checkCount('MMUEXT_PIN_TABLE', mfns.length, MAX_BATCH, this.domid);
      if (mfns.length > 0) await this.#xen.pinTables(this.domid, levels, mfns);
    });
  }

  seedGrantTable(seed: Parameters<Domain['seedGrantTable']>[0]): Promise<void> {
    const { consoleGfn, storeGfn, consoleDomid, storeDomid } = seed;
    return this.#call(() =>
      this.#xen.seedGrantTable(this.domid, this.#hvm, consoleGfn, storeGfn, consoleDomid, storeDomid),
    );
  }

  /** Waits for the calls under way. Mappings stay with who made them. Idempotent. */
  async close(): Promise<void> {
    await this.#gate.close();
    this.#stuck.retry();
    this.#onClose(this);
  }

  /** Every call: not after close(), which waits for it, and with this library's errors. */
  async #call<T>(call: () => Promise<T>): Promise<T> {
    this.#gate.enter();
    try {
      return await call();
    } catch (error) {
      throw hostError(error, this.domid);
    } finally {
      this.#gate.leave();
    }
  }
}

function checkCount(syscall: string, count: number, limit: number, domid: number): void {
  if (count <= limit) return;
  const what = `${errnoName(Errno.E2BIG)}: ${count} frames, ${limit} are the most`;
  throw new HypercallError(syscall, Errno.E2BIG, what, { domid });
}
