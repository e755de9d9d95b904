#pragma once

#include <napi.h>
#include <uv.h>

#include <functional>

namespace ublk::addon {

// Calls back on the JavaScript thread when a descriptor becomes readable, or, where that is asked for, writable. Does not
// own the descriptor.
class Watcher {
 public:
  Watcher() = default;
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;
  ~Watcher() { stop(); }

  void start(Napi::Env env, int fd, std::function<void()> onReadable, std::function<void()> onWritable = {}) {
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env, &loop);
    handle_ = new Handle{{}, std::move(onReadable), std::move(onWritable)};
    uv_poll_init(loop, &handle_->poll, fd);
    handle_->poll.data = handle_;
    watch(UV_READABLE);
  }

  // Whether `onWritable` is to be called too.
  void awaitWritable(bool wanted) {
    if (handle_) watch(wanted ? UV_READABLE | UV_WRITABLE : UV_READABLE);
  }

  // The descriptor may be closed as soon as this returns; libuv frees the handle later.
  void stop() {
    if (!handle_) return;
    uv_poll_stop(&handle_->poll);
    uv_close(reinterpret_cast<uv_handle_t*>(&handle_->poll),
             [](uv_handle_t* handle) { delete static_cast<Handle*>(handle->data); });
    handle_ = nullptr;
  }

  // Whether it keeps the process from ending, which it does at first.
  void ref() {
    if (handle_) uv_ref(reinterpret_cast<uv_handle_t*>(&handle_->poll));
  }
  void unref() {
    if (handle_) uv_unref(reinterpret_cast<uv_handle_t*>(&handle_->poll));
  }

  bool active() const { return handle_ != nullptr; }

 private:
  struct Handle {
    uv_poll_t poll;
    std::function<void()> onReadable;
    std::function<void()> onWritable;
  };

  void watch(int events) {
    uv_poll_start(&handle_->poll, events, [](uv_poll_t* poll, int status, int ready) {
      // A copy, because the callback may stop this watcher.
      const auto* handle = static_cast<Handle*>(poll->data);
      const bool writable = status == 0 && (ready & UV_READABLE) == 0;
      const auto callback = writable ? handle->onWritable : handle->onReadable;
      callback();
    });
  }

  Handle* handle_ = nullptr;
};

}  // namespace ublk::addon
