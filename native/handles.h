#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "xen.h"

namespace xm {

/** How a call failed. Thrown on the thread that made it, and turned into a JavaScript error on JavaScript's. */
struct CallError {
  const char* syscall;
  int errnum;
  /** What errno does not tell, beside what the library logged. */
  std::string detail = {};
};

/**
 * One open libxenctrl handle, with the handles of the stable libraries that it keeps inside. Every call in flight has a
 * share in it, so that it closes when the last one has ended. May be used from several threads at once.
 */
class Handles {
 public:
  /** Throws CallError. What the libraries say goes to this thread's capture. */
  Handles();
  ~Handles();
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;

  xc_interface* xc() const { return xc_; }
  xencall_handle* call() const { return xc_interface_xcall_handle(xc_); }
  xenforeignmemory_handle* foreign() const { return xc_interface_fmem_handle(xc_); }

  /** Counts a hypercall or a mapping, under Xen's name for it. */
  void Count(std::string_view name, uint64_t times = 1);
  std::map<std::string, uint64_t> Counts() const;

  /** xc_domctl, counted. The caller fills in `cmd`, `domain` and `u`. Throws CallError with `name` for the system call.
   */
  void Domctl(const char* name, xen_domctl& domctl);

  /** XENMEM_*: copies `argument` in and out. Returns what Xen returns; throws CallError. */
  template <class Argument>
  int MemoryOp(const char* name, unsigned command, Argument& argument);

 private:
  friend class HypercallPages;

  xc_interface* xc_;
  mutable std::mutex mutex_;
  std::map<std::string, uint64_t, std::less<>> counts_;
  std::vector<void*> spare_;
};

/** Throws CallError from errno, unless `result` is not negative. Returns the result. */
template <class Result>
Result Check(const char* syscall, Result result) {
  if (result < 0) throw CallError{syscall, errno};
  return result;
}

/**
 * Memory that the hypervisor can reach, zeroed. Two pages, which hold the frames of a whole batch, are kept for the
 * next call: libxencall keeps single pages only, and mapping and unmapping costs more than the hypercall.
 */
class HypercallPages {
 public:
  HypercallPages(Handles& handles, std::size_t bytes);
  ~HypercallPages();
  HypercallPages(const HypercallPages&) = delete;
  HypercallPages& operator=(const HypercallPages&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }
  std::size_t bytes() const { return bytes_; }

  /** Lets a guest handle of a hypercall's argument point here. */
  template <class GuestHandle>
  void PointFrom(GuestHandle& handle) const {
    handle.p = static_cast<decltype(handle.p)>(memory_);
  }

 private:
  Handles& handles_;
  std::size_t bytes_;
  std::size_t pages_;
  void* memory_;
};

template <class Argument>
int Handles::MemoryOp(const char* name, unsigned command, Argument& argument) {
  HypercallPages pages(*this, sizeof argument);
  *pages.as<Argument>() = argument;
  Count(name);
  const int result = xencall2(call(), __HYPERVISOR_memory_op, command, reinterpret_cast<uint64_t>(pages.as<void>()));
  const int errnum = errno;
  argument = *pages.as<Argument>();
  if (result < 0) throw CallError{name, errnum};
  return result;
}

}  // namespace xm
