/** What Xen keeps for an HVM or PVH guest: its context and its parameters. */
#include "arguments.h"
#include "error.h"
#include "xen_handle.h"

namespace xm {

namespace {

/** Some 10 KiB for each vcpu, of which there are at most 128 before Xen 4.20, and 8192 to the format's eye. */
constexpr std::size_t kMaxContext = 128 << 20;
constexpr uint32_t kMaxParam = 4095;

}  // namespace

Napi::Value Xen::HvmContext(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  return Run(
      info,
      [domid](Handles& handles) {
        handles.Count("gethvmcontext", 2);
        std::vector<uint8_t> context(
            Check("xc_domain_hvm_getcontext", xc_domain_hvm_getcontext(handles.xc(), domid, nullptr, 0)));
        const int size =
            xc_domain_hvm_getcontext(handles.xc(), domid, context.data(), static_cast<uint32_t>(context.size()));
        context.resize(Check("xc_domain_hvm_getcontext", size));
        return context;
      },
      [](Napi::Env env, std::vector<uint8_t>& context) { return NewBytes(env, context); });
}

Napi::Value Xen::SetHvmContext(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  return Run(info, [domid, context = BytesArgument(info, 1, "context", kMaxContext)](Handles& handles) mutable {
    handles.Count("sethvmcontext");
    Check("xc_domain_hvm_setcontext",
          xc_domain_hvm_setcontext(handles.xc(), domid, context.data(), static_cast<uint32_t>(context.size())));
  });
}

Napi::Value Xen::HvmParam(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const uint32_t index = IntegerArgument(info, 1, "index", 0, kMaxParam);
  return Run(
      info,
      [domid, index](Handles& handles) {
        uint64_t value = 0;
        handles.Count("get_param");
        Check("xc_hvm_param_get", xc_hvm_param_get(handles.xc(), domid, index, &value));
        return value;
      },
      [](Napi::Env env, uint64_t& value) { return Napi::BigInt::New(env, value); });
}

Napi::Value Xen::SetHvmParam(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const uint32_t index = IntegerArgument(info, 1, "index", 0, kMaxParam);
  const uint64_t value = BigIntArgument(info, 2, "value");
  return Run(info, [domid, index, value](Handles& handles) {
    handles.Count("set_param");
    Check("xc_hvm_param_set", xc_hvm_param_set(handles.xc(), domid, index, value));
  });
}

}  // namespace xm
