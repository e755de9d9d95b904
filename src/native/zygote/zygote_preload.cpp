// Entry of the preloaded library: turns a node that was started as nursery into one before its main() runs. In a queue
// process that serves in JavaScript the constructor returns, and node boots with the mapping in place.
#include <cstdlib>
#include <optional>

#include "common/inheritance.hpp"
#include "nursery.hpp"

namespace {

std::optional<ublk::Inheritance> inheritance;

[[gnu::constructor]] void enter() {
  if (!getenv("UBLK_SUPERVISOR_NURSERY")) return;
  unsetenv("UBLK_SUPERVISOR_NURSERY");
  unsetenv("LD_PRELOAD");
  inheritance = ublk::runNursery();
}

}  // namespace

extern "C" [[gnu::visibility("default")]] ublk::Inheritance* ublk_supervisor_inheritance() {
  return inheritance ? &*inheritance : nullptr;
}
