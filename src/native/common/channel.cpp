#include "channel.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstring>

namespace ublk {

namespace {
constexpr size_t kMaxFiles = 253;  // SCM_MAX_FD

// false: the socket is full.
bool trySend(int socket, const void* message, size_t bytes, std::span<const int> files) {
  try {
    sendMessage(socket, message, bytes, files);
    return true;
  } catch (const std::system_error& error) {
    if (error.code().value() != EAGAIN) throw;
    return false;
  }
}

}  // namespace

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

void sendMessageWaiting(int socket, const void* message, size_t bytes) {
  while (!trySend(socket, message, bytes, {})) {
    pollfd writable{socket, POLLOUT, 0};
    poll(&writable, 1, -1);
  }
}

void Outbox::send(int socket, const void* message, size_t bytes, std::span<const int> files) {
  if (waiting_.empty() && trySend(socket, message, bytes, files)) return;
  const auto* begin = static_cast<const std::byte*>(message);
  Message copy{{begin, begin + bytes}, {}};
  for (const int fd : files) {
    copy.files.emplace_back(checked(fcntl(fd, F_DUPFD_CLOEXEC, 0), "keeping a message that waits"));
  }
  waiting_.push_back(std::move(copy));
}

void Outbox::flush(int socket) {
  while (!waiting_.empty()) {
    const Message& next = waiting_.front();
    if (!trySend(socket, next.bytes.data(), next.bytes.size(), rawDescriptors(next.files))) return;
    waiting_.pop_front();
  }
}

std::vector<int> rawDescriptors(std::span<const FileDescriptor> files) {
  std::vector<int> raw;
  for (const auto& file : files) raw.push_back(file.get());
  return raw;
}

namespace {

Received receive(int socket, void* buffer, size_t capacity, int flags) {
  iovec part{buffer, capacity};
  alignas(cmsghdr) std::byte control[CMSG_SPACE(kMaxFiles * sizeof(int))];
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  ssize_t got;
  do {
    got = recvmsg(socket, &header, flags | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
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

}  // namespace

Received receiveMessage(int socket, void* buffer, size_t capacity) { return receive(socket, buffer, capacity, 0); }

FileDescriptor parkFiles(std::span<const int> files) {
  int ends[2];
  checked(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), "parking files");
  FileDescriptor kept(ends[0]);
  const FileDescriptor sender(ends[1]);
  const std::byte message{};
  sendMessage(sender.get(), &message, sizeof message, files);
  return kept;
}

std::vector<FileDescriptor> parkedFiles(int socket) {
  std::byte message{};
  Received received = receive(socket, &message, sizeof message, MSG_PEEK);
  if (received.bytes != sizeof message) throw std::system_error(EBADF, std::generic_category(), "taking parked files");
  return std::move(received.files);
}

}  // namespace ublk
