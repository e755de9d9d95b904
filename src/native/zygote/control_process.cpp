#include "control_process.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "common/channel.hpp"
#include "common/control_ring.hpp"
#include "common/file_descriptor.hpp"

namespace ublk {

namespace {

uint64_t monotonicMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
}

void sleepFor(uint64_t milliseconds) {
  const timespec duration{static_cast<time_t>(milliseconds / 1000), static_cast<long>(milliseconds % 1000 * 1000000)};
  nanosleep(&duration, nullptr);
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
// again: after 1 ms, which is far below the pause that a client could notice, and then ever more seldom, so that hundreds
// of devices that wait at the same time leave the CPUs to what they wait for, and none waits an eighth longer for that.
int retryWhileBusy(ControlRing& ring, const ControlMessage& message, ControlledMessage& answer) {
  const uint64_t begun = monotonicMs();
  for (;;) {
    const int result = runCommand(ring, message, answer);
    const uint64_t waited = monotonicMs() - begun;
    if (result != -EBUSY || waited >= message.deadlineMs) return result;
    sleepFor(std::max<uint64_t>(1, waited / 8));
  }
}

DeviceHeader& mapHeader(int sharedPage) {
  void* base = mmap(nullptr, sizeof(DeviceHeader), PROT_READ | PROT_WRITE, MAP_SHARED, sharedPage, 0);
  if (base == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping the shared page");
  return *static_cast<DeviceHeader*>(base);
}

// Whether a queue process is alive and not told to exit. /proc/PID/stat ends with the process' exit code, which is set
// when the fatal signal is sent or exit_group is called: before io_uring takes the requests of the process back, unlike
// PF_EXITING. A stopped process has one too.
bool isServing(pid_t pid) {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
  const FileDescriptor file(open(path, O_RDONLY | O_CLOEXEC));
  char text[1024];
  const ssize_t length = file ? read(file.get(), text, sizeof text - 1) : -1;
  if (length <= 0) return false;
  text[length] = '\0';
  const char* afterName = std::strrchr(text, ')');
  const char* exitCode = std::strrchr(text, ' ');
  char state;
  pid_t parent;
  if (!afterName || std::sscanf(afterName, ") %c %d", &state, &parent) != 2) return false;
  return parent == getppid() && state != 'Z' && state != 'X' && std::atoi(exitCode) == 0;
}

bool areAllServing(const ControlMessage& message) {
  return std::all_of(message.pids, message.pids + message.queues, isServing);
}

// Returns when so many announcements were made and every queue process is alive. With a dead one this goes on until the
// supervisor, who sees the death too, ends it.
void awaitFetched(const DeviceHeader& header, uint32_t announcements, const ControlMessage& message) {
  for (uint32_t fetched; (fetched = header.fetched) < announcements;) {
    syscall(SYS_futex, &header.fetched, FUTEX_WAIT, fetched, nullptr, nullptr, 0);
  }
  while (!areAllServing(message)) sleepFor(1);
}

// On 6.12 a device that is made live after one of its queue processes died is live for ever, and cannot be recovered.
// The kernel would wait for the FETCHes itself, but would not look who is still there. The same look comes before the last
// FETCH of a first start, for the sake of 6.16 to 6.19. Real-time priority keeps the time between look and command short
// on a busy machine; without the right to it everything works the same.
int runWhenFetched(ControlRing& ring, const ControlMessage& message, ControlledMessage& answer, int sharedPage) {
  if (message.queues > kMaxQueues) return -EINVAL;
  DeviceHeader& header = mapHeader(sharedPage);
  const sched_param priority{1};
  sched_setscheduler(0, SCHED_FIFO, &priority);
  awaitFetched(header, message.queues, message);
  if (header.mayComplete == 0) {
    header.mayComplete = 1;
    syscall(SYS_futex, &header.mayComplete, FUTEX_WAKE, 1, nullptr, nullptr, 0);
    awaitFetched(header, message.queues + 1, message);
  }
  return runCommand(ring, message, answer);
}

FileDescriptor openBlockDevice(uint32_t deviceId, int flags) {
  char path[32];
  std::snprintf(path, sizeof path, "/dev/ublkb%u", deviceId);
  return FileDescriptor(checked(open(path, O_RDONLY | O_CLOEXEC | flags), "opening the device"));
}

// Writes what the page cache holds for the block device, and for a file system on it, to the backend's stable storage.
int writeBack(uint32_t deviceId) {
  const FileDescriptor device = openBlockDevice(deviceId, 0);
  if (ioctl(device.get(), BLKFLSBUF) < 0) return -errno;
  return fsync(device.get()) < 0 ? -errno : 0;
}

// O_EXCL is refused while a file system, swap, a device on top or another exclusive user holds the device or one of its
// partitions, in any mount namespace; and they are refused while we have it. It goes with this process.
[[noreturn]] void claim(int supervisor, uint32_t deviceId, ControlledMessage& answer) {
  const FileDescriptor device = openBlockDevice(deviceId, O_EXCL);
  sendMessageWaiting(supervisor, &answer, sizeof answer);
  for (;;) pause();
}

// What sends no command needs no ring.
int act(int supervisor, int controlFd, const ControlMessage& message, ControlledMessage& answer, int sharedPage) {
  if (message.action == ControlAction::writeBack) return writeBack(message.deviceId);
  if (message.action == ControlAction::claim) claim(supervisor, message.deviceId, answer);
  ControlRing ring(controlFd);
  if (message.action == ControlAction::retryWhileBusy) return retryWhileBusy(ring, message, answer);
  if (message.action == ControlAction::whenFetched) return runWhenFetched(ring, message, answer, sharedPage);
  return runCommand(ring, message, answer);
}

}  // namespace

void runControlProcess(int supervisor, int controlFd, const ControlMessage& message, int sharedPage) {
  ControlledMessage answer{};
  answer.header = headerOf(MessageType::controlled, message.header.sequence);
  answer.pid = getpid();
  try {
    answer.result = act(supervisor, controlFd, message, answer, sharedPage);
  } catch (const std::system_error& error) {
    answer.result = -error.code().value();
  }
  try {
    sendMessageWaiting(supervisor, &answer, sizeof answer);
  } catch (const std::system_error&) {
    // The supervisor is gone, and with it the only one who wanted to know.
  }
  _exit(0);
}

}  // namespace ublk
