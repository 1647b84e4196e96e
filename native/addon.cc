#include "addon.h"

#include "blocking_fd.h"
#include "lock.h"
#include "probe.h"
#include "signal.h"
#include "watch.h"
#if XM_HAVE_XEN
#include "evtchn.h"
#include "hypervisor.h"
#include "xen_handle.h"
#endif

namespace xm {

Addon::Addon(Napi::Env env, Napi::Object exports) {
  DefineAddon(exports, {
                           InstanceValue("build", BuildFacts(env), napi_enumerable),
                           InstanceMethod<&Addon::Mapped>("mapped", napi_enumerable),
                       });
  const Napi::Function page_map = PageMap::Define(env);
  page_map_ = Napi::Persistent(page_map);
  exports.Set("PageMap", page_map);
  exports.Set("BlockingFd", BlockingFd::Define(env));
  exports.Set("watchReadable", Napi::Function::New<WatchReadable>(env, "watchReadable"));
  exports.Set("lockFile", Napi::Function::New<LockFile>(env, "lockFile"));
  exports.Set("unblockSignal", Napi::Function::New<UnblockSignal>(env, "unblockSignal"));
#if XM_HAVE_XEN
  exports.Set("hypervisor", Napi::Function::New<Hypervisor>(env, "hypervisor"));
  exports.Set("Xen", Xen::Define(env));
  exports.Set("Evtchn", Evtchn::Define(env));
#endif
}

Napi::Object Addon::NewPageMap(std::shared_ptr<Region> region) {
  // Handed over beside the arguments: what JavaScript can pass, it could forge.
  region_ = std::move(region);
  try {
    return page_map_.Value().New({});
  } catch (const Napi::Error&) {
    region_.reset();
    throw;
  }
}

/** mapped(): { regions, bytes }: what this environment holds, also what JavaScript forgot to release. */
Napi::Value Addon::Mapped(const Napi::CallbackInfo& info) {
  auto out = Napi::Object::New(info.Env());
  out.Set("regions", static_cast<double>(mapped_->regions.load()));
  out.Set("bytes", static_cast<double>(mapped_->bytes.load()));
  return out;
}

}  // namespace xm

namespace {
using Addon = xm::Addon;
NODE_API_ADDON(Addon)
}  // namespace
