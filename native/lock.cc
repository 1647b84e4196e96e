#include "lock.h"

#include <fcntl.h>

#include <cerrno>
#include <climits>

#include "error.h"

namespace xm {

/** Node has flock() nowhere and fcntl() neither. The lock goes with the process's last close of the file. */
Napi::Value LockFile(const Napi::CallbackInfo& info) {
  const int fd = static_cast<int>(IntegerArgument(info, 0, "fd", 0, INT_MAX));
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  if (fcntl(fd, F_SETLK, &lock) != 0) throw ErrnoError(info.Env(), "fcntl", errno, "F_SETLK");
  return info.Env().Undefined();
}

}  // namespace xm
