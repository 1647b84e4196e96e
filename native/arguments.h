#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace xm {

/*
 * Reading arguments. Everything is copied before the call returns, so that no thread but JavaScript's ever looks at a
 * buffer of JavaScript. All throw a TypeError or RangeError that names the argument.
 */

bool BooleanArgument(const Napi::CallbackInfo& info, size_t index, const char* name);
uint64_t BigIntArgument(const Napi::CallbackInfo& info, size_t index, const char* name);
int32_t SignedArgument(const Napi::CallbackInfo& info, size_t index, const char* name, int32_t min);

/** A frame number, or −1 for none, which is ~0 to Xen. */
uint64_t FrameArgument(const Napi::CallbackInfo& info, size_t index, const char* name);
/** A Float64Array of frames, −1 being ~0; from 1 to `max` of them. */
std::vector<uint64_t> FramesArgument(const Napi::CallbackInfo& info, size_t index, const char* name, size_t max);
/** The bytes of a Uint8Array, at most `max`. */
std::vector<uint8_t> BytesArgument(const Napi::CallbackInfo& info, size_t index, const char* name, size_t max);

/** A frame as JavaScript counts it: −1 for ~0. */
inline double FrameToNumber(uint64_t frame) { return frame == ~uint64_t{0} ? -1 : static_cast<double>(frame); }

/**
 * A typed array to be written when the call has ended: kept from being collected until then, and looked up again then,
 * because it may have been detached or shrunk meanwhile. Lives and dies on the thread of JavaScript.
 */
class Output {
 public:
  Output(const Napi::CallbackInfo& info, size_t index, const char* name, napi_typedarray_type type, size_t min_length);

  /** Where to write, if there is still room for as much as was asked for; null otherwise. */
  void* data() const;

 private:
  Napi::ObjectReference array_;
  size_t min_length_;
};

}  // namespace xm
