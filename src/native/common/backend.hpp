// The C++ half of a native backend, as a queue process sees it. One instance per queue process.
#pragma once

#include <liburing.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>

#include "ublk_uapi.hpp"

namespace ublk {

enum class DataPath : uint32_t { copy = 0, userCopy = 1, zeroCopy = 2 };

struct BackendSetup {
  uint64_t size;               // of the device, in bytes
  uint32_t depth;              // tags are 0 to depth - 1
  uint32_t maxIoBytes;         // no read or write is longer
  std::span<const int> files;  // what the TypeScript half opened, in its order; owned by the process
};

// A request whose range the queue has checked: `offset + length` is within the device for every operation with data.
struct Request {
  uint16_t tag;
  Operation operation;
  bool fua;
  bool mayUnmap;
  uint64_t offset;  // bytes
  uint32_t length;  // bytes
  // copy: the tag's buffer, `length` bytes. Else nullptr. zero-copy: the data is the ring's registered buffer `tag`,
  // whose addresses begin at 0, for IORING_OP_READ_FIXED and IORING_OP_WRITE_FIXED.
  std::byte* data;
};

// What a backend sees of its queue: where its answers go. An interface, so that backends can be tested without a ublk
// device; the indirect call it costs is nothing beside the system calls of a request.
class Responder {
 public:
  // Answers a request: bytes or -errno; anything that the kernel must not see is mapped by `committedResult`.
  virtual void complete(const Request& request, int64_t result) = 0;

  // User-copy: moves the request's data between the kernel and `memory` (a read copies from it, a write to it) and
  // answers with success, or with `faultResult` when `memory` cannot be accessed. `memory` stays valid and unchanged
  // in meaning until the tag's next request.
  virtual void copyAndComplete(const Request& request, std::byte* memory, int32_t faultResult) = 0;

  // The same for memory in pieces, together as long as the request. The span itself has to last until the tag's next
  // request, too.
  virtual void copyAndComplete(const Request& request, std::span<const iovec> pieces, int32_t faultResult) = 0;

  // A cleared submission of the backend's own on behalf of request `tag`, one at a time for each tag. It goes to the
  // kernel with the batch, and its result to Backend::completed. `storeFile` says how it names a file.
  virtual io_uring_sqe* prepare(uint16_t tag) = 0;

  // `maxIoBytes` of zeros, not to be written to.
  virtual std::byte* zeros() const = 0;

  // A sign of life, for a backend that computes for long within one call: without any it counts as hung.
  virtual void working() = 0;

 protected:
  ~Responder() = default;
};

// The index among the ring's registered files (IOSQE_FIXED_FILE) of BackendSetup::files[index]. As the char device is
// registered there too, the kernel lets go of it only after the last operation on the store has ended.
constexpr int storeFile(size_t index) { return static_cast<int>(index) + 1; }

class Backend {
 public:
  virtual ~Backend() = default;

  // Everything that can fail, before the first FETCH. Throws std::system_error.
  virtual void open(const BackendSetup& setup) = 0;

  // Serves one request; must not block for long, allocate, or throw. Either answers with Responder::complete, now or
  // later, or hands memory to Responder::copyAndComplete (user-copy).
  virtual void submit(Responder& queue, const Request& request) = 0;

  // The result, >= 0 or -errno, of what Responder::prepare gave; the same rules as for `submit`.
  virtual void completed(Responder&, uint16_t /*tag*/, int32_t /*result*/) {}
};

}  // namespace ublk
