// SOCK_SEQPACKET with file descriptors: one send, one message.
#pragma once

#include <cstddef>
#include <deque>
#include <span>
#include <vector>

#include "file_descriptor.hpp"

namespace ublk {

struct Received {
  size_t bytes = 0;  // 0: the other side is gone
  bool wouldBlock = false;
  std::vector<FileDescriptor> files;
};

// Sends without waiting. Throws std::system_error; EAGAIN means that the socket is full.
void sendMessage(int socket, const void* message, size_t bytes, std::span<const int> files = {});

// Sends, and waits as long as the socket is full: for a process that has nothing else to do.
void sendMessageWaiting(int socket, const void* message, size_t bytes);

// What a full socket did not take yet. A reader that is busy, or stopped for a while, is not gone, and loses nothing.
class Outbox {
 public:
  // Sends at once, or keeps a copy, with duplicates of the files. Throws std::system_error when the other side is gone.
  void send(int socket, const void* message, size_t bytes, std::span<const int> files = {});
  // To be called when the socket takes something again. Throws likewise.
  void flush(int socket);
  bool empty() const { return waiting_.empty(); }
  void clear() { waiting_.clear(); }

 private:
  struct Message {
    std::vector<std::byte> bytes;
    std::vector<FileDescriptor> files;
  };

  std::deque<Message> waiting_;
};

std::vector<int> rawDescriptors(std::span<const FileDescriptor> files);

// Receives without waiting, descriptors close-on-exec. Throws std::system_error, EMSGSIZE for an oversized message.
Received receiveMessage(int socket, void* buffer, size_t capacity);

// Open files parked in a socket, for its owner. A process that closes a file may wait for its file system, for ever if that hangs;
// who closes this socket does not, as long as it is not the last who has the files.
FileDescriptor parkFiles(std::span<const int> files);

// What is parked there; it stays parked.
std::vector<FileDescriptor> parkedFiles(int socket);

}  // namespace ublk
