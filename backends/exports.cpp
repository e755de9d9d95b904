#include "exports.hpp"

#include "zip/indexer.hpp"

namespace ublk {

void exportBackends(Napi::Env env, Napi::Object exports) { exportZipIndexer(env, exports); }

}  // namespace ublk
