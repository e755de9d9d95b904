// The nursery: the node binary, stopped before V8 exists. It forks a zygote for each device, which costs a millisecond
// where starting another node would cost fifty, and shares its pages with all of them.
#include "nursery.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>

#include <cstdlib>

#include "common/channel.hpp"
#include "common/protocol.hpp"
#include "mount_namespace.hpp"
#include "zygote.hpp"

namespace ublk {

namespace {

// Listener and connection of a zygote to be forked.
constexpr size_t kFilesOfZygote = 2;

void refuse(int connection, int error) {
  HelloMessage hello{};
  hello.header = headerOf(MessageType::hello);
  hello.error = error;
  try {
    sendMessage(connection, &hello, sizeof hello);
  } catch (const std::system_error&) {
    // It is closed next, which says enough.
  }
}

// Returns in the zygote.
std::vector<FileDescriptor> forkZygotes() {
  for (;;) {
    pollfd supervisor{kSupervisorFd, POLLIN, 0};
    if (poll(&supervisor, 1, -1) < 0 && errno != EINTR) std::abort();
    MessageHeader message{};
    Received received = receiveMessage(kSupervisorFd, &message, sizeof message);
    if (received.wouldBlock) continue;
    if (received.bytes == 0) _exit(0);
    const bool wellFormed = received.bytes == sizeof message && message.magic == kProtocolMagic &&
                            message.version == kProtocolVersion && message.type == MessageType::fork;
    if (!wellFormed || received.files.size() != kFilesOfZygote) continue;
    const pid_t pid = fork();
    if (pid == 0) return std::move(received.files);
    if (pid < 0) refuse(received.files[1].get(), errno);
  }
}

}  // namespace

Inheritance runNursery() {
  enterOwnMountNamespace();
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGPIPE}) ::signal(signal, SIG_IGN);
  // How a zygote ended is of no use: the kernel may forget it at once.
  ::signal(SIGCHLD, SIG_IGN);
  prctl(PR_SET_NAME, "ublk-nursery");
  for (const int fd : {kSupervisorFd, kControlFd}) fcntl(fd, F_SETFD, FD_CLOEXEC);
  std::vector<FileDescriptor> files = forkZygotes();
  ::signal(SIGCHLD, SIG_DFL);
  close(kSupervisorFd);
  return runZygote(std::move(files[0]), std::move(files[1]), kControlFd);
}

}  // namespace ublk
