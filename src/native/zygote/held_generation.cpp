#include "held_generation.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace ublk {

void HeldGeneration::hold(const SpawnMessage& request, const SpawnedMessage& answer,
                          std::vector<FileDescriptor> files) {
  // The queue processes' ends: a channel has to end with its process.
  if (request.javascript) files.erase(files.begin() + 1, files.begin() + 1 + request.backendFiles);
  files_ = std::move(files);
  message_ = {};
  message_.deviceId = request.deviceId;
  message_.generation = request.generation;
  message_.queues = answer.queues;
  message_.depth = request.depth;
  message_.files = static_cast<uint32_t>(files_.size() - 1);
  std::copy(std::begin(answer.pids), std::end(answer.pids), std::begin(message_.pids));
  std::fill(std::begin(message_.waitStatus), std::end(message_.waitStatus), kStillRunning);
}

void HeldGeneration::exited(pid_t pid, int waitStatus) {
  for (uint32_t queue = 0; queue < message_.queues; queue++) {
    if (message_.pids[queue] == pid) message_.waitStatus[queue] = waitStatus;
  }
}

}  // namespace ublk
