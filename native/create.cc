/** New domains, as far as tests and domains without devices need them. */
#include <cstring>

#include "arguments.h"
#include "error.h"
#include "xen_handle.h"

namespace xm {

namespace {

/** Version 1 is what every guest can do; 2 only matters above 16 TiB. */
constexpr unsigned kGrantVersion = 1;

uint32_t Member(const Napi::CallbackInfo& info, const Napi::Object& config, const char* name, double min, double max) {
  const Napi::Value value = config.Get(name);
  if (!value.IsNumber()) throw ArgumentTypeError(info.Env(), std::string("config.") + name + " must be a number");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= min && number <= max) || number != static_cast<double>(static_cast<int64_t>(number))) {
    throw ArgumentRangeError(info.Env(), std::string("config.") + name + " is out of range");
  }
  // −1 becomes ~0, which is how Xen spells "the host's default".
  return static_cast<uint32_t>(static_cast<int64_t>(number));
}

bool Choice(const Napi::CallbackInfo& info, const Napi::Object& config, const char* name) {
  const Napi::Value value = config.Get(name);
  if (!value.IsBoolean()) throw ArgumentTypeError(info.Env(), std::string("config.") + name + " must be a boolean");
  return value.As<Napi::Boolean>().Value();
}

}  // namespace

Napi::Value Xen::CreateDomain(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsObject()) throw ArgumentTypeError(env, "config must be an object");
  const auto config = info[0].As<Napi::Object>();
  xen_domctl_createdomain wanted;
  std::memset(&wanted, 0, sizeof wanted);
  const bool hvm = Choice(info, config, "hvm");
  const bool hap = Choice(info, config, "hap");
  if (hvm) wanted.flags |= XEN_DOMCTL_CDF_hvm;
  if (hvm && hap) wanted.flags |= XEN_DOMCTL_CDF_hap;
  const Napi::Value handle = config.Get("handle");
  if (!handle.IsTypedArray() || handle.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw ArgumentTypeError(env, "config.handle must be a Uint8Array");
  }
  const auto bytes = handle.As<Napi::Uint8Array>();
  if (bytes.ByteLength() != sizeof wanted.handle) throw ArgumentRangeError(env, "config.handle must be 16 bytes");
  std::memcpy(wanted.handle, bytes.Data(), sizeof wanted.handle);
  wanted.max_vcpus = Member(info, config, "maxVcpus", 1, 8192);
  wanted.max_evtchn_port = Member(info, config, "maxEvtchnPort", -1, INT32_MAX);
  wanted.max_grant_frames = static_cast<int32_t>(Member(info, config, "maxGrantFrames", -1, INT32_MAX));
  wanted.max_maptrack_frames = static_cast<int32_t>(Member(info, config, "maxMaptrackFrames", -1, INT32_MAX));
  wanted.arch.emulation_flags = Member(info, config, "emulationFlags", 0, UINT32_MAX);
  compat::GrantVersion<xen_domctl_createdomain>::Set(wanted, kGrantVersion);
  return Run(
      info,
      [wanted](Handles& handles) mutable {
        uint32_t domid = 0;
        handles.Count("createdomain");
        Check("xc_domain_create", xc_domain_create(handles.xc(), &domid, &wanted));
        return domid;
      },
      [](Napi::Env out, uint32_t& domid) { return Napi::Number::New(out, domid); });
}

Napi::Value Xen::SetMaxVcpus(const Napi::CallbackInfo& info) {
  const uint32_t vcpus = IntegerArgument(info, 1, "vcpus", 1, 8192);
  return RunDomctl(info, "max_vcpus", XEN_DOMCTL_max_vcpus,
                   [vcpus](xen_domctl& domctl) { domctl.u.max_vcpus.max = vcpus; });
}

Napi::Value Xen::SetMaxMemory(const Napi::CallbackInfo& info) {
  const uint32_t kib = IntegerArgument(info, 1, "kib", 0, UINT32_MAX);
  return RunDomctl(info, "max_mem", XEN_DOMCTL_max_mem,
                   [kib](xen_domctl& domctl) { domctl.u.max_mem.max_memkb = kib; });
}

Napi::Value Xen::SetPagingAllocation(const Napi::CallbackInfo& info) {
  const uint32_t mib = IntegerArgument(info, 1, "mib", 0, 1u << 20);
  return RunDomctl(
      info, "shadow_op", XEN_DOMCTL_shadow_op,
      [mib](xen_domctl& domctl) {
        domctl.u.shadow_op.op = XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION;
        domctl.u.shadow_op.mb = mib;
      },
      Length::kLong);
}

}  // namespace xm
