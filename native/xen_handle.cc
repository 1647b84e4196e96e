#include "xen_handle.h"

#include <cerrno>
#include <cstring>

#include "arguments.h"
#include "error.h"

namespace xm {

namespace {

/** Drawn at random once. Tells an Xen from every other wrapped object. */
constexpr napi_type_tag kXenTag = {0x9c41d06be2f85a37, 0x3be7125fd40c98a1};

}  // namespace

template <Napi::Value (*getter)(const Napi::CallbackInfo&)>
Napi::ClassPropertyDescriptor<Xen> Xen::GetterProperty(const char* name) {
  napi_property_descriptor descriptor = Napi::PropertyDescriptor::Accessor<getter>(name);
  return descriptor;
}

Napi::Function Xen::Define(Napi::Env env) {
  return DefineClass(env, "Xen",
                     {
                         InstanceMethod<&Xen::Close>("close"),
                         GetterProperty<&Xen::Calls>("calls"),
                         InstanceMethod<&Xen::ListDomains>("listDomains"),
                         InstanceMethod<&Xen::DomainInfo>("domainInfo"),
                         InstanceMethod<&Xen::Pause>("pause"),
                         InstanceMethod<&Xen::Unpause>("unpause"),
                         InstanceMethod<&Xen::Shutdown>("shutdown"),
                         InstanceMethod<&Xen::Resume>("resume"),
                         InstanceMethod<&Xen::Destroy>("destroy"),
                         InstanceMethod<&Xen::Subscribe>("subscribe"),
                         InstanceMethod<&Xen::AllocUnbound>("allocUnbound"),
                         InstanceMethod<&Xen::CreateDomain>("createDomain"),
                         InstanceMethod<&Xen::SetMaxVcpus>("setMaxVcpus"),
                         InstanceMethod<&Xen::SetMaxMemory>("setMaxMemory"),
                         InstanceMethod<&Xen::SetPagingAllocation>("setPagingAllocation"),
                         InstanceMethod<&Xen::MaximumGpfn>("maximumGpfn"),
                         InstanceMethod<&Xen::PageTypes>("pageTypes"),
                         InstanceMethod<&Xen::MapFrames>("mapFrames"),
                         InstanceMethod<&Xen::Populate>("populate"),
                         InstanceMethod<&Xen::ClearPage>("clearPage"),
                         InstanceMethod<&Xen::MapMachineToPhys>("mapMachineToPhys"),
                         InstanceMethod<&Xen::EnableLogDirty>("enableLogDirty"),
                         InstanceMethod<&Xen::DisableLogDirty>("disableLogDirty"),
                         InstanceMethod<&Xen::LogDirty>("logDirty"),
                         InstanceMethod<&Xen::HvmContext>("hvmContext"),
                         InstanceMethod<&Xen::SetHvmContext>("setHvmContext"),
                         InstanceMethod<&Xen::HvmParam>("hvmParam"),
                         InstanceMethod<&Xen::SetHvmParam>("setHvmParam"),
                         InstanceMethod<&Xen::TscInfo>("tscInfo"),
                         InstanceMethod<&Xen::SetTscInfo>("setTscInfo"),
                         InstanceMethod<&Xen::CpuPolicy>("cpuPolicy"),
                         InstanceMethod<&Xen::SetCpuPolicy>("setCpuPolicy"),
                         InstanceMethod<&Xen::GuestWidth>("guestWidth"),
                         InstanceMethod<&Xen::SetGuestWidth>("setGuestWidth"),
                         InstanceMethod<&Xen::VcpuOnline>("vcpuOnline"),
                         InstanceMethod<&Xen::VcpuState>("vcpuState"),
                         InstanceMethod<&Xen::SetVcpuState>("setVcpuState"),
                         InstanceMethod<&Xen::PinTables>("pinTables"),
                         InstanceMethod<&Xen::SeedGrantTable>("seedGrantTable"),
                     });
}

/** new Xen(log, minLevel[, inline]) */
Xen::Xen(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Xen>(info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsFunction()) throw ArgumentTypeError(env, "log must be a function");
  min_level_ = static_cast<int>(IntegerArgument(info, 1, "minLevel", XTL_DEBUG, XTL_NUM_LEVELS));
  if (!info[2].IsUndefined()) inline_ = BooleanArgument(info, 2, "inline");
  CallLog said(XTL_NUM_LEVELS);
  try {
    const CallLog::Capture capture(said);
    handles_ = std::make_shared<Handles>();
  } catch (const CallError& error) {
    throw ErrnoError(env, error.syscall, error.errnum, said.error());
  }
  auto self = info.This().As<Napi::Object>();
  self.TypeTag(&kXenTag);
  self.DefineProperty(Napi::PropertyDescriptor::Value(Napi::Symbol::New(env, "log"), info[0], napi_default));
  log_ = Napi::Weak(info[0].As<Napi::Function>());
}

/** close(): no new calls; whatever is in flight still has its share of the handles. */
Napi::Value Xen::Close(const Napi::CallbackInfo& info) {
  handles_.reset();
  return info.Env().Undefined();
}

/** Node-API lets V8 check the receiver of methods, but not of accessors: see PageMap::Receiver. */
Napi::Value Xen::Calls(const Napi::CallbackInfo& info) {
  const Napi::Value receiver = info.This();
  if (!receiver.IsObject() || !receiver.As<Napi::Object>().CheckTypeTag(&kXenTag)) {
    throw ArgumentTypeError(info.Env(), "the receiver is not an Xen");
  }
  auto out = Napi::Object::New(info.Env());
  const Xen* self = Unwrap(receiver.As<Napi::Object>());
  for (const auto& [name, count] : self->Open(info)->Counts()) out.Set(name, static_cast<double>(count));
  return out;
}

std::shared_ptr<Handles> Xen::Open(const Napi::CallbackInfo& info) const {
  if (handles_ == nullptr) throw ErrnoError(info.Env(), "xc_interface", EBADF, "the Xen handle was closed");
  return handles_;
}

uint16_t DomidArgument(const Napi::CallbackInfo& info, size_t index) {
  return static_cast<uint16_t>(IntegerArgument(info, index, "domid", 0, DOMID_FIRST_RESERVED - 1));
}

Napi::Value NewBytes(Napi::Env env, const std::vector<uint8_t>& bytes) {
  auto out = Napi::Uint8Array::New(env, bytes.size());
  if (!bytes.empty()) std::memcpy(out.Data(), bytes.data(), bytes.size());
  return out;
}

xen_domctl NewDomctl(uint32_t command, uint16_t domid) {
  xen_domctl domctl;
  std::memset(&domctl, 0, sizeof domctl);
  domctl.cmd = command;
  domctl.domain = domid;
  return domctl;
}

}  // namespace xm
