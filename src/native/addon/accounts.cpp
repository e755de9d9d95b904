// Users and groups: whom a name or a connection stands for.
#include <grp.h>
#include <pwd.h>

#include <string>
#include <vector>

#include "bindings.hpp"
#include "common/peer.hpp"

namespace ublk::addon {

namespace {

// Calls one of getpwnam_r(3)'s kind with as much memory as it asks for; false: there is no such entry.
template <typename Entry, typename Call>
bool lookUp(Entry& entry, std::vector<char>& memory, Call call) {
  for (memory.resize(1024);; memory.resize(2 * memory.size())) {
    Entry* found = nullptr;
    const int error = call(&entry, memory.data(), memory.size(), &found);
    if (error == 0) return found != nullptr;
    if (error == ENOENT || error == ESRCH) return false;
    if (error != ERANGE && error != EINTR) throw std::system_error(error, std::generic_category(), "looking up a name");
  }
}

// userOf(name or uid): { uid, gid } with the user's own group, or null.
Napi::Value userOf(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    passwd entry{};
    std::vector<char> memory;
    const bool found = lookUp(entry, memory, [&](passwd* into, char* text, size_t bytes, passwd** result) {
      if (info[0].IsNumber()) return getpwuid_r(info[0].As<Napi::Number>().Uint32Value(), into, text, bytes, result);
      return getpwnam_r(info[0].As<Napi::String>().Utf8Value().c_str(), into, text, bytes, result);
    });
    if (!found) return info.Env().Null();
    Napi::Object user = Napi::Object::New(info.Env());
    user.Set("uid", entry.pw_uid);
    user.Set("gid", entry.pw_gid);
    return user;
  });
}

// groupOf(name): gid, or null.
Napi::Value groupOf(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    group entry{};
    std::vector<char> memory;
    const bool found = lookUp(entry, memory, [&](group* into, char* text, size_t bytes, group** result) {
      return getgrnam_r(info[0].As<Napi::String>().Utf8Value().c_str(), into, text, bytes, result);
    });
    return found ? Napi::Value(Napi::Number::New(info.Env(), entry.gr_gid)) : info.Env().Null();
  });
}

// peerOf(fd): { uid, administrates } of the process that connected the unix socket.
Napi::Value peerOfSocket(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Peer peer = peerOf(info[0].As<Napi::Number>().Int32Value());
    Napi::Object answer = Napi::Object::New(info.Env());
    answer.Set("uid", peer.uid);
    answer.Set("administrates", peer.administrates);
    return answer;
  });
}

}  // namespace

void exportAccounts(Napi::Env env, Napi::Object exports) {
  exports.Set("userOf", Napi::Function::New(env, userOf));
  exports.Set("groupOf", Napi::Function::New(env, groupOf));
  exports.Set("peerOf", Napi::Function::New(env, peerOfSocket));
}

}  // namespace ublk::addon
