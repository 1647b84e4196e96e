/**
 * `xen-migration/testing`: a host without Xen, for tests of what is built on this library and for trying it out.
 */
export { SimulatedHost, type SimulatedHostOptions } from './host/simulated/host.js';
export {
  SimulatedToolstack,
  type CreateGuestOptions,
  type DomainRecord,
  type PvPeculiarities,
} from './host/simulated/toolstack.js';
export {
  SimulatedGuest,
  type GuestKind,
  type GuestStats,
  type SuspendBehaviour,
} from './host/simulated/guest.js';
export type { CheckResult } from './host/simulated/guest/program.js';
export type { GuestFault } from './host/simulated/guest/registers.js';
export type { Workload, WorkloadKind } from './host/simulated/guest/workload.js';
export { DomainState, type DomainType, type GrantEntry } from './host/simulated/domain-state.js';
export type { FrameBooks, MachineFrames } from './host/simulated/machine-frames.js';
export { MachineMemory } from './host/simulated/memory.js';
export { SimulatedDeviceModel } from './host/simulated/device-model.js';
export {
  Faults,
  type ArmedFault,
  type CallRecord,
  type Fault,
  type SimulatedCall,
} from './host/simulated/faults.js';
export type { LogDirty } from './host/simulated/log-dirty.js';
export type { HvmParams } from './host/simulated/hvm-params.js';
export type { MissingFeature } from './host/simulated/cpu-policy.js';
export type { SimulatedNotes } from './host/simulated/notes.js';
