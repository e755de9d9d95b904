#include <sys/inotify.h>
#include <unistd.h>

#include <array>

#include "bindings.hpp"
#include "common/file_descriptor.hpp"
#include "watcher.hpp"

namespace ublk::addon {

namespace {

// Node's own watchers wake for each write, too, of which a block device sees many.
// new CloseWatch(path, onClosed): onClosed() is called when a process that could write to it has closed it.
class CloseWatch final : public Napi::ObjectWrap<CloseWatch> {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("CloseWatch", DefineClass(env, "CloseWatch", {InstanceMethod<&CloseWatch::end>("end")}));
  }

  explicit CloseWatch(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<CloseWatch>(info), onClosed_(Napi::Persistent(info[1].As<Napi::Function>())) {
    guarded(info.Env(), [&] {
      inotify_ = FileDescriptor(checked(inotify_init1(IN_CLOEXEC | IN_NONBLOCK), "inotify_init1"));
      const std::string path = info[0].As<Napi::String>();
      checked(inotify_add_watch(inotify_.get(), path.c_str(), IN_CLOSE_WRITE), "inotify_add_watch");
      watcher_.start(info.Env(), inotify_.get(), [this] { closed(); });
    });
  }

 private:
  void closed() {
    const Napi::HandleScope scope(Env());
    // Which they are is all the same: only the events that are asked for come, and IN_IGNORED when the node is gone.
    std::array<char, 4096> events;
    while (read(inotify_.get(), events.data(), events.size()) > 0) {
    }
    onClosed_.MakeCallback(Env().Global(), {});
  }

  // end(): no callback comes any more.
  void end(const Napi::CallbackInfo&) {
    watcher_.stop();
    inotify_.reset();
  }

  FileDescriptor inotify_;
  Napi::FunctionReference onClosed_;
  Watcher watcher_;
};

}  // namespace

void exportCloseWatch(Napi::Env env, Napi::Object exports) { CloseWatch::define(env, exports); }

}  // namespace ublk::addon
