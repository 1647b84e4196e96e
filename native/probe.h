#pragma once

#include <napi.h>

namespace xm {

/**
 * What this addon was built from: { haveXen, xenVersion, napiVersion }.
 * `xenVersion` is the release of the Xen libraries at build time, or null.
 */
Napi::Object BuildFacts(Napi::Env env);

}  // namespace xm
