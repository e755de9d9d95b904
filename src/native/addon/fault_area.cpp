#include "fault_area.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace ublk::addon {

namespace {

uint64_t big(const Napi::Object& object, const char* name) {
  bool lossless = true;
  return object.Get(name).As<Napi::BigInt>().Uint64Value(&lossless);
}

uint32_t small(const Napi::Object& object, const char* name) { return object.Get(name).ToNumber().Uint32Value(); }

// While it lives, queue processes go on by the rules that they have.
class Writing {
 public:
  explicit Writing(FaultArea& area) : area_(area) {
    area_.version.store(area_.version.load(std::memory_order_relaxed) | 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
  }
  ~Writing() { area_.version.fetch_add(1, std::memory_order_release); }
  Writing(const Writing&) = delete;
  Writing& operator=(const Writing&) = delete;

 private:
  FaultArea& area_;
};

// The first stretch of the list that no rule has.
uint64_t roomForBadBlocks(const FaultArea& area, uint32_t slot, uint64_t count) {
  std::vector<std::pair<uint64_t, uint64_t>> taken;
  for (uint32_t other = 0; other < kMaxFaultRules; other++) {
    const FaultRule& rule = area.rules[other];
    if (other != slot && rule.action == FaultAction::badBlocks) taken.push_back({rule.arguments[0], rule.arguments[1]});
  }
  std::sort(taken.begin(), taken.end());
  uint64_t at = 0;
  for (const auto& [first, length] : taken) {
    if (first >= at && first - at >= count) break;
    at = std::max(at, first + length);
  }
  if (at > kMaxBadBlocks || count > kMaxBadBlocks - at) {
    throw std::system_error(ENOSPC, std::generic_category(), "listing bad blocks");
  }
  return at;
}

void listBadBlocks(FaultArea& area, uint32_t slot, FaultRule& rule, const Napi::Object& from, bool kept) {
  const Napi::BigUint64Array blocks = from.Get("badBlocks").As<Napi::BigUint64Array>();
  const size_t count = blocks.ElementLength();
  const FaultRule& before = area.rules[slot];
  kept = kept && before.action == FaultAction::badBlocks && before.arguments[1] == count;
  rule.arguments[0] = kept ? before.arguments[0] : roomForBadBlocks(area, slot, count);
  rule.arguments[1] = count;
  if (kept) return;
  for (size_t i = 0; i < count; i++) {
    BadBlock& bad = area.badBlocks[rule.arguments[0] + i];
    bad.block = blocks[i];
    bad.writesLeft = small(from, "writesUntilGood");
  }
}

}  // namespace

void setFault(FaultArea& area, const Napi::CallbackInfo& info) {
  const uint32_t slot = info[0].As<Napi::Number>().Uint32Value();
  if (slot >= kMaxFaultRules) throw Napi::RangeError::New(info.Env(), "no such slot");
  FaultRule rule{};
  std::string text;
  bool kept = false;
  const Writing writing(area);
  if (info[1].IsObject()) {
    const Napi::Object from = info[1].As<Napi::Object>();
    text = from.Get("text").ToString();
    if (text.size() >= kMaxFaultText) throw Napi::RangeError::New(info.Env(), "too long a rule");
    kept = from.Get("kept").ToBoolean();
    rule.action = static_cast<FaultAction>(small(from, "action"));
    rule.active = from.Get("active").ToBoolean() ? 1 : 0;
    rule.operations = small(from, "operations");
    rule.sequence = small(from, "sequence");
    rule.perSector = from.Get("perSector").ToBoolean() ? 1 : 0;
    rule.afterHitOf = small(from, "afterHitOf");
    rule.start = big(from, "start");
    rule.end = big(from, "end");
    rule.every = big(from, "every");
    rule.after = big(from, "after");
    rule.count = big(from, "count");
    rule.probability = big(from, "probability");
    rule.fromNs = big(from, "fromNs");
    rule.untilNs = big(from, "untilNs");
    rule.key = big(from, "key");
    const Napi::BigUint64Array arguments = from.Get("arguments").As<Napi::BigUint64Array>();
    for (size_t i = 0; i < std::min(arguments.ElementLength(), std::size(rule.arguments)); i++) {
      rule.arguments[i] = arguments[i];
    }
    const Napi::Uint32Array samples = from.Get("samplesUs").As<Napi::Uint32Array>();
    rule.sampleCount = static_cast<uint32_t>(std::min<size_t>(samples.ElementLength(), kMaxFaultSamples));
    for (uint32_t i = 0; i < rule.sampleCount; i++) rule.samplesUs[i] = samples[i];
    if (rule.action == FaultAction::badBlocks) listBadBlocks(area, slot, rule, from, kept);
  }
  if (!kept) {
    FaultCounters& counters = area.counters[slot];
    counters.matches = 0;
    counters.hits = 0;
    counters.bytes = 0;
    counters.freeNs = 0;
  }
  std::memset(area.texts[slot], 0, kMaxFaultText);
  std::memcpy(area.texts[slot], text.data(), text.size());
  area.rules[slot] = rule;
}

Napi::Value faults(const FaultArea& area, Napi::Env env) {
  Napi::Array all = Napi::Array::New(env);
  for (uint32_t slot = 0; slot < kMaxFaultRules; slot++) {
    if (area.rules[slot].action == FaultAction::none) continue;
    Napi::Object one = Napi::Object::New(env);
    one.Set("slot", slot);
    one.Set("text", std::string(area.texts[slot], strnlen(area.texts[slot], kMaxFaultText)));
    one.Set("matches", static_cast<double>(area.counters[slot].matches.load(std::memory_order_relaxed)));
    one.Set("hits", static_cast<double>(area.counters[slot].hits.load(std::memory_order_relaxed)));
    all.Set(all.Length(), one);
  }
  return all;
}

Napi::Value faultLog(const FaultArea& area, const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const uint64_t logged = area.logged.load(std::memory_order_acquire);
  const uint64_t oldest = logged > kFaultLogEntries ? logged - kFaultLogEntries + 1 : 1;
  const auto after = static_cast<uint64_t>(std::max(info[0].ToNumber().DoubleValue(), 0.0));
  Napi::Array hits = Napi::Array::New(env);
  for (uint64_t number = std::max(oldest, after + 1); number <= logged; number++) {
    const FaultLogEntry& entry = area.log[number % kFaultLogEntries];
    // It may be written at this moment, or by a process that died.
    if (entry.number.load(std::memory_order_acquire) != number) continue;
    Napi::Object hit = Napi::Object::New(env);
    hit.Set("number", static_cast<double>(number));
    hit.Set("realtimeMs", static_cast<double>(entry.realtimeNs.load(std::memory_order_relaxed)) / 1e6);
    hit.Set("slot", entry.slot.load(std::memory_order_relaxed));
    hit.Set("match", static_cast<double>(entry.match.load(std::memory_order_relaxed)));
    hit.Set("operation", entry.operation.load(std::memory_order_relaxed));
    hit.Set("offset", static_cast<double>(entry.offset.load(std::memory_order_relaxed)));
    hit.Set("length", entry.length.load(std::memory_order_relaxed));
    hits.Set(hits.Length(), hit);
  }
  return hits;
}

}  // namespace ublk::addon
