// Datagrams to the service manager: Node has no datagram sockets of the AF_UNIX family.
#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

#include "bindings.hpp"
#include "common/file_descriptor.hpp"

namespace ublk::addon {

namespace {

// sendDatagram(address, text): `address` is a path, or @ and a name in the abstract namespace. Never waits: EAGAIN when
// the receiver's queue is full.
Napi::Value sendDatagram(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::string name = info[0].As<Napi::String>();
    const std::string text = info[1].As<Napi::String>();
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (name.empty() || name.size() >= sizeof address.sun_path) {
      throw std::system_error(ENAMETOOLONG, std::generic_category(), "addressing the service manager");
    }
    std::memcpy(address.sun_path, name.data(), name.size());
    if (name[0] == '@') address.sun_path[0] = '\0';
    // An abstract name ends where the address does, a path at its NUL.
    const size_t length = offsetof(sockaddr_un, sun_path) + name.size() + (name[0] == '@' ? 0 : 1);
    const FileDescriptor sender(checked(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket"));
    checked(sendto(sender.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL,
                   reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(length)),
            "sending to the service manager");
    return info.Env().Undefined();
  });
}

}  // namespace

void exportNotify(Napi::Env env, Napi::Object exports) {
  exports.Set("sendDatagram", Napi::Function::New(env, sendDatagram));
}

}  // namespace ublk::addon
