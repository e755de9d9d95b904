// The C++ half of a native backend, as a queue process sees it. One instance per queue process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>

#include "ublk_uapi.hpp"

namespace ublk {

enum class DataPath : uint32_t { copy = 0, userCopy = 1 };

struct BackendSetup {
  uint64_t size;               // of the device, in bytes
  uint32_t maxIoBytes;         // no request is longer
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
  std::byte* data;  // copy path: the tag's buffer, `length` bytes; user-copy: nullptr
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

  // `maxIoBytes` of zeros that nobody may write to.
  virtual std::byte* zeros() const = 0;

 protected:
  ~Responder() = default;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Everything that can fail, before the first FETCH. Throws std::system_error.
  virtual void open(const BackendSetup& setup) = 0;

  // Serves one request; must not block for long, allocate, or throw. Either answers with Responder::complete, now or
  // later, or hands memory to Responder::copyAndComplete (user-copy).
  virtual void submit(Responder& queue, const Request& request) = 0;
};

}  // namespace ublk
