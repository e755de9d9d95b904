#include <vector>

#include "bindings.hpp"
#include "connection.hpp"

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
        connection_(info[0].As<Napi::Number>().Int32Value()),
        buffer_(kLargestMessage) {
    Ref();
    connection_.start(info.Env(), [this] { readable(); });
  }

 private:
  // send(bytes, fds): the caller keeps its descriptors.
  void send(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const auto bytes = info[0].As<Napi::Uint8Array>();
      connection_.send(bytes.Data(), bytes.ByteLength(), descriptorsOf(info[1]));
    });
  }

  void close(const Napi::CallbackInfo&) { closeSocket(); }

  void readable() {
    const Napi::HandleScope scope(Env());
    while (connection_) {
      Received received = connection_.receive(buffer_.data(), buffer_.size());
      if (received.wouldBlock) return;
      if (received.bytes == 0) {
        closeSocket();
        onClose_.MakeCallback(Env().Global(), {});
        return;
      }
      const auto bytes = Napi::Buffer<std::byte>::Copy(Env(), buffer_.data(), received.bytes);
      onMessage_.MakeCallback(Env().Global(), {bytes, handedOver(Env(), received.files)});
    }
  }

  void closeSocket() {
    if (!connection_) return;
    connection_.close();
    Unref();
  }

  Napi::FunctionReference onMessage_;
  Napi::FunctionReference onClose_;
  Connection connection_;
  std::vector<std::byte> buffer_;
};

}  // namespace

void exportMessageChannel(Napi::Env env, Napi::Object exports) { MessageChannel::define(env, exports); }

}  // namespace ublk::addon
