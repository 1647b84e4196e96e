#pragma once

#include <napi.h>

#include <cstdint>
#include <string>

/*
 * Exceptions and worker.terminate(): a terminated environment refuses every call, so a C++ exception can no longer
 * become a JavaScript one. NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS (binding.gyp) drops it; without it, the exception
 * would leave the C frame of the callback and abort the whole process.
 */
namespace xm {

/** An Error with `code` (ENOENT, …), `errno` (positive, as Xen counts) and `syscall`, as Node's own errors have. */
Napi::Error ErrnoError(Napi::Env env, const char* syscall, int errnum, const std::string& detail = {});

/** A TypeError or RangeError with Node's code for it. */
Napi::Error ArgumentTypeError(Napi::Env env, const std::string& message);
Napi::Error ArgumentRangeError(Napi::Env env, const std::string& message);

/** Argument `index` as a whole number from `min` to `max`; throws one of the two errors above. */
uint32_t IntegerArgument(const Napi::CallbackInfo& info, size_t index, const char* name, uint32_t min, uint32_t max);

}  // namespace xm
