#include "evtchn.h"

#include <poll.h>

#include <cerrno>

#include "call_log.h"
#include "error.h"
#include "xen_handle.h"

namespace xm {

namespace {

/** Drawn at random once. Tells an Evtchn from every other wrapped object. */
constexpr napi_type_tag kEvtchnTag = {0x61b8e3f40a97d25c, 0xd07f49a5c8213e6b};

evtchn_port_t PortArgument(const Napi::CallbackInfo& info, size_t index) {
  return IntegerArgument(info, index, "port", 0, INT32_MAX);
}

}  // namespace

template <Napi::Value (*getter)(const Napi::CallbackInfo&)>
Napi::ClassPropertyDescriptor<Evtchn> Evtchn::GetterProperty(const char* name) {
  napi_property_descriptor descriptor = Napi::PropertyDescriptor::Accessor<getter>(name);
  return descriptor;
}

Napi::Function Evtchn::Define(Napi::Env env) {
  return DefineClass(env, "Evtchn",
                     {
                         GetterProperty<&Evtchn::Fd>("fd"),
                         InstanceMethod<&Evtchn::BindInterdomain>("bindInterdomain"),
                         InstanceMethod<&Evtchn::Notify>("notify"),
                         InstanceMethod<&Evtchn::Pending>("pending"),
                         InstanceMethod<&Evtchn::Unbind>("unbind"),
                         InstanceMethod<&Evtchn::Close>("close"),
                     });
}

Evtchn::Evtchn(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Evtchn>(info) {
  CallLog log(XTL_NUM_LEVELS);
  const CallLog::Capture capture(log);
  handle_ = xenevtchn_open(CallLog::Logger(), 0);
  if (handle_ == nullptr) throw ErrnoError(info.Env(), "xenevtchn_open", errno, log.error());
  info.This().As<Napi::Object>().TypeTag(&kEvtchnTag);
}

Evtchn::~Evtchn() {
  if (handle_ != nullptr) xenevtchn_close(handle_);
}

/** Node-API lets V8 check the receiver of methods, but not of accessors: see PageMap::Receiver. */
Napi::Value Evtchn::Fd(const Napi::CallbackInfo& info) {
  const Napi::Value receiver = info.This();
  if (!receiver.IsObject() || !receiver.As<Napi::Object>().CheckTypeTag(&kEvtchnTag)) {
    throw ArgumentTypeError(info.Env(), "the receiver is not an Evtchn");
  }
  return Napi::Number::New(info.Env(), xenevtchn_fd(Unwrap(receiver.As<Napi::Object>())->Open(info)));
}

Napi::Value Evtchn::BindInterdomain(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const int port = xenevtchn_bind_interdomain(Open(info), domid, PortArgument(info, 1));
  if (port < 0) throw ErrnoError(info.Env(), "xenevtchn_bind_interdomain", errno);
  return Napi::Number::New(info.Env(), port);
}

Napi::Value Evtchn::Notify(const Napi::CallbackInfo& info) {
  if (xenevtchn_notify(Open(info), PortArgument(info, 0)) < 0) {
    throw ErrnoError(info.Env(), "xenevtchn_notify", errno);
  }
  return info.Env().Undefined();
}

/** The device cannot be read without waiting, so it is asked first. */
Napi::Value Evtchn::Pending(const Napi::CallbackInfo& info) {
  xenevtchn_handle* handle = Open(info);
  pollfd wanted = {xenevtchn_fd(handle), POLLIN, 0};
  int ready = 0;
  do {
    ready = poll(&wanted, 1, 0);
  } while (ready < 0 && errno == EINTR);
  if (ready < 0) throw ErrnoError(info.Env(), "poll", errno);
  if (ready == 0) return Napi::Number::New(info.Env(), -1);
  const int port = xenevtchn_pending(handle);
  if (port < 0) throw ErrnoError(info.Env(), "xenevtchn_pending", errno);
  if (xenevtchn_unmask(handle, static_cast<evtchn_port_t>(port)) < 0) {
    throw ErrnoError(info.Env(), "xenevtchn_unmask", errno);
  }
  return Napi::Number::New(info.Env(), port);
}

Napi::Value Evtchn::Unbind(const Napi::CallbackInfo& info) {
  if (xenevtchn_unbind(Open(info), PortArgument(info, 0)) < 0) {
    throw ErrnoError(info.Env(), "xenevtchn_unbind", errno);
  }
  return info.Env().Undefined();
}

Napi::Value Evtchn::Close(const Napi::CallbackInfo& info) {
  if (handle_ != nullptr) xenevtchn_close(handle_);
  handle_ = nullptr;
  return info.Env().Undefined();
}

xenevtchn_handle* Evtchn::Open(const Napi::CallbackInfo& info) const {
  if (handle_ == nullptr) throw ErrnoError(info.Env(), "xenevtchn", EBADF, "the event channels were closed");
  return handle_;
}

}  // namespace xm
