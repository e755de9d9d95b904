#include "control_process.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include <cstdio>
#include <ctime>

#include "channel.hpp"
#include "control_ring.hpp"
#include "file_descriptor.hpp"

namespace ublk {

namespace {

uint64_t monotonicMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
}

int runCommand(ControlRing& ring, const ControlMessage& message, ControlledMessage& answer) {
  uint8_t buffer[sizeof message.payload];
  std::copy(std::begin(message.payload.bytes), std::end(message.payload.bytes), buffer);
  const auto length = static_cast<uint16_t>(message.payloadBytes);
  const int result = ring.run(message.command, message.deviceId, message.data, length ? buffer : nullptr, length);
  if (message.command == Control::addDevice) {
    std::copy(buffer, buffer + sizeof answer.info, reinterpret_cast<uint8_t*>(&answer.info));
  }
  return result;
}

// The kernel announces neither the release of the char device nor the end of quiescing, so the refusal is asked for
// again. 1 ms is far below the pause that a client could notice.
int retryWhileBusy(ControlRing& ring, const ControlMessage& message, ControlledMessage& answer) {
  const uint64_t deadline = monotonicMs() + message.deadlineMs;
  for (;;) {
    const int result = runCommand(ring, message, answer);
    if (result != -EBUSY || monotonicMs() >= deadline) return result;
    const timespec pause{0, 1000000};
    nanosleep(&pause, nullptr);
  }
}

// Writes what the page cache holds for the block device, and for a file system on it, to the backend.
int writeBack(int blockDevice) {
  if (ioctl(blockDevice, BLKFLSBUF) < 0) return -errno;
  return fsync(blockDevice) < 0 ? -errno : 0;
}

int stop(ControlRing& ring, const ControlMessage& message, bool force) {
  char path[32];
  std::snprintf(path, sizeof path, "/dev/ublkb%u", message.deviceId);
  // O_EXCL is refused while a file system, swap or another exclusive user holds the device, in any mount namespace.
  FileDescriptor blockDevice(open(path, O_RDONLY | O_CLOEXEC | (force ? 0 : O_EXCL)));
  if (!blockDevice && errno == EBUSY) return -EBUSY;
  if (blockDevice && message.writeBack) {
    const int result = writeBack(blockDevice.get());
    if (result < 0 && !force) return result;
  }
  // TRY_STOP_DEV counts every opener, ours too. Where it is missing, ours stays open so that nobody can mount meanwhile.
  if (message.command == Control::tryStopDevice) blockDevice.reset();
  return ring.run(message.command, message.deviceId);
}

}  // namespace

void runControlProcess(int supervisor, int controlFd, const ControlMessage& message) {
  ControlledMessage answer{};
  answer.header = headerOf(MessageType::controlled, message.header.sequence);
  try {
    ControlRing ring(controlFd);
    switch (message.action) {
      case ControlAction::command:
        answer.result = runCommand(ring, message, answer);
        break;
      case ControlAction::retryWhileBusy:
        answer.result = retryWhileBusy(ring, message, answer);
        break;
      case ControlAction::stop:
        answer.result = stop(ring, message, false);
        break;
      case ControlAction::forceStop:
        answer.result = stop(ring, message, true);
        break;
    }
    sendMessage(supervisor, &answer, sizeof answer);
  } catch (const std::system_error& error) {
    answer.result = -error.code().value();
    try {
      sendMessage(supervisor, &answer, sizeof answer);
    } catch (const std::system_error&) {
      // The supervisor is gone, and with it the only one who wanted to know.
    }
  }
  _exit(0);
}

}  // namespace ublk
