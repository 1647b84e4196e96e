#include "watch.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "error.h"

namespace xm {

namespace {

/**
 * A thread in poll(2). Not libuv's poll handle: that makes the descriptor non-blocking, which others may share, and is
 * no part of Node-API.
 */
class WatchThread {
 public:
  static void OnReadable(Napi::Env env, Napi::Function callback, WatchThread* self, void*) {
    if (env == nullptr || self->closing_) return;
    callback.Call({});
  }
  using Calls = Napi::TypedThreadSafeFunction<WatchThread, void, &WatchThread::OnReadable>;

  WatchThread() = default;
  WatchThread(const WatchThread&) = delete;
  WatchThread& operator=(const WatchThread&) = delete;
  ~WatchThread() { CloseWake(); }

  /** Throws an Error that names the call that failed. */
  static std::shared_ptr<WatchThread> Start(Napi::Env env, int fd, Napi::Function callback, bool keep_alive) {
    auto self = std::make_shared<WatchThread>();
    self->fd_ = fd;
    self->wake_ = eventfd(0, EFD_CLOEXEC);
    if (self->wake_ < 0) throw ErrnoError(env, "eventfd", errno);
    auto share = std::make_unique<std::shared_ptr<WatchThread>>(self);
    self->calls_ = Calls::New(env, callback, "xen_migration.watchReadable", 0, 1, self.get(),
                              [held = share.get()](Napi::Env, void*, WatchThread* shared) {
                                shared->Close();
                                if (shared->thread_.joinable()) shared->thread_.join();
                                shared->CloseWake();
                                delete held;
                              });
    share.release();
    if (!keep_alive) self->calls_.Unref(env);

    // Signals to the process are for other threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int errnum = 0;
    try {
      self->thread_ = std::thread([raw = self.get()] { raw->Run(); });
    } catch (const std::system_error&) {
      errnum = EAGAIN;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (errnum != 0) {
      self->calls_.Release();
      throw ErrnoError(env, "pthread_create", errnum);
    }
    return self;
  }

  void Rearm() {
    if (closing_) return;
    armed_ = true;
    Wake();
  }

  void Close() {
    closing_ = true;
    Wake();
  }

 private:
  /** On the thread of JavaScript, like CloseWake(). */
  void Wake() {
    const uint64_t one = 1;
    // Cannot fail but by overflow, and then it is awake anyway; or because it has ended.
    if (wake_ < 0 || write(wake_, &one, sizeof one) < 0) return;
  }

  /** Once the thread has ended: JavaScript may hold `rearm` and `close` for much longer. */
  void CloseWake() {
    if (wake_ >= 0) close(wake_);
    wake_ = -1;
  }

  void Run() {
    while (!closing_) {
      struct pollfd fds[2] = {{wake_, POLLIN, 0}, {armed_ ? fd_ : -1, POLLIN, 0}};
      // A failed descriptor counts as readable: reading tells why.
      if (poll(fds, 2, -1) < 0 && errno != EINTR) break;
      uint64_t count;
      if ((fds[0].revents & POLLIN) != 0 && read(wake_, &count, sizeof count) < 0) break;
      if (closing_ || fds[1].revents == 0) continue;
      // Before the call, so that a rearm() in the callback is not lost.
      armed_ = false;
      calls_.NonBlockingCall();
    }
    calls_.Release();
  }

  int fd_ = -1;
  int wake_ = -1;
  std::atomic<bool> armed_{true};
  std::atomic<bool> closing_{false};
  std::thread thread_;
  Calls calls_;
};

}  // namespace

Napi::Value WatchReadable(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = static_cast<int>(IntegerArgument(info, 0, "fd", 0, INT_MAX));
  if (!info[1].IsFunction()) throw ArgumentTypeError(env, "callback must be a function");
  if (fcntl(fd, F_GETFD) < 0) throw ErrnoError(env, "fcntl", errno);
  const bool keep_alive = info[2].IsBoolean() && info[2].As<Napi::Boolean>().Value();
  const std::shared_ptr<WatchThread> watch = WatchThread::Start(env, fd, info[1].As<Napi::Function>(), keep_alive);
  auto object = Napi::Object::New(env);
  object.Set("rearm", Napi::Function::New(env, [watch](const Napi::CallbackInfo&) { watch->Rearm(); }, "rearm"));
  object.Set("close", Napi::Function::New(env, [watch](const Napi::CallbackInfo&) { watch->Close(); }, "close"));
  return object;
}

}  // namespace xm
