// What is found out about an archive's entry when its device is added, for the queue processes that serve it.
#pragma once

#include <sys/stat.h>
#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "common/file_descriptor.hpp"

namespace ublk {

// Deflated data can be decoded from a restart point on, given the 32 KiB of output before it and, within a block, that
// block's header: 3 + 14 + 19 * 3 bits, and at most 14 for each of 320 code lengths (RFC 1951, 3.2.7).
constexpr size_t kZipWindowBytes = size_t{32} * 1024;
constexpr size_t kZipHeaderBytes = 640;
constexpr size_t kZipSlotBytes = kZipWindowBytes + kZipHeaderBytes;
constexpr size_t kZipIndexBytes = size_t{64} * 1024 * 1024;  // at most
constexpr size_t kZipWindowsOffset = size_t{64} * 1024;      // in the index
constexpr size_t kZipMaxPoints = (kZipIndexBytes - kZipWindowsOffset) / kZipSlotBytes;
// So much output at most without a place to start from. Blocks end every few MiB, and the codes in them at every 258 bytes.
constexpr uint64_t kZipMaxGapBytes = uint64_t{64} * 1024 * 1024;

// The least output between two restart points of an entry: no more of them than fit, of which the first is at 0.
constexpr uint64_t zipSpanBytes(uint64_t entryBytes) {
  constexpr uint64_t least = uint64_t{1024} * 1024;
  const uint64_t share = entryBytes / (kZipMaxPoints - 1) + 1;
  return share > least ? share : least;
}

struct ZipEntry {
  uint64_t dataOffset;  // in the archive, bytes
  uint64_t compressedBytes;
  uint64_t bytes;
  uint32_t crc;
  bool deflated;
};

// A change of the archive changes this, and a mere touch does, too.
struct ArchiveState {
  uint64_t bytes;
  int64_t seconds;
  int64_t nanoseconds;

  bool operator==(const ArchiveState&) const = default;
};

struct RestartPoint {
  uint64_t output;      // offset in the entry
  uint64_t input;       // offset in the compressed data, of the first whole byte
  uint8_t bits;         // of the byte before it that belong here too, 0 to 7
  uint8_t value;        // these bits
  uint16_t headerBits;  // of the block that it is in; 0: it is between two blocks
};

// The beginning of the index. At kZipWindowsOffset + N * kZipSlotBytes are the window of point N and the header of its block,
// from bit 0 on; point 0 needs none.
struct ZipIndex {
  uint64_t magic;
  ZipEntry entry;
  ArchiveState archive;
  uint32_t points;  // 0 for a stored entry
  RestartPoint point[kZipMaxPoints];
};

constexpr uint64_t kZipIndexMagic = 0x32786469'70697a75;  // "uzipidx2"
static_assert(sizeof(ZipIndex) <= kZipWindowsOffset);

// The archive is not what it says. The message follows a name: "its data is damaged".
struct ArchiveFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

ArchiveState stateOf(const struct stat& status);

// Reads all of `length`; 0, or -errno: -EIO when the archive ends before, -ESTALE when it is not in `state` any more.
int readArchive(int archive, const ArchiveState& state, void* data, size_t length, uint64_t offset);

// Reads an entry once from its beginning to its end, checks it, and collects its restart points.
class ZipIndexer {
 public:
  // `entry.dataOffset + entry.compressedBytes` is within the archive. Throws std::system_error.
  ZipIndexer(int archive, const ZipEntry& entry);
  ~ZipIndexer();
  ZipIndexer(const ZipIndexer&) = delete;
  ZipIndexer& operator=(const ZipIndexer&) = delete;

  // Reads on for some ten milliseconds; true when the end was reached and the entry is what it was said to be.
  // Throws ArchiveFault, std::system_error.
  bool step();

  // The index, sealed; once, after the last step. Throws std::system_error.
  FileDescriptor finish();

 private:
  void refill();
  bool inflateOn();
  uint64_t inputBit() const;
  void addPointWithinBlock();
  void addPoint(uint64_t bit, uint16_t headerBits);
  void readBits(uint64_t bit, uint8_t* into, uint16_t count) const;
  void check() const;

  const int archive_;
  const std::unique_ptr<ZipIndex> index_;
  const std::unique_ptr<std::byte[]> input_;
  const std::unique_ptr<std::byte[]> output_;
  const uint64_t span_;  // bytes
  FileDescriptor memfd_;
  z_stream stream_{};
  uint64_t loaded_ = 0;    // compressed bytes that were read from the archive
  uint64_t produced_ = 0;  // bytes of the entry
  uint64_t blockBit_ = 0;  // where in the compressed data the present block begins, and where its header ends, in bits
  uint64_t headerEndBit_ = 0;
  uint64_t room_ = 0;  // for the output that comes next; 0: the usual
  uint32_t crc_ = 0;
};

}  // namespace ublk
