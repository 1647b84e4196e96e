#include "addon.h"

#include "blocking_fd.h"
#include "probe.h"
#include "signal.h"
#include "watch.h"
#if XM_HAVE_XEN
#include "hypervisor.h"
#endif

namespace xm {

Addon::Addon(Napi::Env env, Napi::Object exports) {
  DefineAddon(exports, {
                           InstanceValue("build", BuildFacts(env), napi_enumerable),
                           InstanceMethod<&Addon::Mapped>("mapped", napi_enumerable),
                       });
  exports.Set("PageMap", PageMap::Define(env));
  exports.Set("BlockingFd", BlockingFd::Define(env));
  exports.Set("watchReadable", Napi::Function::New<WatchReadable>(env, "watchReadable"));
  exports.Set("unblockSignal", Napi::Function::New<UnblockSignal>(env, "unblockSignal"));
#if XM_HAVE_XEN
  exports.Set("hypervisor", Napi::Function::New<Hypervisor>(env, "hypervisor"));
#endif
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
