// A block device's user, for a backend that needs neither a ublk device nor a ring: it stands in for the queue and for the kernel.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <span>
#include <stdexcept>
#include <vector>

#include "common/backend.hpp"

namespace ublk::test {

class Client final : public Responder {
 public:
  Client(Backend& backend, DataPath dataPath, uint32_t maxIoBytes)
      : backend_(backend), dataPath_(dataPath), zeros_(maxIoBytes) {}

  // Runs one request to its end; the result is what the backend answered. `data`: read into or written from.
  int64_t run(Operation operation, uint64_t offset, uint32_t length, std::byte* data = nullptr) {
    // A buffer of exactly that length, so that the sanitizer sees whoever leaves it.
    std::vector<std::byte> buffer(dataPath_ == DataPath::copy ? length : 0, std::byte{0xee});
    if (operation == Operation::write && !buffer.empty()) std::memcpy(buffer.data(), data, length);
    data_ = data;
    answers_ = 0;
    const Request request{.tag = 0,
                          .operation = operation,
                          .fua = false,
                          .mayUnmap = true,
                          .offset = offset,
                          .length = length,
                          .data = dataPath_ == DataPath::copy ? buffer.data() : nullptr};
    backend_.submit(*this, request);
    if (operation == Operation::read && !buffer.empty()) std::memcpy(data, buffer.data(), length);
    return answers_ == 1 ? result_ : -EPROTO;
  }

  void complete(const Request&, int64_t result) override {
    answers_++;
    result_ = result;
  }

  void copyAndComplete(const Request& request, std::byte* memory, int32_t) override {
    const bool read = request.operation == Operation::read;
    std::memcpy(read ? data_ : memory, read ? memory : data_, request.length);
    complete(request, request.length);
  }

  void copyAndComplete(const Request& request, std::span<const iovec> pieces, int32_t) override {
    size_t done = 0;
    for (const iovec& piece : pieces) {
      if (piece.iov_len > request.length - done) throw std::logic_error("the pieces are longer than the request");
      const bool read = request.operation == Operation::read;
      std::memcpy(read ? data_ + done : piece.iov_base, read ? piece.iov_base : data_ + done, piece.iov_len);
      done += piece.iov_len;
    }
    complete(request, done == request.length ? request.length : -EFAULT);
  }

  io_uring_sqe* prepare(uint16_t) override { throw std::logic_error("there is no ring"); }

  std::byte* zeros() const override { return const_cast<std::byte*>(zeros_.data()); }

  void working() override { signsOfLife++; }

  int signsOfLife = 0;

 private:
  Backend& backend_;
  const DataPath dataPath_;
  const std::vector<std::byte> zeros_;
  std::byte* data_ = nullptr;
  int answers_ = 0;
  int64_t result_ = 0;
};

}  // namespace ublk::test
