#pragma once

#include <atomic>
#include <memory>
#include <span>

#include "common/backend.hpp"

namespace ublk {

// A RAM disk in a mapped tmpfs file: a bitmap with a bit for every page that was written, then, at kDataOffset, the data.
// The space in between is a hole: room for the bitmap of the largest disk, so that nothing moves when a disk is resized.
//
// The bitmap is shared by the device's queue processes through the file and outlives them as the data does. Pages
// without a bit read as zeros and are not touched, so that reading a sparse disk uses no memory, and they get their bit
// when they have their memory, so that a full tmpfs is an ENOSPC and not a SIGBUS.
class RamBackend final : public Backend {
 public:
  ~RamBackend() override;
  // Of the data in the file; a page of bitmap in front stands for 128 MiB. ram-file.ts has it too.
  static constexpr uint64_t kDataOffset = uint64_t{1} << 37;

  void open(const BackendSetup& setup) override;
  void submit(Responder& queue, const Request& request) override;

 private:
  static constexpr uint64_t kPageBytes = 4096;

  std::byte* map(size_t bytes, uint64_t offset) const;

  enum class Presence { none, some, all };
  Presence presence(uint64_t offset, uint32_t length) const;
  void markPresent(uint64_t offset, uint32_t length);
  bool isPresent(uint64_t page) const;

  void read(Responder& queue, const Request& request);
  std::span<const iovec> pieces(const Responder& queue, const Request& request);
  void write(Responder& queue, const Request& request);
  // 0 or -errno.
  int allocate(uint64_t offset, uint32_t length);
  int64_t writeAbsent(const Request& request);
  // `exactly`: bytes outside whole pages are zeroed too (write zeroes); else they are left alone (discard).
  int64_t clear(const Request& request, bool exactly);
  void zero(uint64_t offset, uint64_t length);

  int file_ = -1;
  uint64_t size_ = 0;
  size_t dataBytes_ = 0;
  size_t bitmapBytes_ = 0;
  std::byte* data_ = nullptr;
  std::atomic<uint64_t>* present_ = nullptr;
  size_t piecesPerTag_ = 0;
  std::unique_ptr<iovec[]> pieces_;  // by tag; untouched, and so without memory, until they are needed
};

}  // namespace ublk
