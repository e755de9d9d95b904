#include "channel.hpp"

#include <sys/socket.h>
#include <sys/uio.h>

#include <cstring>

namespace ublk {

namespace {
constexpr size_t kMaxFiles = 253;  // SCM_MAX_FD
}

void sendMessage(int socket, const void* message, size_t bytes, std::span<const int> files) {
  iovec part{const_cast<void*>(message), bytes};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  std::vector<std::byte> control;
  if (!files.empty()) {
    control.resize(CMSG_SPACE(files.size_bytes()));
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(files.size_bytes());
    std::memcpy(CMSG_DATA(rights), files.data(), files.size_bytes());
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  checked(sent, "sending a message");
}

Received receiveMessage(int socket, void* buffer, size_t capacity) {
  iovec part{buffer, capacity};
  alignas(cmsghdr) std::byte control[CMSG_SPACE(kMaxFiles * sizeof(int))];
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  ssize_t got;
  do {
    got = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  Received received;
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    received.wouldBlock = true;
    return received;
  }
  if (got < 0 && errno == ECONNRESET) return received;
  checked(got, "receiving a message");
  for (cmsghdr* item = CMSG_FIRSTHDR(&header); item; item = CMSG_NXTHDR(&header, item)) {
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof fd);
      received.files.emplace_back(fd);
    }
  }
  if (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
    throw std::system_error(EMSGSIZE, std::generic_category(), "receiving a message");
  }
  received.bytes = static_cast<size_t>(got);
  return received;
}

}  // namespace ublk
