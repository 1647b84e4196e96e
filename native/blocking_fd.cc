#include "blocking_fd.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "error.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

namespace xm {

namespace {

/** Its only work is to make a system call return with EINTR. */
void OnWake(int) {}

/**
 * A real-time signal whose handler is OnWake: the one that has it already, else the first that nobody handles.
 * Returns 0 if all are taken. Handlers of other signals are left alone.
 */
int WakeSignal() {
  for (int signum = SIGRTMIN + 1; signum <= SIGRTMAX; ++signum) {
    struct sigaction action;
    if (sigaction(signum, nullptr, &action) != 0) continue;
    const bool simple = (action.sa_flags & SA_SIGINFO) == 0;
    if (simple && action.sa_handler == OnWake) return signum;
    if (!simple || action.sa_handler != SIG_DFL) continue;
    action = {};
    sigemptyset(&action.sa_mask);
    action.sa_handler = OnWake;  // Without SA_RESTART: the call must return.
    if (sigaction(signum, &action, nullptr) == 0) return signum;
  }
  return 0;
}

/** How often the wake-up is repeated until it was heard: it may come just before the call that it should end. */
constexpr long kWakeEveryNs = 5 * 1000 * 1000;

}  // namespace

/** One read or write: pieces of memory, and what became of them. */
struct Operation {
  bool write = false;
  std::vector<iovec> pieces;
  std::size_t done = 0;
  int errnum = 0;
  Napi::Promise::Deferred deferred;
  /** The object and the views: neither may be collected while the thread uses them. */
  Napi::ObjectReference self;
  Napi::Reference<Napi::Value> memory;

  explicit Operation(Napi::Env env) : deferred(env) {}
};

/** What the object, its thread and the thread-safe function share. */
class FdThread {
 public:
  static void OnReport(Napi::Env env, Napi::Function, FdThread* self, Operation* op) {
    // Without an environment nobody waits for the promise any more.
    if (env != nullptr) self->Settle(env, op);
  }
  using Reports = Napi::TypedThreadSafeFunction<FdThread, Operation, &FdThread::OnReport>;

  /** Starts the thread. Returns 0 or an errno, with nothing left behind. */
  static int Start(Napi::Env env, int fd, std::shared_ptr<FdThread>* out);

  /** On the thread of JavaScript: queues an operation. False once closed. */
  bool Queue(Napi::Env env, std::unique_ptr<Operation> operation);
  /** On the thread of JavaScript: one read(2). As that, with ECANCELED once interrupted. */
  ssize_t ReadHere(const iovec& into);
  /** Makes the present and all later operations fail with ECANCELED. Returns 0, or the errno of spoiling. */
  int Interrupt(bool spoil);
  /** The thread ends when what it does has been interrupted. */
  void Close();

 private:
  void Run();
  void Do(Operation& op);
  int Once(Operation& op, std::size_t& piece, std::size_t& left);
  bool Cancelled();
  void Settle(Napi::Env env, Operation* op);
  void WakeLocked();
  void ArmTimer(bool on);
  /** Last of all, on the thread of JavaScript, also when the environment is torn down. */
  void Join();

  int fd_ = -1;
  int signum_ = 0;
  std::thread thread_;
  Reports reports_;
  timer_t timer_{};
  bool have_timer_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<Operation*> todo_;
  pid_t tid_ = 0;
  bool ready_ = false;
  bool cancelled_ = false;
  bool closing_ = false;
  bool working_ = false;
  bool armed_ = false;

  /** errno of the first write that failed. Of the thread alone. */
  int broken_ = 0;

  /** Operations that JavaScript waits for, in their order. Of the thread of JavaScript alone. */
  std::deque<std::unique_ptr<Operation>> pending_;
};

int FdThread::Start(Napi::Env env, int fd, std::shared_ptr<FdThread>* out) {
  auto self = std::make_shared<FdThread>();
  self->fd_ = fd;
  self->signum_ = WakeSignal();
  if (self->signum_ == 0) return EAGAIN;

  // Signals to the process are for other threads: all but our own stay blocked in this one from its first moment.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int errnum = 0;
  try {
    self->thread_ = std::thread([raw = self.get()] { raw->Run(); });
  } catch (const std::system_error& error) {
    errnum = error.code().value() == 0 ? EAGAIN : error.code().value();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (errnum != 0) return errnum;

  {
    std::unique_lock<std::mutex> lock(self->mutex_);
    self->changed_.wait(lock, [&] { return self->tid_ != 0; });
  }
  struct sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = self->signum_;
  event.sigev_notify_thread_id = self->tid_;
  if (timer_create(CLOCK_MONOTONIC, &event, &self->timer_) != 0) {
    errnum = errno;
    self->Join();
    return errnum;
  }
  self->have_timer_ = true;
  try {
    // The finalizer's share keeps everything until the thread has been joined.
    auto share = std::make_unique<std::shared_ptr<FdThread>>(self);
    self->reports_ = Reports::New(env, "xen_migration.BlockingFd", 0, 1, self.get(),
                                  [held = share.get()](Napi::Env, void*, FdThread* shared) {
                                    shared->Join();
                                    delete held;
                                  });
    share.release();
  } catch (...) {
    self->Join();
    throw;
  }
  // An idle descriptor keeps no process alive.
  self->reports_.Unref(env);
  {
    std::lock_guard<std::mutex> lock(self->mutex_);
    self->ready_ = true;
  }
  self->changed_.notify_all();
  *out = std::move(self);
  return 0;
}

bool FdThread::Queue(Napi::Env env, std::unique_ptr<Operation> operation) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closing_) return false;
    todo_.push_back(operation.get());
  }
  if (pending_.empty()) reports_.Ref(env);
  pending_.push_back(std::move(operation));
  changed_.notify_all();
  return true;
}

ssize_t FdThread::ReadHere(const iovec& into) {
  if (Cancelled()) {
    errno = ECANCELED;
    return -1;
  }
  return read(fd_, into.iov_base, into.iov_len);
}

int FdThread::Interrupt(bool spoil) {
  {
    // First: a read that finds the spoiled descriptor at its end must know that this is no end.
    std::lock_guard<std::mutex> lock(mutex_);
    cancelled_ = true;
  }
  int errnum = 0;
  if (spoil) {
    // Before the wake-up: whatever call begins after it fails, or reads nothing.
    const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0 || (null != fd_ && dup3(null, fd_, O_CLOEXEC) < 0)) errnum = errno;
    if (null >= 0 && null != fd_) close(null);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  WakeLocked();
  return errnum;
}

void FdThread::Close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    cancelled_ = true;
    WakeLocked();
  }
  changed_.notify_all();
}

void FdThread::WakeLocked() {
  if (!working_ || armed_) return;
  armed_ = true;
  ArmTimer(true);
}

void FdThread::ArmTimer(bool on) {
  struct itimerspec when = {};
  if (on) {
    when.it_value.tv_nsec = 1;
    when.it_interval.tv_nsec = kWakeEveryNs;
  }
  timer_settime(timer_, 0, &when, nullptr);
}

void FdThread::Join() {
  Close();
  if (thread_.joinable()) thread_.join();
  if (have_timer_) timer_delete(timer_);
  have_timer_ = false;
  pending_.clear();
}

void FdThread::Settle(Napi::Env env, Operation* op) {
  // The thread answers in order, and this is the oldest that is left.
  if (pending_.empty() || pending_.front().get() != op) return;
  const std::unique_ptr<Operation> finished = std::move(pending_.front());
  pending_.pop_front();
  if (pending_.empty()) reports_.Unref(env);
  if (op->errnum != 0) {
    op->deferred.Reject(ErrnoError(env, op->write ? "writev" : "read", op->errnum).Value());
  } else if (op->write) {
    op->deferred.Resolve(env.Undefined());
  } else {
    op->deferred.Resolve(Napi::Number::New(env, static_cast<double>(op->done)));
  }
}

bool FdThread::Cancelled() {
  std::lock_guard<std::mutex> lock(mutex_);
  return cancelled_;
}

/** One system call. Returns 0 (all done, or the end of the stream: `left` is 0) or an errno. */
int FdThread::Once(Operation& op, std::size_t& piece, std::size_t& left) {
  iovec* const at = op.pieces.data() + piece;
  const int count = static_cast<int>(std::min<std::size_t>(op.pieces.size() - piece, IOV_MAX));
  const ssize_t n = op.write ? writev(fd_, at, count) : read(fd_, at->iov_base, at->iov_len);
  if (n < 0) return errno;
  if (n == 0) {
    // Of a write only a broken file system says so.
    if (op.write) return EIO;
    left = 0;
    return 0;
  }
  std::size_t step = static_cast<std::size_t>(n);
  op.done += step;
  left -= step;
  while (piece < op.pieces.size() && step >= op.pieces[piece].iov_len) step -= op.pieces[piece++].iov_len;
  if (step > 0) {
    op.pieces[piece].iov_base = static_cast<char*>(op.pieces[piece].iov_base) + step;
    op.pieces[piece].iov_len -= step;
  }
  return 0;
}

void FdThread::Do(Operation& op) {
  // What comes after bytes that are missing is no stream any more.
  if (op.write && broken_ != 0) {
    op.errnum = broken_;
    return;
  }
  std::size_t left = 0;
  for (const iovec& piece : op.pieces) left += piece.iov_len;
  std::size_t piece = 0;
  while (left > 0) {
    if (Cancelled()) {
      op.errnum = ECANCELED;
      return;
    }
    int errnum = Once(op, piece, left);
    if (errnum == EAGAIN || errnum == EWOULDBLOCK) {
      // Somebody else who has the descriptor made it non-blocking.
      struct pollfd wait = {fd_, static_cast<short>(op.write ? POLLOUT : POLLIN), 0};
      errnum = poll(&wait, 1, -1) < 0 ? errno : 0;
    }
    if (errnum == 0 || errnum == EINTR) continue;
    op.errnum = Cancelled() ? ECANCELED : errnum;
    if (op.write) broken_ = op.errnum;
    return;
  }
  // The end of a stream that was spoiled is no end.
  if (!op.write && op.done < op.pieces[0].iov_len && Cancelled()) op.errnum = ECANCELED;
}

void FdThread::Run() {
  sigset_t ours;
  sigemptyset(&ours);
  sigaddset(&ours, signum_);
  pthread_sigmask(SIG_UNBLOCK, &ours, nullptr);

  std::unique_lock<std::mutex> lock(mutex_);
  tid_ = static_cast<pid_t>(syscall(SYS_gettid));
  changed_.notify_all();
  // Not ready and closing: it could not be set up, and nobody is to be told.
  changed_.wait(lock, [&] { return ready_ || closing_; });
  if (!ready_) return;
  for (;;) {
    changed_.wait(lock, [&] { return closing_ || !todo_.empty(); });
    if (todo_.empty()) break;
    Operation* const op = todo_.front();
    todo_.pop_front();
    working_ = true;
    lock.unlock();
    Do(*op);
    lock.lock();
    working_ = false;
    if (armed_) {
      ArmTimer(false);
      armed_ = false;
    }
    lock.unlock();
    // Fails only if the environment is going; then nobody waits.
    reports_.NonBlockingCall(op);
    lock.lock();
  }
  lock.unlock();
  reports_.Release();
}

Napi::Function BlockingFd::Define(Napi::Env env) {
  return DefineClass(env, "BlockingFd",
                     {
                         InstanceMethod<&BlockingFd::Write>("write"),
                         InstanceMethod<&BlockingFd::Read>("read"),
                         InstanceMethod<&BlockingFd::ReadNow>("readNow"),
                         InstanceMethod<&BlockingFd::Interrupt>("interrupt"),
                         InstanceMethod<&BlockingFd::Close>("close"),
                     });
}

BlockingFd::BlockingFd(const Napi::CallbackInfo& info) : Napi::ObjectWrap<BlockingFd>(info) {
  const Napi::Env env = info.Env();
  const int fd = static_cast<int>(IntegerArgument(info, 0, "fd", 0, INT_MAX));
  if (fcntl(fd, F_GETFD) < 0) throw ErrnoError(env, "fcntl", errno);
  if (const int errnum = FdThread::Start(env, fd, &thread_)) throw ErrnoError(env, "pthread_create", errnum);
}

BlockingFd::~BlockingFd() {
  if (thread_) thread_->Close();
}

namespace {

/** The memory of a Uint8Array. */
iovec MemoryOf(Napi::Env env, const Napi::Value& value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw ArgumentTypeError(env, std::string(name) + " must be a Uint8Array");
  }
  auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}

Napi::Value Enqueue(const Napi::CallbackInfo& info, FdThread& thread, std::unique_ptr<Operation> op) {
  const Napi::Env env = info.Env();
  const Napi::Promise promise = op->deferred.Promise();
  op->self = Napi::Persistent(info.This().As<Napi::Object>());
  const Napi::Promise::Deferred deferred = op->deferred;
  const char* const syscall = op->write ? "writev" : "read";
  if (!thread.Queue(env, std::move(op))) deferred.Reject(ErrnoError(env, syscall, ECANCELED, "closed").Value());
  return promise;
}

}  // namespace

/** write(views): writes all of them, in as few calls as there can be. */
Napi::Value BlockingFd::Write(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsArray()) throw ArgumentTypeError(env, "views must be an array");
  const auto views = info[0].As<Napi::Array>();
  auto op = std::make_unique<Operation>(env);
  op->write = true;
  const uint32_t count = views.Length();
  op->pieces.reserve(count);
  // A list of its own: what the caller does with his afterwards may not free a view.
  auto kept = Napi::Array::New(env, count);
  for (uint32_t i = 0; i < count; ++i) {
    const Napi::Value view = views[i];
    const iovec piece = MemoryOf(env, view, "views[]");
    kept[i] = view;
    if (piece.iov_len > 0) op->pieces.push_back(piece);
  }
  op->memory = Napi::Persistent(kept.As<Napi::Value>());
  return Enqueue(info, *thread_, std::move(op));
}

/** read(into): fills it, or what there is before the end of the stream. */
Napi::Value BlockingFd::Read(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto op = std::make_unique<Operation>(env);
  const iovec piece = MemoryOf(env, info[0], "into");
  op->pieces.push_back(piece);
  op->memory = Napi::Persistent(info[0]);
  return Enqueue(info, *thread_, std::move(op));
}

/** readNow(into): one read on this thread, which waits. */
Napi::Value BlockingFd::ReadNow(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const iovec piece = MemoryOf(env, info[0], "into");
  ssize_t n = 0;
  int errnum = 0;
  do {
    n = thread_->ReadHere(piece);
    errnum = n < 0 ? errno : 0;
  } while (errnum == EINTR);
  if (errnum == EAGAIN || errnum == EWOULDBLOCK) return Napi::Number::New(env, -1);
  if (errnum != 0) throw ErrnoError(env, "read", errnum);
  return Napi::Number::New(env, static_cast<double>(n));
}

/** interrupt(spoil): see native.ts. */
void BlockingFd::Interrupt(const Napi::CallbackInfo& info) {
  if (!info[0].IsBoolean()) throw ArgumentTypeError(info.Env(), "spoil must be a boolean");
  const int errnum = thread_->Interrupt(info[0].As<Napi::Boolean>().Value());
  if (errnum != 0) throw ErrnoError(info.Env(), "dup3", errnum, "the descriptor could not be spoiled");
}

/** close(): ends the thread; the descriptor stays open. Idempotent. */
void BlockingFd::Close(const Napi::CallbackInfo&) { thread_->Close(); }

}  // namespace xm
