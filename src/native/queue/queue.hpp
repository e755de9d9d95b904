#pragma once

#include <liburing.h>

#include <memory>
#include <span>
#include <vector>

#include "accounts.hpp"
#include "common/backend.hpp"
#include "common/shared_page.hpp"
#include "faults.hpp"
#include "gate.hpp"

namespace ublk {

struct QueueSetup {
  uint32_t index;
  uint32_t queues;  // of the device
  uint32_t depth;
  uint32_t maxIoBytes;
  uint64_t deviceBytes;
  DataPath dataPath;
  int charDevice;
  std::span<const int> backendFiles;
  const IoDescriptor* descriptors;
  DeviceHeader* header;
  QueuePage* page;
  InflightEntry* inflight;
  FaultArea* faults;  // nullptr: there are never any
};

// The result that may be committed for an answer of `result` (bytes or -errno) to a request of `length` bytes.
//
// The kernel requeues a write that was answered with 0 for ever, and from Linux 7.3 at the latest takes one that was answered
// with less than its length for whole. It warns about a read that was longer than asked, and takes a positive number for
// flush, discard and write zeroes as success.
constexpr int32_t committedResult(Operation operation, int64_t result, uint32_t length) {
  if (result < 0) return result < -4095 ? -EIO : static_cast<int32_t>(result);
  if (operation != Operation::read && operation != Operation::write) return 0;
  if (result >= length) return static_cast<int32_t>(length);
  return operation == Operation::read && result > 0 ? static_cast<int32_t>(result) : -EIO;
}

// One hardware queue: fetches requests, hands them to the backend, commits the answers. One io_uring_enter a batch; no
// allocation, lock or log once it serves.
class Queue final : public Responder {
 public:
  // Sets up the ring and the buffers. Throws std::system_error.
  Queue(const QueueSetup& setup, Backend& backend);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Hands every tag to the kernel when the device's other queues are ready to do so, and says in the shared page how far
  // it is. One system call, so that a SIGKILL finds either none or all of them there; but see `mayComplete`.
  void fetchWithSiblings();

  // Returns when the kernel has taken every tag back (-ENODEV), or when asked to drain and the backend holds nothing.
  void serve();

  // The same for a thread that has other things to wait for: `eventfd` becomes readable when there is something to
  // take; that somebody woke `drain`, the caller has to learn elsewhere. `take` sends what was answered and hands what came in to the backend, and has to be called until it finds
  // nothing or the queue is done; `submit` only sends.
  enum class Taken { nothing, something, all };
  void notify(int eventfd);
  Taken take();
  void submit();

  // Where the backend's answers go.
  Responder& responder() { return faults_ ? static_cast<Responder&>(*faults_) : *this; }

  // Every tag's buffer, one behind the other; empty but on the copy path.
  std::span<std::byte> buffers() const { return {buffers_, buffers_ ? size_t{setup_.maxIoBytes} * setup_.depth : 0}; }

  // ---- for backends ------------------------------------------------------------------------------------------------

  void complete(const Request& request, int64_t result) override;
  void copyAndComplete(const Request& request, std::byte* memory, int32_t faultResult) override;
  void copyAndComplete(const Request& request, std::span<const iovec> pieces, int32_t faultResult) override;
  io_uring_sqe* prepare(uint16_t tag) override { return nextSqe(Completion::backend, tag); }
  std::byte* zeros() const override { return zeros_; }
  void working() override;

 private:
  enum class Completion : uint32_t { command = 0, copy = 1, drain = 2, backend = 3 };

  struct Tag {
    int32_t faultResult = 0;
  };

  io_uring_sqe* nextSqe(Completion kind, uint16_t tag);
  void fetch(uint32_t tags);
  void prepareCommand(uint32_t opcode, uint16_t tag, int32_t result);
  void awaitDrain();
  void waitForHalfQueued();
  unsigned handleCompletions();
  bool done() const;
  void handle(uint64_t userData, int32_t result);
  void admit(uint16_t tag);
  unsigned admitWaiting();
  void begin(uint16_t tag, bool refused = false);
  void answer(const Request& request, int32_t committed);
  void copyAndComplete(const Request& request, uint8_t opcode, const void* memory, size_t length, int32_t faultResult);
  void commitFault(uint16_t tag);
  std::byte* bufferOf(uint16_t tag) const { return buffers_ + size_t{tag} * setup_.maxIoBytes; }

  const QueueSetup setup_;
  const std::unique_ptr<Faults> faults_;
  Backend& backend_;  // faults_, if there is one, in front of the real one
  Gate gate_;
  Accounts accounts_;
  io_uring ring_{};
  std::byte* buffers_ = nullptr;  // copy path only
  std::byte* zeros_ = nullptr;
  std::vector<Tag> tags_;
  uint32_t fetched_ = 0;  // tags with the kernel or in the backend
};

}  // namespace ublk
