// Entry of the preloaded library: turns a node that was started as zygote into one before its main() runs.
#include <cstdlib>

#include "zygote.hpp"

namespace {

[[gnu::constructor]] void enter() {
  if (!getenv("UBLK_SUPERVISOR_ZYGOTE")) return;
  unsetenv("UBLK_SUPERVISOR_ZYGOTE");
  unsetenv("LD_PRELOAD");
  ublk::runZygote();
}

}  // namespace
