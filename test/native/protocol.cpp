// What is fixed by somebody else: the kernel's layouts, and the messages that the supervisor's build shares with a
// zygote which may have been started by an earlier one.
#include "common/protocol.hpp"

#include <cstddef>
#include <type_traits>

#include "harness.hpp"
#include "queue/queue.hpp"

namespace ublk {

TEST("an answer is committed as the kernel can take it") {
  struct Row {
    Operation operation;
    int64_t result;
    uint32_t length;
    int32_t committed;
  };
  const Row rows[] = {
      {Operation::read, 4096, 4096, 4096},
      {Operation::read, 512, 4096, 512},
      {Operation::read, 8192, 4096, 4096},  // longer than asked
      {Operation::read, 0, 4096, -EIO},
      {Operation::read, -EIO, 4096, -EIO},
      {Operation::write, 4096, 4096, 4096},
      {Operation::write, 512, 4096, -EIO},  // the rest would be lost without a word
      {Operation::write, 0, 4096, -EIO},    // requeued for ever otherwise
      {Operation::write, int64_t{1} << 40, 4096, 4096},
      {Operation::write, -ENOSPC, 4096, -ENOSPC},
      {Operation::write, -4095, 4096, -4095},
      {Operation::write, -4096, 4096, -EIO},  // no errno
      {Operation::write, INT64_MIN, 4096, -EIO},
      {Operation::flush, 0, 0, 0},
      {Operation::flush, 1, 0, 0},
      {Operation::flush, -EIO, 0, -EIO},
      {Operation::discard, 1u << 31, 1u << 31, 0},  // would be negative in 32 bits
      {Operation::discard, -EOPNOTSUPP, 512, -EOPNOTSUPP},
      {Operation::writeZeroes, 4096, 4096, 0},
      {Operation::writeZeroes, -ENOSPC, 4096, -ENOSPC},
  };
  for (const Row& row : rows) EXPECT_EQUAL(committedResult(row.operation, row.result, row.length), row.committed);
}

// Linux, include/uapi/linux/ublk_cmd.h, restated from its own macros.
TEST("a request's data is where the kernel documents it for user-copy") {
  constexpr uint64_t kBufferOffset = 0x80000000;          // UBLKSRV_IO_BUF_OFFSET
  constexpr uint32_t kBufferBits = 25;                    // UBLK_IO_BUF_BITS
  constexpr uint32_t kTagBits = 16;                       // UBLK_TAG_BITS
  constexpr uint32_t kTagShift = kBufferBits;             // UBLK_TAG_OFF
  constexpr uint32_t kQueueShift = kTagShift + kTagBits;  // UBLK_QID_OFF
  for (const uint64_t queue : {0u, 1u, 127u, 4095u}) {    // UBLK_QID_BITS: 12
    for (const uint64_t tag : {0u, 1u, 4095u, 65535u}) {
      const uint64_t offset = requestDataOffset(static_cast<uint32_t>(queue), static_cast<uint32_t>(tag));
      EXPECT_EQUAL(offset, kBufferOffset + ((queue << kQueueShift) | (tag << kTagShift)));
      EXPECT_EQUAL((offset - kBufferOffset) >> kQueueShift, queue);
      EXPECT(static_cast<int64_t>(offset) > 0);
    }
  }
}

TEST("a queue's descriptors are at a multiple of the deepest queue's size, whatever the depth") {
  EXPECT_EQUAL(descriptorOffset(0), 0u);
  EXPECT_EQUAL(descriptorOffset(1), 98304u);
  EXPECT_EQUAL(descriptorOffset(127), 127u * 98304u);
}

TEST("commands have the numbers that the TypeScript half uses") {
  EXPECT_EQUAL(static_cast<uint32_t>(Control::addDevice), 0xc0207504u);
  EXPECT_EQUAL(static_cast<uint32_t>(Control::startDevice), 0xc0207506u);
  EXPECT_EQUAL(static_cast<uint32_t>(Control::stopDevice), 0xc0207507u);
  EXPECT_EQUAL(static_cast<uint32_t>(Control::setParameters), 0xc0207508u);
  EXPECT_EQUAL(static_cast<uint32_t>(Control::startUserRecovery), 0xc0207510u);
  EXPECT_EQUAL(static_cast<uint32_t>(Control::endUserRecovery), 0xc0207511u);
  EXPECT_EQUAL(static_cast<uint32_t>(Control::deleteDeviceAsync), 0x80207514u);
  EXPECT_EQUAL(static_cast<uint32_t>(Control::tryStopDevice), 0xc0207517u);
  EXPECT_EQUAL(kFetch, 0xc0107520u);
  EXPECT_EQUAL(kCommitAndFetch, 0xc0107521u);
}

template <typename Message>
void expectMessage(size_t bytes) {
  static_assert(std::is_trivially_copyable_v<Message> && std::is_standard_layout_v<Message>);
  static_assert(offsetof(Message, header) == 0);
  EXPECT_EQUAL(sizeof(Message), bytes);
}

// Whoever changes one of these sizes has to change kProtocolVersion too.
TEST("messages have the sizes of protocol version 11") {
  EXPECT_EQUAL(kProtocolVersion, 11u);
  EXPECT_EQUAL(sizeof(MessageHeader), 16u);
  expectMessage<HelloMessage>(24);
  expectMessage<SpawnMessage>(104);
  expectMessage<SpawnedMessage>(600);
  expectMessage<ControlMessage>(624);
  expectMessage<ControlledMessage>(88);
  expectMessage<ExitedMessage>(24);
  expectMessage<HeldMessage>(1064);
}

TEST("no message needs more descriptors than one send can carry") {
  constexpr uint32_t kMostDescriptors = 253;  // SCM_MAX_FD
  EXPECT(kMaxQueues <= kMostDescriptors);
  EXPECT(kMaxBackendFiles + 1 <= kMostDescriptors);
}

}  // namespace ublk
