#include <utility>
#include <vector>

#include "../channel.hpp"
#include "bindings.hpp"
#include "watcher.hpp"

namespace ublk::addon {

namespace {

// More than a socket takes at once by default.
constexpr size_t kLargestMessage = size_t{256} * 1024;

// Messages with open files, between two processes of the same program.
// new MessageChannel(fd, onMessage(bytes, fds), onClose()) takes the descriptor over.
class MessageChannel final : public Napi::ObjectWrap<MessageChannel> {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("MessageChannel", DefineClass(env, "MessageChannel",
                                              {
                                                  InstanceMethod<&MessageChannel::send>("send"),
                                                  InstanceMethod<&MessageChannel::close>("close"),
                                              }));
  }

  explicit MessageChannel(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<MessageChannel>(info),
        onMessage_(Napi::Persistent(info[1].As<Napi::Function>())),
        onClose_(Napi::Persistent(info[2].As<Napi::Function>())),
        socket_(info[0].As<Napi::Number>().Int32Value()),
        buffer_(kLargestMessage) {
    Ref();
    watcher_.start(
        info.Env(), socket_.get(), [this] { readable(); }, [this] { writable(); });
  }

 private:
  // send(bytes, fds): the caller keeps its descriptors. That the other side is gone shows as its end alone.
  void send(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const auto bytes = info[0].As<Napi::Uint8Array>();
      const Napi::Array files = info[1].As<Napi::Array>();
      std::vector<int> raw;
      for (uint32_t i = 0; i < files.Length(); i++) raw.push_back(files.Get(i).ToNumber().Int32Value());
      try {
        if (socket_) outbox_.send(socket_.get(), bytes.Data(), bytes.ByteLength(), raw);
      } catch (const std::system_error& error) {
        if (error.code().value() != EPIPE && error.code().value() != ECONNRESET) throw;
      }
      watcher_.awaitWritable(!outbox_.empty());
    });
  }

  void close(const Napi::CallbackInfo&) { closeSocket(); }

  void writable() {
    try {
      outbox_.flush(socket_.get());
    } catch (const std::system_error&) {
      outbox_.clear();
    }
    watcher_.awaitWritable(!outbox_.empty());
  }

  void readable() {
    const Napi::HandleScope scope(Env());
    while (socket_) {
      Received received;
      try {
        received = receiveMessage(socket_.get(), buffer_.data(), buffer_.size());
      } catch (const std::system_error&) {
        received.bytes = 0;
      }
      if (received.wouldBlock) return;
      if (received.bytes == 0) {
        closeSocket();
        onClose_.MakeCallback(Env().Global(), {});
        return;
      }
      Napi::Array files = Napi::Array::New(Env(), received.files.size());
      for (uint32_t i = 0; i < received.files.size(); i++) files.Set(i, received.files[i].release());
      onMessage_.MakeCallback(Env().Global(),
                              {Napi::Buffer<std::byte>::Copy(Env(), buffer_.data(), received.bytes), files});
    }
  }

  void closeSocket() {
    if (!socket_) return;
    watcher_.stop();
    socket_.reset();
    outbox_.clear();
    Unref();
  }

  Napi::FunctionReference onMessage_;
  Napi::FunctionReference onClose_;
  FileDescriptor socket_;
  Outbox outbox_;
  Watcher watcher_;
  std::vector<std::byte> buffer_;
};

}  // namespace

void exportMessageChannel(Napi::Env env, Napi::Object exports) { MessageChannel::define(env, exports); }

}  // namespace ublk::addon
