// SOCK_SEQPACKET with file descriptors: one send, one message.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "file_descriptor.hpp"

namespace ublk {

struct Received {
  size_t bytes = 0;  // 0: the other side is gone
  bool wouldBlock = false;
  std::vector<FileDescriptor> files;
};

// Sends without waiting. Throws std::system_error; EAGAIN means that the other side does not read.
void sendMessage(int socket, const void* message, size_t bytes, std::span<const int> files = {});

// Receives without waiting, descriptors close-on-exec. Throws std::system_error, EMSGSIZE for an oversized message.
Received receiveMessage(int socket, void* buffer, size_t capacity);

}  // namespace ublk
