#include "faults.hpp"

#include <signal.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "accounts.hpp"

namespace ublk {

namespace {

constexpr uint32_t kSector = 512;

// splitmix64's finisher, twice: the choice of one number tells nothing of the next one's.
uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

uint64_t randomOf(uint64_t key, uint64_t number, uint64_t use = 0) {
  return mix(mix(key + 0x9e3779b97f4a7c15 * (number + 1)) + use);
}

// Beyond it a delay is for ever.
constexpr double kLongestNs = 1e18;

uint64_t nanoseconds(double value) { return static_cast<uint64_t>(std::clamp(value, 0.0, kLongestNs)); }

// From 0 to 1, without 1.
double fraction(uint64_t random) { return static_cast<double>(random >> 11) * 0x1p-53; }

uint32_t operationBits(const Request& request) {
  const uint32_t bit = 1u << counterIndex(request.operation);
  return request.operation == Operation::write && request.fua ? bit | kFaultOnFua : bit;
}

uint64_t realtimeNs() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

Faults::Faults(FaultArea& area, InflightEntry* inflight, const Setup& setup, Backend& backend, Responder& queue)
    : area_(area),
      inflight_(inflight),
      setup_(setup),
      backend_(backend),
      queue_(queue),
      plans_(setup.depth),
      newData_(std::make_unique_for_overwrite<std::byte[]>(size_t{setup.maxIoBytes} * setup.depth)) {
  toWrite_.reserve(setup.depth);
  load();
}

// Nothing is taken over while the supervisor writes; it wakes the queue when it is done.
void Faults::load() {
  const uint32_t version = area_.version.load(std::memory_order_acquire);
  if (version == version_ || version % 2 != 0) return;
  std::memcpy(rules_.data(), area_.rules, sizeof area_.rules);
  std::atomic_thread_fence(std::memory_order_acquire);
  if (area_.version.load(std::memory_order_relaxed) != version) {
    ruleCount_ = 0;
    return;
  }
  version_ = version;
  ruleCount_ = 0;
  for (uint32_t slot = 0; slot < kMaxFaultRules; slot++) {
    if (rules_[slot].action != FaultAction::none) order_[ruleCount_++] = slot;
  }
  std::sort(order_.begin(), order_.begin() + ruleCount_,
            [this](uint32_t a, uint32_t b) { return rules_[a].sequence < rules_[b].sequence; });
}

void Faults::submit(Responder&, const Request& request) {
  if (area_.version.load(std::memory_order_relaxed) != version_) load();
  Plan& plan = plans_[request.tag];
  inflight_[request.tag].injected.store(0, std::memory_order_relaxed);
  plan.request = request;
  plan.decision = Decision::serve;
  plan.ignoresFua = false;
  plan.shift = 0;
  plan.delayNs = 0;
  plan.corruptionCount = 0;
  if (ruleCount_ > 0) this->plan(plan);
  if (plan.delayNs == 0) return carryOut(plan);
  plan.stage = Stage::delayed;
  inflight_[request.tag].injected.store(1, std::memory_order_relaxed);
  plan.timer = {static_cast<int64_t>(plan.delayNs / 1000000000), static_cast<long long>(plan.delayNs % 1000000000)};
  io_uring_sqe* sqe = queue_.prepare(request.tag);
  sqe->opcode = IORING_OP_TIMEOUT;
  sqe->fd = -1;
  sqe->addr = reinterpret_cast<uint64_t>(&plan.timer);
  sqe->len = 1;
}

void Faults::completed(Responder&, uint16_t tag, int32_t result) {
  Plan& plan = plans_[tag];
  if (plan.stage != Stage::delayed) return backend_.completed(*this, tag, result);
  inflight_[tag].injected.store(0, std::memory_order_relaxed);
  carryOut(plan);
}

unsigned Faults::turn() {
  unsigned given = 0;
  for (const uint16_t tag : toWrite_) {
    writeTorn(plans_[tag]);
    given++;
  }
  toWrite_.clear();
  if (area_.version.load(std::memory_order_relaxed) == version_) return given;
  load();
  if (hanging_ == 0) return given;
  for (Plan& plan : plans_) {
    if (plan.stage != Stage::hanging) continue;
    const FaultRule& rule = rules_[plan.slot];
    if (rule.action == FaultAction::hang && rule.active && rule.sequence == plan.sequence) continue;
    hanging_--;
    inflight_[plan.request.tag].injected.store(0, std::memory_order_relaxed);
    serve(plan);
    given++;
  }
  return given;
}

// ---- what the rules come to ----------------------------------------------------------------------------------------

void Faults::plan(Plan& plan) {
  for (uint32_t i = 0; i < ruleCount_; i++) {
    const FaultRule& rule = rules_[order_[i]];
    uint64_t match = 0;
    if (!matches(rule, plan, match)) continue;
    if (!apply(rule, plan, match)) continue;
    plan.slot = slotOf(rule);
    plan.sequence = rule.sequence;
    return;
  }
}

// Counts a match, and a hit if it is one. `match`: which of the rule's matches it is.
bool Faults::matches(const FaultRule& rule, const Plan& plan, uint64_t& match) {
  const Request& request = plan.request;
  if (!rule.active || (rule.operations & operationBits(request)) == 0) return false;
  const uint64_t end = request.offset + request.length;
  const bool everywhere = rule.start == 0 && rule.end == UINT64_MAX;
  if (!everywhere && (request.length == 0 || end <= rule.start || request.offset >= rule.end)) return false;
  if (rule.fromNs != 0 || rule.untilNs != UINT64_MAX) {
    const uint64_t now = monotonicNs();
    if (now < rule.fromNs || now >= rule.untilNs) return false;
  }
  if (rule.afterHitOf != 0) {
    const uint32_t other = (rule.afterHitOf - 1) % kMaxFaultRules;
    if (area_.counters[other].hits.load(std::memory_order_relaxed) == 0) return false;
  }
  if (rule.action == FaultAction::shorten && request.length <= rule.arguments[0]) return false;
  FaultCounters& counters = area_.counters[slotOf(rule)];
  match = counters.matches.fetch_add(1, std::memory_order_relaxed);
  if (match < rule.after) return false;
  if (rule.every > 1 && (match - rule.after + 1) % rule.every != 0) return false;
  if (!isChosen(rule, request, match)) return false;
  if (rule.action == FaultAction::badBlocks && !meetsBadBlock(rule, request)) return false;
  if (rule.action == FaultAction::full) {
    const uint64_t before = counters.bytes.fetch_add(request.length, std::memory_order_relaxed);
    if (before + request.length <= rule.arguments[0]) return false;
    counters.bytes.fetch_sub(request.length, std::memory_order_relaxed);
  }
  const uint64_t hits = counters.hits.fetch_add(1, std::memory_order_relaxed);
  if (rule.count != 0 && hits >= rule.count) {
    counters.hits.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  log(rule, request, match);
  return true;
}

bool Faults::isChosen(const FaultRule& rule, const Request& request, uint64_t match) const {
  if (rule.probability == kAlways) return true;
  if (!rule.perSector) return randomOf(rule.key, match) < rule.probability;
  const uint64_t first = std::max(request.offset, rule.start) / kSector;
  const uint64_t end = (std::min(request.offset + request.length, rule.end) + kSector - 1) / kSector;
  for (uint64_t sector = first; sector < end; sector++) {
    if (randomOf(rule.key, sector) < rule.probability) return true;
  }
  return false;
}

// True if nothing that follows matters.
bool Faults::apply(const FaultRule& rule, Plan& plan, uint64_t match) {
  const auto decide = [&plan](Decision decision, int32_t error = 0) {
    plan.decision = decision;
    plan.error = error;
    return true;
  };
  switch (rule.action) {
    case FaultAction::none:
      return false;
    case FaultAction::error:
      return decide(Decision::error, -static_cast<int32_t>(rule.arguments[0]));
    case FaultAction::badBlocks:
      return decide(Decision::error, -EIO);
    case FaultAction::full:
      return decide(Decision::error, -ENOSPC);
    case FaultAction::delay:
      plan.delayNs += delayOf(rule, match);
      return false;
    case FaultAction::throttle:
      plan.delayNs += throttled(rule, plan.request.length);
      return false;
    case FaultAction::hang:
      return decide(Decision::hang);
    case FaultAction::drop:
      if ((rule.operations & ~kFaultOnFua) != 0) return decide(Decision::drop);
      plan.ignoresFua = true;
      return false;
    case FaultAction::torn:
      plan.length =
          static_cast<uint32_t>(std::min<uint64_t>(rule.arguments[0], plan.request.length / kSector) * kSector);
      plan.end = static_cast<TornEnd>(rule.arguments[1]);
      return decide(Decision::torn, -static_cast<int32_t>(rule.arguments[2]));
    case FaultAction::corrupt:
      if (plan.corruptionCount < plan.corruptions.size()) {
        plan.corruptions[plan.corruptionCount++] = {slotOf(rule), match};
      }
      return false;
    case FaultAction::shorten: {
      const uint64_t least = std::max<uint64_t>(rule.arguments[0], 1);
      plan.length = static_cast<uint32_t>(std::max(plan.request.length / 2 / least, uint64_t{1}) * least);
      return decide(Decision::shorten);
    }
    case FaultAction::misdirect: {
      const auto size = static_cast<int64_t>(setup_.deviceBytes);
      const int64_t by = std::clamp(static_cast<int64_t>(rule.arguments[0]), -size, size);
      plan.shift = std::clamp(plan.shift + by, -size, size);
      return false;
    }
    case FaultAction::crash:
      return decide(rule.arguments[0] == 0 ? Decision::crashBefore : Decision::crashAfter);
    case FaultAction::stop:
      return decide(Decision::stop);
  }
  return false;
}

// As dm-dust: a read of a bad block fails, a write makes it good, at once or after some that fail.
bool Faults::meetsBadBlock(const FaultRule& rule, const Request& request) {
  const uint64_t blockBytes = std::max<uint64_t>(rule.arguments[2], kSector);
  const uint64_t firstEntry = std::min<uint64_t>(rule.arguments[0], kMaxBadBlocks);
  const uint64_t entries = std::min<uint64_t>(rule.arguments[1], kMaxBadBlocks - firstEntry);
  BadBlock* const begin = area_.badBlocks + firstEntry;
  BadBlock* const end = begin + entries;
  const uint64_t last = (request.offset + request.length - 1) / blockBytes;
  const auto before = [](const BadBlock& bad, uint64_t block) { return bad.block < block; };
  bool bad = false;
  for (BadBlock* at = std::lower_bound(begin, end, request.offset / blockBytes, before); at != end && at->block <= last;
       at++) {
    uint32_t left = at->writesLeft.load(std::memory_order_relaxed);
    if (left == 0) continue;
    if (request.operation == Operation::read) return true;
    while (left > 0 && !at->writesLeft.compare_exchange_weak(left, left - 1, std::memory_order_relaxed)) {
    }
    bad |= left > 1;
  }
  return bad;
}

uint64_t Faults::delayOf(const FaultRule& rule, uint64_t match) const {
  const double chosen = fraction(randomOf(rule.key, match, 1));
  const auto least = static_cast<double>(rule.arguments[1]);
  switch (static_cast<DelayKind>(rule.arguments[0])) {
    case DelayKind::fixed:
      return rule.arguments[1];
    case DelayKind::uniform:
      return nanoseconds(least + chosen * (static_cast<double>(rule.arguments[2]) - least));
    case DelayKind::exponential:
      return nanoseconds(-least * std::log(1 - chosen));
    case DelayKind::samples: {
      const uint32_t count = std::clamp(rule.sampleCount, 1u, kMaxFaultSamples);
      return uint64_t{rule.samplesUs[static_cast<uint32_t>(chosen * count)]} * 1000;
    }
  }
  return 0;
}

// How long a request waits for those before it, of all the device's queues.
uint64_t Faults::throttled(const FaultRule& rule, uint32_t bytes) {
  uint64_t cost = rule.arguments[0];
  if (rule.arguments[1] != 0) cost = std::max(cost, uint64_t{bytes} * 1000000000 / rule.arguments[1]);
  const uint64_t now = monotonicNs();
  std::atomic<uint64_t>& free = area_.counters[slotOf(rule)].freeNs;
  uint64_t before = free.load(std::memory_order_relaxed);
  uint64_t begin;
  do {
    begin = std::max(before, now);
  } while (!free.compare_exchange_weak(before, begin + cost, std::memory_order_relaxed));
  return begin - now;
}

// ---- carrying it out -----------------------------------------------------------------------------------------------

void Faults::carryOut(Plan& plan) {
  const Request& request = plan.request;
  switch (plan.decision) {
    case Decision::error:
      plan.stage = Stage::idle;
      return queue_.complete(request, plan.error);
    case Decision::drop:
      plan.stage = Stage::idle;
      return queue_.complete(request, request.length);
    case Decision::hang:
      plan.stage = Stage::hanging;
      hanging_++;
      if (rules_[plan.slot].arguments[0] == 0) inflight_[request.tag].injected.store(1, std::memory_order_relaxed);
      return;
    case Decision::torn: {
      plan.stage = Stage::reading;
      std::memcpy(&newData_[size_t{request.tag} * setup_.maxIoBytes], request.data, request.length);
      Request read = request;
      read.operation = Operation::read;
      read.fua = false;
      return backend_.submit(*this, read);
    }
    case Decision::crashBefore:
      crash();
    case Decision::stop:
      raise(SIGSTOP);
      return serve(plan);
    case Decision::serve:
    case Decision::shorten:
    case Decision::crashAfter:
      return serve(plan);
  }
}

void Faults::serve(Plan& plan) {
  plan.stage = Stage::withBackend;
  Request request = plan.request;
  if (plan.ignoresFua) request.fua = false;
  if (plan.decision == Decision::shorten) request.length = plan.length;
  if (plan.shift != 0 && request.length > 0 && request.length <= setup_.deviceBytes) {
    const auto room = static_cast<int64_t>(setup_.deviceBytes - request.length);
    const int64_t moved = static_cast<int64_t>(request.offset) + plan.shift;
    request.offset = static_cast<uint64_t>(std::clamp<int64_t>(moved, 0, room));
  }
  if (plan.corruptionCount > 0 && request.operation == Operation::write) corrupt(plan);
  backend_.submit(*this, request);
}

// The old content is in the tag's buffer: the first sectors become new, and the whole is written.
void Faults::writeTorn(Plan& plan) {
  const Request& request = plan.request;
  std::memcpy(request.data, &newData_[size_t{request.tag} * setup_.maxIoBytes], plan.length);
  plan.stage = Stage::withBackend;
  backend_.submit(*this, request);
}

void Faults::complete(const Request& answered, int64_t result) {
  Plan& plan = plans_[answered.tag];
  const Request& request = plan.request;
  const bool whole = result == answered.length;
  if (plan.stage == Stage::reading && whole) {
    plan.stage = Stage::toWrite;
    toWrite_.push_back(answered.tag);
    return;
  }
  plan.stage = Stage::idle;
  if (plan.decision == Decision::crashAfter) crash();
  if (plan.decision == Decision::torn && whole) {
    if (plan.end == TornEnd::crash) crash();
    if (plan.end == TornEnd::error) result = plan.error;
  }
  if (plan.corruptionCount > 0 && request.operation == Operation::read && whole) corrupt(plan);
  queue_.complete(request, result);
}

void Faults::corrupt(const Plan& plan) {
  const Request& request = plan.request;
  for (uint32_t i = 0; i < plan.corruptionCount; i++) {
    const auto [slot, match] = plan.corruptions[i];
    const FaultRule& rule = rules_[slot];
    if (rule.action != FaultAction::corrupt) continue;  // replaced meanwhile
    const uint64_t first = std::max(request.offset, rule.start) / kSector;
    const uint64_t end = (std::min(request.offset + request.length, rule.end) + kSector - 1) / kSector;
    if (first >= end) continue;
    const auto at = [&](uint64_t sector) { return request.data + (sector * kSector - request.offset); };
    if (!rule.perSector) {
      const uint64_t sector = first + randomOf(rule.key, match, 2) % (end - first);
      corruptSector(rule, at(sector), match);
      continue;
    }
    for (uint64_t sector = first; sector < end; sector++) {
      const bool chosen = rule.probability == kAlways || randomOf(rule.key, sector) < rule.probability;
      if (chosen) corruptSector(rule, at(sector), sector);
    }
  }
}

// `number`: what the random choices are of.
void Faults::corruptSector(const FaultRule& rule, std::byte* sector, uint64_t number) const {
  const bool stuck = rule.arguments[3] != 0;
  const auto kind = static_cast<CorruptKind>(rule.arguments[0]);
  if (kind == CorruptKind::byteAt) {
    sector[rule.arguments[1] % kSector] = static_cast<std::byte>(rule.arguments[2]);
    return;
  }
  const uint64_t many = std::min<uint64_t>(rule.arguments[1], kSector);
  for (uint64_t i = 0; i < many; i++) {
    const uint64_t random = randomOf(rule.key, number, 3 + i);
    std::byte& byte = sector[random % kSector];
    const auto value = static_cast<std::byte>(random >> 24);
    if (kind == CorruptKind::bytes) {
      // Another value, and the same one each time if it is stuck.
      byte = stuck ? value : byte ^ (value | std::byte{1});
      continue;
    }
    const auto bit = std::byte{1} << ((random >> 16) % 8);
    if (!stuck)
      byte ^= bit;
    else if (std::to_integer<int>(value) % 2 != 0)
      byte |= bit;
    else
      byte &= ~bit;
  }
}

void Faults::log(const FaultRule& rule, const Request& request, uint64_t match) {
  const uint64_t number = area_.logged.fetch_add(1, std::memory_order_relaxed) + 1;
  FaultLogEntry& entry = area_.log[number % kFaultLogEntries];
  entry.number.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  entry.realtimeNs.store(realtimeNs(), std::memory_order_relaxed);
  entry.match.store(match, std::memory_order_relaxed);
  entry.offset.store(request.offset, std::memory_order_relaxed);
  entry.length.store(request.length, std::memory_order_relaxed);
  entry.operation.store(static_cast<uint32_t>(request.operation), std::memory_order_relaxed);
  entry.slot.store(slotOf(rule), std::memory_order_relaxed);
  entry.number.store(number, std::memory_order_release);
}

// A death by this signal is evidence against the request, as that of any crash.
void Faults::crash() {
  signal(SIGABRT, SIG_DFL);
  abort();
}

}  // namespace ublk
