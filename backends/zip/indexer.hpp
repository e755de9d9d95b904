#pragma once

#include <napi.h>

namespace ublk {

// Gives TypeScript the class ZipIndexer; indexer.ts.
void exportZipIndexer(Napi::Env env, Napi::Object exports);

}  // namespace ublk
