/** What a guest sees of the processor: its time stamp counter, CPUID and MSRs. */
#include <cstring>

#include "arguments.h"
#include "error.h"
#include "xen_handle.h"

namespace xm {

namespace {

static_assert(sizeof(xen_cpuid_leaf_t) == 24, "X86_CPUID_POLICY");
static_assert(sizeof(xen_msr_entry_t) == 16, "X86_MSR_POLICY");

/** Xen has some 100 leaves and fewer MSRs today, and room for more. */
constexpr std::size_t kMaxPolicy = 1 << 20;

struct Tsc {
  uint32_t mode, khz, incarnation;
  uint64_t nsec;
};

struct Policy {
  std::vector<uint8_t> cpuid, msrs;
};

/** What auditing objects to, where Xen tells. */
std::string Objection(const xen_domctl_cpu_policy& policy) {
  std::string text;
  const auto add = [&text](const char* name, uint32_t value) {
    if (value == ~0u) return;
    char part[32];
    std::snprintf(part, sizeof part, "%s%s %#x", text.empty() ? "" : ", ", name, value);
    text += part;
  };
  add("leaf", policy.err_leaf);
  add("subleaf", policy.err_subleaf);
  add("MSR", policy.err_msr);
  return text;
}

}  // namespace

Napi::Value Xen::TscInfo(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  return Run(
      info,
      [domid](Handles& handles) {
        Tsc tsc = {};
        handles.Count("gettscinfo");
        Check("xc_domain_get_tsc_info",
              xc_domain_get_tsc_info(handles.xc(), domid, &tsc.mode, &tsc.nsec, &tsc.khz, &tsc.incarnation));
        return tsc;
      },
      [](Napi::Env env, Tsc& tsc) {
        auto out = Napi::Object::New(env);
        out.Set("mode", tsc.mode);
        out.Set("khz", tsc.khz);
        out.Set("nsec", Napi::BigInt::New(env, tsc.nsec));
        out.Set("incarnation", tsc.incarnation);
        return out;
      });
}

Napi::Value Xen::SetTscInfo(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  Tsc tsc = {};
  tsc.mode = IntegerArgument(info, 1, "mode", 0, UINT32_MAX);
  tsc.khz = IntegerArgument(info, 2, "khz", 0, UINT32_MAX);
  tsc.nsec = BigIntArgument(info, 3, "nsec");
  tsc.incarnation = IntegerArgument(info, 4, "incarnation", 0, UINT32_MAX);
  return Run(info, [domid, tsc](Handles& handles) {
    handles.Count("settscinfo");
    Check("xc_domain_set_tsc_info",
          xc_domain_set_tsc_info(handles.xc(), domid, tsc.mode, tsc.nsec, tsc.khz, tsc.incarnation));
  });
}

Napi::Value Xen::CpuPolicy(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  return Run(
      info,
      [domid](Handles& handles) {
        // Without buffers Xen tells how much it could write at most, then how much it has written.
        xen_domctl domctl = NewDomctl(XEN_DOMCTL_get_cpu_policy, domid);
        auto& policy = domctl.u.cpu_policy;
        handles.Domctl("get_cpu_policy", domctl);
        const HypercallPages leaves(handles, policy.nr_leaves * sizeof(xen_cpuid_leaf_t));
        const HypercallPages msrs(handles, policy.nr_msrs * sizeof(xen_msr_entry_t));
        leaves.PointFrom(policy.leaves);
        msrs.PointFrom(policy.msrs);
        handles.Domctl("get_cpu_policy", domctl);
        const auto bytes = [](const HypercallPages& pages, std::size_t size) {
          return std::vector<uint8_t>(pages.as<uint8_t>(), pages.as<uint8_t>() + std::min(size, pages.bytes()));
        };
        return Policy{bytes(leaves, policy.nr_leaves * sizeof(xen_cpuid_leaf_t)),
                      bytes(msrs, policy.nr_msrs * sizeof(xen_msr_entry_t))};
      },
      [](Napi::Env env, Policy& policy) {
        auto out = Napi::Object::New(env);
        out.Set("cpuid", NewBytes(env, policy.cpuid));
        out.Set("msrs", NewBytes(env, policy.msrs));
        return out;
      });
}

Napi::Value Xen::SetCpuPolicy(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  Policy wanted = {BytesArgument(info, 1, "cpuid", kMaxPolicy), BytesArgument(info, 2, "msrs", kMaxPolicy)};
  if (wanted.cpuid.size() % sizeof(xen_cpuid_leaf_t) != 0) {
    throw ArgumentRangeError(info.Env(), "cpuid must hold whole leaves of 24 bytes");
  }
  if (wanted.msrs.size() % sizeof(xen_msr_entry_t) != 0) {
    throw ArgumentRangeError(info.Env(), "msrs must hold whole entries of 16 bytes");
  }
  return Run(info, [domid, wanted = std::move(wanted)](Handles& handles) {
    xen_domctl domctl = NewDomctl(XEN_DOMCTL_set_cpu_policy, domid);
    auto& policy = domctl.u.cpu_policy;
    const HypercallPages leaves(handles, wanted.cpuid.size());
    const HypercallPages msrs(handles, wanted.msrs.size());
    std::copy(wanted.cpuid.begin(), wanted.cpuid.end(), leaves.as<uint8_t>());
    std::copy(wanted.msrs.begin(), wanted.msrs.end(), msrs.as<uint8_t>());
    leaves.PointFrom(policy.leaves);
    msrs.PointFrom(policy.msrs);
    policy.nr_leaves = static_cast<uint32_t>(wanted.cpuid.size() / sizeof(xen_cpuid_leaf_t));
    policy.nr_msrs = static_cast<uint32_t>(wanted.msrs.size() / sizeof(xen_msr_entry_t));
    policy.err_leaf = policy.err_subleaf = policy.err_msr = ~0u;
    try {
      handles.Domctl("set_cpu_policy", domctl);
    } catch (CallError& error) {
      error.detail = Objection(policy);
      throw;
    }
  });
}

}  // namespace xm
