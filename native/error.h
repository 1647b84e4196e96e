#pragma once

#include <napi.h>

#include <cstdint>
#include <string>

namespace xm {

/** An Error with `code` (ENOENT, …), `errno` (positive, as Xen counts) and `syscall`, as Node's own errors have. */
Napi::Error ErrnoError(Napi::Env env, const char* syscall, int errnum, const std::string& detail = {});

/** A TypeError or RangeError with Node's code for it. */
Napi::Error ArgumentTypeError(Napi::Env env, const std::string& message);
Napi::Error ArgumentRangeError(Napi::Env env, const std::string& message);

/** Argument `index` as a whole number from `min` to `max`; throws one of the two errors above. */
uint32_t IntegerArgument(const Napi::CallbackInfo& info, size_t index, const char* name, uint32_t min, uint32_t max);

}  // namespace xm
