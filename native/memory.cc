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

struct Mapping {
  std::shared_ptr<Region> region;
  std::vector<int> errors;
};

struct MachineToPhys {
  std::shared_ptr<Region> region;
  uint64_t max_mfn;
  uint64_t compat_first;
};

/**
 * Exchanges runs of pages that could not be mapped for private zero pages. As they are, touching one kills the process
 * with SIGBUS. Returns 0 or an errno.
 */
int CoverFailures(uint8_t* base, const std::vector<int>& errors) {
  for (std::size_t i = 0; i < errors.size();) {
    if (errors[i] == 0) {
      i++;
      continue;
    }
    std::size_t end = i;
    while (end < errors.size() && errors[end] != 0) end++;
    void* at = mmap(base + i * kPageSize, (end - i) * kPageSize, PROT_READ | PROT_WRITE,
                    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return errno;
    i = end;
  }
  return 0;
}

/** Zero pages in place of frames of which none could be mapped. */
void* NoFrames(std::size_t bytes) {
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw CallError{"mmap", errno};
  return base;
}

Mapping Map(Handles& handles, uint32_t domid, const std::vector<uint64_t>& gfns, int protection,
            const std::shared_ptr<MappedTotals>& totals) {
  const std::size_t bytes = gfns.size() * kPageSize;
  Mapping mapping = {nullptr, std::vector<int>(gfns.size())};
  handles.Count("mmapbatch");
  handles.Count("mmapbatch frames", gfns.size());
  void* base = xenforeignmemory_map(handles.foreign(), domid, protection, gfns.size(), gfns.data(),
                                    mapping.errors.data());
  if (base == nullptr) {
    // Not even attempted: then the errors of the frames mean nothing.
    std::fill(mapping.errors.begin(), mapping.errors.end(), errno);
    base = NoFrames(bytes);
  }
  // On Linux, unmapping is munmap(), which is what Region does.
  mapping.region = std::make_shared<Region>(base, bytes, totals);
  // The kernel tells them negative, the header promises errno values.
  for (int& error : mapping.errors) error = std::abs(error);
  if (const int errnum = CoverFailures(static_cast<uint8_t*>(base), mapping.errors)) throw CallError{"mmap", errnum};
  return mapping;
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
