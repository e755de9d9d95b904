#pragma once

#include <sys/types.h>

#include <span>
#include <vector>

#include "common/file_descriptor.hpp"
#include "common/protocol.hpp"

namespace ublk {

// What the zygote keeps of its device's last generation, for a supervisor that takes over from one that died: who serves
// it, the shared page, and the backend's files with their locks and claims, which no process could open again while the
// queue processes have them.
class HeldGeneration {
 public:
  // `files`: as they came with the request.
  void hold(const SpawnMessage& request, const SpawnedMessage& answer, std::vector<FileDescriptor> files);
  void exited(pid_t pid, int waitStatus);
  void clear() { *this = {}; }
  bool empty() const { return message_.queues == 0; }

  // Its header and its number of control processes are the caller's to fill in.
  const HeldMessage& message() const { return message_; }
  std::span<const FileDescriptor> files() const { return files_; }

 private:
  HeldMessage message_{};
  std::vector<FileDescriptor> files_;
};

}  // namespace ublk
