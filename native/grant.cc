/** The grant table of a domain. */
#include "arguments.h"
#include "error.h"
#include "xen_handle.h"

namespace xm {

Napi::Value Xen::SeedGrantTable(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const bool hvm = BooleanArgument(info, 1, "hvm");
  const uint64_t console = FrameArgument(info, 2, "consoleGfn");
  const uint64_t store = FrameArgument(info, 3, "storeGfn");
  const uint16_t console_domid = DomidArgument(info, 4);
  const uint16_t store_domid = DomidArgument(info, 5);
  return Run(info, [=](Handles& handles) {
    handles.Count("gnttab_seed");
    Check("xc_dom_gnttab_seed",
          xc_dom_gnttab_seed(handles.xc(), domid, hvm, console, store, console_domid, store_domid));
  });
}

}  // namespace xm
