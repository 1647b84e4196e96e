#pragma once

#include <napi.h>

#include "xen.h"

namespace xm {

/** The JavaScript class `Evtchn`: an open event-channel device. Synchronous, because none of its calls waits. */
class Evtchn : public Napi::ObjectWrap<Evtchn> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit Evtchn(const Napi::CallbackInfo& info);
  ~Evtchn() override;

 private:
  template <Napi::Value (*getter)(const Napi::CallbackInfo&)>
  static Napi::ClassPropertyDescriptor<Evtchn> GetterProperty(const char* name);
  static Napi::Value Fd(const Napi::CallbackInfo& info);
  Napi::Value BindInterdomain(const Napi::CallbackInfo& info);
  Napi::Value Notify(const Napi::CallbackInfo& info);
  Napi::Value Pending(const Napi::CallbackInfo& info);
  Napi::Value Unbind(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  /** Throws if the device was closed. */
  xenevtchn_handle* Open(const Napi::CallbackInfo& info) const;

  /** Null once closed. */
  xenevtchn_handle* handle_ = nullptr;
};

}  // namespace xm
