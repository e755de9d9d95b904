#include <signal.h>
#include <sys/syscall.h>

#include "bindings.hpp"
#include "common/file_descriptor.hpp"
#include "watcher.hpp"

namespace ublk::addon {

namespace {

// A process by its pidfd, so that neither its exit is missed nor another process with its number is signalled.
// new ProcessWatch(pidfd, onExit): takes the descriptor over; onExit() is called once.
class ProcessWatch final : public Napi::ObjectWrap<ProcessWatch> {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("ProcessWatch", DefineClass(env, "ProcessWatch", {InstanceMethod<&ProcessWatch::kill>("kill")}));
  }

  explicit ProcessWatch(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<ProcessWatch>(info),
        pidfd_(info[0].As<Napi::Number>().Int32Value()),
        onExit_(Napi::Persistent(info[1].As<Napi::Function>())) {
    Ref();  // until the exit, also when JavaScript forgets it
    watcher_.start(info.Env(), pidfd_.get(), [this] { exited(); });
  }

 private:
  void exited() {
    const Napi::HandleScope scope(Env());
    watcher_.stop();
    pidfd_.reset();
    Unref();
    onExit_.MakeCallback(Env().Global(), {});
  }

  // kill(): SIGKILL. Harmless when the process is gone.
  void kill(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      if (!pidfd_) return;
      const long result = syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
      if (result < 0 && errno != ESRCH) checked(result, "pidfd_send_signal");
    });
  }

  FileDescriptor pidfd_;
  Napi::FunctionReference onExit_;
  Watcher watcher_;
};

// openPidfd(pid): -1 when there is no such process.
Napi::Value openPidfd(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const long pidfd = syscall(SYS_pidfd_open, info[0].As<Napi::Number>().Int32Value(), 0);
    if (pidfd < 0 && errno != ESRCH) checked(pidfd, "pidfd_open");
    return Napi::Number::New(info.Env(), static_cast<double>(pidfd));
  });
}

}  // namespace

void exportProcessWatch(Napi::Env env, Napi::Object exports) {
  exports.Set("openPidfd", Napi::Function::New(env, openPidfd));
  ProcessWatch::define(env, exports);
}

}  // namespace ublk::addon
