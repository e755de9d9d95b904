#pragma once

#include <napi.h>

namespace ublk {

// What the C++ of backends does for their TypeScript, in the addon alone.
void exportBackends(Napi::Env env, Napi::Object exports);

}  // namespace ublk
