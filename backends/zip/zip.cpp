#include "zip.hpp"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace ublk {

namespace {

constexpr size_t kDecoders = 8;
// How often one request tries again while its archive is changed again and again.
constexpr int kMostChecks = 3;
constexpr size_t kInputBytes = size_t{32} * 1024;
constexpr size_t kSkipBytes = size_t{64} * 1024;
// inflate's state and its window, together 40 KiB in zlib 1.2 and 1.3.
constexpr size_t kInflateBytes = size_t{64} * 1024;

}  // namespace

// One inflate stream: where it is in the entry and in the compressed data.
struct ZipBackend::Decoder {
  z_stream stream;
  bool started;
  uint64_t position;  // in the entry, of the byte that comes next
  uint64_t loaded;    // in the compressed data, of what is not yet in `input`
  uint64_t lastTurn;
  size_t taken;  // of `memory`
  alignas(64) std::byte memory[kInflateBytes];
  std::byte input[kInputBytes];

  // zlib asks twice: when the stream is set up, and for the window that it keeps from then on.
  static void* take(void* decoder, unsigned items, unsigned size) {
    auto& self = *static_cast<Decoder*>(decoder);
    const size_t bytes = (size_t{items} * size + 63) / 64 * 64;
    if (bytes > sizeof self.memory - self.taken) return nullptr;
    std::byte* const given = self.memory + self.taken;
    self.taken += bytes;
    return given;
  }
  static void giveBack(void*, void*) {}

  // Has inflate read the header of a block, as much at a time as it can hold, and make nothing yet.
  void enterBlock(const Bytef* header, uint32_t bits) {
    Bytef nothing;
    for (uint32_t done = 0; done < bits; done += 8) {
      inflatePrime(&stream, static_cast<int>(std::min<uint32_t>(8, bits - done)), header[done / 8]);
      stream.next_out = &nothing;
      stream.avail_out = 0;
      inflate(&stream, Z_NO_FLUSH);
    }
  }

  void open() {
    stream.zalloc = take;
    stream.zfree = giveBack;
    stream.opaque = this;
    // Any dictionary makes zlib ask for the window now.
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK ||
        inflateSetDictionary(&stream, reinterpret_cast<const Bytef*>(input), sizeof input) != Z_OK) {
      throw std::system_error(ENOMEM, std::generic_category(), "preparing to inflate");
    }
  }
};

struct ZipBackend::Memory {
  Decoder decoders[kDecoders];
  std::byte skipped[kSkipBytes];
};

ZipBackend::ZipBackend() = default;

ZipBackend::~ZipBackend() {
  if (index_) munmap(const_cast<ZipIndex*>(index_), mappedBytes_);
}

void ZipBackend::open(const BackendSetup& setup) {
  if (setup.files.size() != 2) throw std::system_error(EBADF, std::generic_category(), "receiving archive and index");
  archive_ = setup.files[0];
  struct stat status {};
  checked(fstat(setup.files[1], &status), "looking at the archive's index");
  mappedBytes_ = static_cast<size_t>(status.st_size);
  if (mappedBytes_ < kZipWindowsOffset) {
    throw std::system_error(EINVAL, std::generic_category(), "reading the archive's index");
  }
  // Private, because a file that is sealed against writing cannot be mapped in another way before Linux 6.7.
  void* base = mmap(nullptr, mappedBytes_, PROT_READ, MAP_PRIVATE, setup.files[1], 0);
  if (base == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping the archive's index");
  index_ = static_cast<const ZipIndex*>(base);
  if (index_->magic != kZipIndexMagic || index_->entry.bytes > setup.size) {
    throw std::system_error(EINVAL, std::generic_category(), "reading the archive's index");
  }
  state_ = index_->archive;
  if (!index_->entry.deflated) return;
  memory_ = std::make_unique<Memory>();
  checked(mlock(memory_.get(), sizeof(Memory)), "locking memory to inflate in");
  for (Decoder& decoder : memory_->decoders) decoder.open();
}

void ZipBackend::submit(Responder& queue, const Request& request) {
  // The kernel sends a read-only device nothing else.
  if (request.operation != Operation::read) return queue.complete(request, -EROFS);
  const uint64_t bytes = index_->entry.bytes;
  const auto present =
      static_cast<uint32_t>(std::min<uint64_t>(request.length, bytes - std::min(bytes, request.offset)));
  std::memset(request.data + present, 0, request.length - present);
  const int error = present == 0 ? 0 : readUnchanged(queue, request.offset, request.data, present);
  queue.complete(request, error < 0 ? error : int64_t{request.length});
}

int ZipBackend::readUnchanged(Responder& queue, uint64_t offset, std::byte* data, uint32_t length) {
  int error = read(queue, offset, data, length);
  for (int checks = 0; error == -ESTALE && checks < kMostChecks && hasEntry(queue, data, length); checks++) {
    error = read(queue, offset, data, length);
  }
  return error == -ESTALE ? -EIO : error;
}

// Reads the entry through, as ZipIndexer did. The client waits for that, once a change; nothing less tells a touch from
// a write.
bool ZipBackend::hasEntry(Responder& queue, std::byte* buffer, uint32_t length) {
  struct stat status;
  if (fstat(archive_, &status) < 0 || stateOf(status) == rejected_) return false;
  const ArchiveState before = std::exchange(state_, stateOf(status));
  forgetPlaces();
  const uint64_t bytes = index_->entry.bytes;
  uint32_t crc = 0;
  int error = 0;
  for (uint64_t offset = 0; error == 0 && offset < bytes; offset += length) {
    const auto part = static_cast<uint32_t>(std::min<uint64_t>(length, bytes - offset));
    error = read(queue, offset, buffer, part);
    crc = static_cast<uint32_t>(crc32_z(crc, reinterpret_cast<const Bytef*>(buffer), part));
    queue.working();
  }
  if (error == 0 && crc == index_->entry.crc) return true;
  const ArchiveState checked = std::exchange(state_, before);
  forgetPlaces();
  // It was changed again, which the next look at it finds.
  if (error == -ESTALE) return true;
  rejected_ = checked;
  return false;
}

// For an archive that changed: decoders have read ahead in what it was.
void ZipBackend::forgetPlaces() {
  if (!memory_) return;
  for (Decoder& decoder : memory_->decoders) decoder.started = false;
}

int ZipBackend::read(Responder& queue, uint64_t offset, std::byte* data, uint32_t length) {
  if (!index_->entry.deflated) {
    return readArchive(archive_, state_, data, length, index_->entry.dataOffset + offset);
  }
  Decoder& decoder = decoderFor(offset);
  int error = 0;
  while (error == 0 && decoder.position < offset) {
    error = inflateInto(decoder, memory_->skipped,
                        static_cast<uint32_t>(std::min<uint64_t>(kSkipBytes, offset - decoder.position)));
    queue.working();
  }
  if (error == 0) error = inflateInto(decoder, data, length);
  if (error < 0) decoder.started = false;
  return error;
}

// The decoder that has the least to skip; if that is one which starts at a restart point, the longest unused one.
ZipBackend::Decoder& ZipBackend::decoderFor(uint64_t offset) {
  const RestartPoint* const after =
      std::upper_bound(index_->point, index_->point + index_->points, offset,
                       [](uint64_t wanted, const RestartPoint& point) { return wanted < point.output; });
  const auto point = static_cast<uint32_t>(after - 1 - index_->point);
  Decoder* nearest = nullptr;
  Decoder* oldest = memory_->decoders;
  for (Decoder& decoder : memory_->decoders) {
    if (decoder.lastTurn < oldest->lastTurn) oldest = &decoder;
    if (!decoder.started || decoder.position > offset || decoder.position < index_->point[point].output) continue;
    if (!nearest || decoder.position > nearest->position) nearest = &decoder;
  }
  if (!nearest) {
    nearest = oldest;
    restart(*nearest, point);
  }
  nearest->lastTurn = ++turn_;
  return *nearest;
}

void ZipBackend::restart(Decoder& decoder, uint32_t number) {
  const RestartPoint& point = index_->point[number];
  inflateReset(&decoder.stream);
  decoder.stream.avail_in = 0;
  if (number > 0) {
    const Bytef* slot = reinterpret_cast<const Bytef*>(index_) + kZipWindowsOffset + number * kZipSlotBytes;
    inflateSetDictionary(&decoder.stream, slot, kZipWindowBytes);
    decoder.enterBlock(slot + kZipWindowBytes, point.headerBits);
    inflatePrime(&decoder.stream, point.bits, point.value);
  }
  decoder.loaded = point.input;
  decoder.position = point.output;
  decoder.started = true;
}

int ZipBackend::inflateInto(Decoder& decoder, std::byte* data, uint32_t length) {
  z_stream& stream = decoder.stream;
  stream.next_out = reinterpret_cast<Bytef*>(data);
  stream.avail_out = length;
  while (stream.avail_out > 0) {
    // With nothing more to read, inflate may still hold some bits; if not, that is Z_BUF_ERROR.
    if (stream.avail_in == 0 && decoder.loaded < index_->entry.compressedBytes) {
      const int error = refill(decoder);
      if (error < 0) return error;
    }
    // The end, too, is an error here: no request lies behind the entry's last byte.
    if (inflate(&stream, Z_NO_FLUSH) != Z_OK && stream.avail_out > 0) return -EIO;
  }
  decoder.position += length;
  return 0;
}

int ZipBackend::refill(Decoder& decoder) {
  const ZipEntry& entry = index_->entry;
  const uint64_t length = std::min<uint64_t>(kInputBytes, entry.compressedBytes - decoder.loaded);
  const int error = readArchive(archive_, state_, decoder.input, length, entry.dataOffset + decoder.loaded);
  if (error < 0) return error;
  decoder.stream.next_in = reinterpret_cast<Bytef*>(decoder.input);
  decoder.stream.avail_in = static_cast<uInt>(length);
  decoder.loaded += length;
  return 0;
}

}  // namespace ublk
