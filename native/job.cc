#include "job.h"

#include <exception>
#include <new>

#include "error.h"

namespace xm {

Job::Job(std::shared_ptr<Handles> handles, Napi::Function log, int min_level)
    : handles_(std::move(handles)), tell_(Napi::Persistent(log)), log_(min_level) {}

Job::~Job() {
  if (work_ != nullptr) napi_delete_async_work(env_, work_);
}

Napi::Value Job::Start(std::unique_ptr<Job> job, const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  job->env_ = env;
  job->owner_ = Napi::Persistent(info.This().As<Napi::Object>());
  const auto name = Napi::String::New(env, "xen-migration");
  napi_value promise = nullptr;
  if (napi_create_async_work(env, nullptr, name, Execute, Complete, job.get(), &job->work_) != napi_ok ||
      napi_create_promise(env, &job->deferred_, &promise) != napi_ok ||
      napi_queue_async_work(env, job->work_) != napi_ok) {
    throw Napi::Error::New(env);
  }
  // From here on the job belongs to Complete().
  job.release();
  return Napi::Value(env, promise);
}

Napi::Value Job::Now(std::unique_ptr<Job> job, const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  napi_value promise = nullptr;
  if (napi_create_promise(env, &job->deferred_, &promise) != napi_ok) throw Napi::Error::New(env);
  Execute(env, job.get());
  try {
    job->Finish(env, napi_ok);
  } catch (const Napi::Error& error) {
    // What the log callback throws is not the fault of this call.
    napi_fatal_exception(env, error.Value());
  }
  return Napi::Value(env, promise);
}

void Job::Execute(napi_env, void* data) {
  auto* job = static_cast<Job*>(data);
  const CallLog::Capture capture(job->log_);
  try {
    job->Work(*job->handles_);
  } catch (const CallError& error) {
    job->error_ = std::make_unique<CallError>(error);
  } catch (const std::bad_alloc&) {
    job->error_ = std::make_unique<CallError>(CallError{"malloc", ENOMEM});
  }
}

void Job::Complete(napi_env env, napi_status status, void* data) {
  const std::unique_ptr<Job> job(static_cast<Job*>(data));
  const Napi::HandleScope scope(env);
  try {
    job->Finish(env, status);
  } catch (const Napi::Error& error) {
    // What the log callback throws, or a terminated environment, in which this does nothing.
    error.ThrowAsJavaScriptException();
  }
}

void Job::Finish(Napi::Env env, napi_status status) {
  if (status == napi_cancelled) error_ = std::make_unique<CallError>(CallError{"uv_queue_work", ECANCELED});
  napi_value value = nullptr;
  bool failed = error_ != nullptr;
  if (failed) {
    value = Failure(env);
  } else {
    try {
      value = Settle(env);
    } catch (const Napi::Error& error) {
      failed = true;
      value = error.Value();
    }
  }
  // The statuses tell only that the environment is gone.
  if (failed) {
    napi_reject_deferred(env, deferred_, value);
  } else {
    napi_resolve_deferred(env, deferred_, value);
  }
  // Whoever awaits is called after this, so what was logged is told first; and a throwing callback hinders nobody.
  TellLog(env);
}

Napi::Value Job::Failure(Napi::Env env) const {
  std::string detail = error_->detail;
  if (!log_.error().empty()) detail += (detail.empty() ? "" : "; ") + log_.error();
  return ErrnoError(env, error_->syscall, error_->errnum, detail).Value();
}

void Job::TellLog(Napi::Env env) {
  for (const CallLog::Line& line : log_.lines()) {
    tell_.Call({Napi::Number::New(env, line.level), Napi::String::New(env, line.text)});
  }
}

}  // namespace xm
