// What supervisor and queue processes share for the life of a device: one memfd, mapped by all of them. It lets the
// supervisor watch a queue without asking it, and outlives the queue process, so that a crash can be explained.
//
// A queue process can write to all of it, so a hostile one may have put anything anywhere, its siblings' pages
// included. How many queues and tags there are, and who serves them, is therefore never read from here, and no value is
// an index. A change of the layout changes kProtocolVersion.
//
// Writers: each QueuePage belongs to its queue process; what is atomic in DeviceHeader to the generation; `drain` to the
// supervisor, and so do the marked requests, though a queue process may take a mark off. Every field that is read while it
// may be written is atomic and relaxed: readers want recent numbers, not a consistent snapshot.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <system_error>

#include "fault_rules.hpp"
#include "ublk_uapi.hpp"

namespace ublk {

constexpr uint32_t kMaxQueues = 128;
constexpr uint32_t kOperationKinds = 5;  // read, write, flush, discard, write zeroes
constexpr uint32_t kMaxMarked = 256;
constexpr uint32_t kFailureKinds = 16;

constexpr uint32_t counterIndex(Operation operation) {
  return operation == Operation::writeZeroes ? 4 : static_cast<uint32_t>(operation);
}

// `released`: the kernel holds none of its requests any more, because the device goes away or as the drain flag asked.
enum class Phase : uint32_t { absent = 0, preparing = 1, fetching = 2, fetched = 3, released = 4 };

// Latencies in nanoseconds, four buckets an octave: bucket b holds values whose top three bits are those of b.
class Histogram {
 public:
  static constexpr uint32_t kBuckets = 256;

  static constexpr uint32_t bucketOf(uint64_t ns) {
    if (ns < 4) return static_cast<uint32_t>(ns);
    const uint32_t octave = 63u - static_cast<uint32_t>(std::countl_zero(ns));
    return octave * 4 + static_cast<uint32_t>((ns >> (octave - 2)) & 3);
  }
  // The middle of a bucket: within 13 % of every value in it.
  static constexpr double valueOf(uint32_t bucket) {
    if (bucket < 8) return bucket < 4 ? bucket : 0;
    const uint32_t octave = bucket / 4;
    const double lower = static_cast<double>((4ull + bucket % 4) << (octave - 2));
    return lower + static_cast<double>(1ull << (octave - 2)) / 2;
  }

  void add(uint64_t ns) { bump<uint64_t>(counts_[bucketOf(ns)], 1); }
  // The value below which `share` (0 to 1) of the samples are, in nanoseconds; 0 without samples.
  double quantile(double share) const {
    uint64_t total = 0;
    for (const auto& count : counts_) total += count.load(std::memory_order_relaxed);
    auto wanted = static_cast<uint64_t>(share * static_cast<double>(total));
    if (wanted == total && total > 0) wanted--;  // the largest sample
    uint64_t seen = 0;
    for (uint32_t bucket = 0; bucket < kBuckets; bucket++) {
      seen += counts_[bucket].load(std::memory_order_relaxed);
      if (seen > wanted) return valueOf(bucket);
    }
    return 0;
  }

  // One writer at a time, so a plain load and store do and no locked instruction is paid for.
  template <typename Number>
  static void bump(std::atomic<Number>& counter, Number by) {
    counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
  }

 private:
  std::atomic<uint64_t> counts_[kBuckets];
};

struct OperationCounters {
  std::atomic<uint64_t> count;
  std::atomic<uint64_t> bytes;
  std::atomic<uint64_t> errors;
  std::atomic<uint64_t> newestAnsweredNs;  // CLOCK_MONOTONIC: of what was answered, when the backend got the last of it
  Histogram latency;
};

// One entry per tag. `startNs` (CLOCK_MONOTONIC) is 0 while the request is not in the backend.
struct InflightEntry {
  std::atomic<uint64_t> startNs;
  std::atomic<uint64_t> startSector;
  std::atomic<uint32_t> sectors;
  std::atomic<uint32_t> operation;
  std::atomic<uint32_t> injected;  // 1: a fault rule keeps it from the backend, which is no hang
};

// The requests of one operation that failed with one error, and the last of them.
struct Failures {
  std::atomic<uint64_t> count;  // 0: the entry is free
  std::atomic<uint64_t> startSector;
  std::atomic<uint32_t> sectors;
  std::atomic<uint32_t> operation;
  std::atomic<uint32_t> error;  // errno

  bool are(uint32_t ofOperation, uint32_t withError) const {
    return operation.load(std::memory_order_relaxed) == ofOperation &&
           error.load(std::memory_order_relaxed) == withError;
  }
};

struct QueuePage {
  std::atomic<uint32_t> phase;
  std::atomic<uint32_t> drain;
  std::atomic<int32_t> failureErrno;
  std::atomic<uint32_t> inflight;
  char failureStep[64];                // NUL-terminated; written once, before the process exits
  std::atomic<uint64_t> lastAnswerNs;  // CLOCK_MONOTONIC, once a batch; 0: this generation has not answered anything
  // A sign of life: another number after each turn of the queue's loop, each answer, and each part of a long one. Waking
  // `drain` as it is asks for one.
  std::atomic<uint32_t> progress;
  // What JavaScript was doing when a sign of life did not come, of which the loop had made `progress` this number.
  std::atomic<uint32_t> stackProgress;
  char stack[2048];  // NUL-terminated
  OperationCounters operations[kOperationKinds];
  Failures failures[kFailureKinds];  // once they are all taken, the last is that of the newest kind
};

// What the queues do with a request that was in the backend when it crashed, again and again. `alone`: the backend gets it
// when it has nothing else, and nothing else until it has answered. `refused`: EIO, and the backend never sees it.
enum class Mark : uint32_t { none = 0, alone = 1, refused = 2 };

struct MarkedRequest {
  std::atomic<uint64_t> startSector;
  std::atomic<uint32_t> sectors;
  std::atomic<uint32_t> operation;
  std::atomic<uint32_t> mark;     // a queue process replaces `alone` by `none` when the request is answered
  std::atomic<uint32_t> crashes;  // for the next supervisor
};

struct DeviceHeader {
  // How many queue processes of the present generation are ready to fetch. They wait for each other (futex), so that
  // none fetches unless all can: kernels before 7.0 lose a device of which only some FETCHes arrived.
  std::atomic<uint32_t> barrier;
  // How often one of them has said that its FETCHes are with the kernel. The control process that is to make the device
  // live waits for that (futex), and looks whether all of them are still there.
  std::atomic<uint32_t> fetched;
  // 0 at a first start on Linux 6.16 to 6.19 if there are several queues: the last one keeps a FETCH back until the control
  // process makes this 1 (futex), and then says again that it fetched. The last FETCH makes these kernels forget which
  // commands they had cancelled, so that DEL_DEV would end those of a process that died before it a second time.
  std::atomic<uint32_t> mayComplete;
  // How many of `markedRequests` count, the refused ones first. Written by the supervisor between generations; it may
  // become 0 at any time, and a queue process leaves out the `alone` at the end when all of them are answered.
  std::atomic<uint32_t> marked;
  MarkedRequest markedRequests[kMaxMarked];
};

// Offsets into the memfd. Queue pages are aligned so that two queues never share a cache line.
struct SharedLayout {
  uint32_t queues;
  uint32_t depth;
  bool allowsFaults;

  static constexpr size_t align(size_t bytes) { return (bytes + 127) & ~size_t{127}; }
  constexpr size_t queueStride() const { return align(sizeof(QueuePage)) + align(depth * sizeof(InflightEntry)); }
  constexpr size_t queueOffset(uint32_t queue) const { return align(sizeof(DeviceHeader)) + queue * queueStride(); }
  constexpr size_t inflightOffset(uint32_t queue) const { return queueOffset(queue) + align(sizeof(QueuePage)); }
  constexpr size_t faultsOffset() const { return queueOffset(queues); }
  constexpr size_t bytes() const { return faultsOffset() + (allowsFaults ? align(sizeof(FaultArea)) : 0); }
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));

// A mapped memfd. Does not own the mapping: queue processes keep theirs until they exit.
class SharedMap {
 public:
  SharedMap() = default;
  SharedMap(void* base, SharedLayout layout) : base_(static_cast<std::byte*>(base)), layout_(layout) {}

  DeviceHeader& header() const { return *reinterpret_cast<DeviceHeader*>(base_); }
  QueuePage& queue(uint32_t index) const { return *reinterpret_cast<QueuePage*>(base_ + layout_.queueOffset(index)); }
  InflightEntry* inflight(uint32_t index) const {
    return reinterpret_cast<InflightEntry*>(base_ + layout_.inflightOffset(index));
  }
  // nullptr: the device's configuration allows none.
  FaultArea* faults() const {
    return layout_.allowsFaults ? reinterpret_cast<FaultArea*>(base_ + layout_.faultsOffset()) : nullptr;
  }
  const SharedLayout& layout() const { return layout_; }
  void* base() const { return base_; }

 private:
  std::byte* base_ = nullptr;
  SharedLayout layout_{};
};

// Maps a memfd that is sealed against shrinking; its size tells whether the device may have faults. Throws EPROTO when it is
// neither of the two that it can have.
SharedMap mapSharedPage(int memfd, uint32_t queues, uint32_t depth);

// Leaves why the process gives up where the supervisor finds it.
void reportFailure(QueuePage& page, const std::system_error& error);

// Returns when every queue process of the device is here: all of them fetch or none. The supervisor ends a generation
// that does not get there.
void awaitSiblings(DeviceHeader& header, uint32_t queues);

// Says that the FETCHes of this process are with the kernel.
void announceFetched(DeviceHeader& header);

// Returns when the FETCH that was kept back may follow: every queue process was seen alive after its FETCHes.
void awaitPermission(DeviceHeader& header);

}  // namespace ublk
