#include "common/channel.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>
#include <string>

#include "harness.hpp"

namespace ublk {

namespace {

struct Pair {
  FileDescriptor left;
  FileDescriptor right;
};

Pair connected() {
  int sockets[2];
  checked(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), "socketpair");
  return {FileDescriptor(sockets[0]), FileDescriptor(sockets[1])};
}

FileDescriptor someFile() { return FileDescriptor(checked(open("/dev/null", O_RDWR | O_CLOEXEC), "open")); }

bool sameFile(int a, int b) {
  struct stat left {
  }, right{};
  return fstat(a, &left) == 0 && fstat(b, &right) == 0 && left.st_ino == right.st_ino && left.st_dev == right.st_dev;
}

}  // namespace

TEST("messages arrive one by one, in order and whole") {
  const Pair pair = connected();
  for (const std::string text : {"a", "bcd", "ef"}) sendMessage(pair.left.get(), text.data(), text.size());
  for (const std::string text : {"a", "bcd", "ef"}) {
    char buffer[16];
    const Received received = receiveMessage(pair.right.get(), buffer, sizeof buffer);
    EXPECT(std::string(buffer, received.bytes) == text);
    EXPECT(received.files.empty() && !received.wouldBlock);
  }
  char buffer[16];
  EXPECT(receiveMessage(pair.right.get(), buffer, sizeof buffer).wouldBlock);
}

TEST("descriptors arrive in order, close-on-exec, and go with their message") {
  const size_t before = test::openFiles();
  {
    const Pair pair = connected();
    const FileDescriptor sent[] = {someFile(), FileDescriptor(dup(pair.left.get()))};
    const int files[] = {sent[0].get(), sent[1].get()};
    sendMessage(pair.left.get(), "x", 1, files);
    char buffer[1];
    const Received received = receiveMessage(pair.right.get(), buffer, sizeof buffer);
    EXPECT_EQUAL(received.files.size(), 2u);
    for (size_t i = 0; i < 2; i++) {
      EXPECT(received.files[i].get() != files[i]);
      EXPECT(sameFile(received.files[i].get(), files[i]));
      EXPECT(fcntl(received.files[i].get(), F_GETFD) & FD_CLOEXEC);
    }
  }
  EXPECT_EQUAL(test::openFiles(), before);
}

TEST("as many descriptors as a message can have arrive; more are refused by the sender") {
  const Pair pair = connected();
  const FileDescriptor file = someFile();
  const std::vector<int> most(253, file.get());
  sendMessage(pair.left.get(), "x", 1, most);
  char buffer[1];
  EXPECT_EQUAL(receiveMessage(pair.right.get(), buffer, sizeof buffer).files.size(), most.size());
  const std::vector<int> tooMany(254, file.get());
  EXPECT_EQUAL(test::errnoOf([&] { sendMessage(pair.left.get(), "x", 1, tooMany); }), EINVAL);
  EXPECT(receiveMessage(pair.right.get(), buffer, sizeof buffer).wouldBlock);
}

TEST("an oversized message is an error, and its descriptors are closed") {
  const Pair pair = connected();
  const FileDescriptor file = someFile();
  const int files[] = {file.get(), file.get()};
  sendMessage(pair.left.get(), "12345", 5, files);
  sendMessage(pair.left.get(), "next", 4);
  const size_t before = test::openFiles();
  char buffer[4];
  EXPECT_EQUAL(test::errnoOf([&] { receiveMessage(pair.right.get(), buffer, sizeof buffer); }), EMSGSIZE);
  EXPECT_EQUAL(test::openFiles(), before);
  EXPECT_EQUAL(receiveMessage(pair.right.get(), buffer, sizeof buffer).bytes, 4u);
  EXPECT_EQUAL(std::memcmp(buffer, "next", 4), 0);
}

TEST("descriptors of a message that nobody received go with the socket") {
  const size_t before = test::openFiles();
  {
    const Pair pair = connected();
    const FileDescriptor file = someFile();
    const int files[] = {file.get()};
    sendMessage(pair.left.get(), "x", 1, files);
  }
  EXPECT_EQUAL(test::openFiles(), before);
}

TEST("what was sent before the other side closed still arrives, then nothing") {
  Pair pair = connected();
  sendMessage(pair.left.get(), "last", 4);
  pair.left.reset();
  char buffer[8];
  EXPECT_EQUAL(receiveMessage(pair.right.get(), buffer, sizeof buffer).bytes, 4u);
  const Received end = receiveMessage(pair.right.get(), buffer, sizeof buffer);
  EXPECT(end.bytes == 0 && !end.wouldBlock);
}

TEST("a peer that closed without reading counts as gone, and sending to it fails without a signal") {
  Pair pair = connected();
  sendMessage(pair.right.get(), "unread", 6);
  pair.left.reset();
  char buffer[8];
  for (int i = 0; i < 2; i++) {
    const Received end = receiveMessage(pair.right.get(), buffer, sizeof buffer);
    EXPECT(end.bytes == 0 && !end.wouldBlock);
  }
  EXPECT_EQUAL(test::errnoOf([&] { sendMessage(pair.right.get(), "x", 1); }), EPIPE);
}

TEST("a peer that does not read makes sending fail instead of wait") {
  const Pair pair = connected();
  const std::vector<char> message(4096);
  int failed = 0;
  for (int i = 0; i < 10000 && failed == 0; i++) {
    failed = test::errnoOf([&] { sendMessage(pair.left.get(), message.data(), message.size()); });
  }
  EXPECT_EQUAL(failed, EAGAIN);
}

TEST("what a full socket does not take waits, with its descriptors, and arrives in order") {
  const size_t before = test::openFiles();
  {
    const Pair pair = connected();
    Outbox outbox;
    constexpr uint32_t kMessages = 5000;
    for (uint32_t i = 0; i < kMessages; i++) {
      const FileDescriptor file = someFile();
      const int files[] = {file.get()};
      outbox.send(pair.left.get(), &i, sizeof i, i % 100 == 0 ? std::span<const int>(files) : std::span<const int>());
    }
    EXPECT(!outbox.empty());
    uint32_t next = 0;
    while (next < kMessages) {
      uint32_t got = 0;
      const Received received = receiveMessage(pair.right.get(), &got, sizeof got);
      if (received.wouldBlock) {
        EXPECT(!outbox.empty());
        outbox.flush(pair.left.get());
        continue;
      }
      EXPECT_EQUAL(got, next);
      EXPECT_EQUAL(received.files.size(), next % 100 == 0 ? 1u : 0u);
      next++;
    }
    EXPECT(outbox.empty());
  }
  EXPECT_EQUAL(test::openFiles(), before);
}

TEST("what waits for a peer that is gone is an error, and sending while waiting is too") {
  Pair pair = connected();
  Outbox outbox;
  for (int i = 0; outbox.empty(); i++) outbox.send(pair.left.get(), &i, sizeof i);
  pair.right.reset();
  EXPECT_EQUAL(test::errnoOf([&] { outbox.flush(pair.left.get()); }), ECONNRESET);  // it had not read all
  EXPECT_EQUAL(test::errnoOf([&] { sendMessageWaiting(pair.left.get(), "x", 1); }), EPIPE);
}

TEST("a descriptor that is no socket is an error") {
  const FileDescriptor file = someFile();
  char buffer[8];
  EXPECT_EQUAL(test::errnoOf([&] { sendMessage(file.get(), "x", 1); }), ENOTSOCK);
  EXPECT_EQUAL(test::errnoOf([&] { receiveMessage(file.get(), buffer, sizeof buffer); }), ENOTSOCK);
}

TEST("parked files are taken again and again, in order and close-on-exec, and go with their socket") {
  const size_t before = test::openFiles();
  {
    const FileDescriptor first = someFile();
    const Pair other = connected();
    const int files[] = {first.get(), other.left.get()};
    const FileDescriptor parked = parkFiles(files);
    for (int i = 0; i < 2; i++) {
      const std::vector<FileDescriptor> taken = parkedFiles(parked.get());
      EXPECT_EQUAL(taken.size(), 2u);
      for (size_t file = 0; file < 2; file++) {
        EXPECT(sameFile(taken[file].get(), files[file]));
        EXPECT(fcntl(taken[file].get(), F_GETFD) & FD_CLOEXEC);
      }
    }
    EXPECT_EQUAL(test::errnoOf([&] { parkedFiles(other.left.get()); }), EBADF);  // nothing is parked there
  }
  EXPECT_EQUAL(test::openFiles(), before);
}

}  // namespace ublk
