// The N-API surface, one class or group of functions a file. It converts and watches descriptors; decisions are made
// in TypeScript.
#pragma once

#include <napi.h>

#include <system_error>

namespace ublk::addon {

// Turns a system_error into a JavaScript Error with `errno` (positive), which load.ts translates.
template <typename Body>
auto guarded(Napi::Env env, Body&& body) {
  try {
    return body();
  } catch (const std::system_error& error) {
    Napi::Error thrown = Napi::Error::New(env, error.what());
    thrown.Set("errno", Napi::Number::New(env, error.code().value()));
    throw thrown;
  }
}

void exportAccounts(Napi::Env env, Napi::Object exports);
void exportBlockDevices(Napi::Env env, Napi::Object exports);
void exportCloseWatch(Napi::Env env, Napi::Object exports);
void exportFiles(Napi::Env env, Napi::Object exports);
void exportMessageChannel(Napi::Env env, Napi::Object exports);
void exportSystem(Napi::Env env, Napi::Object exports);
void exportZygoteChannel(Napi::Env env, Napi::Object exports);
void exportProcessWatch(Napi::Env env, Napi::Object exports);
void exportJsQueue(Napi::Env env, Napi::Object exports);
void exportNativeDisk(Napi::Env env, Napi::Object exports);
void exportNotify(Napi::Env env, Napi::Object exports);
void exportSharedPages(Napi::Env env, Napi::Object exports);

}  // namespace ublk::addon
