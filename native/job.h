#pragma once

#include <napi.h>

#include <memory>
#include <utility>

#include "call_log.h"
#include "handles.h"

namespace xm {

/**
 * One asynchronous call: work on libuv's thread pool, settled as a promise on the thread of JavaScript.
 *
 * Made and destroyed on the thread of JavaScript. Node waits for work in flight before it tears an environment down,
 * and then ends the job while JavaScript can no longer run (worker.terminate()): then there is nobody to tell, and the
 * job only gives back what it holds.
 */
class Job {
 public:
  virtual ~Job();
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  /** Queues the job and returns its promise. The receiver of the call, an Xen, is kept alive until it is over. */
  static Napi::Value Start(std::unique_ptr<Job> job, const Napi::CallbackInfo& info);
  /** Does the job here and now, and returns its settled promise. */
  static Napi::Value Now(std::unique_ptr<Job> job, const Napi::CallbackInfo& info);

 protected:
  Job(std::shared_ptr<Handles> handles, Napi::Function log, int min_level);

  /** On a pool thread, or by Now() on that of JavaScript. Throws CallError. */
  virtual void Work(Handles& handles) = 0;
  /** On the thread of JavaScript, after the work succeeded: what the promise resolves to. */
  virtual Napi::Value Settle(Napi::Env env) = 0;

 private:
  static void Execute(napi_env env, void* data);
  static void Complete(napi_env env, napi_status status, void* data);
  void Finish(Napi::Env env, napi_status status);
  Napi::Value Failure(Napi::Env env) const;
  void TellLog(Napi::Env env);

  std::shared_ptr<Handles> handles_;
  Napi::FunctionReference tell_;
  Napi::ObjectReference owner_;
  CallLog log_;
  std::unique_ptr<CallError> error_;
  napi_env env_ = nullptr;
  napi_async_work work_ = nullptr;
  napi_deferred deferred_ = nullptr;
};

/** A job of two functions: `work(Handles&)` gives what `settle(Napi::Env, Result&)` makes a JavaScript value of. */
template <class WorkFunction, class SettleFunction>
class FunctionJob : public Job {
 public:
  FunctionJob(std::shared_ptr<Handles> handles, Napi::Function log, int min_level, WorkFunction work,
              SettleFunction settle)
      : Job(std::move(handles), log, min_level), work_(std::move(work)), settle_(std::move(settle)) {}

 protected:
  void Work(Handles& handles) override { result_ = std::make_unique<Result>(work_(handles)); }
  Napi::Value Settle(Napi::Env env) override { return settle_(env, *result_); }

 private:
  using Result = std::invoke_result_t<WorkFunction&, Handles&>;
  WorkFunction work_;
  SettleFunction settle_;
  std::unique_ptr<Result> result_;
};

}  // namespace xm
