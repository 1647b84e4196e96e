#include "error.h"

#include <cmath>
#include <cstring>

namespace xm {

namespace {

std::string ErrnoName(int errnum) {
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 32)
  if (const char* name = strerrorname_np(errnum)) return name;
#endif
  return "errno " + std::to_string(errnum);
}

}  // namespace

Napi::Error ErrnoError(Napi::Env env, const char* syscall, int errnum, const std::string& detail) {
  const std::string name = ErrnoName(errnum);
  std::string message = std::string(syscall) + ": " + name + ", " + std::strerror(errnum);
  if (!detail.empty()) message += " (" + detail + ")";
  auto error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, name));
  error.Set("errno", Napi::Number::New(env, errnum));
  error.Set("syscall", Napi::String::New(env, syscall));
  return error;
}

Napi::Error ArgumentTypeError(Napi::Env env, const std::string& message) {
  auto error = Napi::TypeError::New(env, message);
  error.Set("code", Napi::String::New(env, "ERR_INVALID_ARG_TYPE"));
  return error;
}

Napi::Error ArgumentRangeError(Napi::Env env, const std::string& message) {
  auto error = Napi::RangeError::New(env, message);
  error.Set("code", Napi::String::New(env, "ERR_OUT_OF_RANGE"));
  return error;
}

uint32_t IntegerArgument(const Napi::CallbackInfo& info, size_t index, const char* name, uint32_t min, uint32_t max) {
  const Napi::Value value = info[index];
  if (!value.IsNumber()) throw ArgumentTypeError(info.Env(), std::string(name) + " must be a number");
  // As a double first: converting to an integer type would wrap, and NaN would become 0.
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= min && number <= max) || number != std::floor(number)) {
    throw ArgumentRangeError(info.Env(), std::string(name) + " must be a whole number from " + std::to_string(min) +
                                             " to " + std::to_string(max));
  }
  return static_cast<uint32_t>(number);
}

}  // namespace xm
