#include "control_ring.hpp"

#include <cstring>
#include <system_error>

namespace ublk {

ControlRing::ControlRing(int controlFd) : controlFd_(controlFd) {
  const int result = io_uring_queue_init(2, &ring_, IORING_SETUP_SQE128);
  if (result < 0) throw std::system_error(-result, std::generic_category(), "setting up io_uring");
}

ControlRing::~ControlRing() { io_uring_queue_exit(&ring_); }

int ControlRing::run(Control command, uint32_t deviceId, uint64_t data, void* buffer, uint16_t length) {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (!sqe) return -EBUSY;
  std::memset(static_cast<void*>(sqe), 0, 128);  // an SQE128
  sqe->opcode = IORING_OP_URING_CMD;
  sqe->fd = controlFd_;
  sqe->cmd_op = static_cast<uint32_t>(command);
  ControlCommand body{};
  body.deviceId = deviceId;
  body.queueId = 0xffff;
  body.length = length;
  body.address = reinterpret_cast<uint64_t>(buffer);
  body.data = data;
  std::memcpy(sqe->cmd, &body, sizeof body);
  int submitted;
  do {
    submitted = io_uring_submit_and_wait(&ring_, 1);
  } while (submitted == -EINTR);
  if (submitted < 0) return submitted;
  io_uring_cqe* cqe = nullptr;
  int waited;
  do {
    waited = io_uring_wait_cqe(&ring_, &cqe);
  } while (waited == -EINTR);
  if (waited < 0) return waited;
  const int result = cqe->res;
  io_uring_cqe_seen(&ring_, cqe);
  return result;
}

}  // namespace ublk
