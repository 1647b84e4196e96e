#include "probe.h"

#define XM_STRING_(token) #token
#define XM_STRING(token) XM_STRING_(token)

namespace xm {

Napi::Object BuildFacts(Napi::Env env) {
  auto facts = Napi::Object::New(env);
  facts.Set("haveXen", Napi::Boolean::New(env, XM_HAVE_XEN != 0));
#if XM_HAVE_XEN
  // The headers carry the ABI's number, not the release: the release is what pkg-config said.
  facts.Set("xenVersion", Napi::String::New(env, XM_STRING(XM_XEN_VERSION)));
#else
  facts.Set("xenVersion", env.Null());
#endif
  facts.Set("napiVersion", Napi::Number::New(env, NAPI_VERSION));
  facts.Freeze();
  return facts;
}

}  // namespace xm
