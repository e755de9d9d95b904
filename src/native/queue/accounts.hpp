#pragma once

#include <algorithm>
#include <ctime>
#include <span>
#include <vector>

#include "common/backend.hpp"
#include "common/shared_page.hpp"
#include "gate.hpp"

namespace ublk {

inline uint64_t monotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

// What one queue says in the shared page of its requests: which are outstanding and since when, how many there were, how
// long they took, which failed. The clock is read once for a batch that came in, and once for a batch of answers.
class Accounts {
 public:
  Accounts(QueuePage& page, InflightEntry* inflight, uint32_t depth) : page_(page), inflight_(inflight) {
    finished_.reserve(depth);
  }

  // Given to the backend and not answered yet.
  uint32_t outstanding() const { return outstanding_; }

  void beginBatch() {
    batchStartNs_ = monotonicNs();
    working();
  }

  // A sign of life.
  void working() { Histogram::bump<uint32_t>(page_.progress, 1); }

  void began(uint16_t tag, const RequestIdentity& identity) {
    InflightEntry& entry = inflight_[tag];
    entry.startSector.store(identity.startSector, std::memory_order_relaxed);
    entry.sectors.store(identity.sectors, std::memory_order_relaxed);
    entry.operation.store(identity.operation, std::memory_order_relaxed);
    entry.startNs.store(batchStartNs_, std::memory_order_release);
    page_.inflight.store(++outstanding_, std::memory_order_relaxed);
  }

  void answered(uint16_t tag, Operation operation, uint32_t bytes, bool failed) {
    if (isCounted(operation)) {
      OperationCounters& counters = page_.operations[counterIndex(operation)];
      Histogram::bump<uint64_t>(counters.count, 1);
      Histogram::bump<uint64_t>(failed ? counters.errors : counters.bytes, failed ? 1 : bytes);
    }
    working();
    finished_.push_back(tag);
    page_.inflight.store(--outstanding_, std::memory_order_relaxed);
  }

  // The answer was counted as a success, and then the copy before it fell short.
  void copyFailed(uint16_t tag, Operation operation, int32_t error) {
    Histogram::bump(page_.operations[counterIndex(operation)].errors, uint64_t{1});
    noteFailure(tag, error);
  }

  // For the log, which the supervisor writes.
  void noteFailure(uint16_t tag, int32_t error) {
    const InflightEntry& entry = inflight_[tag];
    const uint32_t operation = entry.operation.load(std::memory_order_relaxed);
    const std::span<Failures> all(page_.failures);
    const auto isIts = [&](const Failures& kind) {
      return kind.count.load(std::memory_order_relaxed) == 0 || kind.are(operation, static_cast<uint32_t>(error));
    };
    const auto found = std::ranges::find_if(all, isIts);
    Failures& failures = found == all.end() ? all.back() : *found;
    const bool another = !failures.are(operation, static_cast<uint32_t>(error));
    failures.operation.store(operation, std::memory_order_relaxed);
    failures.error.store(static_cast<uint32_t>(error), std::memory_order_relaxed);
    failures.startSector.store(entry.startSector.load(std::memory_order_relaxed), std::memory_order_relaxed);
    failures.sectors.store(entry.sectors.load(std::memory_order_relaxed), std::memory_order_relaxed);
    failures.count.store(another ? 1 : failures.count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }

  // The answers of a batch are about to be submitted.
  void settle() {
    if (finished_.empty()) return;
    const uint64_t now = monotonicNs();
    for (const uint16_t tag : finished_) {
      InflightEntry& entry = inflight_[tag];
      const auto operation = static_cast<Operation>(entry.operation.load(std::memory_order_relaxed));
      const uint64_t startNs = entry.startNs.load(std::memory_order_relaxed);
      if (isCounted(operation)) {
        OperationCounters& counters = page_.operations[counterIndex(operation)];
        counters.latency.add(now - startNs);
        if (startNs > counters.newestAnsweredNs.load(std::memory_order_relaxed)) {
          counters.newestAnsweredNs.store(startNs, std::memory_order_relaxed);
        }
      }
      entry.startNs.store(0, std::memory_order_release);
    }
    page_.lastAnswerNs.store(now, std::memory_order_relaxed);
    finished_.clear();
  }

 private:
  static bool isCounted(Operation operation) {
    return operation <= Operation::discard || operation == Operation::writeZeroes;
  }

  QueuePage& page_;
  InflightEntry* const inflight_;
  std::vector<uint16_t> finished_;  // tags answered since the last submission; never grows beyond depth
  uint32_t outstanding_ = 0;
  uint64_t batchStartNs_ = 0;
};

}  // namespace ublk
