/** Static data and TSC, which all kinds of x86 guests have in common. */
import type { Domain } from '../host/host.js';
import { StreamFormatError } from '../errors.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { RecordEvent } from '../stream/events.js';
import { LibxcRecord } from '../stream/libxc/constants.js';
import { decodeX86TscInfo } from '../stream/libxc/x86.js';
import type { MissingStaticData } from '../toolstack/toolstack.js';

const NO_BYTES = new Uint8Array(0);

/** X86_CPUID_POLICY and X86_MSR_POLICY until they are applied, and X86_TSC_INFO. */
export class X86StaticData {
  readonly #domain: Domain;
  #cpuid: Uint8Array = NO_BYTES;
  #msrs: Uint8Array = NO_BYTES;
  #complete = false;

  constructor(domain: Domain) {
    this.#domain = domain;
  }

  /** Takes the three records. Resolves to false if it is none of them. */
  async processRecord(record: RecordEvent): Promise<boolean> {
    switch (record.type) {
      case LibxcRecord.X86_CPUID_POLICY:
        this.#checkOpen(record);
        this.#cpuid = record.body;
        return true;
      case LibxcRecord.X86_MSR_POLICY:
        this.#checkOpen(record);
        this.#msrs = record.body;
        return true;
      case LibxcRecord.X86_TSC_INFO: {
        const { mode, khz, nsec, incarnation } = decodeX86TscInfo(record.body, record);
        await this.#domain.setTscInfo({ mode, khz, nsec, incarnation });
        return true;
      }
      default:
        return false;
    }
  }

  /** Applies the policy: both halves in one call, as Xen checks them against each other. */
  async complete(): Promise<MissingStaticData> {
    this.#complete = true;
    const missing = { cpuid: this.#cpuid.length === 0, msr: this.#msrs.length === 0 };
    if (!missing.cpuid || !missing.msr) {
      await this.#domain.setCpuPolicy({ cpuid: this.#cpuid, msrs: this.#msrs });
    }
    this.#cpuid = this.#msrs = NO_BYTES;
    return missing;
  }

  // Xen's receiver would keep it and never apply it: the guest would run with another CPU than it was promised.
  #checkOpen({ offset, name }: RecordEvent): void {
    if (!this.#complete) return;
    const reason = 'after the end of static data, where it could not be applied any more';
    throw new StreamFormatError(StreamErrorCode.ORDER, reason, { offset, record: name });
  }
}
