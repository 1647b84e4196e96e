/** Who can build a guest: this library's own toolstack, or libxl's tools alone. */
import { NeedsLibxl, planDomain } from '../xen/plan.js';

/**
 * True if a guest has what only libxl's tools can build: disks, network interfaces, a device model (HVM), rights to
 * hardware. False if this library's own toolstack can build it, and for what is no usable configuration at all, which it
 * can say better than xl.
 *
 * @param config libxl_domain_config as JSON
 */
export function needsXl(config: string): boolean {
  try {
    planDomain(config);
    return false;
  } catch (error) {
    return error instanceof NeedsLibxl;
  }
}
