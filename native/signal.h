#pragma once

#include <napi.h>

namespace xm {

/** unblockSignal(signal): takes one signal out of this thread's mask. */
Napi::Value UnblockSignal(const Napi::CallbackInfo& info);

}  // namespace xm
