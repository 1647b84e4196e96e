#pragma once

#include <napi.h>

namespace xm {

/** watchReadable(fd, callback, keepAlive = false): a NativeFdWatch; see native.ts. */
Napi::Value WatchReadable(const Napi::CallbackInfo& info);

}  // namespace xm
