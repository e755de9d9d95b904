#pragma once

#include <vector>

#include "common/backend.hpp"

namespace ublk {

// A file or a block device, which must not become smaller: where it did, requests fail with EIO.
//
// Every operation goes through the queue's ring, on the copy path with the tag's buffer, on the zero-copy path with the
// client's own pages. What the store cannot do to zero a range is found out by its first refusal.
class FileBackend final : public Backend {
 public:
  void open(const BackendSetup& setup) override;
  void submit(Responder& queue, const Request& request) override;
  void completed(Responder& queue, uint16_t tag, int32_t result) override;

 private:
  enum class Method : uint8_t { transfer, flush, discardBlocks, punchHole, zeroRange, writeZeros };

  // A tag's request and how far it is.
  struct Progress {
    Request request;
    Method method;
    uint32_t done;  // bytes, of `transfer` and `writeZeros`
  };

  Method methodOf(const Request& request) const;
  Method zeroingMethod(const Request& request) const;
  uint64_t firstDiscarded(const Request& request) const;
  uint64_t endDiscarded(const Request& request) const;
  void issue(Responder& queue, const Progress& progress, uint8_t flags = 0) const;
  bool shrank() const;

  int file_ = -1;
  uint64_t size_ = 0;
  uint32_t maxIoBytes_ = 0;
  bool isBlockDevice_ = false;
  uint32_t blockBytes_ = 1;  // of a block device, which discards and zeroes whole ones only
  bool canPunch_ = true;
  bool canZeroRange_ = true;
  std::vector<Progress> tags_;
};

}  // namespace ublk
