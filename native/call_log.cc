#include "call_log.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

namespace xm {

namespace {

/** A call that fails a thousand times over says the same a thousand times over. */
constexpr std::size_t kMaxLines = 64;

/** The capture of this thread: libxenctrl's logger is told neither which call nor which handle it speaks of. */
thread_local CallLog* current = nullptr;

__attribute__((format(printf, 5, 0))) void Message(xentoollog_logger*, xentoollog_level level, int errnum, const char*,
                                                   const char* format, va_list args) {
  if (current == nullptr) return;
  char text[512];
  std::vsnprintf(text, sizeof text, format, args);
  std::string line(text);
  if (errnum >= 0) line += std::string(": ") + std::strerror(errnum);
  current->Add(level, std::move(line));
}

void Destroy(xentoollog_logger*) {}

}  // namespace

xentoollog_logger* CallLog::Logger() {
  // Has no state of its own; libraries want it writable.
  static xentoollog_logger logger = {Message, nullptr, Destroy};
  return &logger;
}

CallLog::Capture::Capture(CallLog& log) : outer_(current) { current = &log; }
CallLog::Capture::~Capture() { current = outer_; }

void CallLog::Add(int level, std::string text) {
  if (level >= XTL_ERROR) error_ = text;
  if (level >= min_level_ && lines_.size() < kMaxLines) lines_.push_back({level, std::move(text)});
}

}  // namespace xm
