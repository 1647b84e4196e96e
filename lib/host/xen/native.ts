/**
 * The whole surface of the native addon, as types: what native/ defines, and nothing else.
 *
 * One step each, no policy. Errors are Node-like: `code` (`ENOENT`, `EFAULT`…), positive `errno`, `syscall`, with libxenctrl's
 * own words in the message; bad arguments are TypeError or RangeError and nothing was done. Every method of `NativeXen`
 * that returns a promise runs on the thread pool, but for what `inline` (below) makes on the thread of JavaScript.
 * Buffers that are handed in are read before the call returns, and written to (`out` parameters) when the promise
 * resolves, on the thread of JavaScript: they may not be shorter than the call says, and may be detached or used for
 * something else meanwhile only at the price of their contents.
 *
 * Frames are Float64Array; −1 is INVALID_MFN both ways.
 */

/** What the addon was built from. */
export interface AddonBuild {
  readonly haveXen: boolean;
  /** Release of the Xen libraries at build time, for instance `4.17.0`; null without Xen. */
  readonly xenVersion: string | null;
  /** Node-API version that it was built for. */
  readonly napiVersion: number;
}

/** What XEN_SYSCTL_physinfo says of guests. */
export interface HypervisorGuests {
  readonly pv: boolean;
  readonly hvm: boolean;
  /** Hardware-assisted paging. */
  readonly hap: boolean;
  /** Shadow paging. Without it, what a PV guest writes cannot be logged: it cannot be migrated live. */
  readonly shadow: boolean;
}

/** The running hypervisor, as XENVER_version, XENVER_extraversion and XENVER_capabilities tell it. */
export interface HypervisorVersion {
  readonly major: number;
  readonly minor: number;
  /** What follows `major.minor`, for instance `.4`. */
  readonly extra: string;
  /** Guest interfaces, with blanks between: `xen-3.0-x86_64 hvm-3.0-x86_32 …`. */
  readonly capabilities?: string;
  /** Absent if the hypervisor does not tell: `physinfoErrno` says why. */
  readonly guests?: HypervisorGuests;
  /** EACCES (13): the library is of another release of Xen than the hypervisor. EPERM (1): not the control domain. */
  readonly physinfoErrno?: number;
  /** Why XEN_DOMCTL_getdomaininfo of domain 0 was refused; absent if it was not. As `physinfoErrno`. */
  readonly domctlErrno?: number;
}

/**
 * Mapped pages of 4096 bytes. Not to be released under a reader's feet: hold it through a `LeasedMap`.
 */
export interface NativePageMap {
  /** The one ArrayBuffer over the pages. Throws after `release()`. */
  buffer(): ArrayBuffer;
  /** Drops the pages now: views have length 0 from here on, and whatever else still points there sees zeros. Idempotent. */
  release(): void;
  /** False once released. */
  readonly live: boolean;
  readonly byteLength: number;
}

/** XEN_DOMCTL_getdomaininfo. */
export interface NativeDomainInfo {
  readonly domid: number;
  readonly hvm: boolean;
  readonly dying: boolean;
  readonly shutdown: boolean;
  readonly paused: boolean;
  readonly blocked: boolean;
  readonly running: boolean;
  readonly shutdownReason: number;
  readonly totPages: number;
  readonly maxPages: number;
  readonly outstandingPages: number;
  readonly sharedInfoFrame: number;
  readonly onlineVcpus: number;
  readonly maxVcpuId: number;
  /** ns of vcpu time used. */
  readonly cpuTime: bigint;
  /** The 16 bytes of the domain's handle (its UUID). */
  readonly handle: Uint8Array;
}

/** Machine frames, described for the M2P: see `NativeXen.mapMachineToPhys`. */
export interface NativeMachineToPhys {
  /** XENMEM_maximum_ram_page. */
  readonly maxMfn: number;
  /** First mfn of the compatibility table, −1 without one. */
  readonly compatFirstMfn: number;
  /** The table, 8 bytes for each mfn, read-only: `map.buffer()` may be larger than (maxMfn + 1) · 8. */
  readonly map: NativePageMap;
}

/** Arguments of XEN_DOMCTL_createdomain, as far as tests and domains without devices need them. */
export interface NativeCreateDomain {
  readonly hvm: boolean;
  /** HVM only: hardware-assisted paging (true), or shadow paging. */
  readonly hap: boolean;
  /** 16 bytes. */
  readonly handle: Uint8Array;
  readonly maxVcpus: number;
  /** Event channels, grant frames, maptrack frames: libxl's defaults are −1 (host's), 64, 1024. */
  readonly maxEvtchnPort: number;
  readonly maxGrantFrames: number;
  readonly maxMaptrackFrames: number;
  /** XEN_X86_EMU_* of HVM guests: 0xffffffff-like default masks are TypeScript's to choose; PVH has LAPIC alone. */
  readonly emulationFlags: number;
}

/** An open libxenctrl handle, with the stable libraries' handles beside it. One may be used by many operations at once. */
export interface NativeXen {
  /** No new calls; the handles are closed when the last call in flight has ended. Idempotent. */
  close(): void;

  /** xc_domain_getinfolist from `first`: at most `max` (≤ 1024). */
  listDomains(first: number, max: number): Promise<NativeDomainInfo[]>;
  /** Rejects with ESRCH if there is no such domain. */
  domainInfo(domid: number): Promise<NativeDomainInfo>;

  maximumGpfn(domid: number): Promise<number>;
  /** XEN_DOMCTL_getpageframeinfo3 in steps of at most 1024: the type nibble of each frame into `types`. Any count up to 65536. */
  pageTypes(domid: number, gfns: Float64Array, types: Uint8Array): Promise<void>;
  /**
   * xenforeignmemory_map, at most 1024 frames. `errors[i]` = 0 or an errno; where it is not 0 the page is private zero
   * memory. Resolves even if all failed.
   */
  mapFrames(domid: number, gfns: Float64Array, writable: boolean, errors: Int32Array): Promise<NativePageMap>;
  /** XENMEM_populate_physmap with `order` 0 or 9. `frames` in: pfns; out: what Xen gave. Resolves to the extents done, from the front. */
  populate(domid: number, frames: Float64Array, order: number): Promise<number>;
  /** xc_clear_domain_page. */
  clearPage(domid: number, gfn: number): Promise<void>;

  /** XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY / _OFF. */
  enableLogDirty(domid: number): Promise<void>;
  disableLogDirty(domid: number): Promise<void>;
  /** XEN_DOMCTL_SHADOW_OP_CLEAN (`clean`) or _PEEK; `final` = LOGDIRTY_FINAL. Overwrites `pages` bits of `bitmap`, whole words. */
  logDirty(
    domid: number,
    clean: boolean,
    final: boolean,
    bitmap: Uint32Array,
    pages: number,
  ): Promise<{ readonly pages: number; readonly dirtyCount: number; readonly faultCount: number }>;

  hvmContext(domid: number): Promise<Uint8Array>;
  setHvmContext(domid: number, context: Uint8Array): Promise<void>;
  hvmParam(domid: number, index: number): Promise<bigint>;
  setHvmParam(domid: number, index: number, value: bigint): Promise<void>;

  tscInfo(domid: number): Promise<{
    readonly mode: number;
    readonly khz: number;
    readonly nsec: bigint;
    readonly incarnation: number;
  }>;
  setTscInfo(domid: number, mode: number, khz: number, nsec: bigint, incarnation: number): Promise<void>;
  /** Serialised: 24 bytes a CPUID leaf, 16 bytes an MSR. */
  cpuPolicy(domid: number): Promise<{ readonly cpuid: Uint8Array; readonly msrs: Uint8Array }>;
  setCpuPolicy(domid: number, cpuid: Uint8Array, msrs: Uint8Array): Promise<void>;

  /** XEN_DOMCTL_get_address_size / 8. */
  guestWidth(domid: number): Promise<number>;
  setGuestWidth(domid: number, width: number): Promise<void>;
  vcpuOnline(domid: number, vcpu: number): Promise<boolean>;
  /** `kind`: 0 basic (5168 or 2800 bytes by guest width), 1 extended, 2 xsave, 3 msrs. Empty if Xen has none. */
  vcpuState(domid: number, vcpu: number, kind: number): Promise<Uint8Array>;
  setVcpuState(domid: number, vcpu: number, kind: number, state: Uint8Array): Promise<void>;
  /** MMUEXT_PIN_L1…L4_TABLE, at most 1024. */
  pinTables(domid: number, levels: Uint8Array, mfns: Float64Array): Promise<void>;
  /** Maps the M2P of DOMID_XEN. */
  mapMachineToPhys(): Promise<NativeMachineToPhys>;

  /** xc_dom_gnttab_seed. Frame −1 or a back end that is the guest itself: that entry is skipped. */
  seedGrantTable(
    domid: number,
    hvm: boolean,
    consoleGfn: number,
    storeGfn: number,
    consoleDomid: number,
    storeDomid: number,
  ): Promise<void>;

  pause(domid: number): Promise<void>;
  unpause(domid: number): Promise<void>;
  /** xc_domain_shutdown with SHUTDOWN_*. */
  shutdown(domid: number, reason: number): Promise<void>;
  /** xc_domain_resume. `fast`: the guest's suspend hypercall returns 1. */
  resume(domid: number, fast: boolean): Promise<void>;
  /** Takes long for a large domain: Xen frees its memory step by step. */
  destroy(domid: number): Promise<void>;
  /** XEN_DOMCTL_subscribe: `port`, a port of the guest, gets an event when the domain shuts down. */
  subscribe(domid: number, port: number): Promise<void>;

  /** Creates an empty, paused domain; resolves to its domid. */
  createDomain(config: NativeCreateDomain): Promise<number>;
  setMaxVcpus(domid: number, vcpus: number): Promise<void>;
  setMaxMemory(domid: number, kib: number): Promise<void>;
  /** XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION, in MiB. */
  setPagingAllocation(domid: number, mib: number): Promise<void>;
  /** An unbound event channel of `domid` for `remote`. Resolves to its port. */
  allocUnbound(domid: number, remote: number): Promise<number>;

  /** Hypercalls and mappings made so far through this handle. */
  readonly calls: Readonly<Record<string, number>>;
}

/** An open event-channel device. Synchronous: none of these waits. */
export interface NativeEvtchn {
  /** Readable when an event is pending: for `watchReadable`. */
  readonly fd: number;
  bindInterdomain(domid: number, remotePort: number): number;
  notify(port: number): void;
  /** Takes one pending event, and unmasks its port; −1 if none is pending. */
  pending(): number;
  unbind(port: number): void;
  close(): void;
}

/** See `watchReadable`. */
export interface NativeFdWatch {
  /** Lets the callback be called again, once. */
  rearm(): void;
  /** No callback after this. Idempotent. Does not close the descriptor. */
  close(): void;
}

/**
 * Blocking, exact I/O on a descriptor that is shared with another process and must not be made non-blocking: one native
 * thread, one operation at a time (a second one queues). The descriptor stays the caller's and is not closed.
 */
export interface NativeBlockingFd {
  /**
   * Writes all bytes of all views, in the fewest `writev` calls. The views are kept alive until it is over. Once a write has
   * failed, all later ones fail in the same way and write nothing.
   */
  write(views: readonly Uint8Array[]): Promise<void>;
  /**
   * Reads until `into` is full or the stream has ended. Resolves to the bytes read; never asks the kernel for more than
   * `into` holds.
   */
  read(into: Uint8Array): Promise<number>;
  /**
   * Reads once, on the thread of JavaScript, which waits: the bytes read, 0 at the end of the stream, −1 for EAGAIN.
   * Not while a `read` is under way.
   */
  readNow(into: Uint8Array): number;
  /**
   * Makes a blocked operation, and all later ones, fail with ECANCELED. With `spoil`, first puts /dev/null (O_RDONLY) in the
   * descriptor's place, so that nothing whatever can be written to the stream from this process any more.
   */
  interrupt(spoil: boolean): void;
  /** Ends the thread. Operations under way are interrupted. Idempotent. */
  close(): void;
}

/** The addon's exports. */
export interface NativeAddon {
  readonly build: AddonBuild;
  /** Zeroed anonymous pages, 1 to 2^20 of them. */
  readonly PageMap: new (pages: number) => NativePageMap;
  /** Regions whose addresses are still reserved and bytes whose pages are still held, in this thread's environment. */
  mapped(): { readonly regions: number; readonly bytes: number };
  readonly BlockingFd: new (fd: number) => NativeBlockingFd;
  /** Calls back, once, when `fd` can be read (or has failed); again after `rearm()`. Keeps the process alive only if told to. */
  watchReadable(fd: number, callback: () => void, keepAlive?: boolean): NativeFdWatch;
  /** F_SETLK of a write lock on the first byte of a descriptor. Throws EAGAIN or EACCES if another process has one. */
  lockFile(fd: number): void;
  /** Unblocks a signal (by number) in this thread's mask, which Node inherits from its parent and leaves as it is. */
  unblockSignal(signal: number): void;
  /** Asks the running Xen. Absent from an addon that was built without Xen. */
  readonly hypervisor?: () => HypervisorVersion;
  /**
   * Opens the handles. `log` is called on the thread of JavaScript for each message of libxenctrl of XTL level `minLevel`
   * or above. Absent without Xen.
   *
   * With `inline`, most calls are made on the thread of JavaScript, before they return their promise: for a process
   * that has nothing else to do, where the way over the thread pool costs more than the hypercall. Every 16th call
   * still goes that way, so that signals and sockets get their turn; and `enableLogDirty`, `disableLogDirty`, `logDirty`,
   * `setPagingAllocation` and `destroy` do always: they go through the whole guest.
   */
  readonly Xen?: new (
    log: (level: number, message: string) => void,
    minLevel: number,
    inline?: boolean,
  ) => NativeXen;
  /** Opens /dev/xen/evtchn. Absent without Xen. */
  readonly Evtchn?: new () => NativeEvtchn;
}
