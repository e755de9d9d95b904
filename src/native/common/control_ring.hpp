#pragma once

#include <liburing.h>

#include "ublk_uapi.hpp"

namespace ublk {

// An io_uring that carries ublk control commands, one at a time. Most of them block: a process that runs one must be a
// process that may be killed. GET_FEATURES and GET_DEV_INFO never block and may be asked from anywhere.
class ControlRing {
 public:
  // `controlFd`: an open /dev/ublk-control, not owned. Throws std::system_error.
  explicit ControlRing(int controlFd);
  ~ControlRing();
  ControlRing(const ControlRing&) = delete;
  ControlRing& operator=(const ControlRing&) = delete;

  // Waits for the answer: >= 0 or -errno.
  int run(Control command, uint32_t deviceId, uint64_t data = 0, void* buffer = nullptr, uint16_t length = 0);

 private:
  io_uring ring_{};
  int controlFd_;
};

}  // namespace ublk
