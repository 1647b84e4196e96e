#pragma once

#include <napi.h>

namespace xm {

/** hypervisor(): { major, minor, extra } of the running Xen. Throws an errno error where there is none. */
Napi::Value Hypervisor(const Napi::CallbackInfo& info);

}  // namespace xm
