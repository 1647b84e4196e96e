#pragma once

#include <napi.h>

namespace xm {

/** hypervisor(): the running Xen, as HypervisorVersion of native.ts has it. Throws an errno error where there is none.
 */
Napi::Value Hypervisor(const Napi::CallbackInfo& info);

}  // namespace xm
