#include "queue/gate.hpp"

#include <memory>
#include <vector>

#include "harness.hpp"

namespace ublk {

namespace {

constexpr RequestIdentity kPoison{8, 8, 0};
constexpr RequestIdentity kSuspect{16, 8, 1};
constexpr RequestIdentity kOther{24, 8, 0};

struct Rig {
  explicit Rig(uint32_t depth = 8) : header(std::make_unique<DeviceHeader>()), gate(*header, depth) {}

  void mark(const RequestIdentity& identity, Mark mark) {
    MarkedRequest& request = header->markedRequests[header->marked++];
    request.startSector = identity.startSector;
    request.sectors = identity.sectors;
    request.operation = identity.operation;
    request.mark = static_cast<uint32_t>(mark);
  }

  // The tags that pass now, in order.
  std::vector<uint16_t> next(bool busy) {
    std::vector<uint16_t> tags;
    while (const auto tag = gate.next(busy || !tags.empty())) tags.push_back(*tag);
    return tags;
  }

  const std::unique_ptr<DeviceHeader> header;
  Gate gate;
};

using Way = Gate::Way;

}  // namespace

TEST("without marks everything passes") {
  Rig rig;
  EXPECT(rig.gate.open());
  EXPECT(rig.gate.arrive(0, kPoison, true) == Way::pass);
  rig.gate.answered(0);
  EXPECT(rig.gate.open() && !rig.gate.waiting());
}

TEST("exactly the request that is marked so is refused") {
  Rig rig;
  rig.mark(kPoison, Mark::refused);
  EXPECT(!rig.gate.open());
  EXPECT(rig.gate.arrive(0, kPoison, false) == Way::refuse);
  EXPECT(rig.gate.arrive(0, kPoison, true) == Way::refuse);
  for (const RequestIdentity& near : {RequestIdentity{7, 8, 0}, {9, 8, 0}, {8, 7, 0}, {8, 9, 0}, {8, 8, 1}}) {
    EXPECT(rig.gate.arrive(0, near, true) == Way::pass);
  }
  EXPECT_EQUAL(rig.header->marked.load(), 1u);
  rig.header->marked = 0;
  EXPECT(rig.gate.open());
  EXPECT(rig.gate.arrive(0, kPoison, true) == Way::pass);
}

TEST("a suspect waits until the backend has nothing, and everything else behind it") {
  Rig rig;
  rig.mark(kSuspect, Mark::alone);
  EXPECT(rig.gate.arrive(0, kOther, false) == Way::pass);
  EXPECT(rig.gate.arrive(1, kSuspect, true) == Way::wait);
  EXPECT(rig.gate.arrive(2, kOther, true) == Way::wait);
  EXPECT(rig.gate.arrive(3, kOther, true) == Way::wait);
  EXPECT(rig.next(true) == std::vector<uint16_t>{});
  rig.gate.answered(0);
  EXPECT(rig.next(false) == std::vector<uint16_t>{1});
  EXPECT(rig.gate.arrive(4, kOther, true) == Way::wait);
  rig.gate.answered(1);
  EXPECT((rig.next(false) == std::vector<uint16_t>{2, 3, 4}));
  EXPECT(rig.gate.open());
}

TEST("two suspects are never with the backend together") {
  Rig rig;
  rig.mark(kPoison, Mark::alone);
  rig.mark(kSuspect, Mark::alone);
  EXPECT(rig.gate.arrive(0, kPoison, false) == Way::pass);
  EXPECT(rig.gate.arrive(1, kSuspect, true) == Way::wait);
  EXPECT(rig.next(true) == std::vector<uint16_t>{});
  rig.gate.answered(0);
  EXPECT_EQUAL(rig.header->markedRequests[0].mark.load(), static_cast<uint32_t>(Mark::none));
  EXPECT_EQUAL(rig.header->marked.load(), 2u);
  EXPECT(rig.next(false) == std::vector<uint16_t>{1});
  // The first is above suspicion from here on, but nothing is beside the second.
  EXPECT(rig.gate.arrive(2, kPoison, true) == Way::wait);
  rig.gate.answered(1);
  EXPECT_EQUAL(rig.header->marked.load(), 0u);
  EXPECT(rig.next(false) == std::vector<uint16_t>{2});
  EXPECT(rig.gate.open());
}

TEST("what is refused stays so when all suspects are answered") {
  Rig rig;
  rig.mark(kPoison, Mark::refused);
  rig.mark(kSuspect, Mark::alone);
  EXPECT(rig.gate.arrive(0, kSuspect, false) == Way::pass);
  EXPECT(rig.gate.arrive(1, kPoison, true) == Way::refuse);
  rig.gate.answered(0);
  EXPECT_EQUAL(rig.header->marked.load(), 1u);
  EXPECT(rig.gate.arrive(2, kPoison, false) == Way::refuse);
  EXPECT(rig.gate.arrive(3, kSuspect, true) == Way::pass);
}

TEST("marks that are lifted while requests wait stay lifted, and nothing is lost") {
  Rig rig;
  rig.mark(kPoison, Mark::refused);
  rig.mark(kSuspect, Mark::alone);
  EXPECT(rig.gate.arrive(0, kOther, false) == Way::pass);
  EXPECT(rig.gate.arrive(1, kSuspect, true) == Way::wait);
  EXPECT(rig.gate.arrive(2, kOther, true) == Way::wait);
  rig.header->marked = 0;
  EXPECT(!rig.gate.open());
  EXPECT(rig.gate.arrive(3, kPoison, true) == Way::wait);
  rig.gate.answered(0);
  EXPECT(rig.next(false) == std::vector<uint16_t>{1});
  rig.gate.answered(1);
  EXPECT((rig.next(false) == std::vector<uint16_t>{2, 3}));
  EXPECT_EQUAL(rig.header->marked.load(), 0u);
  EXPECT(rig.gate.open());
}

TEST("as many requests wait as the queue is deep, round after round") {
  Rig rig(4);
  for (uint16_t round = 0; round < 5; round++) {
    rig.header->marked = 0;
    rig.mark(kSuspect, Mark::alone);
    for (uint16_t tag = 0; tag < 3; tag++) {
      const bool first = tag == 0;
      EXPECT(rig.gate.arrive(tag, first ? kSuspect : kOther, !first) == (first ? Way::pass : Way::wait));
    }
    EXPECT(rig.gate.arrive(3, kOther, true) == Way::wait);
    rig.gate.answered(0);
    EXPECT((rig.next(false) == std::vector<uint16_t>{1, 2, 3}));
  }
}

}  // namespace ublk
