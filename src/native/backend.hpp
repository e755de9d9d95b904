// The C++ half of a native backend, as a queue process sees it. One instance per queue process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>

#include "ublk_uapi.hpp"

namespace ublk {

class Queue;

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

class Backend {
 public:
  virtual ~Backend() = default;

  // Everything that can fail, before the first FETCH. Throws std::system_error.
  virtual void open(const BackendSetup& setup) = 0;

  // Serves one request; must not block for long, allocate, or throw. Either answers with Queue::complete, now or
  // later, or hands memory to Queue::copyAndComplete (user-copy).
  virtual void submit(Queue& queue, const Request& request) = 0;
};

}  // namespace ublk
