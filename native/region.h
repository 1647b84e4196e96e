#pragma once

#include <napi.h>

#include <atomic>
#include <cstddef>
#include <memory>

namespace xm {

/** Guest pages are 4 KiB on every architecture that Xen migrates. */
constexpr std::size_t kPageSize = 4096;

/** What is mapped now. Atomic, because a region may end on another thread than its environment's. */
struct MappedTotals {
  std::atomic<std::size_t> regions{0};
  std::atomic<std::size_t> bytes{0};
};

/**
 * A range of addresses whose pages JavaScript can see.
 *
 * The pages go with Seal(), the addresses with the destructor. In between every stale pointer (a view that was
 * moved by ArrayBuffer.prototype.transfer(), a write still queued in libuv) meets private zero pages, never a fault.
 */
class Region {
 public:
  /** Takes over `bytes` of mapped memory at `base`. */
  Region(void* base, std::size_t bytes, std::shared_ptr<MappedTotals> totals);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  void* base() const { return base_; }
  std::size_t bytes() const { return bytes_; }
  bool live() const { return live_; }

  /** Replaces the pages by zero pages, in one step. Returns 0 or an errno; after a failure the region is as before. */
  int Seal();

 private:
  void* base_;
  std::size_t bytes_;
  bool live_ = true;
  std::shared_ptr<MappedTotals> totals_;
};

/**
 * The JavaScript class: `new PageMap(pages)`, `buffer()`, `release()`, `live`, `byteLength`.
 *
 * The pages are anonymous memory; frames of a guest, mapped by Xen::MapFrames(), come by the same class.
 * Counting who still reads the pages is TypeScript's work (lib/host/xen/leases.ts): release() here is immediate.
 */
class PageMap : public Napi::ObjectWrap<PageMap> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit PageMap(const Napi::CallbackInfo& info);

 private:
  template <Napi::Value (*getter)(const Napi::CallbackInfo&)>
  static Napi::ClassPropertyDescriptor<PageMap> GetterProperty(const char* name);
  static PageMap* Receiver(const Napi::CallbackInfo& info);

  Napi::Value Buffer(const Napi::CallbackInfo& info);
  Napi::Value Release(const Napi::CallbackInfo& info);
  static Napi::Value Live(const Napi::CallbackInfo& info);
  static Napi::Value ByteLength(const Napi::CallbackInfo& info);

  /** One share here, one with the ArrayBuffer's backing store: the last one to go unmaps. */
  std::shared_ptr<Region> region_;
  /** Keeps the one ArrayBuffer of this map findable, so that release() can detach it. */
  Napi::Reference<Napi::ArrayBuffer> buffer_;
};

}  // namespace xm
