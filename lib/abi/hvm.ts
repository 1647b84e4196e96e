/** HVM parameters, from Xen's public hvm/params.h. */
export const HvmParam = {
  CALLBACK_IRQ: 0,
  STORE_PFN: 1,
  STORE_EVTCHN: 2,
  PAE_ENABLED: 4,
  IOREQ_PFN: 5,
  BUFIOREQ_PFN: 6,
  VIRIDIAN: 9,
  TIMER_MODE: 10,
  IDENT_PT: 12,
  ACPI_S_STATE: 14,
  VM86_TSS: 15,
  CONSOLE_PFN: 17,
  CONSOLE_EVTCHN: 18,
  ACPI_IOPORTS_LOCATION: 19,
  PAGING_RING_PFN: 27,
  MONITOR_RING_PFN: 28,
  SHARING_RING_PFN: 29,
  IOREQ_SERVER_PFN: 32,
  NR_IOREQ_SERVER_PAGES: 33,
  VM_GENERATION_ID_ADDR: 34,
  X87_FIP_WIDTH: 36,
  VM86_TSS_SIZED: 37,
  MCA_CAP: 38,
} as const;

/** Name of a parameter, or its number in decimal. */
export function hvmParamName(index: number): string {
  for (const [name, value] of Object.entries(HvmParam)) if (value === index) return name;
  return String(index);
}

/** The parameters that a save sends when they are not zero, in this order (xg_sr_save_x86_hvm.c). */
export const SAVED_HVM_PARAMS: readonly number[] = [
  HvmParam.STORE_PFN,
  HvmParam.IOREQ_PFN,
  HvmParam.BUFIOREQ_PFN,
  HvmParam.PAGING_RING_PFN,
  HvmParam.MONITOR_RING_PFN,
  HvmParam.SHARING_RING_PFN,
  HvmParam.VM86_TSS_SIZED,
  HvmParam.CONSOLE_PFN,
  HvmParam.ACPI_IOPORTS_LOCATION,
  HvmParam.VIRIDIAN,
  HvmParam.IDENT_PT,
  HvmParam.VM_GENERATION_ID_ADDR,
  HvmParam.IOREQ_SERVER_PFN,
  HvmParam.NR_IOREQ_SERVER_PAGES,
  HvmParam.X87_FIP_WIDTH,
  HvmParam.MCA_CAP,
];
