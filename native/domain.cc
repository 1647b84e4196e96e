/** What a domain is, and its life: information, pause, shutdown, resume, destruction, its event channels. */
#include <algorithm>
#include <vector>

#include "arguments.h"
#include "error.h"
#include "xen_handle.h"

namespace xm {

namespace {

constexpr uint32_t kMaxList = 1024;

bool Flag(const xen_domctl_getdomaininfo& info, uint32_t flag) { return (info.flags & flag) != 0; }

Napi::Object ToObject(Napi::Env env, const xen_domctl_getdomaininfo& info) {
  auto out = Napi::Object::New(env);
  out.Set("domid", static_cast<uint32_t>(info.domain));
  out.Set("hvm", Flag(info, XEN_DOMINF_hvm_guest));
  out.Set("dying", Flag(info, XEN_DOMINF_dying));
  out.Set("shutdown", Flag(info, XEN_DOMINF_shutdown));
  out.Set("paused", Flag(info, XEN_DOMINF_paused));
  out.Set("blocked", Flag(info, XEN_DOMINF_blocked));
  out.Set("running", Flag(info, XEN_DOMINF_running));
  out.Set("shutdownReason", (info.flags >> XEN_DOMINF_shutdownshift) & XEN_DOMINF_shutdownmask);
  out.Set("totPages", static_cast<double>(info.tot_pages));
  out.Set("maxPages", static_cast<double>(info.max_pages));
  out.Set("outstandingPages", static_cast<double>(info.outstanding_pages));
  out.Set("sharedInfoFrame", FrameToNumber(info.shared_info_frame));
  out.Set("onlineVcpus", info.nr_online_vcpus);
  // ~0 if the domain has no vcpu yet.
  out.Set("maxVcpuId", static_cast<int32_t>(info.max_vcpu_id));
  out.Set("cpuTime", Napi::BigInt::New(env, static_cast<uint64_t>(info.cpu_time)));
  out.Set("handle", NewBytes(env, std::vector<uint8_t>(info.handle, info.handle + sizeof info.handle)));
  return out;
}

}  // namespace

Napi::Value Xen::ListDomains(const Napi::CallbackInfo& info) {
  const uint32_t first = IntegerArgument(info, 0, "first", 0, DOMID_FIRST_RESERVED);
  const uint32_t max = IntegerArgument(info, 1, "max", 1, kMaxList);
  return Run(
      info,
      [first, max](Handles& handles) {
        std::vector<xc_domaininfo_t> list(max);
        handles.Count("getdomaininfolist");
        list.resize(Check("xc_domain_getinfolist", xc_domain_getinfolist(handles.xc(), first, max, list.data())));
        return list;
      },
      [](Napi::Env env, std::vector<xc_domaininfo_t>& list) {
        auto out = Napi::Array::New(env, list.size());
        for (uint32_t i = 0; i < list.size(); i++) out.Set(i, ToObject(env, list[i]));
        return out;
      });
}

/** XEN_DOMCTL_getdomaininfo never looks further than the domain asked for, as the list does. */
Napi::Value Xen::DomainInfo(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  return Run(
      info,
      [domid](Handles& handles) {
        xen_domctl domctl = NewDomctl(XEN_DOMCTL_getdomaininfo, domid);
        handles.Domctl("getdomaininfo", domctl);
        if (domctl.u.getdomaininfo.domain != domid) throw CallError{"getdomaininfo", ESRCH};
        return domctl.u.getdomaininfo;
      },
      [](Napi::Env env, xen_domctl_getdomaininfo& found) { return ToObject(env, found); });
}

Napi::Value Xen::Pause(const Napi::CallbackInfo& info) {
  return RunDomctl(info, "pausedomain", XEN_DOMCTL_pausedomain, [](xen_domctl&) {});
}

Napi::Value Xen::Unpause(const Napi::CallbackInfo& info) {
  return RunDomctl(info, "unpausedomain", XEN_DOMCTL_unpausedomain, [](xen_domctl&) {});
}

Napi::Value Xen::Destroy(const Napi::CallbackInfo& info) {
  return RunDomctl(info, "destroydomain", XEN_DOMCTL_destroydomain, [](xen_domctl&) {}, Length::kLong);
}

Napi::Value Xen::Shutdown(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const int reason = static_cast<int>(IntegerArgument(info, 1, "reason", 0, SHUTDOWN_MAX));
  return Run(info, [domid, reason](Handles& handles) {
    handles.Count("remote_shutdown");
    Check("xc_domain_shutdown", xc_domain_shutdown(handles.xc(), domid, reason));
  });
}

/** Not one domctl: the guest's registers are changed first, and without `fast`, those of a PV guest and its memory. */
Napi::Value Xen::Resume(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const bool fast = BooleanArgument(info, 1, "fast");
  return Run(info, [domid, fast](Handles& handles) {
    handles.Count("resumedomain");
    // Some failures of the slow way are reported as 1.
    if (xc_domain_resume(handles.xc(), domid, fast ? 1 : 0) != 0) throw CallError{"xc_domain_resume", errno};
  });
}

Napi::Value Xen::Subscribe(const Napi::CallbackInfo& info) {
  const uint32_t port = IntegerArgument(info, 1, "port", 1, INT32_MAX);
  return RunDomctl(info, "subscribe", XEN_DOMCTL_subscribe,
                   [port](xen_domctl& domctl) { domctl.u.subscribe.port = port; });
}

Napi::Value Xen::AllocUnbound(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const uint32_t remote = IntegerArgument(info, 1, "remote", 0, DOMID_FIRST_RESERVED - 1);
  return Run(
      info,
      [domid, remote](Handles& handles) {
        handles.Count("alloc_unbound");
        return Check("xc_evtchn_alloc_unbound", xc_evtchn_alloc_unbound(handles.xc(), domid, remote));
      },
      [](Napi::Env env, int& port) { return Napi::Number::New(env, port); });
}

}  // namespace xm
