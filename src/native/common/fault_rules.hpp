// The fault rules of a device as supervisor and queue processes share them, behind the queues in the shared page. Only a
// device whose configuration allows faults has this part.
//
// Writers: the rules, their texts and the list of bad blocks belong to the supervisor, which makes `version` odd while it
// writes; queue processes copy the rules when `version` has changed. Counters, cures and the log are the queues'. A hostile
// queue process may have put anything anywhere: whoever reads a rule checks what it uses as an index or a length.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace ublk {

constexpr uint32_t kMaxFaultRules = 64;
constexpr uint32_t kMaxFaultText = 2048;
constexpr uint32_t kMaxFaultSamples = 256;
constexpr uint32_t kMaxBadBlocks = 4096;
constexpr uint32_t kFaultLogEntries = 4096;

enum class FaultAction : uint32_t {
  none = 0,       // the slot is free
  error = 1,      // arguments: errno
  delay = 2,      // DelayKind, nanoseconds, nanoseconds; samples
  hang = 3,       // 1: counts as a hang of the backend
  drop = 4,       // answered, not done
  torn = 5,       // sectors, TornEnd, errno
  corrupt = 6,    // CorruptKind, how many or where, value, 1: stuck
  shorten = 7,    // the least bytes
  misdirect = 8,  // by so many bytes, signed
  full = 9,       // ENOSPC after so many bytes
  throttle = 10,  // nanoseconds a request, bytes a second; 0: no limit
  crash = 11,     // 0: before the backend gets the request, 1: after it answered
  stop = 12,
  badBlocks = 13,  // first and how many of the list, bytes a block
};

enum class DelayKind : uint64_t { fixed = 0, uniform = 1, exponential = 2, samples = 3 };
enum class TornEnd : uint64_t { ok = 0, error = 1, crash = 2 };
enum class CorruptKind : uint64_t { bits = 0, bytes = 1, byteAt = 2 };

// Of `FaultRule::operations`: a bit for each counted operation in its order, and one for writes that ask for FUA.
constexpr uint32_t kFaultOnFua = 1u << 5;

constexpr uint64_t kAlways = UINT64_MAX;

struct FaultRule {
  FaultAction action;
  uint32_t active;  // 0: what the rule waits for, such as a file, is not there
  uint32_t operations;
  uint32_t sequence;    // rules are tried in this order
  uint32_t perSector;   // the probability is that of each sector, and the same each time
  uint32_t afterHitOf;  // 1 + the slot of the rule that has to have hit; 0: none
  uint64_t start;       // bytes; a request that overlaps start to end matches
  uint64_t end;
  uint64_t every;        // 0 and 1: each match
  uint64_t after;        // so many matches are let through first
  uint64_t count;        // 0: no limit
  uint64_t probability;  // of 2^64; kAlways: certain
  uint64_t fromNs;       // CLOCK_MONOTONIC
  uint64_t untilNs;
  uint64_t key;  // of seed and id
  uint64_t arguments[4];
  uint32_t sampleCount;
  uint32_t samplesUs[kMaxFaultSamples];
};

struct FaultCounters {
  std::atomic<uint64_t> matches;
  std::atomic<uint64_t> hits;
  std::atomic<uint64_t> bytes;   // full
  std::atomic<uint64_t> freeNs;  // throttle: when the next request may go (CLOCK_MONOTONIC)
};

struct BadBlock {
  uint64_t block;
  std::atomic<uint32_t> writesLeft;  // so many writes until it is good; 0: it is
};

struct FaultLogEntry {
  std::atomic<uint64_t> number;  // from 1; 0 while it is written
  std::atomic<uint64_t> realtimeNs;
  std::atomic<uint64_t> match;  // which of the rule's matches it was, from 0
  std::atomic<uint64_t> offset;
  std::atomic<uint32_t> length;
  std::atomic<uint32_t> operation;
  std::atomic<uint32_t> slot;
};

struct FaultArea {
  std::atomic<uint32_t> version;
  FaultRule rules[kMaxFaultRules];
  char texts[kMaxFaultRules][kMaxFaultText];  // NUL-terminated JSON, for the next supervisor
  FaultCounters counters[kMaxFaultRules];
  BadBlock badBlocks[kMaxBadBlocks];  // each rule's are sorted
  std::atomic<uint64_t> logged;
  FaultLogEntry log[kFaultLogEntries];
};

}  // namespace ublk
