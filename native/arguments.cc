#include "arguments.h"

#include <cmath>
#include <cstring>
#include <string>

#include "error.h"

namespace xm {

namespace {

/** Frames are numbers that JavaScript can count to exactly, with room for the twelve bits of the address. */
constexpr double kMaxFrame = 1LL << 52;

struct View {
  void* data;
  size_t length;
};

const char* TypeName(napi_typedarray_type type) {
  switch (type) {
    case napi_uint8_array:
      return "Uint8Array";
    case napi_int32_array:
      return "Int32Array";
    case napi_uint32_array:
      return "Uint32Array";
    case napi_float64_array:
      return "Float64Array";
    default:
      return "typed array";
  }
}

/** The memory of a typed array of exactly this type. Node's Buffer is a Uint8Array. */
View ViewOf(const Napi::CallbackInfo& info, size_t index, const char* name, napi_typedarray_type type) {
  const Napi::Value value = info[index];
  napi_typedarray_type actual = napi_int8_array;
  View view = {nullptr, 0};
  if (value.IsTypedArray()) {
    const napi_status status =
        napi_get_typedarray_info(info.Env(), value, &actual, &view.length, &view.data, nullptr, nullptr);
    if (status == napi_ok && actual == type) return view;
  }
  throw ArgumentTypeError(info.Env(), std::string(name) + " must be a " + TypeName(type));
}

/** −1 and every whole frame number; false otherwise. */
bool ToFrame(double number, uint64_t* frame) {
  if (number == -1) {
    *frame = ~uint64_t{0};
    return true;
  }
  if (!(number >= 0 && number < kMaxFrame) || number != std::floor(number)) return false;
  *frame = static_cast<uint64_t>(number);
  return true;
}

}  // namespace

bool BooleanArgument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (!info[index].IsBoolean()) throw ArgumentTypeError(info.Env(), std::string(name) + " must be a boolean");
  return info[index].As<Napi::Boolean>().Value();
}

uint64_t BigIntArgument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (!info[index].IsBigInt()) throw ArgumentTypeError(info.Env(), std::string(name) + " must be a bigint");
  bool lossless = false;
  const uint64_t value = info[index].As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) throw ArgumentRangeError(info.Env(), std::string(name) + " must fit in 64 bits, unsigned");
  return value;
}

int32_t SignedArgument(const Napi::CallbackInfo& info, size_t index, const char* name, int32_t min) {
  if (!info[index].IsNumber()) throw ArgumentTypeError(info.Env(), std::string(name) + " must be a number");
  const double number = info[index].As<Napi::Number>().DoubleValue();
  if (!(number >= min && number <= INT32_MAX) || number != std::floor(number)) {
    throw ArgumentRangeError(info.Env(), std::string(name) + " must be a whole number from " + std::to_string(min));
  }
  return static_cast<int32_t>(number);
}

uint64_t FrameArgument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (!info[index].IsNumber()) throw ArgumentTypeError(info.Env(), std::string(name) + " must be a number");
  uint64_t frame = 0;
  if (!ToFrame(info[index].As<Napi::Number>().DoubleValue(), &frame)) {
    throw ArgumentRangeError(info.Env(), std::string(name) + " must be a frame number, or -1");
  }
  return frame;
}

std::vector<uint64_t> FramesArgument(const Napi::CallbackInfo& info, size_t index, const char* name, size_t max) {
  const View view = ViewOf(info, index, name, napi_float64_array);
  if (view.length < 1 || view.length > max) {
    throw ArgumentRangeError(info.Env(), std::string(name) + " must hold from 1 to " + std::to_string(max) + " frames");
  }
  std::vector<uint64_t> frames(view.length);
  const double* numbers = static_cast<const double*>(view.data);
  for (size_t i = 0; i < frames.size(); i++) {
    if (!ToFrame(numbers[i], &frames[i])) {
      throw ArgumentRangeError(info.Env(),
                               std::string(name) + "[" + std::to_string(i) + "] must be a frame number, or -1");
    }
  }
  return frames;
}

std::vector<uint8_t> BytesArgument(const Napi::CallbackInfo& info, size_t index, const char* name, size_t max) {
  const View view = ViewOf(info, index, name, napi_uint8_array);
  if (view.length > max) {
    throw ArgumentRangeError(info.Env(),
                             std::string(name) + " may not be longer than " + std::to_string(max) + " bytes");
  }
  const uint8_t* bytes = static_cast<const uint8_t*>(view.data);
  return std::vector<uint8_t>(bytes, bytes + view.length);
}

Output::Output(const Napi::CallbackInfo& info, size_t index, const char* name, napi_typedarray_type type,
               size_t min_length)
    : min_length_(min_length) {
  if (ViewOf(info, index, name, type).length < min_length) {
    throw ArgumentRangeError(info.Env(),
                             std::string(name) + " must hold at least " + std::to_string(min_length) + " elements");
  }
  array_ = Napi::Persistent(info[index].As<Napi::Object>());
}

void* Output::data() const {
  View view = {nullptr, 0};
  const napi_status status =
      napi_get_typedarray_info(array_.Env(), array_.Value(), nullptr, &view.length, &view.data, nullptr, nullptr);
  return status == napi_ok && view.length >= min_length_ ? view.data : nullptr;
}

}  // namespace xm
