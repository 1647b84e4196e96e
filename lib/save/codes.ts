/** Reasons for which a save gives up on the guest, as `code` of a GuestError. */
export const SaveErrorCode = {
  /** The domain is dying or gone. */
  GUEST_GONE: 'ERR_XEN_GUEST_GONE',
  /** The domain is shut down for another reason than suspend: it crashed, powered off, … */
  NOT_RUNNING: 'ERR_XEN_GUEST_NOT_RUNNING',
  /** The toolstack said that the guest is suspended; the hypervisor says that it is not. */
  NOT_SUSPENDED: 'ERR_XEN_GUEST_NOT_SUSPENDED',
  /** More frames than the formats or this library can take. */
  TOO_BIG: 'ERR_XEN_GUEST_TOO_BIG',
  /** The guest's physmap shrank under the save. */
  PHYSMAP_CHANGED: 'ERR_XEN_GUEST_PHYSMAP_CHANGED',
  /** The PV guest replaced parts of its p2m under the save. */
  P2M_CHANGED: 'ERR_XEN_GUEST_P2M_CHANGED',
  /** The PV guest's p2m cannot be followed. */
  P2M_INVALID: 'ERR_XEN_GUEST_P2M_INVALID',
  /** A page table of the suspended PV guest names a frame that is not the guest's. */
  PAGE_TABLE: 'ERR_XEN_GUEST_PAGE_TABLE',
  /** The PV guest maps a superpage; such guests cannot be migrated. */
  SUPERPAGE: 'ERR_XEN_GUEST_SUPERPAGE',
  /** A vcpu's registers name a frame that is not the guest's, or cannot be. */
  VCPU_STATE: 'ERR_XEN_GUEST_VCPU_STATE',
  /** The image is complete, and the guest could not be destroyed: it is suspended, and exists twice. */
  NOT_DESTROYED: 'ERR_XEN_GUEST_NOT_DESTROYED',
  /** The image is complete, and the guest could not be resumed: it is suspended. */
  NOT_RESUMED: 'ERR_XEN_GUEST_NOT_RESUMED',
} as const;
