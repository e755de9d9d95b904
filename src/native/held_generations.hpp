#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <span>
#include <vector>

#include "file_descriptor.hpp"
#include "protocol.hpp"

namespace ublk {

// What the zygote keeps of each device's last generation, for a supervisor that takes over from one that died: who
// serves it, the shared page, and the backend's files with their locks and claims, which nobody could open again while
// the queue processes have them.
class HeldGenerations {
 public:
  // `files`: as they came with the request.
  void hold(const SpawnMessage& request, const SpawnedMessage& answer, std::vector<FileDescriptor> files);
  void exited(pid_t pid, int waitStatus);
  void forget(int32_t deviceId) { generations_.erase(deviceId); }
  void clear() { generations_.clear(); }
  bool empty() const { return generations_.empty(); }

  // The header of the message is the caller's to fill in.
  void forEach(const std::function<void(HeldMessage&, std::span<const int>)>& visit);

 private:
  struct Held {
    HeldMessage message;
    std::vector<FileDescriptor> files;
  };

  std::map<int32_t, Held> generations_;  // by device id
};

std::vector<int> rawDescriptors(std::span<const FileDescriptor> files);

}  // namespace ublk
