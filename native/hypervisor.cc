#include "hypervisor.h"

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <string>

#include "error.h"
#include "region.h"
#include "xen.h"

namespace xm {

static_assert(XC_PAGE_SIZE == kPageSize, "guest pages are 4 KiB");

namespace {

/** Keeps the last message: by itself libxenctrl would print it to standard error. */
struct LastMessage : xentoollog_logger {
  std::string text;

  LastMessage() : xentoollog_logger{Message, nullptr, Destroy} {}

  __attribute__((format(printf, 5, 0))) static void Message(xentoollog_logger* self, xentoollog_level level, int,
                                                            const char*, const char* format, va_list args) {
    if (level < XTL_ERROR) return;
    char line[256];
    std::vsnprintf(line, sizeof line, format, args);
    static_cast<LastMessage*>(self)->text = line;
  }
  /** The logger lives on the caller's stack. */
  static void Destroy(xentoollog_logger*) {}
};

/** An open libxenctrl handle. */
class Interface {
 public:
  explicit Interface(xentoollog_logger* log) : handle_(xc_interface_open(log, log, 0)) {}
  ~Interface() {
    if (handle_ != nullptr) xc_interface_close(handle_);
  }
  Interface(const Interface&) = delete;
  Interface& operator=(const Interface&) = delete;
  xc_interface* get() const { return handle_; }

 private:
  xc_interface* handle_;
};

}  // namespace

Napi::Value Hypervisor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  LastMessage log;
  const Interface xen(&log);
  if (xen.get() == nullptr) throw ErrnoError(env, "xc_interface_open", errno, log.text);
  const int version = xc_version(xen.get(), XENVER_version, nullptr);
  if (version < 0) throw ErrnoError(env, "xc_version", errno, log.text);
  xen_extraversion_t extra = {};
  if (xc_version(xen.get(), XENVER_extraversion, &extra) < 0) throw ErrnoError(env, "xc_version", errno, log.text);
  auto out = Napi::Object::New(env);
  out.Set("major", static_cast<uint32_t>(version) >> 16);
  out.Set("minor", static_cast<uint32_t>(version) & 0xffff);
  extra[sizeof extra - 1] = '\0';
  out.Set("extra", std::string(extra));
  return out;
}

}  // namespace xm
