#pragma once

#include <string>
#include <vector>

#include "xen.h"

namespace xm {

/** What the Xen libraries say during one call: for the log callback, and for the message of the error. */
class CallLog {
 public:
  struct Line {
    int level;
    std::string text;
  };

  /** Lines of `min_level` (XTL_*) or above are kept. */
  explicit CallLog(int min_level) : min_level_(min_level) {}

  const std::vector<Line>& lines() const { return lines_; }
  /** The last message of level XTL_ERROR or above; empty if there was none. */
  const std::string& error() const { return error_; }

  /** While it lives, what the libraries log on this thread goes to `log`. */
  class Capture {
   public:
    explicit Capture(CallLog& log);
    ~Capture();
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;

   private:
    CallLog* outer_;
  };

  /**
   * The logger to open handles with. It only hands on to the thread's capture, so that concurrent calls through one
   * handle do not mix; without one the message is dropped. By themselves the libraries would print to standard error.
   */
  static xentoollog_logger* Logger();

  void Add(int level, std::string text);

 private:
  int min_level_;
  std::vector<Line> lines_;
  std::string error_;
};

}  // namespace xm
