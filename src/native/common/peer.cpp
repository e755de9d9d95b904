#include "peer.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "file_descriptor.hpp"

namespace ublk {

namespace {

constexpr int kPeerPidfd = 77;  // SO_PEERPIDFD, since Linux 6.5; not in the headers of Debian 12

std::string contentsOf(const std::string& path) {
  const FileDescriptor file(checked(open(path.c_str(), O_RDONLY | O_CLOEXEC), "reading /proc"));
  std::string text;
  char part[4096];
  for (ssize_t length; (length = checked(read(file.get(), part, sizeof part), "reading /proc")) > 0;) {
    text.append(part, static_cast<size_t>(length));
  }
  return text;
}

bool hasAdminCapability(const std::string& process) {
  static constexpr char kField[] = "\nCapEff:";
  const std::string status = contentsOf(process + "/status");
  const size_t found = status.find(kField);
  if (found == std::string::npos) return false;
  return (std::strtoull(status.c_str() + found + sizeof kField - 1, nullptr, 16) >> CAP_SYS_ADMIN & 1) != 0;
}

// The link /proc/PID/ns/user would be the exact answer, and takes the right to trace the process. A namespace that
// somebody makes without privileges maps one user, or the range that is set aside for him, and never all.
bool isInOurUserNamespace(const std::string& process) {
  return contentsOf(process + "/uid_map") == contentsOf("/proc/self/uid_map");
}

}  // namespace

Peer peerOf(int socket) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  checked(getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length), "SO_PEERCRED");
  int number = -1;
  length = sizeof number;
  checked(getsockopt(socket, SOL_SOCKET, kPeerPidfd, &number, &length), "SO_PEERPIDFD");
  const FileDescriptor pidfd(number);
  const std::string process = "/proc/" + std::to_string(credentials.pid);
  const bool administrates =
      (hasAdminCapability(process) || !hasAdminCapability("/proc/self")) && isInOurUserNamespace(process);
  // While it lives, its number is not that of another process.
  if (syscall(SYS_pidfd_send_signal, pidfd.get(), 0, nullptr, 0) < 0 && errno != EPERM) {
    throw std::system_error(errno, std::generic_category(), "looking at who connected");
  }
  return {credentials.uid, administrates};
}

}  // namespace ublk
