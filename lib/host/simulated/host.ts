/**
 * A host without Xen: hypervisor, toolstack and running guests in plain TypeScript, with Xen's contract kept as
 * strictly as Xen keeps it. For tests of toolstacks, for trying things out, and for everything that can be developed
 * without a machine that runs Xen. Nothing is global: any number of hosts can be in one process.
 */
import { randomUUID } from 'node:crypto';
import { Errno } from '../../abi/errno.js';
import { UsageError } from '../../errors.js';
import type { Domain, DomainInfo, Host, MachineToPhys, XenVersion } from '../host.js';
import type { MissingFeature } from './cpu-policy.js';
import { SimulatedDeviceModel } from './device-model.js';
import { DomainState } from './domain-state.js';
import { SimulatedDomain } from './domain.js';
import { Faults } from './faults.js';
import { SimulatedGuest } from './guest.js';
import { MachineMemory } from './memory.js';
import { NoteShelf, SimulatedNotes } from './notes.js';
import { mix32 } from './prng.js';
import { refusal } from './refuse.js';
import {
  SimulatedToolstack,
  type CreateGuestOptions,
  type DomainRecord,
  type DomainTable,
} from './toolstack.js';

export interface SimulatedHostOptions {
  /** Bytes of machine memory, used only as guests need it. Default 64 GiB. */
  readonly memory?: number | undefined;
  /** Decides machine frame numbers and their order. Give two hosts different ones. Default 1. */
  readonly seed?: number | undefined;
  /** Default 4.17. */
  readonly xenVersion?: XenVersion | undefined;
  /** False: a hypervisor built without PV support. Default true. */
  readonly pv?: boolean | undefined;
  /** HVM domains have an APIC access page at gfn 0xfee00, as on Intel. Default true. */
  readonly apicAccessPage?: boolean | undefined;
  /** CPU features that this machine lacks: policies with them are refused. */
  readonly missingFeatures?: readonly MissingFeature[] | undefined;
  /**
   * Map pages by copying them, so that views used after `release()` read zeros. Finds such mistakes, and costs a copy
   * of every mapped page. Default false: views after `release()` still show the guest.
   */
  readonly guardMappings?: boolean | undefined;
  /**
   * Memory that the toolstack populates holds junk, as a page may on Xen that it or a living domain had before. Finds
   * what relies on zeros. Default false: it is zero.
   */
  readonly unscrubbedMemory?: boolean | undefined;
  /** Keep a list of all calls in `faults.log`. Default false. */
  readonly recordCalls?: boolean | undefined;
  /**
   * Start a guest's thread with its domain and not when it first runs: what a migration to this host calls handover is
   * then free of it. Default false.
   */
  readonly warmGuests?: boolean | undefined;
  /** Running guests keep the process alive. Default false. */
  readonly keepAlive?: boolean | undefined;
}

const DEFAULT_MEMORY = 2 ** 36;
const WIRING = { storeEvtchn: 1, storeDomid: 0, consoleEvtchn: 2, consoleDomid: 0 } as const;
/** Highest domid + 1 (DOMID_FIRST_RESERVED). */
const MAX_DOMID = 0x7ff0;

export class SimulatedHost implements Host, AsyncDisposable {
  readonly kind = 'simulated';
  readonly toolstack: SimulatedToolstack;
  /** Makes calls fail, counts and records them. */
  readonly faults: Faults;
  readonly memory: MachineMemory;
  readonly #options: SimulatedHostOptions;
  readonly #records = new Map<number, DomainRecord>();
  #lastDomid = 0;
  #closed = false;

  constructor(options: SimulatedHostOptions = {}) {
    this.#options = options;
    const totalPages = Math.floor((options.memory ?? DEFAULT_MEMORY) / 4096);
    this.memory = new MachineMemory({ totalPages, seed: options.seed });
    this.faults = new Faults(options.recordCalls ?? false);
    const table: DomainTable = {
      find: (domid) => {
        const record = this.#records.get(domid);
        return record?.state.dying === true ? undefined : record;
      },
      all: () => [...this.#records.values()].filter(({ state }) => !state.dying),
      make: (make) => this.#make(make),
      remove: (domid) => this.#remove(domid),
    };
    this.toolstack = new SimulatedToolstack(
      table,
      this.faults,
      new SimulatedNotes(new NoteShelf(randomUUID(), this.faults), 'this process'),
    );
  }

  async xenVersion(): Promise<XenVersion> {
    await this.faults.before('host.xenVersion');
    return this.#options.xenVersion ?? { major: 4, minor: 17 };
  }

  /** The guests. The control domain is not among them: a simulated host has none. */
  async listDomains(): Promise<DomainInfo[]> {
    await this.faults.before('host.listDomains');
    return [...this.#records.values()].map(({ state }) => state.info());
  }

  async openDomain(domid: number): Promise<Domain> {
    await this.faults.before('host.openDomain', domid);
    const record = this.#records.get(domid);
    if (record === undefined) throw refusal('XEN_DOMCTL_getdomaininfo', Errno.ESRCH, 'no such domain', domid);
    return new SimulatedDomain(record.state, this.faults);
  }

  async mapMachineToPhys(): Promise<MachineToPhys> {
    await this.faults.before('host.mapMachineToPhys');
    if (this.#options.pv === false) {
      throw refusal('XENMEM_machphys_mfn_list', Errno.EOPNOTSUPP, 'no PV support in this hypervisor');
    }
    const { memory } = this;
    return {
      maxMfn: memory.maxMfn,
      compatFirstMfn: memory.compatM2pMfn,
      pfnOf: (mfn) => memory.pfnOf(mfn),
      release: () => undefined,
    };
  }

  /** Makes a guest with a workload and starts it; short for `toolstack.createGuest`. */
  async createGuest(options: CreateGuestOptions = {}): Promise<SimulatedGuest> {
    return await this.toolstack.createGuest(options);
  }

  /** The guest in a domain, made here or restored. Throws UsageError if there is no such domain. */
  guest(domid: number): SimulatedGuest {
    return this.inspect(domid).guest;
  }

  /** What the host and its toolstack know of a domain, for tests. Throws UsageError if there is no such domain. */
  inspect(domid: number): DomainRecord {
    const record = this.#records.get(domid);
    if (record === undefined) throw new UsageError(`no domain ${domid}`, { domid });
    return record;
  }

  /** Mappings of guest pages that nobody released: 0 when all operations have cleaned up. */
  get mappings(): number {
    let n = 0;
    for (const { state } of this.#records.values()) n += state.mappings;
    return n;
  }

  /** Ends all guests and their threads, and frees their memory. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#records.keys()].map((domid) => this.#remove(domid)));
    this.memory.trim();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #make(make: Parameters<DomainTable['make']>[0]): DomainRecord {
    if (this.#closed) throw new UsageError('the simulated host is closed');
    if (make.type === 'pv' && this.#options.pv === false) {
      throw refusal('XEN_DOMCTL_createdomain', Errno.EOPNOTSUPP, 'no PV support in this hypervisor');
    }
    const domid = this.#nextDomid();
    const state = new DomainState({
      domid,
      type: make.type,
      maxPages: make.maxPages,
      maxVcpus: make.maxVcpus,
      seed: make.seed ?? mix32((this.#options.seed ?? 1) ^ (domid << 16)),
      memory: this.memory,
      guardMappings: this.#options.guardMappings ?? false,
      unscrubbedMemory: this.#options.unscrubbedMemory ?? false,
      apicAccessPage: this.#options.apicAccessPage ?? true,
      missingFeatures: this.#options.missingFeatures ?? [],
    });
    state.onGone = () => this.#records.delete(domid);
    const deviceModel = make.type === 'hvm' ? new SimulatedDeviceModel(state, make.dma) : undefined;
    const record: DomainRecord = {
      state,
      guest: new SimulatedGuest(state, deviceModel, this.#options.keepAlive ?? false),
      ...make.describe(domid),
      wiring: WIRING,
      rings: undefined,
      missing: undefined,
      suspendedLive: undefined,
    };
    this.#records.set(domid, record);
    if (this.#options.warmGuests === true) record.guest.warm();
    return record;
  }

  /** Domids are not used again at once, as on Xen. */
  #nextDomid(): number {
    for (let tries = 0; tries < MAX_DOMID; tries++) {
      this.#lastDomid = (this.#lastDomid % (MAX_DOMID - 1)) + 1;
      if (!this.#records.has(this.#lastDomid)) return this.#lastDomid;
    }
    throw refusal('XEN_DOMCTL_createdomain', Errno.ENOMEM, 'no domid is free');
  }

  async #remove(domid: number): Promise<void> {
    const record = this.#records.get(domid);
    if (record === undefined) return;
    // Nobody may find it from now on, but its memory must last as long as the thread that writes to it.
    record.state.dying = true;
    await record.guest.end();
    record.state.destroy();
  }
}
