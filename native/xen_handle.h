#pragma once

#include <napi.h>

#include <memory>
#include <utility>

#include "handles.h"
#include "job.h"

namespace xm {

/** The result of a call that has none. */
struct Done {};

/**
 * The JavaScript class `Xen`: an open handle and one method for each step that needs Xen. lib/host/xen/native.ts tells
 * what each does. The methods are defined in the file of their subject.
 */
class Xen : public Napi::ObjectWrap<Xen> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit Xen(const Napi::CallbackInfo& info);

 private:
  template <Napi::Value (*getter)(const Napi::CallbackInfo&)>
  static Napi::ClassPropertyDescriptor<Xen> GetterProperty(const char* name);
  static Napi::Value Calls(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  // domain.cc
  Napi::Value ListDomains(const Napi::CallbackInfo& info);
  Napi::Value DomainInfo(const Napi::CallbackInfo& info);
  Napi::Value Pause(const Napi::CallbackInfo& info);
  Napi::Value Unpause(const Napi::CallbackInfo& info);
  Napi::Value Shutdown(const Napi::CallbackInfo& info);
  Napi::Value Resume(const Napi::CallbackInfo& info);
  Napi::Value Destroy(const Napi::CallbackInfo& info);
  Napi::Value Subscribe(const Napi::CallbackInfo& info);
  Napi::Value AllocUnbound(const Napi::CallbackInfo& info);
  // create.cc
  Napi::Value CreateDomain(const Napi::CallbackInfo& info);
  Napi::Value SetMaxVcpus(const Napi::CallbackInfo& info);
  Napi::Value SetMaxMemory(const Napi::CallbackInfo& info);
  Napi::Value SetPagingAllocation(const Napi::CallbackInfo& info);
  // memory.cc
  Napi::Value MaximumGpfn(const Napi::CallbackInfo& info);
  Napi::Value PageTypes(const Napi::CallbackInfo& info);
  Napi::Value MapFrames(const Napi::CallbackInfo& info);
  Napi::Value Populate(const Napi::CallbackInfo& info);
  Napi::Value ClearPage(const Napi::CallbackInfo& info);
  Napi::Value MapMachineToPhys(const Napi::CallbackInfo& info);
  // logdirty.cc
  Napi::Value EnableLogDirty(const Napi::CallbackInfo& info);
  Napi::Value DisableLogDirty(const Napi::CallbackInfo& info);
  Napi::Value LogDirty(const Napi::CallbackInfo& info);
  // hvm.cc
  Napi::Value HvmContext(const Napi::CallbackInfo& info);
  Napi::Value SetHvmContext(const Napi::CallbackInfo& info);
  Napi::Value HvmParam(const Napi::CallbackInfo& info);
  Napi::Value SetHvmParam(const Napi::CallbackInfo& info);
  // policy.cc
  Napi::Value TscInfo(const Napi::CallbackInfo& info);
  Napi::Value SetTscInfo(const Napi::CallbackInfo& info);
  Napi::Value CpuPolicy(const Napi::CallbackInfo& info);
  Napi::Value SetCpuPolicy(const Napi::CallbackInfo& info);
  // pv.cc
  Napi::Value GuestWidth(const Napi::CallbackInfo& info);
  Napi::Value SetGuestWidth(const Napi::CallbackInfo& info);
  Napi::Value VcpuOnline(const Napi::CallbackInfo& info);
  Napi::Value VcpuState(const Napi::CallbackInfo& info);
  Napi::Value SetVcpuState(const Napi::CallbackInfo& info);
  Napi::Value PinTables(const Napi::CallbackInfo& info);
  // grant.cc
  Napi::Value SeedGrantTable(const Napi::CallbackInfo& info);

  /** Throws if the handle was closed; else gives what a call in flight has to hold. */
  std::shared_ptr<Handles> Open(const Napi::CallbackInfo& info) const;

  /** Whether work may be done on the thread of JavaScript, where that was asked for. */
  enum class Length { kShort, kLong };

  /** Starts `work`; the promise resolves to what `settle` makes of its result. */
  template <class Work, class Settle>
  Napi::Value Run(const Napi::CallbackInfo& info, Work work, Settle settle, Length length = Length::kShort) {
    auto job = std::make_unique<FunctionJob<Work, Settle>>(Open(info), log_.Value(), min_level_, std::move(work),
                                                           std::move(settle));
    return length == Length::kShort && NowIsBest() ? Job::Now(std::move(job), info) : Job::Start(std::move(job), info);
  }
  /** Likewise, for work that has no result. */
  template <class Work>
  Napi::Value Run(const Napi::CallbackInfo& info, Work work, Length length = Length::kShort) {
    return Run(
        info,
        [work = std::move(work)](Handles& handles) mutable {
          work(handles);
          return Done{};
        },
        [](Napi::Env env, Done&) { return env.Undefined(); }, length);
  }
  /** Work that is one domctl without payload, or with one that `fill` writes. */
  template <class Fill>
  Napi::Value RunDomctl(const Napi::CallbackInfo& info, const char* name, uint32_t command, Fill fill,
                        Length length = Length::kShort);
  /** With `inline`, true but for every 16th call: the event loop gets its turn however busy the caller is. */
  bool NowIsBest() { return inline_ && ++calls_ % 16 != 0; }

  /** Null once closed. */
  std::shared_ptr<Handles> handles_;
  /** Weak: the object itself keeps the callback, which may well lead back to the object. */
  Napi::FunctionReference log_;
  int min_level_ = 0;
  bool inline_ = false;
  uint32_t calls_ = 0;
};

/** Argument `index` as a domain number, DOMID_XEN and its like excluded. */
uint16_t DomidArgument(const Napi::CallbackInfo& info, size_t index = 0);

/** Bytes as a new Uint8Array. */
Napi::Value NewBytes(Napi::Env env, const std::vector<uint8_t>& bytes);

/** A domctl for `domid` with nothing filled in yet. */
xen_domctl NewDomctl(uint32_t command, uint16_t domid);

template <class Fill>
Napi::Value Xen::RunDomctl(const Napi::CallbackInfo& info, const char* name, uint32_t command, Fill fill,
                           Length length) {
  xen_domctl domctl = NewDomctl(command, DomidArgument(info));
  fill(domctl);
  return Run(info, [name, domctl](Handles& handles) mutable { handles.Domctl(name, domctl); }, length);
}

}  // namespace xm
