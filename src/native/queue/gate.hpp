// Lets requests through to the backend: all of them at once, but for those that the supervisor marked after crashes.
//
// Which of the requests that a crashed process held was its undoing shows when each of them is with the backend alone. So
// one that is marked `alone` waits until the backend has nothing, and whatever comes after it waits behind it, in order.
// Neither the mark nor the wait costs a device without marks more than one relaxed load a request.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/shared_page.hpp"

namespace ublk {

// A request as it is recognised when it comes again, in whatever queue.
struct RequestIdentity {
  uint64_t startSector;
  uint32_t sectors;
  uint32_t operation;
};

class Gate {
 public:
  enum class Way { pass, wait, refuse };

  Gate(DeviceHeader& header, uint32_t depth) : header_(header), waiting_(depth) {}

  // Everything may pass.
  bool open() const {
    return header_.marked.load(std::memory_order_relaxed) == 0 && waitingCount_ == 0 && alone_ == nullptr;
  }

  // `busy`: the backend has a request. A request that has to wait is given by `next` later.
  Way arrive(uint16_t tag, const RequestIdentity& identity, bool busy) {
    MarkedRequest* marked = find(identity);
    if (marked && markOf(*marked) == Mark::refused) return Way::refuse;
    if (waitingCount_ > 0 || alone_ || (marked && busy)) {
      waiting_[(firstWaiting_ + waitingCount_++) % waiting_.size()] = {tag, marked};
      return Way::wait;
    }
    if (marked) begin(tag, *marked);
    return Way::pass;
  }

  bool waiting() const { return waitingCount_ > 0; }

  // What has waited longest, if it may pass now.
  std::optional<uint16_t> next(bool busy) {
    if (waitingCount_ == 0 || alone_) return std::nullopt;
    const Waiting& first = waiting_[firstWaiting_];
    if (first.marked && busy) return std::nullopt;
    if (first.marked) begin(first.tag, *first.marked);
    firstWaiting_ = (firstWaiting_ + 1) % waiting_.size();
    waitingCount_--;
    return first.tag;
  }

  // The backend has answered request `tag`.
  void answered(uint16_t tag) {
    if (!alone_ || aloneTag_ != tag) return;
    alone_->mark.store(static_cast<uint32_t>(Mark::none), std::memory_order_relaxed);
    alone_ = nullptr;
    leaveOutAnswered();
  }

 private:
  struct Waiting {
    uint16_t tag;
    MarkedRequest* marked;
  };

  static Mark markOf(const MarkedRequest& request) {
    return static_cast<Mark>(request.mark.load(std::memory_order_relaxed));
  }

  MarkedRequest* find(const RequestIdentity& wanted) const {
    const uint32_t count = header_.marked.load(std::memory_order_relaxed);
    for (uint32_t i = 0; i < count && i < kMaxMarked; i++) {
      MarkedRequest& candidate = header_.markedRequests[i];
      if (candidate.startSector.load(std::memory_order_relaxed) == wanted.startSector &&
          candidate.sectors.load(std::memory_order_relaxed) == wanted.sectors &&
          candidate.operation.load(std::memory_order_relaxed) == wanted.operation && markOf(candidate) != Mark::none) {
        return &candidate;
      }
    }
    return nullptr;
  }

  void begin(uint16_t tag, MarkedRequest& marked) {
    alone_ = &marked;
    aloneTag_ = tag;
  }

  // Later requests need not be compared with what is answered. The supervisor may empty the table meanwhile.
  void leaveOutAnswered() {
    uint32_t count = header_.marked.load(std::memory_order_relaxed);
    uint32_t refused = 0;
    for (uint32_t i = 0; i < count && i < kMaxMarked; i++) {
      const Mark mark = markOf(header_.markedRequests[i]);
      if (mark == Mark::alone) return;
      if (mark == Mark::refused) refused++;
    }
    header_.marked.compare_exchange_strong(count, refused, std::memory_order_relaxed);
  }

  DeviceHeader& header_;
  std::vector<Waiting> waiting_;  // a ring
  size_t firstWaiting_ = 0;
  size_t waitingCount_ = 0;
  MarkedRequest* alone_ = nullptr;  // what the backend has and nothing else
  uint16_t aloneTag_ = 0;
};

}  // namespace ublk
