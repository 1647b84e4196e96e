/** HVM parameters of a simulated domain, with the rules of Xen's hvm_set_param. */
import { Errno } from '../../abi/errno.js';
import { HvmParam, hvmParamName } from '../../abi/hvm.js';
import { refusal } from './refuse.js';

/** HVM_NR_PARAMS of Xen 4.14 to 4.22. */
const NR_PARAMS = 39;
/** Numbers that meant something once: PAE_ENABLED, DM_DOMAIN, the MEMORY_EVENTs, NESTEDHVM, … */
const DEPRECATED: ReadonlySet<number> = new Set([HvmParam.PAE_ENABLED, 13, 20, 21, 22, 23, 24, 25, 26, 30]);
/** May be set once: another value later is EEXIST. */
const ONCE: ReadonlySet<number> = new Set([
  HvmParam.VIRIDIAN,
  HvmParam.IOREQ_PFN,
  HvmParam.BUFIOREQ_PFN,
  HvmParam.IOREQ_SERVER_PFN,
  HvmParam.NR_IOREQ_SERVER_PAGES,
  HvmParam.MCA_CAP,
]);
/** Bits of the mask that Xen keeps of them. */
const MAX_IOREQ_PAGES = 64n;
/** The smallest size, in the high half of VM86_TSS_SIZED: a TSS without bitmaps. */
const LEAST_TSS = 104n;
/** HVM_PARAM_TRIPLE_FAULT_REASON, and its value in a new domain: SHUTDOWN_reboot. */
const TRIPLE_FAULT_REASON = 31;
const REBOOT = 1n;
const LAST_SHUTDOWN_REASON = 5n;

/** Values that Xen refuses. */
function isAcceptable(index: number, value: bigint): boolean {
  switch (index) {
    case HvmParam.VIRIDIAN:
      // Any enlightenment needs the base and frequency ones, bit 0.
      return value < 1n << 16n && (value & 1n) === 1n;
    case HvmParam.ACPI_IOPORTS_LOCATION:
      return value <= 1n;
    case HvmParam.NR_IOREQ_SERVER_PAGES:
      return value >= 1n && value <= MAX_IOREQ_PAGES;
    case HvmParam.X87_FIP_WIDTH:
      return value === 0n || value === 4n || value === 8n;
    case HvmParam.MCA_CAP:
      return value <= 1n;
    case HvmParam.VM86_TSS_SIZED:
      return value >= LEAST_TSS << 32n && value < 1n << 64n;
    case TRIPLE_FAULT_REASON:
      return value <= LAST_SHUTDOWN_REASON;
    default:
      return value >= 0n && value < 1n << 64n;
  }
}

export class HvmParams {
  readonly #values = new Map<number, bigint>([[TRIPLE_FAULT_REASON, REBOOT]]);
  readonly #domid: number;
  /** A PVH guest has no power management, and so no ports of it. */
  readonly #hasAcpiPorts: boolean;

  constructor(domid: number, hasAcpiPorts = true) {
    this.#domid = domid;
    this.#hasAcpiPorts = hasAcpiPorts;
  }

  get(index: number): bigint {
    this.#checkIndex('HVMOP_get_param', index);
    return this.#values.get(index) ?? 0n;
  }

  set(index: number, value: bigint): void {
    this.#checkIndex('HVMOP_set_param', index);
    const name = hvmParamName(index);
    const old = this.#values.get(index) ?? 0n;
    if (ONCE.has(index) && old !== 0n && old !== value) {
      throw refusal('HVMOP_set_param', Errno.EEXIST, `${name} is set already`, this.#domid);
    }
    if (index === HvmParam.ACPI_IOPORTS_LOCATION && !this.#hasAcpiPorts) {
      throw refusal('HVMOP_set_param', Errno.ENODEV, `${name}: the domain has none`, this.#domid);
    }
    if (!isAcceptable(index, value)) {
      throw refusal(
        'HVMOP_set_param',
        Errno.EINVAL,
        `${name} cannot be 0x${value.toString(16)}`,
        this.#domid,
      );
    }
    this.#values.set(index, value);
  }

  /** All parameters that are not zero or were set, ascending. */
  entries(): [index: number, value: bigint][] {
    return [...this.#values].sort(([a], [b]) => a - b);
  }

  #checkIndex(syscall: string, index: number): void {
    if (!Number.isInteger(index) || index < 0 || index >= NR_PARAMS) {
      throw refusal(syscall, Errno.EINVAL, `no parameter ${String(index)}`, this.#domid);
    }
    if (DEPRECATED.has(index)) {
      throw refusal(syscall, Errno.EINVAL, `parameter ${String(index)} is of the past`, this.#domid);
    }
  }
}
