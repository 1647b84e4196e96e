#include "hypervisor.h"

#include <cerrno>
#include <cstring>
#include <string>

#include "call_log.h"
#include "error.h"
#include "handles.h"
#include "xen_handle.h"

namespace xm {

namespace {

void SetVersion(const Handles& handles, Napi::Object& out) {
  const int version = Check("xc_version", xc_version(handles.xc(), XENVER_version, nullptr));
  xen_extraversion_t extra = {};
  Check("xc_version", xc_version(handles.xc(), XENVER_extraversion, &extra));
  xen_capabilities_info_t capabilities = {};
  Check("xc_version", xc_version(handles.xc(), XENVER_capabilities, &capabilities));
  out.Set("major", static_cast<uint32_t>(version) >> 16);
  out.Set("minor", static_cast<uint32_t>(version) & 0xffff);
  out.Set("extra", std::string(extra, strnlen(extra, sizeof extra)));
  out.Set("capabilities", std::string(capabilities, strnlen(capabilities, sizeof capabilities)));
}

void SetGuests(const Handles& handles, Napi::Object& out) {
  xc_physinfo_t physinfo = {};
  if (xc_physinfo(handles.xc(), &physinfo) != 0) {
    out.Set("physinfoErrno", errno);
    return;
  }
  const auto can = [&physinfo](uint32_t capability) { return (physinfo.capabilities & capability) != 0; };
  auto guests = Napi::Object::New(out.Env());
  guests.Set("pv", can(XEN_SYSCTL_PHYSCAP_pv));
  guests.Set("hvm", can(XEN_SYSCTL_PHYSCAP_hvm));
  guests.Set("hap", can(XEN_SYSCTL_PHYSCAP_hap));
  guests.Set("shadow", can(XEN_SYSCTL_PHYSCAP_shadow));
  out.Set("guests", guests);
}

/** Any hypervisor tells its version; what is done to domains it refuses to a library of another release, with EACCES.
 */
void TryDomctl(const Handles& handles, Napi::Object& out) {
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_getdomaininfo, 0);
  if (xc_domctl(handles.xc(), &domctl) != 0) out.Set("domctlErrno", errno);
}

}  // namespace

Napi::Value Hypervisor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  CallLog log(XTL_NUM_LEVELS);
  const CallLog::Capture capture(log);
  auto out = Napi::Object::New(env);
  try {
    const Handles handles;
    SetVersion(handles, out);
    SetGuests(handles, out);
    TryDomctl(handles, out);
  } catch (const CallError& error) {
    throw ErrnoError(env, error.syscall, error.errnum, log.error());
  }
  return out;
}

}  // namespace xm
