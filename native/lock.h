#pragma once

#include <napi.h>

namespace xm {

/** lockFile(fd): a POSIX record lock for writing on the first byte, as libxc takes it. Does not wait: EAGAIN or EACCES.
 */
Napi::Value LockFile(const Napi::CallbackInfo& info);

}  // namespace xm
