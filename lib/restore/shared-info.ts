/** A PV guest's shared info page: what it takes from the stream, and what begins anew. */
import { PAGE_SIZE } from '../abi/pages.js';
import { type GuestWidth, LEGACY_MAX_VCPUS, SHARED_INFO, VCPU_INFO_SIZE } from '../abi/pv.js';

/**
 * Writes the saved page `from` into the new domain's page `to`.
 *
 *     vcpu_info[32], arch             from the stream, but
 *     vcpu_info[].evtchn_pending_sel  0
 *     arch.pfn_to_mfn_frame_list_list 0: the guest tells it again when it resumes
 *     evtchn_pending                  0: no event channel of the old host is left
 *     evtchn_mask                     all ones
 *     all else (wall clock)           the new domain's own
 */
export function restoreSharedInfo(to: Uint8Array, from: Uint8Array, width: GuestWidth): void {
  const layout = SHARED_INFO[width];
  // A copy first: the mapped page belongs to a domain, and single stores of bytes into it are slow and visible.
  const page = new Uint8Array(PAGE_SIZE);
  page.set(to.subarray(0, PAGE_SIZE));
  const vcpuInfo = LEGACY_MAX_VCPUS * VCPU_INFO_SIZE;
  page.set(from.subarray(0, vcpuInfo));
  page.set(from.subarray(layout.arch, layout.arch + layout.archBytes), layout.arch);
  page.fill(0, layout.frameListList, layout.frameListList + width);
  page.fill(0, layout.evtchnPending, layout.evtchnPending + layout.evtchnBytes);
  page.fill(0xff, layout.evtchnMask, layout.evtchnMask + layout.evtchnBytes);
  for (let vcpu = 0; vcpu < LEGACY_MAX_VCPUS; vcpu++) {
    const at = vcpu * VCPU_INFO_SIZE + layout.pendingSel;
    page.fill(0, at, at + width);
  }
  to.set(page);
}
