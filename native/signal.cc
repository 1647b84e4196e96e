#include "signal.h"

#include <pthread.h>
#include <signal.h>

#include "error.h"

namespace xm {

Napi::Value UnblockSignal(const Napi::CallbackInfo& info) {
  const int signum = static_cast<int>(IntegerArgument(info, 0, "signal", 1, SIGRTMAX));
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signum);
  const int errnum = pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  if (errnum != 0) throw ErrnoError(info.Env(), "pthread_sigmask", errnum);
  return info.Env().Undefined();
}

}  // namespace xm
