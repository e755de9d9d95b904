#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>
#include <random>
#include <vector>

#include "../../backends/file/file.hpp"
#include "common/file_descriptor.hpp"
#include "harness.hpp"

namespace ublk {

namespace {

constexpr uint32_t kSector = 512;
constexpr uint32_t kMaxIo = 64 * 1024;
constexpr uint16_t kTag = 3;

using Bytes = std::vector<std::byte>;

// What happens to an operation on the store. `result`: it fails with it, unasked. `most`: it is cut to that many bytes.
struct Fault {
  std::optional<int32_t> result;
  uint32_t most = UINT32_MAX;
};

// A block device's user and its queue, with a ring but without a ublk device.
class RingClient final : public Responder {
 public:
  RingClient(Backend& backend, int file) : backend_(backend), zeros_(kMaxIo) {
    const int result = io_uring_queue_init(4, &ring_, 0);
    if (result < 0) throw test::Skipped("this machine allows no io_uring");
    const int files[] = {-1, file};
    if (io_uring_register_files(&ring_, files, 2) < 0) throw test::Failure("registering the file failed");
  }
  ~RingClient() { io_uring_queue_exit(&ring_); }
  RingClient(const RingClient&) = delete;
  RingClient& operator=(const RingClient&) = delete;

  // The backend's answer to one request.
  int64_t run(Request request) {
    request.tag = kTag;
    answer_.reset();
    backend_.submit(*this, request);
    while (!answer_) {
      EXPECT(pending_);
      pending_ = false;
      seen.push_back(sqe_);
      const Fault fault = faults.empty() ? Fault{} : faults.front();
      if (!faults.empty()) faults.pop_front();
      backend_.completed(*this, kTag, fault.result ? *fault.result : perform(fault.most));
    }
    EXPECT(!pending_);
    return *answer_;
  }
  int64_t read(uint64_t offset, Bytes& data) { return transfer(Operation::read, offset, data); }
  int64_t write(uint64_t offset, Bytes& data, bool fua = false) {
    return transfer(Operation::write, offset, data, fua);
  }
  int64_t zero(uint64_t offset, uint32_t length, bool mayUnmap) {
    return run({.operation = Operation::writeZeroes, .mayUnmap = mayUnmap, .offset = offset, .length = length});
  }

  void complete(const Request&, int64_t result) override {
    EXPECT(!answer_);
    answer_ = result;
  }
  void copyAndComplete(const Request&, std::byte*, int32_t) override { throw test::Failure("user-copy of a file"); }
  void copyAndComplete(const Request&, std::span<const iovec>, int32_t) override {
    throw test::Failure("user-copy of a file");
  }
  io_uring_sqe* prepare(uint16_t tag) override {
    EXPECT_EQUAL(tag, kTag);
    EXPECT(!pending_);
    pending_ = true;
    sqe_ = {};
    return &sqe_;
  }
  std::byte* zeros() const override { return const_cast<std::byte*>(zeros_.data()); }

  void working() override {}

  std::deque<Fault> faults;        // for the next operations, in order
  std::vector<io_uring_sqe> seen;  // operations that the backend asked for

 private:
  int64_t transfer(Operation operation, uint64_t offset, Bytes& data, bool fua = false) {
    return run({.operation = operation,
                .fua = fua,
                .offset = offset,
                .length = static_cast<uint32_t>(data.size()),
                .data = data.data()});
  }

  int32_t perform(uint32_t most) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    *sqe = sqe_;
    if (most != UINT32_MAX) sqe->len = std::min(sqe->len, most);
    io_uring_cqe* cqe;
    if (io_uring_submit_and_wait(&ring_, 1) < 0 || io_uring_peek_cqe(&ring_, &cqe) < 0) {
      throw test::Failure("the ring does not answer");
    }
    const int32_t result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    return result;
  }

  Backend& backend_;
  const Bytes zeros_;
  io_uring ring_{};
  io_uring_sqe sqe_{};
  bool pending_ = false;
  std::optional<int64_t> answer_;
};

// A file in memory, and a backend on it.
struct Disk {
  explicit Disk(uint64_t size)
      : file(checked(memfd_create("file", MFD_CLOEXEC), "memfd_create")), client(backend, file.get()) {
    checked(ftruncate(file.get(), static_cast<off_t>(size)), "ftruncate");
    const int fd = file.get();
    backend.open({.size = size, .depth = kTag + 1, .maxIoBytes = kMaxIo, .files = std::span(&fd, 1)});
  }
  uint64_t size() const {
    struct stat status {};
    checked(fstat(file.get(), &status), "fstat");
    return static_cast<uint64_t>(status.st_size);
  }
  void shrinkTo(uint64_t bytes) { checked(ftruncate(file.get(), static_cast<off_t>(bytes)), "ftruncate"); }

  FileDescriptor file;
  FileBackend backend;
  RingClient client;
};

Bytes randomBytes(std::mt19937_64& random, size_t length) {
  Bytes data(length);
  for (auto& byte : data) byte = static_cast<std::byte>(random());
  return data;
}

std::vector<int> opcodesOf(const RingClient& client) {
  std::vector<int> opcodes;
  for (const auto& sqe : client.seen) opcodes.push_back(sqe.opcode);
  return opcodes;
}

}  // namespace

TEST("a file does what an array of bytes does, however short the store's answers are") {
  constexpr uint64_t size = 1 << 20;
  std::mt19937_64 random(1);
  Disk disk(size);
  Bytes model(size);
  for (int round = 0; round < 2000; round++) {
    const auto length = static_cast<uint32_t>(random() % (kMaxIo / kSector) + 1) * kSector;
    const uint64_t offset = random() % ((size - length) / kSector + 1) * kSector;
    const auto place = model.begin() + static_cast<ptrdiff_t>(offset);
    while (random() % 2) {
      const auto most = static_cast<uint32_t>(random() % 16 + 1) * kSector;
      disk.client.faults.push_back(random() % 2 ? Fault{.most = most} : Fault{.result = -EAGAIN});
    }
    switch (random() % 4) {
      case 0: {
        Bytes data = randomBytes(random, length);
        EXPECT_EQUAL(disk.client.write(offset, data), length);
        std::copy(data.begin(), data.end(), place);
        break;
      }
      case 1:
        disk.client.faults.clear();  // a hole is not cut short
        EXPECT_EQUAL(disk.client.zero(offset, length, random() % 2), length);
        std::fill(place, place + length, std::byte{0});
        break;
      default: {
        Bytes data(length);
        EXPECT_EQUAL(disk.client.read(offset, data), length);
        EXPECT(std::equal(data.begin(), data.end(), place));
      }
    }
    disk.client.faults.clear();
  }
}

TEST("what the store had nothing ready for is asked again of a thread that may wait") {
  Disk disk(kMaxIo);
  Bytes data(4096);
  disk.client.faults = {{.most = 1024}, {.result = -EAGAIN}, {.result = -EINTR}};
  EXPECT_EQUAL(disk.client.read(0, data), 4096);
  const auto& seen = disk.client.seen;
  EXPECT_EQUAL(seen.size(), 4u);
  for (size_t i = 0; i < seen.size(); i++) {
    EXPECT_EQUAL(seen[i].flags, IOSQE_FIXED_FILE | (i >= 2 ? IOSQE_ASYNC : 0));
    EXPECT_EQUAL(seen[i].fd, 1);
    EXPECT_EQUAL(seen[i].off, i == 0 ? 0u : 1024u);
    EXPECT_EQUAL(seen[i].len, i == 0 ? 4096u : 3072u);
  }
}

TEST("the store's error is the answer, also when it came late") {
  Disk disk(kMaxIo);
  Bytes data(4096);
  for (const int error : {ENOSPC, EIO, EDQUOT, EREMOTEIO}) {
    disk.client.faults = {{.most = 512}, {.result = -error}};
    EXPECT_EQUAL(disk.client.write(0, data), -error);
    disk.client.faults = {{.result = -error}};
    EXPECT_EQUAL(disk.client.run({.operation = Operation::flush}), -error);
  }
}

TEST("a file that shrank gives EIO and neither zeros nor room") {
  constexpr uint64_t size = 256 * 1024;
  Disk disk(size);
  Bytes data(8192);
  for (const uint64_t left : {uint64_t{100'000}, uint64_t{8192 + 512}, uint64_t{100}, uint64_t{0}}) {
    disk.shrinkTo(left);
    EXPECT_EQUAL(disk.client.read(8192, data), left >= 16384 ? 8192 : -EIO);
    EXPECT_EQUAL(disk.client.read(left / kSector * kSector, data), -EIO);
    EXPECT_EQUAL(disk.client.read(size - 8192, data), -EIO);
    EXPECT_EQUAL(disk.client.write(0, data), -EIO);
    EXPECT_EQUAL(disk.client.write(size - 8192, data), -EIO);
    EXPECT_EQUAL(disk.client.zero(0, 8192, true), -EIO);
    EXPECT_EQUAL(disk.size(), left);
  }
  disk.shrinkTo(size);
  EXPECT_EQUAL(disk.client.write(0, data), 8192);
}

TEST("zeroing falls back to what the store can do, and remembers") {
  Disk disk(1 << 20);
  RingClient& client = disk.client;
  constexpr uint32_t length = 2 * kMaxIo + 4096;
  client.faults = {{.result = -EOPNOTSUPP}, {.result = -EOPNOTSUPP}};
  EXPECT_EQUAL(client.zero(0, length, true), length);
  EXPECT(opcodesOf(client) == (std::vector<int>{IORING_OP_FALLOCATE, IORING_OP_FALLOCATE, IORING_OP_WRITE,
                                                IORING_OP_WRITE, IORING_OP_WRITE}));
  EXPECT_EQUAL(client.seen[0].len, uint32_t{FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE});
  EXPECT_EQUAL(client.seen[1].len, uint32_t{FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE});
  EXPECT_EQUAL(client.seen[4].off, uint64_t{2 * kMaxIo});
  EXPECT_EQUAL(client.seen[4].len, 4096u);
  client.seen.clear();
  EXPECT_EQUAL(client.zero(4096, 4096, true), 4096);
  EXPECT(opcodesOf(client) == (std::vector<int>{IORING_OP_WRITE}));
}

TEST("a range is only unmapped where that was allowed") {
  Disk disk(1 << 20);
  disk.client.faults = {{.result = 0}, {.result = 0}, {.result = 0}};
  EXPECT_EQUAL(disk.client.zero(0, 4096, false), 4096);
  EXPECT_EQUAL(disk.client.zero(0, 4096, true), 4096);
  EXPECT_EQUAL(disk.client.run({.operation = Operation::discard, .offset = 8192, .length = 4096}), 4096);
  EXPECT_EQUAL(disk.client.seen[0].len, uint32_t{FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE});
  EXPECT_EQUAL(disk.client.seen[1].len, uint32_t{FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE});
  EXPECT_EQUAL(disk.client.seen[2].len, uint32_t{FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE});
  EXPECT_EQUAL(disk.client.seen[2].off, 8192u);
  EXPECT_EQUAL(disk.client.seen[2].addr, 4096u);
  disk.client.faults = {{.result = -EOPNOTSUPP}};
  EXPECT_EQUAL(disk.client.run({.operation = Operation::discard, .length = 4096}), -EOPNOTSUPP);
}

TEST("FLUSH is fdatasync and FUA a write that waits for the data") {
  Disk disk(kMaxIo);
  Bytes data(4096);
  EXPECT_EQUAL(disk.client.run({.operation = Operation::flush}), 0);
  EXPECT_EQUAL(disk.client.write(0, data, false), 4096);
  EXPECT_EQUAL(disk.client.write(0, data, true), 4096);
  EXPECT(opcodesOf(disk.client) == (std::vector<int>{IORING_OP_FSYNC, IORING_OP_WRITE, IORING_OP_WRITE}));
  EXPECT_EQUAL(disk.client.seen[0].fsync_flags, IORING_FSYNC_DATASYNC);
  EXPECT_EQUAL(disk.client.seen[1].rw_flags, 0);
  EXPECT_EQUAL(disk.client.seen[2].rw_flags, RWF_DSYNC);
}

TEST("without a buffer a request goes by the one that the kernel registered for its tag") {
  Disk disk(kMaxIo);
  for (const auto& [operation, opcode] :
       {std::pair{Operation::read, IORING_OP_READ_FIXED}, std::pair{Operation::write, IORING_OP_WRITE_FIXED}}) {
    disk.client.seen.clear();
    disk.client.faults = {{.result = 1024}, {.result = 3072}};
    EXPECT_EQUAL(disk.client.run({.operation = operation, .offset = 8192, .length = 4096}), 4096);
    EXPECT_EQUAL(disk.client.seen.size(), 2u);
    for (const uint32_t i : {0u, 1u}) {
      const io_uring_sqe& sqe = disk.client.seen[i];
      EXPECT_EQUAL(sqe.opcode, opcode);
      EXPECT_EQUAL(sqe.buf_index, kTag);
      EXPECT_EQUAL(sqe.addr, i * 1024);
      EXPECT_EQUAL(sqe.off, 8192 + i * 1024);
      EXPECT_EQUAL(sqe.len, 4096 - i * 1024);
    }
  }
}

TEST("a file backend without its file does not open") {
  FileBackend backend;
  EXPECT_EQUAL(test::errnoOf([&] { backend.open({.size = 4096, .depth = 1, .maxIoBytes = kMaxIo, .files = {}}); }),
               EBADF);
}

}  // namespace ublk
