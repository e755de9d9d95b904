#include "held_generations.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace ublk {

void HeldGenerations::hold(const SpawnMessage& request, const SpawnedMessage& answer,
                           std::vector<FileDescriptor> files) {
  // The queue processes' ends of their channels: a channel has to end with its process.
  if (request.javascript) files.erase(files.begin() + 1, files.begin() + 1 + request.backendFiles);
  HeldMessage message{};
  message.deviceId = request.deviceId;
  message.generation = request.generation;
  message.queues = answer.queues;
  message.depth = request.depth;
  message.files = static_cast<uint32_t>(files.size() - 1);
  std::copy(std::begin(answer.pids), std::end(answer.pids), std::begin(message.pids));
  std::fill(std::begin(message.waitStatus), std::end(message.waitStatus), kStillRunning);
  generations_.insert_or_assign(request.deviceId, Held{message, std::move(files)});
}

void HeldGenerations::exited(pid_t pid, int waitStatus) {
  for (auto& [id, held] : generations_) {
    for (uint32_t queue = 0; queue < held.message.queues; queue++) {
      if (held.message.pids[queue] == pid) held.message.waitStatus[queue] = waitStatus;
    }
  }
}

void HeldGenerations::forEach(const std::function<void(HeldMessage&, std::span<const int>)>& visit) {
  for (auto& [id, held] : generations_) visit(held.message, rawDescriptors(held.files));
}

std::vector<int> rawDescriptors(std::span<const FileDescriptor> files) {
  std::vector<int> raw;
  for (const auto& file : files) raw.push_back(file.get());
  return raw;
}

}  // namespace ublk
