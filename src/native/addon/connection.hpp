#pragma once

#include <napi.h>

#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "common/channel.hpp"
#include "watcher.hpp"

namespace ublk::addon {

// Our end of a socket that keeps messages apart. What it does not take at once waits here.
class Connection {
 public:
  explicit Connection(int fd) : socket_(fd) {}

  void start(Napi::Env env, std::function<void()> onReadable) {
    watcher_.start(env, socket_.get(), std::move(onReadable), [this] { writable(); });
  }

  explicit operator bool() const { return static_cast<bool>(socket_); }
  int socket() const { return socket_.get(); }

  // That the other side is gone shows as the end of what it sends, so that there is one place to learn of it.
  void send(const void* message, size_t bytes, std::span<const int> files) {
    try {
      if (socket_) outbox_.send(socket_.get(), message, bytes, files);
    } catch (const std::system_error& error) {
      if (error.code().value() != EPIPE && error.code().value() != ECONNRESET) throw;
    }
    watcher_.awaitWritable(!outbox_.empty());
  }

  // An end by an error is an end.
  Received receive(void* buffer, size_t capacity) const {
    try {
      return receiveMessage(socket_.get(), buffer, capacity);
    } catch (const std::system_error&) {
      return {};
    }
  }

  void close() {
    watcher_.stop();
    socket_.reset();
    outbox_.clear();
  }

 private:
  void writable() {
    try {
      outbox_.flush(socket_.get());
    } catch (const std::system_error&) {
      outbox_.clear();
    }
    watcher_.awaitWritable(!outbox_.empty());
  }

  FileDescriptor socket_;
  Outbox outbox_;
  Watcher watcher_;
};

// An array of descriptors, which stay the caller's.
inline std::vector<int> descriptorsOf(const Napi::Value& value) {
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<int> raw;
  for (uint32_t i = 0; i < array.Length(); i++) raw.push_back(array.Get(i).ToNumber().Int32Value());
  return raw;
}

// An array of descriptors, which are JavaScript's from here on.
inline Napi::Array handedOver(Napi::Env env, std::span<FileDescriptor> files) {
  Napi::Array array = Napi::Array::New(env, files.size());
  for (uint32_t i = 0; i < files.size(); i++) array.Set(i, files[i].release());
  return array;
}

}  // namespace ublk::addon
