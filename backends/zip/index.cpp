#include "index.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>

namespace ublk {

namespace {

constexpr size_t kBufferBytes = size_t{256} * 1024;
constexpr uint64_t kStepBytes = uint64_t{16} * 1024 * 1024;

// inflate(): `data_type` after Z_TREES.
constexpr int kUnusedBits = 63;
constexpr int kLastBlock = 64;
constexpr int kEndOfBlock = 128;
constexpr int kEndOfHeader = 256;
// The most output of one code.
constexpr uint64_t kLongestMatch = 258;

void writeIndex(int file, const void* data, size_t length, size_t offset) {
  const ssize_t written = checked(pwrite(file, data, length, static_cast<off_t>(offset)), "writing the index");
  if (static_cast<size_t>(written) != length) {
    throw std::system_error(ENOSPC, std::generic_category(), "writing the index");
  }
}

std::string hexadecimal(uint32_t value) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", value);
  return text;
}

}  // namespace

ArchiveState stateOf(const struct stat& status) {
  return {static_cast<uint64_t>(status.st_size), status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

int readArchive(int archive, const ArchiveState& state, void* data, size_t length, uint64_t offset) {
  for (size_t done = 0; done < length;) {
    const ssize_t got =
        pread(archive, static_cast<std::byte*>(data) + done, length - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 ? -errno : -EIO;
    done += static_cast<size_t>(got);
  }
  // Afterwards: a writer changes the time before it changes the data.
  struct stat status;
  if (fstat(archive, &status) < 0) return -errno;
  return stateOf(status) == state ? 0 : -ESTALE;
}

ZipIndexer::ZipIndexer(int archive, const ZipEntry& entry)
    : archive_(archive),
      index_(std::make_unique<ZipIndex>()),
      input_(std::make_unique<std::byte[]>(kBufferBytes)),
      output_(std::make_unique<std::byte[]>(kBufferBytes)),
      span_(zipSpanBytes(entry.bytes)),
      memfd_(checked(memfd_create("ublk-zip-index", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create")) {
  struct stat status;
  checked(fstat(archive, &status), "looking at the archive");
  index_->magic = kZipIndexMagic;
  index_->entry = entry;
  index_->archive = stateOf(status);
  if (!entry.deflated) return;
  index_->points = 1;
  if (inflateInit2(&stream_, -MAX_WBITS) != Z_OK) {
    throw std::system_error(ENOMEM, std::generic_category(), "preparing to inflate");
  }
}

ZipIndexer::~ZipIndexer() { inflateEnd(&stream_); }

bool ZipIndexer::step() {
  const ZipEntry& entry = index_->entry;
  const uint64_t loadedEnd = loaded_ + kStepBytes;
  const uint64_t producedEnd = produced_ + kStepBytes;
  while (loaded_ < loadedEnd && produced_ < producedEnd) {
    if (entry.deflated) {
      if (inflateOn()) return true;
      continue;
    }
    if (produced_ == entry.bytes) {
      check();
      return true;
    }
    refill();
    crc_ = static_cast<uint32_t>(crc32_z(crc_, stream_.next_in, stream_.avail_in));
    produced_ += stream_.avail_in;
  }
  return false;
}

void ZipIndexer::refill() {
  const ZipEntry& entry = index_->entry;
  const uint64_t length = std::min<uint64_t>(kBufferBytes, entry.compressedBytes - loaded_);
  const int error = readArchive(archive_, index_->archive, input_.get(), length, entry.dataOffset + loaded_);
  if (error == -EIO || error == -ESTALE) throw ArchiveFault("the archive was changed meanwhile, or cannot be read");
  if (error < 0) throw std::system_error(-error, std::generic_category(), "reading the archive");
  stream_.next_in = reinterpret_cast<Bytef*>(input_.get());
  stream_.avail_in = static_cast<uInt>(length);
  loaded_ += length;
}

// To the next end of a deflate block at most; true at the end of the entry.
bool ZipIndexer::inflateOn() {
  const ZipEntry& entry = index_->entry;
  // With nothing more to read, inflate may still hold some bits.
  if (stream_.avail_in == 0 && loaded_ < entry.compressedBytes) refill();
  // Room for one byte more than there should be: what is longer than it says shows, and is inflated no further.
  const uint64_t most = room_ > 0 ? room_ : kBufferBytes;
  const uint64_t room = std::min<uint64_t>(most, entry.bytes - produced_ + 1);
  stream_.next_out = reinterpret_cast<Bytef*>(output_.get());
  stream_.avail_out = static_cast<uInt>(room);
  const int result = inflate(&stream_, Z_TREES);
  const uint64_t made = room - stream_.avail_out;
  produced_ += made;
  crc_ = static_cast<uint32_t>(crc32_z(crc_, reinterpret_cast<const Bytef*>(output_.get()), made));
  if (produced_ > entry.bytes) {
    throw ArchiveFault("it is longer than the " + std::to_string(entry.bytes) + " bytes that the archive says");
  }
  if (result == Z_STREAM_END) {
    check();
    return true;
  }
  const bool blockEnded = (stream_.data_type & kEndOfBlock) != 0;
  const bool headerEnded = (stream_.data_type & kEndOfHeader) != 0;
  // Z_BUF_ERROR: nothing came in or out. With the end of a block or a header in bits that inflate held, it went on all the same.
  if (result == Z_BUF_ERROR && !blockEnded && !headerEnded) throw ArchiveFault("its compressed data ends too early");
  if (result != Z_OK && result != Z_BUF_ERROR) throw ArchiveFault("its compressed data is damaged");
  const uint64_t distance = produced_ - index_->point[index_->points - 1].output;
  if (distance > span_ + kZipMaxGapBytes) {
    throw ArchiveFault("it has " + std::to_string(kZipMaxGapBytes >> 20) + " MiB without a place to start reading");
  }
  room_ = 0;
  if (blockEnded) {
    blockBit_ = inputBit();
    if ((stream_.data_type & kLastBlock) == 0 && distance >= span_) addPoint(blockBit_, 0);
  } else if (headerEnded) {
    headerEndBit_ = inputBit();
  } else if (distance >= 2 * span_) {
    addPointWithinBlock();
  }
  return false;
}

// Where in the compressed data the bit is that inflate looks at next.
uint64_t ZipIndexer::inputBit() const { return 8 * (loaded_ - stream_.avail_in) - (stream_.data_type & kUnusedBits); }

// Where a code begins. Where inflate stopped within the output of one, it is given the room to come to its end.
void ZipIndexer::addPointWithinBlock() {
  const long mark = inflateMark(&stream_);
  const long back = mark >> 16;
  const auto emitted = static_cast<uint64_t>(mark & 0xffff);
  // A stored block, which is short, or none.
  if (back < 0) return;
  if (emitted > 0) {
    room_ = emitted < kLongestMatch ? kLongestMatch - emitted : 1;
    return;
  }
  addPoint(inputBit() - static_cast<uint64_t>(back), static_cast<uint16_t>(headerEndBit_ - blockBit_));
}

void ZipIndexer::addPoint(uint64_t bit, uint16_t headerBits) {
  uint8_t slot[kZipSlotBytes] = {};
  inflateGetDictionary(&stream_, slot, nullptr);
  if (headerBits > 8 * kZipHeaderBytes) throw ArchiveFault("its compressed data is damaged");
  readBits(blockBit_, slot + kZipWindowBytes, headerBits);
  writeIndex(memfd_.get(), slot, sizeof slot, kZipWindowsOffset + index_->points * kZipSlotBytes);
  const auto bits = static_cast<uint16_t>((8 - bit % 8) % 8);
  uint8_t value = 0;
  readBits(bit, &value, bits);
  index_->point[index_->points++] = {produced_, (bit + bits) / 8, static_cast<uint8_t>(bits), value, headerBits};
}

// From the archive, because what is needed may be behind us in the buffer.
void ZipIndexer::readBits(uint64_t bit, uint8_t* into, uint16_t count) const {
  if (count == 0) return;
  uint8_t bytes[kZipHeaderBytes + 1];
  const size_t length = (bit % 8 + count + 7) / 8;
  const int error = readArchive(archive_, index_->archive, bytes, length, index_->entry.dataOffset + bit / 8);
  if (error < 0) throw ArchiveFault("the archive was changed meanwhile, or cannot be read");
  for (uint16_t i = 0; i < count; i++) {
    const uint64_t from = bit % 8 + i;
    into[i / 8] = static_cast<uint8_t>(into[i / 8] | ((bytes[from / 8] >> (from % 8) & 1) << (i % 8)));
  }
}

void ZipIndexer::check() const {
  const ZipEntry& entry = index_->entry;
  if (produced_ < entry.bytes) {
    throw ArchiveFault("it has " + std::to_string(produced_) + " bytes, the archive says " +
                       std::to_string(entry.bytes));
  }
  if (entry.deflated && loaded_ - stream_.avail_in != entry.compressedBytes) {
    throw ArchiveFault("its compressed data has " + std::to_string(loaded_ - stream_.avail_in) +
                       " bytes, the archive says " + std::to_string(entry.compressedBytes));
  }
  if (crc_ != entry.crc) {
    throw ArchiveFault("its CRC-32 is " + hexadecimal(crc_) + ", the archive says " + hexadecimal(entry.crc));
  }
}

FileDescriptor ZipIndexer::finish() {
  checked(ftruncate(memfd_.get(), static_cast<off_t>(kZipWindowsOffset + index_->points * kZipSlotBytes)),
          "sizing the index");
  writeIndex(memfd_.get(), index_.get(), sizeof(ZipIndex), 0);
  checked(fcntl(memfd_.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
          "sealing the index");
  return std::move(memfd_);
}

}  // namespace ublk
