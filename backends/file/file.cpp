#include "file.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "common/file_descriptor.hpp"

namespace ublk {

namespace {

// BLOCK_URING_CMD_DISCARD of <linux/blkdev.h>, since Linux 6.12.
constexpr uint32_t kBlockDiscard = _IO(0x12, 0);

}  // namespace

void FileBackend::open(const BackendSetup& setup) {
  if (setup.files.size() != 1) throw std::system_error(EBADF, std::generic_category(), "receiving the file");
  file_ = setup.files[0];
  size_ = setup.size;
  maxIoBytes_ = setup.maxIoBytes;
  struct stat status {};
  checked(fstat(file_, &status), "looking at the file");
  isBlockDevice_ = S_ISBLK(status.st_mode);
  if (isBlockDevice_) {
    int bytes = 0;
    checked(ioctl(file_, BLKSSZGET, &bytes), "asking for the block size");
    blockBytes_ = static_cast<uint32_t>(bytes);
  }
  tags_.resize(setup.depth);
}

void FileBackend::submit(Responder& queue, const Request& request) {
  // A write beyond the end of a file that was truncated would make it larger, and what was lost would read as zeros.
  if ((request.operation == Operation::write || request.operation == Operation::writeZeroes) && shrank()) {
    return queue.complete(request, -EIO);
  }
  Progress& progress = tags_[request.tag];
  progress = {request, methodOf(request), 0};
  // What is left of no whole block stays, as a discard may.
  if (progress.method == Method::discardBlocks && firstDiscarded(request) >= endDiscarded(request)) {
    return queue.complete(request, request.length);
  }
  issue(queue, progress);
}

void FileBackend::completed(Responder& queue, uint16_t tag, int32_t result) {
  Progress& progress = tags_[tag];
  const Request& request = progress.request;
  // From a worker thread, which may wait for what there was none of.
  if (result == -EAGAIN || result == -EINTR) return issue(queue, progress, IOSQE_ASYNC);
  if (result == -EOPNOTSUPP && request.operation == Operation::writeZeroes && progress.method != Method::writeZeros) {
    (progress.method == Method::punchHole ? canPunch_ : canZeroRange_) = false;
    progress.method = zeroingMethod(request);
    return issue(queue, progress);
  }
  if (result < 0) return queue.complete(request, result);
  if (progress.method != Method::transfer && progress.method != Method::writeZeros) {
    return queue.complete(request, request.length);
  }
  const uint32_t left = request.length - progress.done;
  // Nothing, or a part of a sector: a read came to the end of a file that shrank.
  const bool ended = result == 0 || (static_cast<uint32_t>(result) < left && result % (1 << kSectorShift) != 0);
  if (ended) return queue.complete(request, -EIO);
  progress.done += static_cast<uint32_t>(result);
  if (progress.done < request.length) return issue(queue, progress);
  queue.complete(request, request.length);
}

FileBackend::Method FileBackend::methodOf(const Request& request) const {
  switch (request.operation) {
    case Operation::read:
    case Operation::write:
      return Method::transfer;
    case Operation::flush:
      return Method::flush;
    case Operation::discard:
      // A hole in a block device would have to read as zeros, which is more than a discard asks for.
      return isBlockDevice_ ? Method::discardBlocks : Method::punchHole;
    case Operation::writeZeroes:
      break;
  }
  return zeroingMethod(request);
}

FileBackend::Method FileBackend::zeroingMethod(const Request& request) const {
  if (request.offset % blockBytes_ != 0 || request.length % blockBytes_ != 0) return Method::writeZeros;
  if (request.mayUnmap && canPunch_) return Method::punchHole;
  return canZeroRange_ ? Method::zeroRange : Method::writeZeros;
}

// Bytes; the whole blocks of the store in it.
uint64_t FileBackend::firstDiscarded(const Request& request) const {
  return (request.offset + blockBytes_ - 1) / blockBytes_ * blockBytes_;
}

uint64_t FileBackend::endDiscarded(const Request& request) const {
  return (request.offset + request.length) / blockBytes_ * blockBytes_;
}

void FileBackend::issue(Responder& queue, const Progress& progress, uint8_t flags) const {
  const Request& request = progress.request;
  const uint64_t offset = request.offset + progress.done;
  const uint32_t left = request.length - progress.done;
  io_uring_sqe* sqe = queue.prepare(request.tag);
  sqe->flags |= IOSQE_FIXED_FILE | flags;
  sqe->fd = storeFile(0);
  switch (progress.method) {
    case Method::transfer: {
      const bool read = request.operation == Operation::read;
      if (request.data) {
        sqe->opcode = read ? IORING_OP_READ : IORING_OP_WRITE;
        sqe->addr = reinterpret_cast<uint64_t>(request.data + progress.done);
      } else {
        sqe->opcode = read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
        sqe->buf_index = request.tag;
        sqe->addr = progress.done;
      }
      sqe->off = offset;
      sqe->len = left;
      sqe->rw_flags = request.fua ? RWF_DSYNC : 0;
      return;
    }
    case Method::writeZeros:
      sqe->opcode = IORING_OP_WRITE;
      sqe->addr = reinterpret_cast<uint64_t>(queue.zeros());
      sqe->off = offset;
      sqe->len = std::min(left, maxIoBytes_);
      return;
    case Method::flush:
      sqe->opcode = IORING_OP_FSYNC;
      sqe->fsync_flags = IORING_FSYNC_DATASYNC;
      return;
    case Method::discardBlocks:
      sqe->opcode = IORING_OP_URING_CMD;
      sqe->cmd_op = kBlockDiscard;
      sqe->addr = firstDiscarded(request);
      sqe->addr3 = endDiscarded(request) - firstDiscarded(request);
      return;
    case Method::punchHole:
    case Method::zeroRange:
      sqe->opcode = IORING_OP_FALLOCATE;
      sqe->off = offset;
      sqe->addr = left;
      sqe->len =
          FALLOC_FL_KEEP_SIZE | (progress.method == Method::punchHole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
      return;
  }
}

// A block device does not shrink while it is claimed, and its size is not in its inode.
bool FileBackend::shrank() const {
  if (isBlockDevice_) return false;
  struct statx status;
  return statx(file_, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE, &status) < 0 || status.stx_size < size_;
}

}  // namespace ublk
