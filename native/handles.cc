#include "handles.h"

#include <cerrno>
#include <cstring>

#include "call_log.h"
#include "region.h"

namespace xm {

static_assert(XC_PAGE_SIZE == kPageSize, "guest pages are 4 KiB");

namespace {

/** The frames of a batch: 1024 of 8 bytes. */
constexpr std::size_t kSparePages = 2;
/** As many as there are threads in libuv's pool. */
constexpr std::size_t kMaxSpare = 4;

}  // namespace

Handles::Handles() : xc_(xc_interface_open(CallLog::Logger(), CallLog::Logger(), 0)) {
  if (xc_ == nullptr) throw CallError{"xc_interface_open", errno};
}

Handles::~Handles() {
  for (void* memory : spare_) xencall_free_buffer_pages(call(), memory, kSparePages);
  xc_interface_close(xc_);
}

void Handles::Count(std::string_view name, uint64_t times) {
  const std::lock_guard lock(mutex_);
  const auto found = counts_.find(name);
  if (found == counts_.end()) {
    counts_.emplace(name, times);
  } else {
    found->second += times;
  }
}

std::map<std::string, uint64_t> Handles::Counts() const {
  const std::lock_guard lock(mutex_);
  return {counts_.begin(), counts_.end()};
}

void Handles::Domctl(const char* name, xen_domctl& domctl) {
  Count(name);
  Check(name, xc_domctl(xc_, &domctl));
}

HypercallPages::HypercallPages(Handles& handles, std::size_t bytes)
    : handles_(handles), bytes_(bytes), pages_((bytes + kPageSize - 1) / kPageSize), memory_(nullptr) {
  // One page comes from libxencall's own cache.
  if (pages_ == 0) pages_ = 1;
  if (pages_ == kSparePages) {
    const std::lock_guard lock(handles_.mutex_);
    if (!handles_.spare_.empty()) {
      memory_ = handles_.spare_.back();
      handles_.spare_.pop_back();
    }
  }
  if (memory_ != nullptr) {
    std::memset(memory_, 0, bytes_);
    return;
  }
  memory_ = xencall_alloc_buffer_pages(handles_.call(), pages_);
  if (memory_ == nullptr) throw CallError{"xencall_alloc_buffer_pages", errno};
}

HypercallPages::~HypercallPages() {
  if (pages_ == kSparePages) {
    const std::lock_guard lock(handles_.mutex_);
    if (handles_.spare_.size() < kMaxSpare) {
      handles_.spare_.push_back(memory_);
      return;
    }
  }
  xencall_free_buffer_pages(handles_.call(), memory_, pages_);
}

}  // namespace xm
