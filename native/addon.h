#pragma once

#include <napi.h>

#include <memory>
#include <utility>

#include "region.h"

namespace xm {

/** What belongs to one environment (the main thread, or one worker). Nothing of the addon is static. */
class Addon : public Napi::Addon<Addon> {
 public:
  Addon(Napi::Env env, Napi::Object exports);

  /** Shared, because a region can outlive the environment's instance data during teardown. */
  const std::shared_ptr<MappedTotals>& mapped() const { return mapped_; }

  /** A PageMap over pages that were mapped already. */
  Napi::Object NewPageMap(std::shared_ptr<Region> region);
  /** For PageMap's constructor: the region that NewPageMap() is being called with; null if JavaScript constructs one.
   */
  std::shared_ptr<Region> TakeRegion() { return std::move(region_); }

 private:
  Napi::Value Mapped(const Napi::CallbackInfo& info);

  std::shared_ptr<MappedTotals> mapped_ = std::make_shared<MappedTotals>();
  Napi::FunctionReference page_map_;
  std::shared_ptr<Region> region_;
};

}  // namespace xm
