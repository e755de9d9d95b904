#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "../../backends/zip/zip.hpp"
#include "client.hpp"
#include "common/file_descriptor.hpp"
#include "harness.hpp"

namespace ublk {

namespace {

using Bytes = std::vector<std::byte>;

constexpr uint32_t kMaxIo = 256 * 1024;
constexpr uint64_t kBlock = 512;
// What is in the archive before and behind the entry's data.
constexpr size_t kBefore = 1001;
constexpr size_t kBehind = 333;

// Stretches that compress well, badly and not at all.
Bytes someData(size_t length, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes data(length);
  for (size_t at = 0; at < length;) {
    const size_t end = std::min(length, at + 1 + random() % 200000);
    const auto range = static_cast<unsigned>(random() % 4 == 0 ? 256 : 1 + random() % 20);
    for (; at < end; at++) data[at] = static_cast<std::byte>(random() % range);
  }
  return data;
}

struct Compression {
  int level;
  int memory;
  int strategy;
};

Bytes deflated(const Bytes& data, Compression how) {
  z_stream stream{};
  EXPECT_EQUAL(deflateInit2(&stream, how.level, Z_DEFLATED, -MAX_WBITS, how.memory, how.strategy), Z_OK);
  Bytes out(deflateBound(&stream, data.size()));
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQUAL(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

// One deflate block of any length (RFC 1951), as zlib makes none: literals and repetitions of the last byte, at random.
class SingleBlock {
 public:
  SingleBlock(size_t length, bool dynamic, unsigned literalsIn1000, uint64_t seed) : dynamic_(dynamic) {
    std::mt19937_64 random(seed);
    put(1 | (dynamic ? 2 : 1) << 1, 3);
    if (dynamic) putHeader();
    while (data.size() < length) {
      if (data.empty() || random() % 1000 < literalsIn1000) {
        const auto byte = static_cast<uint8_t>(random());
        putLiteral(byte);
        data.push_back(static_cast<std::byte>(byte));
      } else {
        putRepetition();
        data.insert(data.end(), dynamic ? 3 : 258, data.back());
      }
    }
    dynamic ? putCode(510, 9) : putCode(0, 7);
    put(0, 7);
  }

  Bytes data;
  Bytes packed;

 private:
  // 257 + 1 codes for literals and lengths, one for distances; code lengths 8, 1 and 9 have codes of 1, 2 and 2 bits.
  void putHeader() {
    put(1, 5), put(0, 5), put(14, 4);
    for (const int length : {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1}) {
      put(length == 8 ? 1 : length == 1 || length == 9 ? 2 : 0, 3);
    }
    for (int symbol = 0; symbol < 258; symbol++) symbol < 254 ? putCode(0, 1) : putCode(3, 2);
    putCode(2, 2);
  }
  void putLiteral(uint8_t byte) {
    if (dynamic_) return byte < 254 ? putCode(byte, 8) : putCode(508u + byte - 254, 9);
    byte < 144 ? putCode(0x30u + byte, 8) : putCode(0x190u + byte - 144, 9);
  }
  void putRepetition() {
    if (dynamic_) return putCode(511, 9), putCode(0, 1);
    putCode(0xc5, 8), putCode(0, 5);
  }
  // Huffman codes begin with their highest bit, everything else with its lowest.
  void putCode(unsigned code, int bits) {
    while (bits-- > 0) put(code >> bits & 1, 1);
  }
  void put(unsigned value, int bits) {
    for (int i = 0; i < bits; i++) {
      byte_ |= (value >> i & 1) << filled_;
      if (++filled_ < 8) continue;
      packed.push_back(static_cast<std::byte>(byte_));
      byte_ = 0, filled_ = 0;
    }
  }

  const bool dynamic_;
  unsigned byte_ = 0;
  int filled_ = 0;
};

// An archive, as far as the backend looks at it, with its one entry.
struct Archive {
  Archive(const Bytes& data, bool compressed, Compression how = {6, 8, Z_DEFAULT_STRATEGY})
      : Archive(data, compressed, compressed ? deflated(data, how) : data) {}
  Archive(const Bytes& data, bool compressed, const Bytes& packed)
      : file(checked(memfd_create("archive", MFD_CLOEXEC), "memfd_create")) {
    write(someData(kBefore + packed.size() + kBehind, 99), 0);
    write(packed, kBefore);
    const auto crc = crc32_z(0, reinterpret_cast<const Bytef*>(data.data()), data.size());
    entry = {kBefore, packed.size(), data.size(), static_cast<uint32_t>(crc), compressed};
  }

  void write(const Bytes& bytes, size_t offset) const {
    EXPECT_EQUAL(pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)), bytes.size());
  }
  // Nobody can see by the time that it was changed.
  void flip(size_t offset) const {
    struct stat status;
    checked(fstat(file.get(), &status), "fstat");
    std::byte value;
    EXPECT_EQUAL(pread(file.get(), &value, 1, static_cast<off_t>(offset)), 1);
    write({~value}, offset);
    setTime(status.st_mtim);
  }
  void touch(time_t seconds) const { setTime({seconds, 0}); }
  void setTime(const timespec& time) const {
    const timespec times[2] = {time, time};
    checked(futimens(file.get(), times), "futimens");
  }
  FileDescriptor index() const {
    ZipIndexer indexer(file.get(), entry);
    while (!indexer.step()) continue;
    return indexer.finish();
  }

  FileDescriptor file;
  ZipEntry entry;
};

uint64_t deviceBytes(uint64_t entryBytes) { return (entryBytes + kBlock - 1) / kBlock * kBlock; }

// A backend on an archive and somebody who uses it.
struct Disk {
  explicit Disk(const Archive& archive) : index(archive.index()), client(backend, DataPath::copy, kMaxIo) {
    const int files[] = {archive.file.get(), index.get()};
    backend.open({.size = deviceBytes(archive.entry.bytes), .maxIoBytes = kMaxIo, .files = files});
  }
  explicit Disk(Archive&&) = delete;
  int64_t read(uint64_t offset, Bytes& data) {
    return client.run(Operation::read, offset, static_cast<uint32_t>(data.size()), data.data());
  }
  const ZipIndex& contents() const { return *mapped; }

  FileDescriptor index;
  ZipBackend backend;
  test::Client client;
  std::shared_ptr<const ZipIndex> mapped{
      static_cast<const ZipIndex*>(mmap(nullptr, sizeof(ZipIndex), PROT_READ, MAP_PRIVATE, index.get(), 0)),
      [](const ZipIndex* address) { munmap(const_cast<ZipIndex*>(address), sizeof(ZipIndex)); }};
};

bool isAsIn(const Bytes& data, uint64_t offset, const Bytes& read) {
  for (size_t at = 0; at < read.size(); at++) {
    if (read[at] != (offset + at < data.size() ? data[offset + at] : std::byte{0})) return false;
  }
  return true;
}

void compareRandomReads(Disk& disk, const Bytes& data, int count, uint64_t seed) {
  std::mt19937_64 random(seed);
  const uint64_t blocks = deviceBytes(data.size()) / kBlock;
  for (int i = 0; i < count; i++) {
    const uint64_t first = random() % blocks;
    const uint64_t most = std::min<uint64_t>(blocks - first, random() % 4 == 0 ? kMaxIo / kBlock : 9);
    Bytes read((1 + random() % most) * kBlock, std::byte{0x55});
    EXPECT_EQUAL(disk.read(first * kBlock, read), read.size());
    EXPECT(isAsIn(data, first * kBlock, read));
  }
}

}  // namespace

TEST("a deflated entry reads as what was compressed, however that was done") {
  const Bytes data = someData(3 * 1024 * 1024 + 123, 1);
  for (const Compression how : {Compression{6, 8, Z_DEFAULT_STRATEGY}, Compression{9, 9, Z_DEFAULT_STRATEGY},
                                Compression{1, 1, Z_DEFAULT_STRATEGY}, Compression{0, 8, Z_DEFAULT_STRATEGY},
                                Compression{6, 8, Z_FIXED}, Compression{6, 8, Z_HUFFMAN_ONLY}}) {
    const Archive archive(data, true, how);
    Disk disk(archive);
    EXPECT_EQUAL(disk.contents().points, 3);
    compareRandomReads(disk, data, 60, 2);
  }
}

TEST("restart points are in the middle of bytes too") {
  const Archive archive(someData(5 * 1024 * 1024, 3), true, {6, 4, Z_DEFAULT_STRATEGY});
  Disk disk(archive);
  const ZipIndex& index = disk.contents();
  EXPECT(
      std::any_of(index.point, index.point + index.points, [](const RestartPoint& point) { return point.bits > 0; }));
}

TEST("a block of any length has places to start from") {
  for (const bool dynamic : {false, true}) {
    for (const unsigned literalsIn1000 : {1u, 500u, 1000u}) {
      const SingleBlock block(9 * 1024 * 1024, dynamic, literalsIn1000, literalsIn1000 + 7);
      const Archive archive(block.data, true, block.packed);
      Disk disk(archive);
      EXPECT(disk.contents().points >= 4);
      compareRandomReads(disk, block.data, 40, 5);
    }
  }
}

TEST("the index of no entry is too large") {
  std::mt19937_64 random(17);
  for (int i = 0; i < 100000; i++) {
    const uint64_t bytes = 1 + random() % (uint64_t{1} << (1 + random() % 50));
    EXPECT((bytes - 1) / zipSpanBytes(bytes) + 1 <= kZipMaxPoints);
  }
  static_assert(kZipWindowsOffset + kZipMaxPoints * kZipSlotBytes <= kZipIndexBytes);
}

TEST("a stored entry reads as it is") {
  const Bytes data = someData(1024 * 1024 + 77, 4);
  const Archive archive(data, false);
  Disk disk(archive);
  compareRandomReads(disk, data, 200, 5);
}

TEST("more sequential readers than there are decoders each get their own data") {
  const Bytes data = someData(4 * 1024 * 1024, 6);
  const Archive archive(data, true);
  Disk disk(archive);
  for (uint64_t step = 0; step < 6; step++) {
    for (uint64_t reader = 0; reader < 11; reader++) {
      Bytes read(4096);
      const uint64_t offset = reader * 360448 + step * read.size();
      EXPECT_EQUAL(disk.read(offset, read), read.size());
      EXPECT(isAsIn(data, offset, read));
    }
  }
}

TEST("a read that has much to skip shows that it is at work") {
  const Bytes data = someData(1024 * 1024, 5);
  const Archive archive(data, true);
  Disk disk(archive);
  Bytes read(kBlock);
  EXPECT_EQUAL(disk.read(deviceBytes(data.size()) - kBlock, read), kBlock);
  EXPECT(disk.client.signsOfLife >= 15);
}

TEST("an entry shorter than a block, and what is behind its end") {
  for (const bool compressed : {false, true}) {
    const Bytes data = someData(5, 7);
    const Archive archive(data, compressed);
    Disk disk(archive);
    Bytes read(kBlock, std::byte{0x55});
    EXPECT_EQUAL(disk.read(0, read), read.size());
    EXPECT(isAsIn(data, 0, read));
  }
}

TEST("a zip device takes nothing but reads") {
  const Archive archive(someData(4096, 8), true);
  Disk disk(archive);
  Bytes data(512);
  EXPECT_EQUAL(disk.client.run(Operation::write, 0, 512, data.data()), -EROFS);
  EXPECT_EQUAL(disk.client.run(Operation::discard, 0, 512), -EROFS);
  EXPECT_EQUAL(disk.client.run(Operation::writeZeroes, 0, 512), -EROFS);
}

TEST("an archive that is truncated, or written to, under its device fails reads") {
  for (const bool compressed : {false, true}) {
    const Bytes data = someData(2 * 1024 * 1024, 9);
    for (const bool truncated : {false, true}) {
      Archive archive(data, compressed);
      Disk disk(archive);
      Bytes read(kMaxIo);
      EXPECT_EQUAL(disk.read(0, read), read.size());
      if (truncated) {
        checked(ftruncate(archive.file.get(), static_cast<off_t>(kBefore + archive.entry.compressedBytes / 2)), "");
      } else {
        archive.flip(kBefore + archive.entry.compressedBytes / 3);
        archive.touch(1);
      }
      EXPECT_EQUAL(disk.read(1024 * 1024, read), -EIO);
      EXPECT_EQUAL(disk.read(2 * 1024 * 1024 - kMaxIo, read), -EIO);
    }
  }
}

TEST("an archive that is touched goes on being served, whatever is done to the rest of it") {
  for (const bool compressed : {false, true}) {
    const Bytes data = someData(2 * 1024 * 1024 + 77, 18);
    const Archive archive(data, compressed);
    Disk disk(archive);
    compareRandomReads(disk, data, 20, 19);
    archive.touch(1);
    compareRandomReads(disk, data, 20, 20);
    archive.flip(0);
    checked(ftruncate(archive.file.get(), static_cast<off_t>(kBefore + archive.entry.compressedBytes)), "ftruncate");
    archive.touch(2);
    compareRandomReads(disk, data, 20, 21);
  }
}

TEST("an archive that is put back is served again") {
  for (const bool compressed : {false, true}) {
    const Bytes data = someData(1024 * 1024, 22);
    const Archive archive(data, compressed);
    Disk disk(archive);
    Bytes read(kBlock);
    const size_t damaged = kBefore + archive.entry.compressedBytes / 2;
    archive.flip(damaged);
    archive.touch(1);
    EXPECT_EQUAL(disk.read(0, read), -EIO);
    archive.flip(damaged);
    archive.touch(2);
    compareRandomReads(disk, data, 20, 23);
  }
}

TEST("an archive that was found to be another is read through no second time") {
  const Bytes data = someData(1024 * 1024, 24);
  const Archive archive(data, false);
  Disk disk(archive);
  Bytes read(kBlock);
  archive.flip(kBefore);
  archive.touch(1);
  EXPECT_EQUAL(disk.read(kBlock, read), -EIO);
  const auto signs = disk.client.signsOfLife;
  EXPECT(signs >= 2000);
  EXPECT_EQUAL(disk.read(kBlock, read), -EIO);
  EXPECT_EQUAL(disk.client.signsOfLife, signs);
}

TEST("damage under a device fails reads or none, and does no harm to others") {
  std::mt19937_64 random(10);
  const Bytes data = someData(3 * 1024 * 1024, 11);
  const Archive archive(data, true);
  Disk disk(archive);
  int failures = 0;
  for (int round = 0; round < 60; round++) {
    const size_t offset = kBefore + random() % archive.entry.compressedBytes;
    archive.flip(offset);
    for (int i = 0; i < 4; i++) {
      Bytes read(kMaxIo);
      const int64_t result = disk.read(random() % (data.size() / kMaxIo) * kMaxIo, read);
      EXPECT(result == kMaxIo || result == -EIO);
      failures += result < 0;
    }
    archive.flip(offset);
  }
  EXPECT(failures > 0);
  // Streams that went through the damage went on with what it made of them; a new one knows nothing of it.
  Disk fresh(archive);
  compareRandomReads(fresh, data, 30, 12);
}

TEST("an archive that is damaged when its device is added is refused") {
  std::mt19937_64 random(13);
  const Bytes data = someData(200 * 1024, 14);
  for (const bool compressed : {false, true}) {
    const Archive archive(data, compressed);
    for (int round = 0; round < 100; round++) {
      const size_t offset = kBefore + random() % archive.entry.compressedBytes;
      archive.flip(offset);
      bool refused = false;
      try {
        archive.index();
      } catch (const ArchiveFault&) {
        refused = true;
      }
      EXPECT(refused);
      archive.flip(offset);
    }
    archive.index();
  }
}

TEST("random bytes in place of deflated data are refused") {
  for (uint64_t seed = 0; seed < 100; seed++) {
    Archive archive(someData(64 * 1024, seed), false);
    archive.entry.deflated = true;
    bool refused = false;
    try {
      archive.index();
    } catch (const ArchiveFault&) {
      refused = true;
    }
    EXPECT(refused);
  }
}

TEST("an index is found wanting that is none, or that is of something larger") {
  const Archive archive(someData(8192, 15), true);
  const FileDescriptor index = archive.index();
  const FileDescriptor empty(checked(memfd_create("empty", MFD_CLOEXEC), "memfd_create"));
  const auto opening = [&](int file, uint64_t size) {
    return test::errnoOf([&] {
      ZipBackend backend;
      const int files[] = {archive.file.get(), file};
      backend.open({.size = size, .maxIoBytes = kMaxIo, .files = files});
    });
  };
  EXPECT_EQUAL(opening(index.get(), 8192), 0);
  EXPECT_EQUAL(opening(index.get(), 4096), EINVAL);
  EXPECT_EQUAL(opening(empty.get(), 8192), EINVAL);
  checked(ftruncate(empty.get(), kZipWindowsOffset), "ftruncate");
  EXPECT_EQUAL(opening(empty.get(), 8192), EINVAL);
}

TEST("nobody can write to an index") {
  const FileDescriptor index = Archive(someData(8192, 16), true).index();
  EXPECT_EQUAL(pwrite(index.get(), "x", 1, 0), -1);
  EXPECT_EQUAL(ftruncate(index.get(), 0), -1);
}

}  // namespace ublk
