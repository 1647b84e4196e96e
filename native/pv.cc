/** PV guests: word width, the state of each vcpu, and pinned page tables. */
#include <algorithm>
#include <cstring>

#include "arguments.h"
#include "error.h"
#include "xen_handle.h"

namespace xm {

namespace {

/** Kinds of vcpu state, as native.ts numbers them; each is a record of the stream. */
enum Kind : uint32_t { kBasic, kExtended, kXsave, kMsrs };

constexpr uint32_t kMaxVcpu = 8191;
constexpr std::size_t kMaxState = 1 << 20;
constexpr std::size_t kMaxPins = 1024;
/** xcr0 and xcr0_accum. */
constexpr std::size_t kXsaveHeader = 16;

static_assert(sizeof(vcpu_guest_context_x86_64_t) == 5168, "X86_PV_VCPU_BASIC of a 64-bit guest");
static_assert(sizeof(vcpu_guest_context_x86_32_t) == 2800, "X86_PV_VCPU_BASIC of a 32-bit guest");
static_assert(sizeof(xen_domctl_vcpu_msr_t) == 16, "X86_PV_VCPU_MSRS");

using Bytes = std::vector<uint8_t>;

Bytes Take(const void* from, std::size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(from);
  return Bytes(bytes, bytes + size);
}

/** Bytes of the basic state: the guest's width decides which of two layouts Xen uses. */
std::size_t BasicSize(Handles& handles, uint16_t domid) {
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_get_address_size, domid);
  handles.Domctl("get_address_size", domctl);
  return domctl.u.address_size.size == 32 ? sizeof(vcpu_guest_context_x86_32_t) : sizeof(vcpu_guest_context_x86_64_t);
}

Bytes Basic(Handles& handles, uint16_t domid, uint32_t vcpu) {
  const std::size_t size = BasicSize(handles, domid);
  const HypercallPages context(handles, sizeof(vcpu_guest_context_any_t));
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_getvcpucontext, domid);
  domctl.u.vcpucontext.vcpu = vcpu;
  context.PointFrom(domctl.u.vcpucontext.ctxt);
  handles.Domctl("getvcpucontext", domctl);
  return Take(context.as<void>(), size);
}

void SetBasic(Handles& handles, uint16_t domid, uint32_t vcpu, const Bytes& state) {
  const std::size_t size = BasicSize(handles, domid);
  if (state.size() != size) {
    throw CallError{"setvcpucontext", EINVAL,
                    "the basic state of this guest's vcpus is " + std::to_string(size) + " bytes long, not " +
                        std::to_string(state.size())};
  }
  const HypercallPages context(handles, sizeof(vcpu_guest_context_any_t));
  std::copy(state.begin(), state.end(), context.as<uint8_t>());
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_setvcpucontext, domid);
  domctl.u.vcpucontext.vcpu = vcpu;
  context.PointFrom(domctl.u.vcpucontext.ctxt);
  handles.Domctl("setvcpucontext", domctl);
}

/** The structure of the domctl itself: u32 vcpu, u32 size, and what makes up `size` bytes with them. */
Bytes Extended(Handles& handles, uint16_t domid, uint32_t vcpu) {
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_get_ext_vcpucontext, domid);
  domctl.u.ext_vcpucontext.vcpu = vcpu;
  handles.Domctl("get_ext_vcpucontext", domctl);
  return Take(&domctl.u, std::min<std::size_t>(domctl.u.ext_vcpucontext.size, sizeof domctl.u));
}

void SetExtended(Handles& handles, uint16_t domid, uint32_t vcpu, const Bytes& state) {
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_set_ext_vcpucontext, domid);
  if (state.size() < 8 || state.size() > sizeof domctl.u) {
    throw CallError{"set_ext_vcpucontext", EINVAL, "the extended state is from 8 to 128 bytes long"};
  }
  std::memcpy(&domctl.u, state.data(), state.size());
  if (domctl.u.ext_vcpucontext.vcpu != vcpu) {
    throw CallError{"set_ext_vcpucontext", EINVAL,
                    "the extended state is that of vcpu " + std::to_string(domctl.u.ext_vcpucontext.vcpu)};
  }
  handles.Domctl("set_ext_vcpucontext", domctl);
}

Bytes Xsave(Handles& handles, uint16_t domid, uint32_t vcpu) {
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_getvcpuextstate, domid);
  auto& state = domctl.u.vcpuextstate;
  state.vcpu = vcpu;
  handles.Domctl("getvcpuextstate", domctl);
  // A processor without XSAVE.
  if (state.xfeature_mask == 0 || state.size == 0) return {};
  const HypercallPages buffer(handles, state.size);
  buffer.PointFrom(state.buffer);
  handles.Domctl("getvcpuextstate", domctl);
  return Take(buffer.as<void>(), std::min<std::size_t>(state.size, buffer.bytes()));
}

void SetXsave(Handles& handles, uint16_t domid, uint32_t vcpu, const Bytes& bytes) {
  if (bytes.size() < kXsaveHeader) throw CallError{"setvcpuextstate", EINVAL, "the xsave state has no header"};
  const HypercallPages buffer(handles, bytes.size());
  std::copy(bytes.begin(), bytes.end(), buffer.as<uint8_t>());
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_setvcpuextstate, domid);
  auto& state = domctl.u.vcpuextstate;
  state.vcpu = vcpu;
  state.size = bytes.size();
  buffer.PointFrom(state.buffer);
  handles.Domctl("setvcpuextstate", domctl);
}

Bytes Msrs(Handles& handles, uint16_t domid, uint32_t vcpu) {
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_get_vcpu_msrs, domid);
  auto& msrs = domctl.u.vcpu_msrs;
  msrs.vcpu = vcpu;
  handles.Domctl("get_vcpu_msrs", domctl);
  if (msrs.msr_count == 0) return {};
  const HypercallPages buffer(handles, msrs.msr_count * sizeof(xen_domctl_vcpu_msr_t));
  buffer.PointFrom(msrs.msrs);
  handles.Domctl("get_vcpu_msrs", domctl);
  return Take(buffer.as<void>(), std::min(msrs.msr_count * sizeof(xen_domctl_vcpu_msr_t), buffer.bytes()));
}

void SetMsrs(Handles& handles, uint16_t domid, uint32_t vcpu, const Bytes& bytes) {
  if (bytes.size() % sizeof(xen_domctl_vcpu_msr_t) != 0) {
    throw CallError{"set_vcpu_msrs", EINVAL, "MSRs are 16 bytes each"};
  }
  const HypercallPages buffer(handles, bytes.size());
  std::copy(bytes.begin(), bytes.end(), buffer.as<uint8_t>());
  xen_domctl domctl = NewDomctl(XEN_DOMCTL_set_vcpu_msrs, domid);
  auto& msrs = domctl.u.vcpu_msrs;
  msrs.vcpu = vcpu;
  msrs.msr_count = static_cast<uint32_t>(bytes.size() / sizeof(xen_domctl_vcpu_msr_t));
  buffer.PointFrom(msrs.msrs);
  handles.Domctl("set_vcpu_msrs", domctl);
}

/** By Kind. */
constexpr Bytes (*kGet[])(Handles&, uint16_t, uint32_t) = {Basic, Extended, Xsave, Msrs};
constexpr void (*kSet[])(Handles&, uint16_t, uint32_t, const Bytes&) = {SetBasic, SetExtended, SetXsave, SetMsrs};

}  // namespace

Napi::Value Xen::GuestWidth(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  return Run(
      info,
      [domid](Handles& handles) {
        xen_domctl domctl = NewDomctl(XEN_DOMCTL_get_address_size, domid);
        handles.Domctl("get_address_size", domctl);
        return domctl.u.address_size.size / 8;
      },
      [](Napi::Env env, uint32_t& width) { return Napi::Number::New(env, width); });
}

Napi::Value Xen::SetGuestWidth(const Napi::CallbackInfo& info) {
  const uint32_t width = IntegerArgument(info, 1, "width", 4, 8);
  if (width != 4 && width != 8) throw ArgumentRangeError(info.Env(), "width must be 4 or 8");
  return RunDomctl(info, "set_address_size", XEN_DOMCTL_set_address_size,
                   [width](xen_domctl& domctl) { domctl.u.address_size.size = width * 8; });
}

Napi::Value Xen::VcpuOnline(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const uint32_t vcpu = IntegerArgument(info, 1, "vcpu", 0, kMaxVcpu);
  return Run(
      info,
      [domid, vcpu](Handles& handles) {
        xen_domctl domctl = NewDomctl(XEN_DOMCTL_getvcpuinfo, domid);
        domctl.u.getvcpuinfo.vcpu = vcpu;
        handles.Domctl("getvcpuinfo", domctl);
        return domctl.u.getvcpuinfo.online != 0;
      },
      [](Napi::Env env, bool& online) { return Napi::Boolean::New(env, online); });
}

Napi::Value Xen::VcpuState(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const uint32_t vcpu = IntegerArgument(info, 1, "vcpu", 0, kMaxVcpu);
  const uint32_t kind = IntegerArgument(info, 2, "kind", kBasic, kMsrs);
  return Run(
      info, [domid, vcpu, kind](Handles& handles) { return kGet[kind](handles, domid, vcpu); },
      [](Napi::Env env, Bytes& state) { return NewBytes(env, state); });
}

Napi::Value Xen::SetVcpuState(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const uint32_t vcpu = IntegerArgument(info, 1, "vcpu", 0, kMaxVcpu);
  const uint32_t kind = IntegerArgument(info, 2, "kind", kBasic, kMsrs);
  return Run(info, [domid, vcpu, kind, state = BytesArgument(info, 3, "state", kMaxState)](Handles& handles) {
    kSet[kind](handles, domid, vcpu, state);
  });
}

Napi::Value Xen::PinTables(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const auto levels = BytesArgument(info, 1, "levels", kMaxPins);
  const auto mfns = FramesArgument(info, 2, "mfns", kMaxPins);
  if (levels.size() != mfns.size()) throw ArgumentRangeError(info.Env(), "levels and mfns must be of one length");
  std::vector<mmuext_op> operations(mfns.size());
  for (std::size_t i = 0; i < operations.size(); i++) {
    if (levels[i] < 1 || levels[i] > 4) throw ArgumentRangeError(info.Env(), "levels must be from 1 to 4");
    operations[i].cmd = MMUEXT_PIN_L1_TABLE + (levels[i] - 1u);
    operations[i].arg1.mfn = mfns[i];
  }
  return Run(info, [domid, operations = std::move(operations)](Handles& handles) mutable {
    handles.Count("mmuext_op");
    Check("xc_mmuext_op",
          xc_mmuext_op(handles.xc(), operations.data(), static_cast<unsigned>(operations.size()), domid));
  });
}

}  // namespace xm
