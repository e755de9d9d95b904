#pragma once

#include <napi.h>
#include <uv.h>

#include <functional>

namespace ublk::addon {

// Calls back on the JavaScript thread when a descriptor becomes readable. Does not own the descriptor.
class Watcher {
 public:
  Watcher() = default;
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;
  ~Watcher() { stop(); }

  void start(Napi::Env env, int fd, std::function<void()> onReadable) {
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env, &loop);
    handle_ = new Handle{{}, std::move(onReadable)};
    uv_poll_init(loop, &handle_->poll, fd);
    handle_->poll.data = handle_;
    uv_poll_start(&handle_->poll, UV_READABLE, [](uv_poll_t* poll, int, int) {
      // A copy, because the callback may stop this watcher.
      const auto callback = static_cast<Handle*>(poll->data)->onReadable;
      callback();
    });
  }

  // The descriptor may be closed as soon as this returns; libuv frees the handle later.
  void stop() {
    if (!handle_) return;
    uv_poll_stop(&handle_->poll);
    uv_close(reinterpret_cast<uv_handle_t*>(&handle_->poll),
             [](uv_handle_t* handle) { delete static_cast<Handle*>(handle->data); });
    handle_ = nullptr;
  }

  bool active() const { return handle_ != nullptr; }

 private:
  struct Handle {
    uv_poll_t poll;
    std::function<void()> onReadable;
  };
  Handle* handle_ = nullptr;
};

}  // namespace ublk::addon
