/** Which pages the guest has written to. */
#include <cstring>

#include "arguments.h"
#include "error.h"
#include "xen_handle.h"

namespace xm {

namespace {

/** 64 TiB of guest. More than Xen can run, and its bitmap still fits in an int's count of pages. */
constexpr uint64_t kMaxPages = uint64_t{1} << 34;

struct DirtyPages {
  std::unique_ptr<HypercallPages> bitmap;
  uint64_t pages;
  uint32_t dirty;
  uint32_t fault;
};

}  // namespace

// All of these are Length::kLong: they go through all of the guest's page tables or its whole bitmap, once in a pass.

Napi::Value Xen::EnableLogDirty(const Napi::CallbackInfo& info) {
  return RunDomctl(
      info, "shadow_op", XEN_DOMCTL_shadow_op,
      [](xen_domctl& domctl) { domctl.u.shadow_op.op = XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY; }, Length::kLong);
}

Napi::Value Xen::DisableLogDirty(const Napi::CallbackInfo& info) {
  return RunDomctl(
      info, "shadow_op", XEN_DOMCTL_shadow_op,
      [](xen_domctl& domctl) { domctl.u.shadow_op.op = XEN_DOMCTL_SHADOW_OP_OFF; }, Length::kLong);
}

Napi::Value Xen::LogDirty(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const bool clean = BooleanArgument(info, 1, "clean");
  const bool final = BooleanArgument(info, 2, "final");
  const uint64_t pages = FrameArgument(info, 4, "pages");
  if (pages < 1 || pages > kMaxPages) throw ArgumentRangeError(info.Env(), "pages is out of range");
  const std::size_t words = (pages + 31) / 32;
  auto bitmap = std::make_shared<Output>(info, 3, "bitmap", napi_uint32_array, words);
  return Run(
      info,
      [domid, clean, final, pages](Handles& handles) {
        // Xen writes whole bytes; whole 64-bit words leave room for whoever counts in longs.
        DirtyPages found = {std::make_unique<HypercallPages>(handles, (pages + 63) / 64 * 8), 0, 0, 0};
        xen_domctl domctl = NewDomctl(XEN_DOMCTL_shadow_op, domid);
        auto& shadow = domctl.u.shadow_op;
        shadow.op = clean ? XEN_DOMCTL_SHADOW_OP_CLEAN : XEN_DOMCTL_SHADOW_OP_PEEK;
        shadow.mode = final ? XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL : 0;
        shadow.pages = pages;
        found.bitmap->PointFrom(shadow.dirty_bitmap);
        handles.Domctl("shadow_op", domctl);
        found.pages = shadow.pages;
        found.dirty = shadow.stats.dirty_count;
        found.fault = shadow.stats.fault_count;
        return found;
      },
      [bitmap, words](Napi::Env env, DirtyPages& found) {
        if (void* to = bitmap->data()) std::memcpy(to, found.bitmap->as<void>(), words * 4);
        found.bitmap.reset();
        auto out = Napi::Object::New(env);
        out.Set("pages", static_cast<double>(found.pages));
        out.Set("dirtyCount", found.dirty);
        out.Set("faultCount", found.fault);
        return out;
      },
      Length::kLong);
}

}  // namespace xm
