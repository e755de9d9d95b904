#include "../../../backends/exports.hpp"
#include "bindings.hpp"

namespace ublk::addon {

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exportAccounts(env, exports);
  exportBlockDevices(env, exports);
  exportCloseWatch(env, exports);
  exportFiles(env, exports);
  exportMessageChannel(env, exports);
  exportSystem(env, exports);
  exportZygoteChannel(env, exports);
  exportProcessWatch(env, exports);
  exportNativeDisk(env, exports);
  exportNotify(env, exports);
  exportSharedPages(env, exports);
  exportJsQueue(env, exports);
  exportBackends(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(ublk, init)

}  // namespace ublk::addon
