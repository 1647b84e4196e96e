#pragma once

/*
 * What differs between the Xen releases that this compiles against (4.14 to 4.22), all of it. Included by xen.h alone.
 *
 * Little is left, because whatever changed its C signature is asked for below libxenctrl's functions instead:
 * log-dirty, page types, vcpu state and CPU policies by xc_domctl(), memory by libxencall. These structures keep their
 * layout from 4.14 to 4.22; libxenctrl fills in the interface version. XEN_DOMCTL_INTERFACE_VERSION tells the release:
 * 0x12 is 4.14, 0x13 4.15, 0x14 4.16, 0x15 4.17, 0x16 4.18, 0x17 4.19 to 4.21, 0x18 4.22.
 */

#include <type_traits>

static_assert(XEN_DOMCTL_INTERFACE_VERSION >= 0x12, "Xen 4.14 or later");
static_assert(sizeof(xen_pfn_t) == 8, "64-bit x86 only");

#if XEN_DOMCTL_INTERFACE_VERSION < 0x13
// 4.14 exports it, but declares it beside the domain builder, in a header that drags in libelf.
extern "C" int xc_dom_gnttab_seed(xc_interface* xch, uint32_t guest_domid, bool is_hvm, xen_pfn_t console_gfn,
                                  xen_pfn_t xenstore_gfn, uint32_t console_domid, uint32_t xenstore_domid);
#endif

namespace xm::compat {

/** 4.16 and later refuse a domain that names no grant table version; before, there was nothing to name. */
template <class Config, class = void>
struct GrantVersion {
  static void Set(Config&, unsigned) {}
};
template <class Config>
struct GrantVersion<Config, std::void_t<decltype(Config::grant_opts)>> {
  static void Set(Config& config, unsigned version) { config.grant_opts = version; }
};

}  // namespace xm::compat
