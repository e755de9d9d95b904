#include "queue/faults.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "harness.hpp"

namespace ublk {

namespace {

constexpr uint64_t kSize = 1 << 20;
constexpr uint32_t kBlock = 4096;
constexpr uint32_t kDepth = 4;

// A disk in memory that answers at once, or when it is told to.
class Memory final : public Backend {
 public:
  void open(const BackendSetup&) override {}
  void submit(Responder& responder, const Request& request) override {
    seen.push_back(request);
    if (request.operation == Operation::read) std::memcpy(request.data, &bytes[request.offset], request.length);
    if (request.operation == Operation::write) std::memcpy(&bytes[request.offset], request.data, request.length);
    responder.complete(request, request.length);
  }

  std::vector<std::byte> bytes = std::vector<std::byte>(kSize);
  std::vector<Request> seen;
};

// The queue's side: what was answered, and the timers that were asked for.
class Queue final : public Responder {
 public:
  void complete(const Request& request, int64_t result) override { answers.push_back({request, result}); }
  void copyAndComplete(const Request&, std::byte*, int32_t) override { throw std::logic_error("the path is copy"); }
  void copyAndComplete(const Request&, std::span<const iovec>, int32_t) override {
    throw std::logic_error("the path is copy");
  }
  io_uring_sqe* prepare(uint16_t) override {
    timers++;
    return &sqe;
  }
  std::byte* zeros() const override { return nullptr; }
  void working() override {}

  struct Answer {
    Request request;
    int64_t result;
  };
  std::vector<Answer> answers;
  io_uring_sqe sqe{};
  int timers = 0;
};

struct Rig {
  // A rule that is for everything, always; `change` makes it another.
  uint32_t add(
      FaultAction action, const std::function<void(FaultRule&)>& change = [](FaultRule&) {}) {
    const uint32_t slot = rules++;
    FaultRule& rule = area->rules[slot];
    rule.action = action;
    rule.active = 1;
    rule.operations = 0x1f;
    rule.sequence = rules;
    rule.end = UINT64_MAX;
    rule.every = 1;
    rule.probability = kAlways;
    rule.untilNs = UINT64_MAX;
    rule.key = 7;
    change(rule);
    area->version += 2;
    return slot;
  }

  int64_t run(Operation operation, uint64_t offset = 0, uint32_t length = kBlock, bool fua = false) {
    return runAt(0, operation, offset, length, fua);
  }

  // What it was answered; 1 when it was not.
  int64_t runAt(uint16_t tag, Operation operation, uint64_t offset, uint32_t length, bool fua = false) {
    queue.answers.clear();
    const Request request{.tag = tag,
                          .operation = operation,
                          .fua = fua,
                          .mayUnmap = true,
                          .offset = offset,
                          .length = length,
                          .data = &buffers[size_t{tag} * kBlock * 4]};
    faults->submit(queue, request);
    faults->turn();
    return queue.answers.empty() ? 1 : queue.answers.front().result;
  }

  std::byte* buffer(uint16_t tag = 0) { return &buffers[size_t{tag} * kBlock * 4]; }
  void fill(char with) { std::memset(buffer(), with, kBlock * 4); }
  uint64_t hits(uint32_t slot) const { return area->counters[slot].hits; }

  std::unique_ptr<FaultArea> area = std::make_unique<FaultArea>();
  std::vector<InflightEntry> inflight = std::vector<InflightEntry>(kDepth);
  std::vector<std::byte> buffers = std::vector<std::byte>(size_t{kDepth} * kBlock * 4);
  Memory memory;
  Queue queue;
  uint32_t rules = 0;
  std::unique_ptr<Faults> faults =
      std::make_unique<Faults>(*area, inflight.data(), Faults::Setup{kSize, kDepth, kBlock * 4}, memory, queue);
};

std::string content(const Rig& rig, uint64_t offset, size_t length) {
  return {reinterpret_cast<const char*>(&rig.memory.bytes[offset]), length};
}

}  // namespace

TEST("without a rule every request goes to the backend, as it came") {
  Rig rig;
  rig.fill('a');
  EXPECT_EQUAL(rig.run(Operation::write, 8192, kBlock, true), kBlock);
  EXPECT(rig.memory.seen.at(0).fua && rig.memory.seen.at(0).offset == 8192);
  EXPECT_EQUAL(rig.run(Operation::flush, 0, 0), 0);
  EXPECT_EQUAL(rig.memory.seen.size(), size_t{2});
}

TEST("an error is answered, and the backend does not see the request") {
  Rig rig;
  rig.add(FaultAction::error, [](FaultRule& rule) {
    rule.operations = 1u << 1;
    rule.arguments[0] = ENOSPC;
  });
  EXPECT_EQUAL(rig.run(Operation::write), -ENOSPC);
  EXPECT_EQUAL(rig.memory.seen.size(), size_t{0});
  EXPECT_EQUAL(rig.run(Operation::read), kBlock);
}

TEST("a range is of every request that overlaps it, and of no flush") {
  Rig rig;
  const uint32_t slot = rig.add(FaultAction::error, [](FaultRule& rule) {
    rule.start = 8192;
    rule.end = 12288;
    rule.arguments[0] = EIO;
  });
  EXPECT_EQUAL(rig.run(Operation::read, 4096), kBlock);
  EXPECT_EQUAL(rig.run(Operation::read, 4096, 2 * kBlock), -EIO);
  EXPECT_EQUAL(rig.run(Operation::read, 12288), kBlock);
  EXPECT_EQUAL(rig.run(Operation::flush, 0, 0), 0);
  EXPECT_EQUAL(rig.hits(slot), 1u);
}

TEST("after, every and count choose among the matches") {
  Rig rig;
  const uint32_t slot = rig.add(FaultAction::error, [](FaultRule& rule) {
    rule.after = 2;
    rule.every = 3;
    rule.count = 2;
    rule.arguments[0] = EIO;
  });
  std::string failed;
  for (int i = 0; i < 14; i++) failed += rig.run(Operation::read) < 0 ? 'x' : '.';
  EXPECT_EQUAL(failed == "....x..x......", true);
  EXPECT_EQUAL(rig.area->counters[slot].matches.load(), 14u);
  EXPECT_EQUAL(rig.hits(slot), 2u);
}

TEST("the same seed chooses the same requests, another one others; about as many as were asked for") {
  const auto chosen = [](uint64_t key) {
    Rig rig;
    rig.add(FaultAction::error, [key](FaultRule& rule) {
      rule.key = key;
      rule.probability = UINT64_MAX / 10;
      rule.arguments[0] = EIO;
    });
    std::string failed;
    for (int i = 0; i < 2000; i++) failed += rig.run(Operation::read) < 0 ? 'x' : '.';
    return failed;
  };
  const std::string first = chosen(1);
  EXPECT(first == chosen(1));
  EXPECT(first != chosen(2));
  const auto hits = std::count(first.begin(), first.end(), 'x');
  EXPECT(hits > 140 && hits < 260);
}

TEST("per sector, a sector is chosen each time or never, in whatever request it comes") {
  Rig rig;
  rig.add(FaultAction::error, [](FaultRule& rule) {
    rule.perSector = 1;
    rule.probability = UINT64_MAX / 20;
    rule.arguments[0] = EIO;
  });
  for (uint64_t block = 0; block < 64; block++) {
    bool any = false;
    for (uint64_t sector = block * 8; sector < block * 8 + 8; sector++)
      any |= rig.run(Operation::read, sector * 512, 512) < 0;
    EXPECT_EQUAL(rig.run(Operation::read, block * kBlock) < 0, any);
  }
}

TEST("a rule that waits for another rule's hit, and one whose time is over, do nothing") {
  Rig rig;
  rig.add(FaultAction::corrupt, [](FaultRule& rule) {
    rule.operations = 1u << 1;
    rule.arguments[1] = 1;
  });
  rig.add(FaultAction::error, [](FaultRule& rule) {
    rule.afterHitOf = 1;
    rule.arguments[0] = EIO;
  });
  rig.add(FaultAction::error, [](FaultRule& rule) {
    rule.untilNs = 1;
    rule.arguments[0] = EINVAL;
  });
  EXPECT_EQUAL(rig.run(Operation::read), kBlock);
  EXPECT_EQUAL(rig.run(Operation::write), -EIO);
  EXPECT_EQUAL(rig.run(Operation::read), -EIO);
}

TEST("what is dropped is answered and not done; of FUA alone, the write is done") {
  Rig rig;
  const uint32_t slot = rig.add(FaultAction::drop, [](FaultRule& rule) { rule.operations = kFaultOnFua; });
  rig.fill('a');
  EXPECT_EQUAL(rig.run(Operation::write, 0, kBlock, true), kBlock);
  EXPECT(!rig.memory.seen.at(0).fua);
  EXPECT_EQUAL(rig.hits(slot), 1u);
  rig.add(FaultAction::drop, [](FaultRule& rule) { rule.operations = 1u << 1; });
  rig.fill('b');
  EXPECT_EQUAL(rig.run(Operation::write), kBlock);
  EXPECT(content(rig, 0, 4) == "aaaa");
}

TEST("of a torn write the first sectors are new and the rest is as before") {
  Rig rig;
  rig.fill('a');
  rig.run(Operation::write);
  rig.add(FaultAction::torn, [](FaultRule& rule) {
    rule.operations = 1u << 1;
    rule.arguments[0] = 1;
    rule.arguments[1] = static_cast<uint64_t>(TornEnd::error);
    rule.arguments[2] = EIO;
  });
  rig.fill('b');
  EXPECT_EQUAL(rig.run(Operation::write), -EIO);
  EXPECT(content(rig, 0, 512) == std::string(512, 'b'));
  EXPECT(content(rig, 512, kBlock - 512) == std::string(kBlock - 512, 'a'));
}

TEST("a corrupted read leaves the disk as it is; a corrupted write does not") {
  Rig rig;
  rig.fill('a');
  rig.run(Operation::write);
  const auto wrongBits = [&rig](const std::byte* data) {
    int bits = 0;
    for (uint32_t i = 0; i < kBlock; i++)
      bits += __builtin_popcount(std::to_integer<unsigned>(data[i] ^ std::byte{'a'}));
    return bits;
  };
  rig.add(FaultAction::corrupt, [](FaultRule& rule) {
    rule.operations = 1;
    rule.arguments[1] = 1;
  });
  EXPECT_EQUAL(rig.run(Operation::read), kBlock);
  EXPECT_EQUAL(wrongBits(rig.buffer()), 1);
  EXPECT_EQUAL(wrongBits(rig.memory.bytes.data()), 0);
  rig.add(FaultAction::corrupt, [](FaultRule& rule) {
    rule.operations = 1u << 1;
    rule.arguments[0] = static_cast<uint64_t>(CorruptKind::byteAt);
    rule.arguments[1] = 3;
    rule.arguments[2] = 'x';
  });
  rig.fill('a');
  EXPECT_EQUAL(rig.run(Operation::write), kBlock);
  EXPECT(wrongBits(rig.memory.bytes.data()) > 0);
}

TEST("a stuck bit is the same at each read") {
  Rig rig;
  rig.add(FaultAction::corrupt, [](FaultRule& rule) {
    rule.operations = 1;
    rule.perSector = 1;
    rule.probability = UINT64_MAX / 4;
    rule.arguments[1] = 3;
    rule.arguments[3] = 1;
  });
  rig.run(Operation::read);
  const std::vector<std::byte> first(rig.buffer(), rig.buffer() + kBlock);
  EXPECT_EQUAL(rig.run(Operation::read), kBlock);
  EXPECT(std::equal(first.begin(), first.end(), rig.buffer()));
}

TEST("a short answer has at least a block, and a request of one block is whole") {
  Rig rig;
  rig.add(FaultAction::shorten, [](FaultRule& rule) { rule.arguments[0] = kBlock; });
  EXPECT_EQUAL(rig.run(Operation::read, 0, kBlock * 3), kBlock);
  EXPECT_EQUAL(rig.run(Operation::read, 0, kBlock), kBlock);
  EXPECT_EQUAL(rig.run(Operation::read, 0, kBlock * 4), 2 * kBlock);
}

TEST("what is misdirected stays within the device") {
  Rig rig;
  rig.add(FaultAction::misdirect, [](FaultRule& rule) { rule.arguments[0] = static_cast<uint64_t>(-8192); });
  rig.run(Operation::write, 12288);
  rig.run(Operation::write, 4096);
  EXPECT_EQUAL(rig.memory.seen.at(0).offset, 4096u);
  EXPECT_EQUAL(rig.memory.seen.at(1).offset, 0u);
}

TEST("a full device refuses what is too much, and takes what still fits") {
  Rig rig;
  rig.add(FaultAction::full, [](FaultRule& rule) {
    rule.operations = 1u << 1;
    rule.arguments[0] = 2 * kBlock;
  });
  EXPECT_EQUAL(rig.run(Operation::write), kBlock);
  EXPECT_EQUAL(rig.run(Operation::write, 0, 2 * kBlock), -ENOSPC);
  EXPECT_EQUAL(rig.run(Operation::write), kBlock);
  EXPECT_EQUAL(rig.run(Operation::write), -ENOSPC);
}

TEST("a bad block is one until it was written, as often as it takes") {
  Rig rig;
  rig.add(FaultAction::badBlocks, [&rig](FaultRule& rule) {
    rule.operations = 3;
    rule.arguments[1] = 2;
    rule.arguments[2] = kBlock;
    rig.area->badBlocks[0].block = 2;
    rig.area->badBlocks[1].block = 5;
    for (int i = 0; i < 2; i++) rig.area->badBlocks[i].writesLeft = 2;
  });
  EXPECT_EQUAL(rig.run(Operation::read, 0, 2 * kBlock), 2 * kBlock);
  EXPECT_EQUAL(rig.run(Operation::read, kBlock, 2 * kBlock), -EIO);
  EXPECT_EQUAL(rig.run(Operation::write, 2 * kBlock), -EIO);
  EXPECT_EQUAL(rig.run(Operation::write, 2 * kBlock), kBlock);
  EXPECT_EQUAL(rig.run(Operation::read, 2 * kBlock), kBlock);
  EXPECT_EQUAL(rig.run(Operation::read, 5 * kBlock), -EIO);
}

TEST("a delay is a timer, and the request goes on when it has run out; it is no hang") {
  Rig rig;
  rig.add(FaultAction::delay, [](FaultRule& rule) { rule.arguments[1] = 1'500'000'000; });
  EXPECT_EQUAL(rig.run(Operation::read), 1);
  EXPECT_EQUAL(rig.queue.timers, 1);
  EXPECT_EQUAL(static_cast<int>(rig.queue.sqe.opcode), static_cast<int>(IORING_OP_TIMEOUT));
  const auto* timer = reinterpret_cast<const __kernel_timespec*>(rig.queue.sqe.addr);
  EXPECT(timer->tv_sec == 1 && timer->tv_nsec == 500'000'000);
  EXPECT_EQUAL(rig.inflight[0].injected.load(), 1u);
  rig.faults->completed(rig.queue, 0, -ETIME);
  EXPECT_EQUAL(rig.queue.answers.size(), size_t{1});
  EXPECT_EQUAL(rig.inflight[0].injected.load(), 0u);
}

TEST("a throttle lets requests through one after the other") {
  Rig rig;
  rig.add(FaultAction::throttle, [](FaultRule& rule) { rule.arguments[0] = 1'000'000'000; });
  EXPECT_EQUAL(rig.runAt(0, Operation::read, 0, kBlock), kBlock);
  EXPECT_EQUAL(rig.runAt(1, Operation::read, 0, kBlock), 1);
  const auto* timer = reinterpret_cast<const __kernel_timespec*>(rig.queue.sqe.addr);
  EXPECT(timer->tv_sec == 0 && timer->tv_nsec > 0);
}

TEST("what hangs goes on when its rule is gone, and not before") {
  Rig rig;
  const uint32_t slot = rig.add(FaultAction::hang, [](FaultRule& rule) { rule.operations = 1u << 1; });
  EXPECT_EQUAL(rig.run(Operation::write), 1);
  EXPECT_EQUAL(rig.inflight[0].injected.load(), 1u);
  rig.add(FaultAction::delay, [](FaultRule& rule) { rule.operations = 1u << 3; });
  EXPECT_EQUAL(rig.faults->turn(), 0u);
  rig.area->rules[slot].action = FaultAction::none;
  rig.area->version += 2;
  EXPECT_EQUAL(rig.faults->turn(), 1u);
  EXPECT_EQUAL(rig.queue.answers.size(), size_t{1});
}

TEST("the log has every hit, in order, and forgets the oldest") {
  Rig rig;
  rig.add(FaultAction::drop, [](FaultRule& rule) { rule.operations = 1u << 1; });
  for (uint32_t i = 0; i < kFaultLogEntries + 3; i++) rig.run(Operation::write, 4096 * (i % 8));
  EXPECT_EQUAL(rig.area->logged.load(), kFaultLogEntries + 3);
  std::set<uint64_t> numbers;
  for (const FaultLogEntry& entry : rig.area->log) numbers.insert(entry.number);
  EXPECT_EQUAL(*numbers.begin(), 4u);
  EXPECT_EQUAL(*numbers.rbegin(), kFaultLogEntries + 3);
}

TEST("whatever a hostile process writes into the rules, nothing is read or written beyond them") {
  for (const unsigned char with : {0xff, 0x7f, 0x01, 0x80}) {
    for (uint32_t action = 0; action < 16; action++) {
      // Those end or stop the process, as they are to.
      if (action == 11 || action == 12) continue;
      Rig rig;
      std::memset(static_cast<void*>(rig.area->rules), with, sizeof rig.area->rules);
      std::memset(static_cast<void*>(rig.area->badBlocks), with, sizeof rig.area->badBlocks);
      for (FaultRule& rule : rig.area->rules) {
        rule.action = static_cast<FaultAction>(action);
        rule.arguments[1] = action == 5 ? 1 : rule.arguments[1];
        rule.fromNs = 0;
        rule.untilNs = UINT64_MAX;
        rule.every = 1;
        rule.after = 0;
        rule.start = 0;
        rule.end = UINT64_MAX;
        rule.afterHitOf = 0;
      }
      rig.area->version = 2;
      for (const Operation operation : {Operation::read, Operation::write, Operation::discard}) {
        for (uint16_t tag = 0; tag < kDepth; tag++) rig.runAt(tag, operation, kSize - kBlock, kBlock);
      }
    }
  }
}

}  // namespace ublk
