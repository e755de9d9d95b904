#include "ram.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/file_descriptor.hpp"

namespace ublk {

namespace {

constexpr uint64_t roundUp(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

}  // namespace

RamBackend::~RamBackend() {
  if (data_) munmap(data_, dataBytes_);
  if (present_) munmap(present_, bitmapBytes_);
}

void RamBackend::open(const BackendSetup& setup) {
  if (setup.files.size() != 1) throw std::system_error(EBADF, std::generic_category(), "receiving the RAM disk file");
  file_ = setup.files[0];
  size_ = setup.size;
  dataBytes_ = roundUp(size_, kPageBytes);
  bitmapBytes_ = roundUp(dataBytes_ / kPageBytes, 64) / 8;
  struct stat status {};
  checked(fstat(file_, &status), "looking at the RAM disk file");
  if (static_cast<uint64_t>(status.st_size) < kDataOffset + dataBytes_) {
    throw std::system_error(ENODATA, std::generic_category(), "mapping the RAM disk file, which shrank");
  }
  // Looking at a page of the bitmap that tmpfs could not give would be a SIGBUS.
  checked(fallocate(file_, 0, 0, static_cast<off_t>(bitmapBytes_)), "allocating the RAM disk's page bitmap");
  present_ = reinterpret_cast<std::atomic<uint64_t>*>(map(bitmapBytes_, 0));
  // A disk that was larger leaves bits behind the end of this one, which would make a page that it grows by look written.
  const uint64_t beyond = dataBytes_ / kPageBytes % 64;
  if (beyond != 0) present_[dataBytes_ / kPageBytes / 64].fetch_and((uint64_t{1} << beyond) - 1);
  data_ = map(dataBytes_, kDataOffset);
  piecesPerTag_ = setup.maxIoBytes / kPageBytes + 2;
  pieces_ = std::make_unique_for_overwrite<iovec[]>(piecesPerTag_ * setup.depth);
}

std::byte* RamBackend::map(size_t bytes, uint64_t offset) const {
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, static_cast<off_t>(offset));
  if (base == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping the RAM disk file");
  return static_cast<std::byte*>(base);
}

bool RamBackend::isPresent(uint64_t page) const {
  return (present_[page / 64].load(std::memory_order_acquire) >> (page % 64)) & 1;
}

RamBackend::Presence RamBackend::presence(uint64_t offset, uint32_t length) const {
  uint64_t found = 0;
  const uint64_t first = offset / kPageBytes;
  const uint64_t last = (offset + length - 1) / kPageBytes;
  for (uint64_t page = first; page <= last; page++) found += isPresent(page);
  if (found == 0) return Presence::none;
  return found == last - first + 1 ? Presence::all : Presence::some;
}

void RamBackend::markPresent(uint64_t offset, uint32_t length) {
  const uint64_t last = (offset + length - 1) / kPageBytes;
  for (uint64_t page = offset / kPageBytes; page <= last; page++) {
    if (!isPresent(page)) present_[page / 64].fetch_or(uint64_t{1} << (page % 64), std::memory_order_release);
  }
}

void RamBackend::submit(Responder& queue, const Request& request) {
  switch (request.operation) {
    case Operation::read:
      return read(queue, request);
    case Operation::write:
      return write(queue, request);
    case Operation::flush:
      return queue.complete(request, 0);
    case Operation::discard:
      return queue.complete(request, clear(request, false));
    case Operation::writeZeroes:
      return queue.complete(request, clear(request, true));
  }
}

void RamBackend::read(Responder& queue, const Request& request) {
  const Presence present = presence(request.offset, request.length);
  if (!request.data) {
    if (present == Presence::some) return queue.copyAndComplete(request, pieces(queue, request), -EIO);
    return queue.copyAndComplete(request, present == Presence::none ? queue.zeros() : data_ + request.offset, -EIO);
  }
  if (present == Presence::all) {
    std::memcpy(request.data, data_ + request.offset, request.length);
    return queue.complete(request, request.length);
  }
  std::byte* to = request.data;
  for (const iovec& piece : pieces(queue, request)) {
    std::memcpy(to, piece.iov_base, piece.iov_len);
    to += piece.iov_len;
  }
  queue.complete(request, request.length);
}

// The pieces of a read. To look at a page that was never written would give it memory, or be an error where there is none.
std::span<const iovec> RamBackend::pieces(const Responder& queue, const Request& request) {
  const std::span<iovec> room(&pieces_[request.tag * piecesPerTag_], piecesPerTag_);
  size_t count = 0;
  bool written = false;
  for (uint64_t done = 0; done < request.length;) {
    const uint64_t at = request.offset + done;
    const uint64_t part = std::min<uint64_t>(kPageBytes - at % kPageBytes, request.length - done);
    const bool present = isPresent(at / kPageBytes);
    if (count == 0 || present != written)
      room[count++] = {.iov_base = present ? data_ + at : queue.zeros(), .iov_len = 0};
    written = present;
    room[count - 1].iov_len += part;
    done += part;
  }
  return room.first(count);
}

void RamBackend::write(Responder& queue, const Request& request) {
  const bool absent = presence(request.offset, request.length) != Presence::all;
  if (!request.data) {
    if (absent) {
      const int error = allocate(request.offset, request.length);
      if (error < 0) return queue.complete(request, error);
      markPresent(request.offset, request.length);
    }
    return queue.copyAndComplete(request, data_ + request.offset, -ENOSPC);
  }
  if (!absent) {
    std::memcpy(data_ + request.offset, request.data, request.length);
    return queue.complete(request, request.length);
  }
  queue.complete(request, writeAbsent(request));
}

// A page is marked present only when it has its memory: touching one for which tmpfs has none left is a SIGBUS, or, when
// the kernel does it to copy, a read error.
int RamBackend::allocate(uint64_t offset, uint32_t length) {
  const uint64_t start = offset / kPageBytes * kPageBytes;
  const uint64_t end = roundUp(offset + length, kPageBytes);
  if (madvise(data_ + start, end - start, MADV_POPULATE_WRITE) == 0) return 0;
  return errno == EFAULT ? -ENOSPC : -errno;
}

int64_t RamBackend::writeAbsent(const Request& request) {
  for (uint32_t done = 0; done < request.length;) {
    const ssize_t written = pwrite(file_, request.data + done, request.length - done,
                                   static_cast<off_t>(kDataOffset + request.offset + done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return written < 0 ? -errno : -EIO;
    done += static_cast<uint32_t>(written);
  }
  markPresent(request.offset, request.length);
  return request.length;
}

int64_t RamBackend::clear(const Request& request, bool exactly) {
  const uint64_t end = request.offset + request.length;
  const uint64_t firstPage = roundUp(request.offset, kPageBytes) / kPageBytes;
  const uint64_t endPage = std::max(end / kPageBytes, firstPage);
  if (exactly) {
    zero(request.offset, std::min(end, firstPage * kPageBytes) - request.offset);
    if (endPage * kPageBytes < end) zero(endPage * kPageBytes, end - endPage * kPageBytes);
  }
  if (firstPage == endPage) return request.length;
  // Bits first: a page without its bit reads as zeros whether or not the hole is already there.
  for (uint64_t page = firstPage; page < endPage; page++) {
    if (isPresent(page)) present_[page / 64].fetch_and(~(uint64_t{1} << (page % 64)), std::memory_order_release);
  }
  if (fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                static_cast<off_t>(kDataOffset + firstPage * kPageBytes),
                static_cast<off_t>((endPage - firstPage) * kPageBytes)) < 0) {
    return -errno;
  }
  return request.length;
}

// Part of one page; a page that is not present is zero already.
void RamBackend::zero(uint64_t offset, uint64_t length) {
  if (length > 0 && isPresent(offset / kPageBytes)) std::memset(data_ + offset, 0, length);
}

}  // namespace ublk
