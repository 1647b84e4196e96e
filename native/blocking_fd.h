#pragma once

#include <napi.h>

#include <memory>

namespace xm {

class FdThread;

/**
 * The JavaScript class: `new BlockingFd(fd)`, `write(views)`, `read(into)`, `readNow(into)`, `interrupt(spoil)`,
 * `close()`.
 *
 * Blocking, exact I/O on a descriptor that other processes share, whose O_NONBLOCK therefore must stay as it is. One
 * thread belongs to each object and does one operation at a time. The descriptor stays the caller's.
 */
class BlockingFd : public Napi::ObjectWrap<BlockingFd> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit BlockingFd(const Napi::CallbackInfo& info);
  ~BlockingFd() override;

 private:
  Napi::Value Write(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  Napi::Value ReadNow(const Napi::CallbackInfo& info);
  void Interrupt(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);

  std::shared_ptr<FdThread> thread_;
};

}  // namespace xm
