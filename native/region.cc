#include "region.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "addon.h"
#include "error.h"

namespace xm {

namespace {

/** Drawn at random once. Tells a PageMap from every other wrapped object. */
constexpr napi_type_tag kPageMapTag = {0x5f0c2a1be37d4896, 0xa4d81c6790e25b3f};

/** 4 GiB. A batch is 1024 pages; this only keeps a slip from becoming an enormous reservation. */
constexpr uint32_t kMaxPages = 1u << 20;

}  // namespace

Region::Region(void* base, std::size_t bytes, std::shared_ptr<MappedTotals> totals)
    : base_(base), bytes_(bytes), totals_(std::move(totals)) {
  totals_->regions += 1;
  totals_->bytes += bytes_;
}

Region::~Region() {
  if (live_) totals_->bytes -= bytes_;
  totals_->regions -= 1;
  munmap(base_, bytes_);
}

int Region::Seal() {
  if (!live_) return 0;
  // MAP_FIXED swaps old pages for new in one system call: there is no moment at which the addresses are unmapped.
  void* zero =
      mmap(base_, bytes_, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (zero == MAP_FAILED) return errno;
  live_ = false;
  totals_->bytes -= bytes_;
  return 0;
}

template <Napi::Value (*getter)(const Napi::CallbackInfo&)>
Napi::ClassPropertyDescriptor<PageMap> PageMap::GetterProperty(const char* name) {
  napi_property_descriptor descriptor = Napi::PropertyDescriptor::Accessor<getter>(name);
  return descriptor;
}

Napi::Function PageMap::Define(Napi::Env env) {
  return DefineClass(env, "PageMap",
                     {
                         InstanceMethod<&PageMap::Buffer>("buffer"),
                         InstanceMethod<&PageMap::Release>("release"),
                         GetterProperty<&PageMap::Live>("live"),
                         GetterProperty<&PageMap::ByteLength>("byteLength"),
                     });
}

PageMap::PageMap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<PageMap>(info) {
  const Napi::Env env = info.Env();
  Addon* addon = env.GetInstanceData<Addon>();
  region_ = addon->TakeRegion();
  if (region_ == nullptr) {
    const std::size_t bytes = IntegerArgument(info, 0, "pages", 1, kMaxPages) * kPageSize;
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw ErrnoError(env, "mmap", errno);
    region_ = std::make_shared<Region>(base, bytes, addon->mapped());
  }
  info.This().As<Napi::Object>().TypeTag(&kPageMapTag);
}

/**
 * The receiver of a getter. Node-API lets V8 check the receiver of methods, but not of accessors: there any object
 * may come, also one that wraps something else, and unwrapping that would be reading a stranger's memory.
 */
PageMap* PageMap::Receiver(const Napi::CallbackInfo& info) {
  const Napi::Value receiver = info.This();
  if (!receiver.IsObject() || !receiver.As<Napi::Object>().CheckTypeTag(&kPageMapTag)) {
    throw ArgumentTypeError(info.Env(), "the receiver is not a PageMap");
  }
  return Unwrap(receiver.As<Napi::Object>());
}

/** buffer(): the one ArrayBuffer over the pages. Throws after release(). */
Napi::Value PageMap::Buffer(const Napi::CallbackInfo& info) {
  if (!region_->live()) throw Napi::Error::New(info.Env(), "the pages were released");
  if (!buffer_.IsEmpty()) return buffer_.Value();
  auto share = std::make_unique<std::shared_ptr<Region>>(region_);
  auto buffer = Napi::ArrayBuffer::New(
      info.Env(), region_->base(), region_->bytes(),
      [](Napi::Env, void*, std::shared_ptr<Region>* held) { delete held; }, share.get());
  share.release();
  buffer_ = Napi::Persistent(buffer);
  return buffer;
}

/** release(): drops the pages now and detaches the ArrayBuffer, so that its views have length 0. Idempotent. */
Napi::Value PageMap::Release(const Napi::CallbackInfo& info) {
  if (const int errnum = region_->Seal()) throw ErrnoError(info.Env(), "mmap", errnum, "sealing released pages");
  if (!buffer_.IsEmpty()) {
    Napi::ArrayBuffer buffer = buffer_.Value();
    // structuredClone() or transfer() may have detached it before us.
    if (!buffer.IsDetached()) buffer.Detach();
    buffer_.Reset();
  }
  return info.Env().Undefined();
}

Napi::Value PageMap::Live(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), Receiver(info)->region_->live());
}

Napi::Value PageMap::ByteLength(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(Receiver(info)->region_->bytes()));
}

}  // namespace xm
