// Carries out fault rules: stands between a queue and its backend, as a backend to the one and a responder to the other.
//
// A request meets the rules once, when it arrives; what they come to is its plan. A plan may wait for a timer or for the end
// of a hang, changes what the backend gets, or answers in its place; and it may change the answer. Random choices are a hash
// of the rule's key and a number, that of the match or of a sector, so no rule disturbs another's.
//
// The data path is `copy`: the data is in the tag's buffer, and a read that is not done by the backend is answered with an
// error and nothing else, so that no reader gets memory that is not the disk's.
#pragma once

#include <linux/time_types.h>

#include <array>
#include <memory>
#include <vector>

#include "common/backend.hpp"
#include "common/fault_rules.hpp"
#include "common/shared_page.hpp"

namespace ublk {

class Faults final : public Backend, public Responder {
 public:
  struct Setup {
    uint64_t deviceBytes;
    uint32_t depth;
    uint32_t maxIoBytes;
  };

  Faults(FaultArea& area, InflightEntry* inflight, const Setup& setup, Backend& backend, Responder& queue);

  // The rules may have changed; gives the backend what a hang has let go, and what was read for a torn write. Returns how
  // many requests. Not from within an answer: a backend in JavaScript takes its requests in batches.
  unsigned turn();

  // ---- Backend -----------------------------------------------------------------------------------------------------

  void open(const BackendSetup& setup) override { backend_.open(setup); }
  void submit(Responder& queue, const Request& request) override;
  void completed(Responder& queue, uint16_t tag, int32_t result) override;

  // ---- Responder ---------------------------------------------------------------------------------------------------

  void complete(const Request& request, int64_t result) override;
  void copyAndComplete(const Request& request, std::byte* memory, int32_t faultResult) override {
    queue_.copyAndComplete(request, memory, faultResult);
  }
  void copyAndComplete(const Request& request, std::span<const iovec> pieces, int32_t faultResult) override {
    queue_.copyAndComplete(request, pieces, faultResult);
  }
  io_uring_sqe* prepare(uint16_t tag) override { return queue_.prepare(tag); }
  std::byte* zeros() const override { return queue_.zeros(); }
  void working() override { queue_.working(); }

 private:
  enum class Stage : uint8_t { idle, delayed, hanging, reading, toWrite, withBackend };
  // What ends the evaluation of rules.
  enum class Decision : uint8_t { serve, error, hang, drop, torn, shorten, crashBefore, crashAfter, stop };

  struct Corruption {
    uint32_t slot;
    uint64_t match;
  };

  struct Plan {
    Request request;  // as it came
    Stage stage = Stage::idle;
    Decision decision = Decision::serve;
    bool ignoresFua = false;
    uint32_t slot = 0;      // of the rule that decided
    uint32_t sequence = 0;  // of that rule, which may have been replaced
    int32_t error = 0;      // negative
    int64_t shift = 0;      // bytes
    uint64_t delayNs = 0;
    uint32_t length = 0;  // shorten: of what is done; torn: of what is new
    TornEnd end = TornEnd::ok;
    std::array<Corruption, 4> corruptions;
    uint32_t corruptionCount = 0;
    __kernel_timespec timer{};
  };

  void load();
  void plan(Plan& plan);
  bool matches(const FaultRule& rule, const Plan& plan, uint64_t& match);
  bool isChosen(const FaultRule& rule, const Request& request, uint64_t match) const;
  bool apply(const FaultRule& rule, Plan& plan, uint64_t match);
  bool meetsBadBlock(const FaultRule& rule, const Request& request);
  uint64_t delayOf(const FaultRule& rule, uint64_t match) const;
  uint64_t throttled(const FaultRule& rule, uint32_t bytes);
  void carryOut(Plan& plan);
  void serve(Plan& plan);
  void writeTorn(Plan& plan);
  void corrupt(const Plan& plan);
  void corruptSector(const FaultRule& rule, std::byte* sector, uint64_t number) const;
  void log(const FaultRule& rule, const Request& request, uint64_t match);
  uint32_t slotOf(const FaultRule& rule) const { return static_cast<uint32_t>(&rule - rules_.data()); }
  [[noreturn]] static void crash();

  FaultArea& area_;
  InflightEntry* const inflight_;
  const Setup setup_;
  Backend& backend_;
  Responder& queue_;
  uint32_t version_ = 0;
  std::array<FaultRule, kMaxFaultRules> rules_{};
  std::array<uint32_t, kMaxFaultRules> order_{};
  uint32_t ruleCount_ = 0;
  std::vector<Plan> plans_;  // by tag
  // Of a torn write, while the old is read; a stretch for each tag. Not touched, it takes no memory.
  const std::unique_ptr<std::byte[]> newData_;
  std::vector<uint16_t> toWrite_;  // torn writes whose old data is there
  uint32_t hanging_ = 0;
};

}  // namespace ublk
