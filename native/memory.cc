/** A domain's memory: how much there is, what each page is for, mapping it, giving it some. */
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "addon.h"
#include "arguments.h"
#include "error.h"
#include "xen_handle.h"

namespace xm {

namespace {

/** Of XEN_DOMCTL_getpageframeinfo3, and of a PAGE_DATA record. */
constexpr std::size_t kBatch = 1024;
constexpr std::size_t kMaxTypes = 65536;
/** Extents in one call. */
constexpr std::size_t kMaxExtents = 65536;
constexpr int kFaultRetries = 10;

/** The M2P is made of 2 MiB pages, and listed by them. */
constexpr std::size_t kM2pChunk = 2 << 20;

constexpr int kZeroFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

struct Mapping {
  std::shared_ptr<Region> region;
  std::vector<int> errors;
};

struct MachineToPhys {
  std::shared_ptr<Region> region;
  uint64_t max_mfn;
  uint64_t compat_first;
};

/** A run of frames, by index. */
struct Run {
  std::size_t from, to;
};

/** The longest runs from `from` to `to` that could be mapped. */
void AddGoodRuns(const std::vector<int>& errors, Run within, std::vector<Run>& runs) {
  for (std::size_t i = within.from; i < within.to;) {
    std::size_t end = i;
    while (end < within.to && errors[end] == 0) end++;
    if (end > i) runs.push_back({i, end});
    i = end + 1;
  }
}

/** Private zero pages, which take no memory until they are written to. */
uint8_t* ZeroPages(std::size_t bytes) {
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kZeroFlags, -1, 0);
  if (base == MAP_FAILED) throw CallError{"mmap", errno};
  return static_cast<uint8_t*>(base);
}

/** What can be mapped of a domain's frames, one by one at the last. */
class FrameMapper {
 public:
  FrameMapper(Handles& handles, uint32_t domid, const std::vector<uint64_t>& gfns, int protection)
      : handles_(handles), domid_(domid), gfns_(gfns), protection_(protection), errors_(gfns.size()) {}

  /** The addresses, where zero pages stand for what could not be mapped. The caller unmaps them. */
  uint8_t* Map() {
    const std::size_t bytes = gfns_.size() * kPageSize;
    const Run all = {0, gfns_.size()};
    auto* base = static_cast<uint8_t*>(MapRun(all, nullptr));
    if (base == nullptr) {
      // Not even attempted: then the errors of the frames mean nothing.
      std::fill(errors_.begin(), errors_.end(), errno);
      return ZeroPages(bytes);
    }
    if (!Failed(all)) return base;
    // Touching a page that failed kills the process with SIGBUS. Zero pages cannot be put over it alone, because Linux
    // does not let mappings of foreign frames be split any more: so the rest is mapped again, in runs, over zero pages.
    munmap(base, bytes);
    base = ZeroPages(bytes);
    MapRuns(base);
    return base;
  }

  /** For each frame 0 or an errno. */
  std::vector<int> TakeErrors() {
    // The kernel tells them negative, the header promises errno values.
    for (int& error : errors_) error = std::abs(error);
    return std::move(errors_);
  }

 private:
  void* MapRun(Run run, void* at) {
    const std::size_t count = run.to - run.from;
    handles_.Count("mmapbatch");
    handles_.Count("mmapbatch frames", count);
    return xenforeignmemory_map2(handles_.foreign(), domid_, at, protection_, at == nullptr ? 0 : MAP_FIXED, count,
                                 gfns_.data() + run.from, errors_.data() + run.from);
  }

  bool Failed(Run run) const {
    return std::any_of(errors_.begin() + static_cast<std::ptrdiff_t>(run.from),
                       errors_.begin() + static_cast<std::ptrdiff_t>(run.to), [](int error) { return error != 0; });
  }

  /** Unmaps everything if it throws. */
  void MapRuns(uint8_t* base) {
    std::vector<Run> runs;
    AddGoodRuns(errors_, {0, gfns_.size()}, runs);
    while (!runs.empty()) {
      const Run run = runs.back();
      runs.pop_back();
      uint8_t* at = base + run.from * kPageSize;
      const std::size_t bytes = (run.to - run.from) * kPageSize;
      if (MapRun(run, at) == nullptr) {
        // The library has unmapped these addresses, and another thread may have got them: they are not ours to unmap.
        const int errnum = errno;
        munmap(base, run.from * kPageSize);
        munmap(at + bytes, (gfns_.size() - run.to) * kPageSize);
        throw CallError{"xenforeignmemory_map2", errnum};
      }
      if (!Failed(run)) continue;
      // A frame that was there a moment ago is gone. Each turn loses at least one, so this ends.
      if (mmap(at, bytes, PROT_READ | PROT_WRITE, kZeroFlags | MAP_FIXED, -1, 0) == MAP_FAILED) {
        const int errnum = errno;
        munmap(base, gfns_.size() * kPageSize);
        throw CallError{"mmap", errnum};
      }
      AddGoodRuns(errors_, run, runs);
    }
  }

  Handles& handles_;
  uint32_t domid_;
  const std::vector<uint64_t>& gfns_;
  int protection_;
  std::vector<int> errors_;
};

Mapping Map(Handles& handles, uint32_t domid, const std::vector<uint64_t>& gfns, int protection,
            const std::shared_ptr<MappedTotals>& totals) {
  FrameMapper mapper(handles, domid, gfns, protection);
  uint8_t* base = mapper.Map();
  // On Linux, unmapping is munmap(), which is what Region does.
  return {std::make_shared<Region>(base, gfns.size() * kPageSize, totals), mapper.TakeErrors()};
}

/** First machine frames of the M2P's 2 MiB chunks. */
std::vector<xen_pfn_t> M2pChunks(Handles& handles, std::size_t count) {
  std::vector<xen_pfn_t> chunks(count);
  handles.Count("machphys_mfn_list");
  Check("xc_machphys_mfn_list", xc_machphys_mfn_list(handles.xc(), count, chunks.data()));
  return chunks;
}

/** First machine frame of the M2P that 32-bit guests see; ~0 if there is none. */
uint64_t CompatM2p(Handles& handles) {
  const HypercallPages frame(handles, sizeof(xen_pfn_t));
  xen_machphys_mfn_list list = {};
  list.max_extents = 1;
  frame.PointFrom(list.extent_start);
  try {
    handles.MemoryOp("machphys_compat_mfn_list", XENMEM_machphys_compat_mfn_list, list);
  } catch (const CallError&) {
    // A hypervisor without support for 32-bit guests.
    return ~uint64_t{0};
  }
  return list.nr_extents == 1 ? *frame.as<xen_pfn_t>() : ~uint64_t{0};
}

}  // namespace

Napi::Value Xen::MaximumGpfn(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  return Run(
      info,
      [domid](Handles& handles) {
        xen_pfn_t gpfn = 0;
        handles.Count("maximum_gpfn");
        Check("xc_domain_maximum_gpfn", xc_domain_maximum_gpfn(handles.xc(), domid, &gpfn));
        return gpfn;
      },
      [](Napi::Env env, xen_pfn_t& gpfn) { return Napi::Number::New(env, FrameToNumber(gpfn)); });
}

Napi::Value Xen::PageTypes(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  auto gfns = FramesArgument(info, 1, "gfns", kMaxTypes);
  auto types = std::make_shared<Output>(info, 2, "types", napi_uint8_array, gfns.size());
  return Run(
      info,
      [domid, gfns = std::move(gfns)](Handles& handles) {
        const HypercallPages array(handles, std::min(gfns.size(), kBatch) * sizeof(xen_pfn_t));
        std::vector<uint8_t> found(gfns.size());
        for (std::size_t from = 0; from < gfns.size(); from += kBatch) {
          const std::size_t count = std::min(kBatch, gfns.size() - from);
          for (int attempt = 0;; attempt++) {
            std::copy_n(gfns.begin() + static_cast<std::ptrdiff_t>(from), count, array.as<xen_pfn_t>());
            xen_domctl domctl = NewDomctl(XEN_DOMCTL_getpageframeinfo3, domid);
            domctl.u.getpageframeinfo3.num = count;
            array.PointFrom(domctl.u.getpageframeinfo3.array);
            try {
              handles.Domctl("getpageframeinfo3", domctl);
              break;
            } catch (const CallError& error) {
              // Kernels without /dev/xen/hypercall may move the pages under the hypervisor's feet.
              if (error.errnum != EFAULT || attempt == kFaultRetries) throw;
            }
          }
          for (std::size_t i = 0; i < count; i++) {
            found[from + i] = static_cast<uint8_t>((array.as<xen_pfn_t>()[i] & XEN_DOMCTL_PFINFO_LTAB_MASK) >>
                                                   XEN_DOMCTL_PFINFO_LTAB_SHIFT);
          }
        }
        return found;
      },
      [types](Napi::Env env, std::vector<uint8_t>& found) {
        if (void* to = types->data()) std::copy(found.begin(), found.end(), static_cast<uint8_t*>(to));
        return env.Undefined();
      });
}

Napi::Value Xen::MapFrames(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  auto gfns = FramesArgument(info, 1, "gfns", kBatch);
  const int protection = BooleanArgument(info, 2, "writable") ? PROT_READ | PROT_WRITE : PROT_READ;
  auto errors = std::make_shared<Output>(info, 3, "errors", napi_int32_array, gfns.size());
  return Run(
      info,
      [domid, gfns = std::move(gfns), protection, totals = info.Env().GetInstanceData<Addon>()->mapped()](
          Handles& handles) { return Map(handles, domid, gfns, protection, totals); },
      [errors](Napi::Env env, Mapping& mapping) {
        if (void* to = errors->data()) {
          std::copy(mapping.errors.begin(), mapping.errors.end(), static_cast<int32_t*>(to));
        }
        return env.GetInstanceData<Addon>()->NewPageMap(std::move(mapping.region));
      });
}

/** By libxencall, because xc_domain_populate_physmap() maps and unmaps a bounce buffer for each batch. */
Napi::Value Xen::Populate(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  auto frames = FramesArgument(info, 1, "frames", kMaxExtents);
  const uint32_t order = IntegerArgument(info, 2, "order", 0, 9);
  if (order != 0 && order != 9) throw ArgumentRangeError(info.Env(), "order must be 0 or 9");
  auto given = std::make_shared<Output>(info, 1, "frames", napi_float64_array, frames.size());
  struct Extents {
    std::vector<uint64_t> frames;
    int done;
  };
  return Run(
      info,
      [domid, order, frames = std::move(frames)](Handles& handles) mutable {
        const HypercallPages extents(handles, frames.size() * sizeof(xen_pfn_t));
        std::copy(frames.begin(), frames.end(), extents.as<xen_pfn_t>());
        xen_memory_reservation reservation = {};
        reservation.nr_extents = frames.size();
        reservation.extent_order = order;
        reservation.domid = domid;
        extents.PointFrom(reservation.extent_start);
        const int done = handles.MemoryOp("populate_physmap", XENMEM_populate_physmap, reservation);
        std::copy_n(extents.as<xen_pfn_t>(), frames.size(), frames.begin());
        return Extents{std::move(frames), done};
      },
      [given](Napi::Env env, Extents& extents) {
        if (void* to = given->data()) {
          std::transform(extents.frames.begin(), extents.frames.end(), static_cast<double*>(to), FrameToNumber);
        }
        return Napi::Number::New(env, extents.done);
      });
}

Napi::Value Xen::ClearPage(const Napi::CallbackInfo& info) {
  const uint16_t domid = DomidArgument(info);
  const uint64_t gfn = FrameArgument(info, 1, "gfn");
  return Run(info, [domid, gfn](Handles& handles) {
    handles.Count("clear_domain_page");
    Check("xc_clear_domain_page", xc_clear_domain_page(handles.xc(), domid, gfn));
  });
}

Napi::Value Xen::MapMachineToPhys(const Napi::CallbackInfo& info) {
  return Run(
      info,
      [totals = info.Env().GetInstanceData<Addon>()->mapped()](Handles& handles) {
        unsigned long max_mfn = 0;
        handles.Count("maximum_ram_page");
        Check("xc_maximum_ram_page", xc_maximum_ram_page(handles.xc(), &max_mfn));
        const std::size_t chunks = ((max_mfn + 1) * sizeof(uint64_t) + kM2pChunk - 1) / kM2pChunk;
        std::vector<uint64_t> frames;
        frames.reserve(chunks * (kM2pChunk / kPageSize));
        for (const xen_pfn_t first : M2pChunks(handles, chunks)) {
          for (std::size_t i = 0; i < kM2pChunk / kPageSize; i++) frames.push_back(first + i);
        }
        Mapping mapping = Map(handles, DOMID_XEN, frames, PROT_READ, totals);
        const auto failed = std::find_if(mapping.errors.begin(), mapping.errors.end(), [](int e) { return e != 0; });
        if (failed != mapping.errors.end()) throw CallError{"xenforeignmemory_map", *failed, "the M2P"};
        return MachineToPhys{std::move(mapping.region), max_mfn, CompatM2p(handles)};
      },
      [](Napi::Env env, MachineToPhys& m2p) {
        auto out = Napi::Object::New(env);
        out.Set("maxMfn", FrameToNumber(m2p.max_mfn));
        out.Set("compatFirstMfn", FrameToNumber(m2p.compat_first));
        out.Set("map", env.GetInstanceData<Addon>()->NewPageMap(std::move(m2p.region)));
        return out;
      });
}

}  // namespace xm
